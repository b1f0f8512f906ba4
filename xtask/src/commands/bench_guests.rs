//! The guests of `cargo xtask bench`: how each side is booted, and how it is listened to until it has told everything.
//!
//! Owns what both sides have in common, so that they can be compared: the same number of vCPUs, pinned to the same processors,
//! the TSC as it is, the same number of ports. dom0 keeps to processor 0. Turned down: `drive::guest`, which knows what stasis
//! says about suspends and nothing of another guest.

#![forbid(unsafe_code)]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::bench_ear::Ear;
use super::direct::boot;
use super::put_file;
use crate::bench::Side;
use crate::bench::said::{Broken, Figures, Heard, Listener};
use crate::drive::direct::Goal;
use crate::drive::domain::Domain;
use crate::host::Host;
use crate::lab::{BenchPeer, DirectConfig, Prepared};
use crate::xlcfg::GuestConfig;

/// Any `xl` command.
const COMMAND: Duration = Duration::from_secs(300);

/// A thousand loopback channels have two ports each; xl's own limit is 1023.
const PORTS: u32 = 4095;

/// Told of each bench when all of it has come.
type OnFigures<'a> = &'a mut dyn FnMut(&Figures);

/// What both guests are like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) vcpus: u32,
    pub(super) memory_mib: u32,
}

/// Where the guests' files are in dom0.
#[derive(Debug)]
struct Files {
    stasis: String,
    linux: String,
    initramfs: String,
}

/// Both guests in a dom0, ready to be booted.
pub(super) struct Guests<'h> {
    host: &'h mut dyn Host,
    /// Stasis on this machine, for backtraces.
    image: PathBuf,
    files: Files,
    release: String,
    shape: Shape,
    limit: Duration,
}

impl<'h> Guests<'h> {
    /// Puts everything into dom0, and dom0 on processor 0. A guest may run for `limit`.
    pub(super) fn put(
        host: &'h mut dyn Host,
        image: &Path,
        peer: &BenchPeer,
        shape: Shape,
        limit: Duration,
    ) -> Result<Guests<'h>> {
        let files = Files {
            stasis: put_file(host, "stasis.elf", image)?,
            linux: put_file(host, "peer-vmlinux", &peer.kernel)?,
            initramfs: host.put("peer-initramfs", &peer.initramfs)?,
        };
        host.sh("xl vcpu-pin Domain-0 all 0", COMMAND)?.expect_ok("pinning dom0")?;
        Ok(Guests { host, image: image.to_owned(), files, release: peer.release.clone(), shape, limit })
    }

    /// Where they run, and against which Linux.
    pub(super) fn describe(&self) -> String {
        format!("{}; peer Linux {}", self.host.describe(), self.release)
    }

    /// Boots one side and hears it to its end. Nothing of it is left then.
    pub(super) fn run(
        &mut self,
        side: Side,
        round: u32,
        names: &str,
        abi: &str,
        on_figures: OnFigures<'_>,
    ) -> Result<Vec<Figures>> {
        // A name of its own: what the last one still says on its way out is not heard.
        let name = format!("{}-{abi}-{round}", side.name());
        let path = self
            .host
            .put(&format!("{name}.cfg"), config(&self.files, self.shape, side, &name, names, abi).as_bytes())?;
        self.host.follow(&name)?;
        let mut domain = Domain::new(&mut *self.host, &name);
        domain.host().sh(&format!("xl create {path}"), COMMAND)?.expect_ok("xl create")?;
        let mut ear = Ear::new(side, self.shape.vcpus, self.image.clone()).expect_shutdown();
        let mut listener = Listener::new(side);
        let end = Instant::now() + self.limit;
        while !listener.ended() {
            let left = end.saturating_duration_since(Instant::now());
            match domain.host().lines().recv_timeout(ear.patience(left)) {
                Ok(line) if line.domain == name => {
                    ear.take(&line.text)?;
                    told(listener.take(&line.text), on_figures)?;
                }
                Ok(_) => {}
                Err(why) => return Err(ear.silence(why, "waited for the benches to end", self.limit)),
            }
        }
        Ok(listener.into_figures())
    }
}

