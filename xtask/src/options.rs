//! The options that several commands share.
//!
//! Owns their names, defaults and help texts, so that `--memory` means the same everywhere. Turned
//! down: a configuration file; a command that is typed again should do the same again.

#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};

use crate::bench::downtime::Sched;

/// Where the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum On {
    /// QEMU with real Xen and a Debian dom0, all fetched and kept by xtask.
    Lab,
    /// This machine's own Xen: it must be dom0 and have xl.
    Host,
}

/// What the guest gets.
#[derive(Clone, Debug, Args)]
pub struct GuestOptions {
    /// Virtual processors of the guest.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub vcpus: u32,
    /// Virtual processors that it has, of which --vcpus are online at first; all where not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub maxvcpus: Option<u32>,
    /// Memory of the guest, in MiB.
    #[arg(long, default_value_t = 64, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=524_288))]
    pub memory: u32,
    /// Words for the kernel's command line, such as "workload=idle log=debug".
    ///
    /// Known: evtchn=2l|fifo, workload=heartbeat|idle|blackout|vectors|user|soak, suspend=xenstore|evtchn, test=NAME,
    /// log=LEVEL, trace=off|keep|suspend, resume=parallel|batched|serial, seed=NUMBER. Without workload=, test= or bench= among them, workload=heartbeat is put before.
    #[arg(long, default_value = "", value_name = "WORDS", allow_hyphen_values = true)]
    pub extra: String,
}

impl GuestOptions {
    /// How many virtual processors it has.
    ///
    /// # Errors
    /// When more are to be online.
    pub fn most_vcpus(&self) -> Result<u32> {
        let most = self.maxvcpus.unwrap_or(self.vcpus);
        ensure!(most >= self.vcpus, "--maxvcpus {most} is less than --vcpus {}", self.vcpus);
        Ok(most)
    }
}

/// Where a guest under xl runs.
#[derive(Clone, Copy, Debug, Args)]
pub struct PlaceOptions {
    /// Run in the lab or on this machine's own Xen.
    #[arg(long, value_enum, default_value_t = On::Lab)]
    pub on: On,
    /// Lab only: processors of the emulated machine; 2 where not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub host_cpus: Option<u32>,
    /// Lab only: Debian's Xen as it is.
    ///
    /// It has no shadow paging, so it cannot live-migrate PV guests; everything else works, and the time that
    /// building Xen takes the first time (about 70 s on two processors) is saved.
    #[arg(long)]
    pub stock_xen: bool,
    /// Lab only: Xen's scheduler; its default, credit2, where not given.
    #[arg(long, value_enum)]
    pub sched: Option<Sched>,
    /// Lab only: time is instructions executed, one processor at a time: slower, but what else the machine does makes no difference.
    #[arg(long)]
    pub deterministic: bool,
}

impl PlaceOptions {
    /// Whether anything is asked for that only the lab can be.
    pub fn shapes_the_lab(&self) -> bool {
        self.host_cpus.is_some() || self.stock_xen || self.sched.is_some() || self.deterministic
    }
}

/// What happens to the logs.
#[derive(Clone, Copy, Debug, Args)]
pub struct LogOptions {
    /// Keep this run's logs in a directory of their own.
    ///
    /// Without it they are in target/logs/COMMAND/ until the next run of the same command.
    #[arg(long)]
    pub keep_logs: bool,
}
