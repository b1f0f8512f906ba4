//! Suspends a running guest again and again, and holds what it says against what must be true.
//!
//! Owns the three ways to suspend, what each must lead to, and the record of each for the report.
//! Turned down: believing xl's exit code alone; it is 0 for a guest that came back with one vCPU.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::contract::{Event, Phases};
use crate::drive::domain::image;
use crate::drive::guest::Guest;
use crate::drive::watch::is_memory_check;
use crate::logfmt::Line;
use crate::timeline::Timeline;

/// A way to suspend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `xl migrate` to the same machine.
    Migrate,
    /// `xl save`, then `xl restore`.
    SaveRestore,
    /// `xl save -c`: the same domain goes on.
    Checkpoint,
}

impl Kind {
    /// As it is called in reports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Migrate => "migrate",
            Kind::SaveRestore => "save + restore",
            Kind::Checkpoint => "save -c",
        }
    }

    /// The guest says `continued` after it, not `resumed`.
    pub fn continues(self) -> bool {
        self == Kind::Checkpoint
    }

    /// What is run in dom0 for the domain `name`.
    pub fn script(self, name: &str) -> String {
        // In the lab the image takes dom0's memory: it is removed whatever happens.
        let image = image(name);
        match self {
            Kind::Migrate => format!("xl migrate -s '' {name} 'xl migrate-receive'"),
            Kind::SaveRestore => {
                format!("trap 'rm -f {image}' EXIT; xl save {name} {image} && xl restore {image}")
            }
            Kind::Checkpoint => format!("trap 'rm -f {image}' EXIT; xl save -c {name} {image}"),
        }
    }
}

/// Heartbeats to see after a suspend, so that an event that it has cost is known (`kernel/src/workload/heartbeat.rs`): one that may
/// be half over, and as many, one a second, as eight beats of a vCPU take. With up to 100 vCPUs these take a second.
pub fn heartbeats_after(vcpus: u32) -> u32 {
    1 + vcpus.div_ceil(100).clamp(1, 3)
}

/// One suspend that went well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspend {
    /// How.
    pub kind: Kind,
    /// How the guest was asked, `evtchn` or `xenstore`.
    pub via: String,
    /// Which domain the guest is by its own count.
    pub incarnation: u64,
    /// How many vCPUs came back.
    pub vcpus: u32,
    /// The guest's own figures.
    pub phases: Phases,
    /// The vCPU that was last, where the guest tells.
    pub slowest_vcpu: Option<u32>,
    /// How long the commands took, as seen from outside.
    pub took: Duration,
}

/// What to see the guest do besides coming back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expect {
    /// Heartbeats of all vCPUs, none lost, and the memory check after every suspend.
    pub heartbeat: bool,
}

impl Expect {
    /// By the guest's command line.
    pub fn from_cmdline(cmdline: &str) -> Expect {
        Expect {
            heartbeat: cmdline.split_whitespace().any(|word| word.strip_prefix("workload=").is_some_and(beats_under)),
        }
    }
}

/// Whether a guest tells heartbeats, and checks its memory, under this workload.
pub fn beats_under(workload: &str) -> bool {
    ["heartbeat", "soak"].contains(&workload)
}

/// Suspends once and waits until the guest has proved that it is well.
///
/// # Errors
/// When xl fails, the guest fails, or it does not say what it must.
pub fn suspend(guest: &mut Guest<'_>, kind: Kind, expect: Expect) -> Result<Suspend> {
    let next = NextSuspend::of(guest)?;
    let checks_before = guest.watch().memory_checks();
    let started = Instant::now();
    let script = kind.script(guest.name());
    guest.command_ok(&script, guest.limits().transfer)?;
    let done = next.came_back(guest, kind, started.elapsed())?;
    if expect.heartbeat {
        guest.wait_heartbeats(heartbeats_after(done.vcpus)).context("after the suspend")?;
        if guest.watch().memory_checks() == checks_before {
            let what = "the self-check of its memory (`stasis: check name=memory result=pass pages=…`)";
            guest.wait_for(what, guest.limits().word, |said| is_memory_check(said).then_some(()))?;
        }
    }
    Ok(done)
}

/// The timeline of the suspend after the first `before` that the guest has told of; it was started with `trace=suspend`.
///
/// # Errors
/// When it does not tell of it in time.
pub fn timeline(guest: &mut Guest<'_>, before: usize) -> Result<Timeline> {
    loop {
        if let Some(timeline) = guest.watch().timelines().get(before) {
            return Ok(timeline.clone());
        }
        let what = "the timeline of the suspend (`stasis: phases-end`)";
        guest.wait_for(what, guest.limits().word, |said| (said.line.event == "phases-end").then_some(()))?;
    }
}

/// A suspend that has not been asked for yet. What the guest has said so far is passed over, and so is a return without a request
/// before it: both are of an earlier suspend, whose last words may come late.
#[must_use]
#[derive(Debug)]
pub struct NextSuspend(());

impl NextSuspend {
    /// To be had before it is asked for. All suspends before it must be over.
    ///
    /// # Errors
    /// The guest's failure if there is one.
    pub fn of(guest: &mut Guest<'_>) -> Result<NextSuspend> {
        guest.pass_over()?;
        Ok(NextSuspend(()))
    }

    /// Waits for the guest's own word on it: that it was asked, and then that it is back, as after one of this kind.
    ///
    /// # Errors
    /// When it does not come, or when the guest tells of another outcome.
    pub fn came_back(self, guest: &mut Guest<'_>, kind: Kind, took: Duration) -> Result<Suspend> {
        let via = guest.wait_for("`stasis: suspend-request`", guest.limits().word, |said| match &said.event {
            Event::SuspendRequest { via } => Some(via.clone()),
            _ => None,
        })?;
        let word = if kind.continues() { "continued" } else { "resumed" };
        let what = format!("`stasis: {word}`");
        let said = guest.wait_for(&what, guest.limits().word, |said| {
            let over =
                matches!(said.event, Event::Resumed { .. } | Event::Continued { .. } | Event::SuspendAbort { .. });
            over.then(|| said.clone())
        })?;
        let (incarnation, vcpus, phases, slowest_vcpu) = match said.event {
            Event::Resumed { incarnation, vcpus, phases, slowest_vcpu } if !kind.continues() => {
                (incarnation, vcpus, phases, Some(slowest_vcpu))
            }
            Event::Continued { incarnation, vcpus, phases, slowest_vcpu } if kind.continues() => {
                (incarnation, vcpus, phases, slowest_vcpu)
            }
            _ => {
                let Line { event, .. } = &said.line;
                bail!("after {} the guest must say `{word}`, but it says `{event}`: {}", kind.name(), said.line)
            }
        };
        Ok(Suspend { kind, via, incarnation, vcpus, phases, slowest_vcpu, took })
    }
}
