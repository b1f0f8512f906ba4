//! The lab that all steps share, and how a step gets a guest in it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tests::{Transcript, build, session};
use xtask::commands::{Session, put_file};
use xtask::drive::cycles::Expect;
use xtask::drive::domain::clear;
use xtask::drive::guest::{Guest, Limits};
use xtask::host::Host;
use xtask::lab::{Lab, LabConfig, Processor, memory_for};
use xtask::progress::Terminal;
use xtask::xlcfg::{self, GuestConfig};

/// The largest guest of the ladder; the lab's memory is for two of them.
const LARGEST: (u32, u32) = (128, 256);

/// The toolstack makes these at the first guest and keeps them, empty.
const TOOLSTACKS_OWN: [&str; 2] = ["/vm", "/libxl"];

/// A booted lab with the kernel in it.
pub(crate) struct Place {
    host: Lab,
    image: PathBuf,
    kernel: String,
    /// Kept: the next one of this name would empty its logs.
    session: Session,
    guests: u32,
    /// What xenstore held before the first guest.
    nodes_before: Vec<String>,
}

impl Place {
    /// Builds the kernel and boots the lab.
    pub(crate) fn set_up() -> Result<Place> {
        Place::set_up_on("xl", Processor::Usual)
    }

    /// The same on processors of choice, logging as `name`.
    pub(crate) fn set_up_on(name: &str, processor: Processor) -> Result<Place> {
        let session = session(name)?;
        let image = build(&session)?.path;
        let config = LabConfig {
            host_cpus: 2,
            memory: memory_for(LARGEST.0, LARGEST.1, 2),
            shadow_xen: true,
            xen_args: Vec::new(),
            deterministic: false,
            logs: session.logs.clone(),
        };
        let mut host = Lab::boot_on(processor, &config, &session.terminal)?;
        let kernel = put_file(&mut host, "stasis.elf", &image)?;
        let nodes_before = nodes(&mut host)?;
        Ok(Place { host, image, kernel, session, guests: 0, nodes_before })
    }

    /// What takes long is shown there.
    pub(crate) fn terminal(&self) -> &Terminal {
        &self.session.terminal
    }

    /// Where the guests run.
    pub(crate) fn host(&mut self) -> &mut Lab {
        &mut self.host
    }

    /// The kernel in dom0 and here, and where the logs go: for who makes guests otherwise. One is known to have been made.
    pub(crate) fn kernel(&mut self) -> (String, PathBuf, PathBuf) {
        self.guests += 1;
        (self.kernel.clone(), self.image.clone(), self.session.logs.clone())
    }

    /// Starts a guest, waits until it is online and beats, lets `work` do its worst, and makes sure that
    /// the domain is gone afterwards. `work` may end the guest itself.
    pub(crate) fn with_guest(
        &mut self,
        vcpus: u32,
        memory_mib: u32,
        work: impl FnOnce(&mut Guest<'_>) -> Result<()>,
    ) -> Result<()> {
        self.with_guest_of("", vcpus, memory_mib, work)
    }

    /// The same, with `words` on the guest's command line. Under another workload it does not beat.
    pub(crate) fn with_guest_of(
        &mut self,
        words: &str,
        vcpus: u32,
        memory_mib: u32,
        work: impl FnOnce(&mut Guest<'_>) -> Result<()>,
    ) -> Result<()> {
        self.with_guest_that_has(words, (vcpus, vcpus), memory_mib, work)
    }

    /// The same, of whose `max_vcpus` only `vcpus` are online at first.
    pub(crate) fn with_guest_that_has(
        &mut self,
        words: &str,
        (vcpus, max_vcpus): (u32, u32),
        memory_mib: u32,
        work: impl FnOnce(&mut Guest<'_>) -> Result<()>,
    ) -> Result<()> {
        self.guests += 1;
        // A name of its own for each: consoles are logged by name, and a failed step must not speak into the next.
        let name = format!("stasis{}", self.guests);
        let config = GuestConfig {
            name: name.clone(),
            kernel: self.kernel.clone(),
            vcpus,
            max_vcpus,
            memory_mib,
            cmdline: xlcfg::cmdline("heartbeat", words),
        };
        let beats = Expect::from_cmdline(&config.cmdline).heartbeat;
        let mut transcript = Transcript::open(&self.session.logs, &format!("guest-{name}"))?;
        let mut show = |line: &str| transcript.line(line);
        let limits = Limits::for_guest(vcpus, memory_mib);
        let image = Some(self.image.clone());
        let outcome = Guest::create(&mut self.host, config, limits, image, &mut show).and_then(|mut guest| {
            guest.wait_online()?;
            if beats {
                guest.wait_heartbeats(1)?;
            }
            work(&mut guest)
        });
        // The guest destroys itself when it is dropped, and keeps to itself whether that worked.
        let cleared = clear(&mut self.host, &name);
        outcome.with_context(|| format!("guest {name}, {vcpus} vCPUs, {memory_mib} MiB")).and(cleared)
    }

    /// xenstore holds what it held before the first guest, and nothing of any guest.
    pub(crate) fn nothing_left_behind(&mut self) -> Result<()> {
        if self.guests == 0 {
            self.with_guest(2, 32, |guest| guest.power_off())?;
        }
        let now = nodes(&mut self.host)?;
        let ours = |node: &String| !self.nodes_before.contains(node) && !TOOLSTACKS_OWN.contains(&node.as_str());
        let left: Vec<&String> = now.iter().filter(|node| ours(node)).collect();
        if !left.is_empty() {
            bail!("{} guests left {} nodes in xenstore: {left:?}", self.guests, left.len());
        }
        Ok(())
    }
}

/// The path of every node in xenstore.
fn nodes(host: &mut Lab) -> Result<Vec<String>> {
    let listing = host.sh("xenstore-ls -f /", Duration::from_secs(60))?.expect_ok("xenstore-ls")?;
    Ok(listing.lines().filter_map(|line| line.split(" = ").next()).map(str::to_owned).collect())
}
