//! The guests of `cargo xtask bench downtime`: each is booted, measures its rendezvous, and is then suspended in every way asked for.
//!
//! Owns what both sides have in common, so that they can be compared: the same vCPUs and memory, on all processors of the machine,
//! which they share with dom0 as guests do; the TSC as it is; the same commands. Turned down: `drive::guest`, which knows what stasis
//! says and nothing of another guest.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::bench_ear::Ear;
use super::put_file;
use crate::bench::Side;
use crate::bench::downtime::said::{Heard, Listener};
use crate::bench::downtime::{Boot, Sched, Stops, Suspended};
use crate::drive::cycles::Kind;
use crate::drive::domain::Domain;
use crate::host::{Host, info_value};
use crate::lab::BenchPeer;
use crate::xlcfg::GuestConfig;

/// An `xl` command that moves no memory.
const COMMAND: Duration = Duration::from_secs(300);

/// One guest, to be booted and suspended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task<'t> {
    pub(super) sched: Sched,
    pub(super) round: u32,
    pub(super) vcpus: u32,
    pub(super) memory_mib: u32,
    pub(super) side: Side,
    pub(super) operations: &'t [Kind],
}

/// Told of what is measured as it comes.
pub(super) enum News<'n> {
    /// A line of the guest's console.
    Says(&'n str),
    Stops(&'n Stops),
    Suspends(Kind),
    Suspended(Kind, &'n Suspended),
}

type OnNews<'a> = &'a mut dyn FnMut(News<'_>);

/// Where the guests' files are in dom0.
#[derive(Debug)]
struct Files {
    stasis: String,
    /// Kernel and initramfs; `None` where stasis is alone.
    linux: Option<(String, String)>,
}

/// The guests' files in a dom0, ready to be booted.
pub(super) struct Guests<'h> {
    host: &'h mut dyn Host,
    /// Stasis on this machine, for backtraces.
    image: PathBuf,
    files: Files,
    /// What a boot, a command or an answer may take.
    limit: Duration,
}

impl<'h> Guests<'h> {
    /// Puts everything into dom0.
    pub(super) fn put(
        host: &'h mut dyn Host,
        image: &Path,
        peer: Option<&BenchPeer>,
        limit: Duration,
    ) -> Result<Guests<'h>> {
        let stasis = put_file(host, "stasis.elf", image)?;
        let linux = match peer {
            None => None,
            Some(peer) => {
                let kernel = put_file(host, "peer-vmlinux", &peer.kernel)?;
                Some((kernel, host.put("peer-initramfs", &peer.initramfs)?))
            }
        };
        Ok(Guests { host, image: image.to_owned(), files: Files { stasis, linux }, limit })
    }

    /// Ticks of the TSC in a millisecond as Xen has measured it, for all guests alike.
    ///
    /// # Errors
    /// When Xen does not run under `sched`, or does not say what is asked.
    pub(super) fn tsc_khz(&mut self, sched: Sched) -> Result<u64> {
        let info = self.host.sh("xl info", COMMAND)?.expect_ok("xl info")?;
        let running = info_value(&info, "xen_scheduler");
        if running != sched.name() {
            bail!("Xen was to run under sched={}, and says it runs under {running}", sched.name());
        }
        khz(info_value(&info, "cpu_mhz")).with_context(|| format!("`xl info` tells no cpu_mhz:\n{info}"))
    }

    /// Whether there is still a dom0 to boot the next one in.
    pub(super) fn are_at_home(&mut self) -> bool {
        self.host.sh("xl list", COMMAND).is_ok_and(|exit| exit.ok())
    }

    /// Boots one guest, suspends it, and destroys it.
    pub(super) fn run(&mut self, task: Task<'_>, on_news: OnNews<'_>) -> Result<Boot> {
        let Task { sched, round, vcpus, side, operations, .. } = task;
        // A name of its own: what the last one still says on its way out is not heard.
        let name = format!("{}-{vcpus}-{round}", side.name());
        let path = self.host.put(&format!("{name}.cfg"), config(&self.files, task, &name)?.as_bytes())?;
        self.host.follow(&name)?;
        let mut domain = Domain::new(&mut *self.host, &name);
        domain.host().sh(&format!("xl create {path}"), self.limit)?.expect_ok("xl create")?;
        let ear = Ear::new(side, vcpus, self.image.clone());
        let mut hearer = Hearer { ear, listener: Listener::new(side, vcpus) };
        let stops =
            hearer.wait(&mut domain, on_news, self.limit, "waited until it is ready to be suspended", |heard| {
                match heard {
                    Heard::Ready(stops) => Some(stops),
                    _ => None,
                }
            })?;
        on_news(News::Stops(&stops));
        let mut suspends = Vec::new();
        for kind in operations.iter().copied() {
            on_news(News::Suspends(kind));
            let suspended =
                suspend(&mut domain, &mut hearer, on_news, kind, self.limit).with_context(|| kind.name())?;
            on_news(News::Suspended(kind, &suspended));
            suspends.push((kind, suspended));
        }
        Ok(Boot { sched, round, vcpus, side, stops, suspends })
    }
}

/// One suspend, until the guest has told what it cost.
fn suspend(
    domain: &mut Domain<'_>,
    hearer: &mut Hearer,
    on_news: OnNews<'_>,
    kind: Kind,
    limit: Duration,
) -> Result<Suspended> {
    let script = kind.script(domain.name());
    let exit = domain.host().sh(&script, limit)?;
    if !exit.ok() {
        // A guest that died explains the command's failure, and not the other way round.
        hearer.drain(domain, on_news)?;
        bail!(
            "xl failed with exit code {}:\n{}\nlast words:\n{}",
            exit.code,
            exit.output.trim_end(),
            hearer.ear.words()
        );
    }
    let suspended = hearer.wait(domain, on_news, limit, "waited for what the suspend cost", |heard| match heard {
        Heard::Suspended(suspended) => Some(suspended),
        _ => None,
    })?;
    if suspended.continued != kind.continues() {
        bail!(
            "the guest {} in a domain of its own",
            if suspended.continued { "did not come back" } else { "came back" }
        );
    }
    Ok(suspended)
}

/// `2399.998` MHz in kHz.
fn khz(mhz: &str) -> Option<u64> {
    let (whole, part) = mhz.split_once('.').unwrap_or((mhz, "0"));
    let part: u64 = format!("{part:0<3}").get(..3)?.parse().ok()?;
    let whole: u64 = whole.parse().ok()?;
    (whole > 0).then_some(whole * 1000 + part)
}

/// One guest's file for xl.
fn config(files: &Files, task: Task<'_>, name: &str) -> Result<String> {
    let (kernel, cmdline, ramdisk) = match (task.side, &files.linux) {
        (Side::Stasis, _) => (&files.stasis, "workload=blackout".to_owned(), None),
        (Side::Linux, Some((kernel, ramdisk))) => {
            // A time before each line would hide whose it is.
            (kernel, "console=hvc0 loglevel=6 printk.time=0 peer.downtime".to_owned(), Some(ramdisk))
        }
        (Side::Linux, None) => bail!("there is no Linux to boot"),
    };
    let Task { vcpus, memory_mib, .. } = task;
    let config =
        GuestConfig { name: name.to_owned(), kernel: kernel.clone(), vcpus, max_vcpus: vcpus, memory_mib, cmdline };
    let mut text = config.render();
    // The TSC of the host for both, before and after: Xen would trap each RDTSC otherwise.
    text.push_str("tsc_mode = \"native\"\n");
    if let Some(ramdisk) = ramdisk {
        text.push_str(&format!("ramdisk = \"{ramdisk}\"\n"));
    }
    Ok(text)
}

/// Hears one guest: what it measures, and whether it dies over it.
struct Hearer {
    ear: Ear,
    listener: Listener,
}

impl Hearer {
    /// Hears lines until `pick` takes something of them. `what` is for the error: waited until it.
    fn wait<T>(
        &mut self,
        domain: &mut Domain<'_>,
        on_news: OnNews<'_>,
        limit: Duration,
        what: &str,
        mut pick: impl FnMut(Heard) -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + limit;
        let name = domain.name().to_owned();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match domain.host().lines().recv_timeout(self.ear.patience(left)) {
                Ok(line) if line.domain == name => {
                    if let Some(picked) = pick(self.take(&line.text, on_news)?) {
                        return Ok(picked);
                    }
                }
                Ok(_) => {}
                Err(why) => return Err(self.ear.silence(why, what, limit)),
            }
        }
    }

    /// Hears what has been said already, and a dying guest out.
    fn drain(&mut self, domain: &mut Domain<'_>, on_news: OnNews<'_>) -> Result<()> {
        let name = domain.name().to_owned();
        loop {
            let rest = if self.ear.is_dying() { self.ear.patience(Duration::MAX) } else { Duration::ZERO };
            match domain.host().lines().recv_timeout(rest) {
                Ok(line) if line.domain == name => drop(self.take(&line.text, on_news)?),
                Ok(_) => {}
                Err(why) if self.ear.is_dying() => return Err(self.ear.silence(why, "waited for its end", rest)),
                Err(_) => return Ok(()),
            }
        }
    }

    fn take(&mut self, line: &str, on_news: OnNews<'_>) -> Result<Heard> {
        on_news(News::Says(line));
        self.ear.take(line)?;
        match self.listener.take(line)? {
            Heard::Wrong(line) => bail!("the guest could not do it: {line}; its last words:\n{}", self.ear.words()),
            heard => Ok(heard),
        }
    }
}

#[cfg(test)]
#[path = "bench_downtime_fake.rs"]
mod tests;
