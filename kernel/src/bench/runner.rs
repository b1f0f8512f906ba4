//! Which benches there are, which were asked for, and the run.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::future::Future;
use core::pin::Pin;

use super::report::Report;
use super::{across, bare, bind, calls, here, rendezvous, timer};
use crate::time::{self, TimeRecord};
use crate::{control, cpus, events, executor};

type Running<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// A bench: a name, and what measures and reports it.
pub(crate) struct Bench {
    name: &'static str,
    run: fn(&mut Report) -> Running<'_>,
}

macro_rules! benches {
    ($($name:literal => $bench:path),* $(,)?) => {
        static BENCHES: &[Bench] = &[$(Bench { name: $name, run: |report| Box::pin($bench(report)) }),*];
    };
}

benches! {
    "null-hypercall" => here::null_hypercall,
    "self-event" => here::self_event,
    "self-event-return" => here::self_event_return,
    "drain" => here::drain,
    "ipi-call" => calls::ipi_call,
    "ipi-broadcast" => calls::ipi_broadcast,
    "rendezvous" => rendezvous::rendezvous,
    "event-other" => across::event_other,
    "timer-busy" => timer::timer_busy,
    "storm" => across::storm,
    "bare-ipi" => bare::bare_ipi,
    "bind" => bind::bind,
}

/// What `bench=` asks for.
pub(crate) enum Chosen {
    /// Only their names.
    List,
    /// To run these.
    These(Vec<&'static Bench>),
}

/// There is no such bench.
#[derive(Debug)]
pub(crate) struct Unknown<'a>(&'a str);

impl fmt::Display for Unknown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bench={}: no such bench; there are all", self.0)?;
        BENCHES.iter().try_for_each(|bench| write!(f, ", {}", bench.name))
    }
}

impl Chosen {
    /// Reads the value of `bench=`: names with commas between, or `all`, or `list`.
    ///
    /// # Errors
    /// The first name that is none.
    pub(crate) fn parse(names: &str) -> Result<Chosen, Unknown<'_>> {
        let by_name = |name| BENCHES.iter().find(|bench| bench.name == name).ok_or(Unknown(name));
        match names {
            "list" => Ok(Chosen::List),
            "all" => Ok(Chosen::These(BENCHES.iter().collect())),
            _ => names.split(',').map(by_name).collect::<Result<_, _>>().map(Chosen::These),
        }
    }
}

/// Runs what was chosen and ends the domain. Context: vcpu 0.
pub(crate) fn start(chosen: Chosen) {
    executor::spawn_here(async move {
        match chosen {
            Chosen::List => BENCHES.iter().for_each(|bench| crate::say!("bench-name", name = bench.name)),
            Chosen::These(benches) => run(&benches).await,
        }
        control::power_off("poweroff");
    });
}

async fn run(benches: &[&Bench]) {
    let record = TimeRecord::read(&percpu::vcpu_info().time);
    let mut report = Report::new();
    crate::say!(
        "bench-begin",
        vcpus = cpus::nr(),
        abi = events::get().abi(),
        tsc = if time::tsc_is_emulated() { "emulated" } else { "native" },
        tsc_khz = record.ticks(1_000_000),
        rdtsc = rdtsc_ticks(),
    );
    for bench in benches {
        report.name(bench.name);
        (bench.run)(&mut report).await;
    }
    crate::say!("bench-end", benches = report.lines());
}

/// What one RDTSC costs: the median of a few. The least says nothing where Xen emulates it, and answers with one more than the last
/// of any vcpu rather than going back.
fn rdtsc_ticks() -> u64 {
    let mut ticks: [u64; 33] = core::array::from_fn(|_| time::tsc().abs_diff(time::tsc()));
    ticks.sort_unstable();
    ticks[ticks.len() / 2]
}