/// One guest's file for xl.
fn config(files: &Files, shape: Shape, side: Side, name: &str, names: &str, abi: &str) -> String {
    let (kernel, cmdline, ramdisk) = match side {
        Side::Stasis => (&files.stasis, format!("bench={names} evtchn={abi}"), None),
        Side::Linux => {
            let fifo = u32::from(abi == "fifo");
            // A time before each line would hide whose it is.
            let words = format!("console=hvc0 loglevel=6 printk.time=0 xen.fifo_events={fifo} peer.bench={names}");
            (&files.linux, words, Some(&files.initramfs))
        }
    };
    let Shape { vcpus, memory_mib } = shape;
    let config =
        GuestConfig { name: name.to_owned(), kernel: kernel.clone(), vcpus, max_vcpus: vcpus, memory_mib, cmdline };
    let cpus: Vec<String> = (1..=vcpus).map(|cpu| format!("\"{cpu}\"")).collect();
    let mut text = config.render();
    // Xen would trap each RDTSC otherwise, on a processor whose TSC it does not trust.
    text.push_str("tsc_mode = \"native\"\n");
    text.push_str(&format!("cpus = [{}]\nmax_event_channels = {PORTS}\n", cpus.join(", ")));
    if let Some(ramdisk) = ramdisk {
        text.push_str(&format!("ramdisk = \"{ramdisk}\"\n"));
    }
    text
}

/// Passes on what was heard. A bench that the guest could not run is an error: the table would lack it in silence.
fn told(heard: Result<Heard<'_>, Broken>, on_figures: OnFigures<'_>) -> Result<()> {
    match heard? {
        Heard::Figures(figures) => on_figures(figures),
        Heard::Remark(line) => bail!("the guest could not measure everything: {line}"),
        Heard::Nothing | Heard::End => {}
    }
    Ok(())
}

/// Boots stasis as Xen's initial domain and hears it to its end.
pub(super) fn direct(prepared: &Prepared, config: &DirectConfig, on_figures: OnFigures<'_>) -> Result<Vec<Figures>> {
    let mut listener = Listener::new(Side::Stasis);
    let mut heard = ControlFlow::Continue(());
    boot(prepared, config, Goal::from_cmdline(&config.cmdline, 0), &mut |line| {
        if let ControlFlow::Continue(()) = heard
            && let Err(error) = told(listener.take(line), on_figures)
        {
            heard = ControlFlow::Break(error);
        }
    })?;
    match heard {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) if !listener.ended() => bail!("the guest ended before its benches did"),
        ControlFlow::Continue(()) => Ok(listener.into_figures()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configs(shape: Shape) -> [String; 2] {
        let files = Files { stasis: "/in/stasis".into(), linux: "/in/linux".into(), initramfs: "/in/initramfs".into() };
        [Side::Stasis, Side::Linux].map(|side| config(&files, shape, side, "x", "drain,storm", "fifo"))
    }

    #[test]
    fn the_guests_differ_in_what_they_run_only() {
        let [stasis, linux] = configs(Shape { vcpus: 2, memory_mib: 128 });
        let differ: Vec<&str> = linux.lines().filter(|line| !stasis.lines().any(|other| other == *line)).collect();
        assert_eq!(
            differ,
            [
                "kernel = \"/in/linux\"",
                "extra = \"console=hvc0 loglevel=6 printk.time=0 xen.fifo_events=1 peer.bench=drain,storm\"",
                "ramdisk = \"/in/initramfs\"",
            ]
        );
        assert!(stasis.contains("extra = \"bench=drain,storm evtchn=fifo\"\n"), "{stasis}");
        for line in ["tsc_mode = \"native\"", "cpus = [\"1\", \"2\"]", "vcpus = 2", "memory = 128"] {
            assert!(stasis.lines().any(|other| other == line), "{line} is not in\n{stasis}");
        }
    }

    #[test]
    fn no_key_stands_twice_in_the_largest_guest() {
        for text in configs(Shape { vcpus: 63, memory_mib: 128 }) {
            let mut keys: Vec<&str> = text.lines().filter_map(|line| line.split(" = ").next()).collect();
            keys.sort_unstable();
            let all = keys.len();
            keys.dedup();
            assert_eq!(keys.len(), all, "{text}");
        }
    }

    #[test]
    fn a_linux_that_could_not_measure_is_an_error() {
        let mut listener = Listener::new(Side::Linux);
        let mut figures = |_: &Figures| panic!("there are none");
        told(listener.take("Linux version 6.1.0"), &mut figures).expect("not ours");
        let error = told(listener.take("peer: bench-error name=drain errno=28"), &mut figures).expect_err("it says so");
        assert!(error.to_string().contains("name=drain errno=28"), "{error:#}");
    }
}
