//! Which vcpus are to be up: what the toolstack says of each in `cpu/N/availability`, at boot and whenever `xl vcpu-set` changes
//! it.
//!
//! One task on vcpu 0, which alone changes who is up. What changes together is done together: however many vcpus go down, in
//! one rendezvous. What cannot be done now is tried again, and said once each time. A vcpu of which nothing is said stays as it
//! is; at boot, it is started. After a restore all is read anew: the new domain says what the saved one did, as a rule.
//!
//! Turned down: starting all and taking down those that should not be (Linux does): a domain with `vcpus=2` and
//! `maxvcpus=128` would run 128 of them first.

use core::convert::Infallible;
use core::fmt;
use core::future::Future;
use core::pin::pin;
use core::task::Poll;

use percpu::{CpuId, CpuSet};
use xenbus::vcpus::{Availability, NODE, availability_of_all, vcpu_of};
use xenbus::{Change, Store, Watch};

use crate::control::{Failed, RETRY_NS, answered, complain};
use crate::{cpus, time, timer, workload};

/// What the toolstack wants, of those vcpus of which it says something.
struct Wanted {
    online: CpuSet,
    offline: CpuSet,
    /// They could not be read.
    unread: CpuSet,
}

/// The watch on all of them, where there is one, and who is to run at boot.
pub(crate) async fn at_boot(store: &'static Store) -> (Option<Watch<'static>>, CpuSet) {
    let all = CpuSet::first(cpus::nr());
    if cpus::nr() == 1 {
        return (None, all);
    }
    // First the watch: what changes after the nodes have been read, it tells.
    let mut watch = match answered(store.watch(NODE, NODE)).await {
        Ok(watch) => watch,
        Err(error) => {
            complain(NODE, &error);
            return (None, all);
        }
    };
    // The first change is that there is a watch.
    while if_ready(watch.changed()).await.is_some() {}
    let wanted = read(store, &all).await;
    (Some(watch), all.iter().filter(|cpu| *cpu == CpuId::BOOT || !wanted.offline.contains(*cpu)).collect())
}

/// Follows the toolstack for ever. `watch` is that of [`at_boot`].
pub(crate) async fn serve(store: &'static Store, watch: Option<Watch<'static>>) {
    if cpus::nr() == 1 {
        return;
    }
    let mut watch = watch;
    loop {
        let Err(error) = serve_until_error(store, watch.take()).await;
        complain(NODE, &error);
        timer::sleep(RETRY_NS).await;
    }
}

async fn serve_until_error(store: &'static Store, watch: Option<Watch<'static>>) -> Result<Infallible, Failed> {
    let mut watch = match watch {
        Some(watch) => watch,
        None => answered(store.watch(NODE, NODE)).await?,
    };
    let mut look = CpuSet::empty();
    loop {
        if look.is_empty() {
            // Takes as long as it takes.
            note_change(&mut look, watch.changed().await.map_err(Failed::Store)?);
        } else {
            timer::sleep(RETRY_NS).await;
        }
        // All that is there by now, as one.
        while let Some(change) = if_ready(watch.changed()).await {
            note_change(&mut look, change.map_err(Failed::Store)?);
        }
        let wanted = read(store, &look).await;
        look = follow(wanted).await;
    }
}

fn note_change(look: &mut CpuSet, change: Change) {
    let vcpu = match change {
        Change::Path(path) => vcpu_of(&path),
        Change::Everything => None,
    };
    match vcpu {
        Some(vcpu) => {
            if let Some(cpu) = CpuId::from_vcpu(vcpu).filter(|cpu| cpu.index() < cpus::nr()) {
                look.insert(cpu);
            }
        }
        None => *look = CpuSet::first(cpus::nr()),
    }
}

/// What `future` has already, if it has.
async fn if_ready<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    core::future::poll_fn(|context| {
        Poll::Ready(match future.as_mut().poll(context) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        })
    })
    .await
}

async fn read(store: &Store, look: &CpuSet) -> Wanted {
    let mut wanted = Wanted { online: CpuSet::empty(), offline: CpuSet::empty(), unread: look.clone() };
    let all = availability_of_all(store, look.iter().map(CpuId::vcpu), |vcpu, answer| {
        let Some(cpu) = CpuId::from_vcpu(vcpu) else { return };
        match answer {
            Ok(Availability::Online) => wanted.online.insert(cpu),
            Ok(Availability::Offline) => wanted.offline.insert(cpu),
            Ok(Availability::Absent) => false,
            Ok(Availability::Unknown(text)) => {
                crate::note!(
                    Warn,
                    "cpu/{vcpu}/availability: {text} is neither online nor offline; vcpu {vcpu} stays as it is"
                );
                false
            }
            Err(error) => {
                complain(NODE, &error);
                return;
            }
        };
        wanted.unread.remove(cpu);
    });
    let all = async {
        all.await;
        Ok(())
    };
    if let Err(error) = answered(all).await {
        complain(NODE, &error);
    }
    wanted
}

/// Does what is wanted. Whom to look at again, because it could not be done.
async fn follow(wanted: Wanted) -> CpuSet {
    let mut again = wanted.unread;
    if wanted.offline.contains(CpuId::BOOT) {
        say(CpuId::BOOT, "up", Some(&"vcpu 0 cannot go down"), 0);
    }
    // One that does not go down can only be waited for, also if it is to come back.
    let is_leaving = |cpu: &CpuId| !cpus::is_up(*cpu) && !cpus::is_down(*cpu);
    let down = wanted.offline.iter().filter(|cpu| *cpu != CpuId::BOOT && !cpus::is_down(*cpu));
    let down: CpuSet = down.chain(wanted.online.iter().filter(is_leaving)).collect();
    if !down.is_empty() {
        let start_ns = time::now_ns();
        workload::vcpus_leave(&down).await;
        let taken = cpus::take_down(&down).await;
        let ns = time::now_ns() - start_ns;
        for cpu in down.iter() {
            let state = state_of(cpu);
            match &taken {
                Err(error) if state != "down" => {
                    say(cpu, state, Some(error), ns);
                    again.insert(cpu);
                }
                _ => say(cpu, state, None, ns),
            }
        }
        workload::vcpus_changed();
    }
    for cpu in wanted.online.iter().filter(|cpu| cpus::is_down(*cpu)) {
        let start_ns = time::now_ns();
        let up = cpus::bring_up(cpu).await;
        let ns = time::now_ns() - start_ns;
        match &up {
            Ok(()) => say(cpu, "up", None, ns),
            Err(error) => {
                say(cpu, state_of(cpu), Some(error), ns);
                again.insert(cpu);
            }
        }
    }
    again
}

fn state_of(cpu: CpuId) -> &'static str {
    match (cpus::is_up(cpu), cpus::is_down(cpu)) {
        (true, _) => "up",
        (false, true) => "down",
        (false, false) => "leaving",
    }
}

/// How it is with `cpu` now, and why it is not as it was wanted.
fn say(cpu: CpuId, state: &str, failed: Option<&dyn fmt::Display>, ns: u64) {
    match failed {
        None => crate::say!("vcpu", cpu = cpu, state = state, up = cpus::nr_up(), ns = ns),
        Some(why) => crate::say!("vcpu", cpu = cpu, state = state, up = cpus::nr_up(), ns = ns, failed = why),
    }
}
