//! Soak: guest after guest under `workload=soak`, each suspended and changed at random moments, until the time is up.
//!
//! Owns the order of a run and what must hold after each step: no event lost, memory as it was, all vCPUs up that should be; the
//! guest itself judges the rest, and says so at its end. What happens follows from the seed alone (`plan.rs`): time decides only
//! how much of it. The guest after the one of seed N is that of N + 1, so each can be had alone.

#![forbid(unsafe_code)]

mod plan;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

pub use self::plan::{Action, Plan, Step};
use crate::contract::Event;
use crate::drive::cycles::{Kind, NextSuspend, heartbeats_after};
use crate::drive::guest::{Guest, Limits};
use crate::drive::vcpu_set::{swept, vcpu_set};
use crate::drive::watch::is_memory_check;
use crate::host::Host;
use crate::logfmt::Line;
use crate::xlcfg::GuestConfig;

/// The largest memory that a plan gives a guest.
pub const MEMORY_MIB: u32 = 64;

/// What the guest says at its end.
const CHECK: &str = "stasis: check name=soak ";

/// What to run.
#[derive(Clone, Debug)]
pub struct Soak {
    /// What every decision follows from.
    pub seed: u64,
    /// No guest has more vCPUs.
    pub most_vcpus: u32,
    /// When the last step begins.
    pub duration: Duration,
    /// What the guests are called; each has a number behind it.
    pub name: String,
    /// The kernel, in dom0.
    pub kernel: String,
    /// The kernel, here.
    pub image: PathBuf,
}

/// Who hears of it.
pub struct Ears<'a> {
    /// Every line of the guests.
    pub show: &'a mut dyn FnMut(&str),
    /// Each decision as it is made.
    pub tell: &'a mut dyn FnMut(&str),
}

/// How much was done.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Guests that were powered off.
    pub guests: u32,
    /// How often each way to suspend went well.
    pub suspends: BTreeMap<&'static str, u32>,
    /// How the guests were asked.
    pub via: BTreeMap<String, u32>,
    /// How often the number of vCPUs was set.
    pub sets: u32,
    /// What the guests have counted in all: sends, calls and so on.
    pub counted: BTreeMap<String, u64>,
    /// Self-checks passed.
    pub checks: u64,
}

impl Soak {
    /// Runs it.
    ///
    /// # Errors
    /// At the first thing that is wrong, with the seed that leads there again.
    pub fn run(&self, host: &mut dyn Host, mut ears: Ears<'_>) -> Result<Done> {
        let end = Instant::now() + self.duration;
        let mut done = Done::default();
        (ears.tell)(&format!("seed {}: {}", self.seed, self.command(self.seed)));
        for number in 0_u64.. {
            if number > 0 && Instant::now() >= end {
                break;
            }
            let seed = self.seed.wrapping_add(number);
            let plan = Plan::new(seed, self.most_vcpus);
            (ears.tell)(&format!("guest {number}, {plan}"));
            self.one(number, &plan, host, &mut ears, end, &mut done)
                .with_context(|| format!("guest {number} of seed {}; again by `{}`", self.seed, self.command(seed)))?;
        }
        Ok(done)
    }

    fn command(&self, seed: u64) -> String {
        let minutes = self.duration.as_secs().div_ceil(60).max(1);
        format!("cargo xtask soak --minutes {minutes} --seed {seed} --most-vcpus {}", self.most_vcpus)
    }

    fn one(
        &self,
        number: u64,
        plan: &Plan,
        host: &mut dyn Host,
        ears: &mut Ears<'_>,
        end: Instant,
        done: &mut Done,
    ) -> Result<()> {
        let config = GuestConfig {
            // What one still says on its way out is not the next one's.
            name: format!("{}-{number}", self.name),
            kernel: self.kernel.clone(),
            vcpus: plan.vcpus,
            max_vcpus: plan.vcpus,
            memory_mib: plan.memory_mib,
            cmdline: plan.cmdline(),
        };
        let mut verdict = None;
        let up = Cell::new(plan.vcpus);
        let mut listen = |line: &str| {
            if line.starts_with(CHECK) {
                verdict = Some(line.to_owned());
            }
            if let Some(now) = told_up(line) {
                up.set(now);
            }
            (ears.show)(line);
        };
        let limits = Limits::for_guest(plan.vcpus, plan.memory_mib);
        let mut guest = Guest::create(host, config, limits, Some(self.image.clone()), &mut listen)?;
        guest.wait_online()?;
        guest.watch().expect_up(1..=plan.vcpus);
        beats(&mut guest, &up, 1)?;
        for (step, number) in plan.steps.iter().zip(1..) {
            if Instant::now() >= end {
                (ears.tell)("  the time is up");
                break;
            }
            (ears.tell)(&format!("  {number}: {step}"));
            let context = || format!("step {number}, {step}");
            take(&mut guest, step, &up, done).with_context(context)?;
        }
        guest.power_off()?;
        done.checks += guest.watch().checks_passed();
        drop(guest);
        let verdict = verdict.context("the guest says nothing of how it went (`stasis: check name=soak`)")?;
        let line = Line::parse(&verdict).and_then(Result::ok).with_context(|| format!("unreadable: {verdict}"))?;
        ensure!(line.get("result") == Some("pass"), "the guest says {verdict}");
        add_up(&line, &mut done.counted);
        done.guests += 1;
        Ok(())
    }
}

/// How many vCPUs are up, in a line that tells of one that has come up or gone down.
fn told_up(line: &str) -> Option<u32> {
    let line = Line::parse(line).and_then(Result::ok).filter(|line| line.event == "vcpu")?;
    line.get("up")?.parse().ok()
}

/// Waits for heartbeats of all vCPUs that are up.
fn beats(guest: &mut Guest<'_>, up: &Cell<u32>, count: u32) -> Result<()> {
    let limit = guest.limits().word;
    (0..count).try_for_each(|_| {
        guest.wait_for("a heartbeat of all vCPUs that are up", limit, |said| match said.event {
            Event::Heartbeat { vcpus, beats_min, .. } => (vcpus == up.get() && beats_min > 0).then_some(()),
            _ => None,
        })
    })
}

/// Takes a guest through one step. `up`: how many of its vCPUs are, by its own word.
fn take(guest: &mut Guest<'_>, step: &Step, up: &Cell<u32>, done: &mut Done) -> Result<()> {
    let script = format!("sleep {}.{:03}", step.wait_ms / 1000, step.wait_ms % 1000);
    guest.command_ok(&script, guest.limits().command)?;
    match &step.action {
        Action::Suspend(kind) => {
            let back = suspend(guest, *kind, &kind.script(guest.name()), done)?;
            ensure!(back == up.get(), "{back} vCPUs came back of {}", up.get());
            beats(guest, up, heartbeats_after(back)).context("after the suspend")
        }
        Action::Set(vcpus) => set(guest, *vcpus, up, done),
        Action::Race { kind, sets, then } => {
            let script = race(guest.name(), *kind, sets);
            suspend(guest, *kind, &script, done)?;
            done.sets += u32::try_from(sets.len())?;
            set(guest, *then, up, done)
        }
    }
}

/// Suspends by `script`, and waits until it has come back with its memory as it was. With how many vCPUs.
fn suspend(guest: &mut Guest<'_>, kind: Kind, script: &str, done: &mut Done) -> Result<u32> {
    let next = NextSuspend::of(guest)?;
    let checks_before = guest.watch().memory_checks();
    let started = Instant::now();
    guest.command_ok(script, guest.limits().transfer)?;
    let back = next.came_back(guest, kind, started.elapsed())?;
    if guest.watch().memory_checks() == checks_before {
        let what = "the self-check of its memory (`stasis: check name=memory result=pass pages=…`)";
        guest.wait_for(what, guest.limits().word, |said| is_memory_check(said).then_some(()))?;
    }
    *done.suspends.entry(kind.name()).or_default() += 1;
    *done.via.entry(back.via).or_default() += 1;
    Ok(back.vcpus)
}

/// Has `vcpus` of its vCPUs up, and sees them beat.
fn set(guest: &mut Guest<'_>, vcpus: u32, up: &Cell<u32>, done: &mut Done) -> Result<()> {
    let script = vcpu_set(guest.name(), vcpus);
    guest.command_ok(&script, guest.limits().command)?;
    guest.pass_over()?;
    let what = format!("{vcpus} vCPUs to be up");
    guest.wait_for(&what, guest.limits().word, |said| {
        let is_told = said.line.event == "vcpu" || matches!(said.event, Event::Heartbeat { .. });
        (is_told && up.get() == vcpus).then_some(())
    })?;
    // After a race it may have been on its way to an older number: then it goes on to the last one meanwhile.
    beats(guest, up, 3).with_context(|| format!("with {vcpus} of the vCPUs to be up"))?;
    ensure!(up.get() == vcpus, "{} vCPUs are up, and {vcpus} were to be", up.get());
    done.sets += 1;
    Ok(())
}

/// Suspends while the number of vCPUs is set. Where the domain is not there, between save and restore, setting fails.
fn race(name: &str, kind: Kind, sets: &[(u32, u32)]) -> String {
    let sets: String = sets
        .iter()
        .map(|(ms, vcpus)| format!("sleep {}.{:03}; {}; ", ms / 1000, ms % 1000, vcpu_set(name, vcpus)))
        .collect();
    let script = format!("({sets}) >/dev/null 2>&1 & job=$!\n({}); code=$?; wait $job; exit $code", kind.script(name));
    format!("# {} while the number of vCPUs is set\n{}", kind.name(), swept(name, &script))
}

/// Adds the counts of a guest's last line.
fn add_up(line: &Line, counted: &mut BTreeMap<String, u64>) {
    for key in ["timers", "calls", "sends", "runs", "coalesced", "stale", "moves"] {
        let count = line.get(key).and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
        *counted.entry(key.to_owned()).or_default() += count;
    }
}

impl Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let listed = |counts: &mut dyn Iterator<Item = (&str, u64)>| {
            counts.map(|(what, count)| format!("{count} {what}")).collect::<Vec<_>>().join(", ")
        };
        let suspends = listed(&mut self.suspends.iter().map(|(what, count)| (*what, u64::from(*count))));
        let via = listed(&mut self.via.iter().map(|(what, count)| (what.as_str(), u64::from(*count))));
        let counted = listed(&mut self.counted.iter().map(|(what, count)| (what.as_str(), *count)));
        let Done { guests, sets, checks, .. } = self;
        write!(
            f,
            "{guests} guests; suspends: {suspends}; asked by: {via}; vCPUs set {sets} times.\n\
             Counted in the guests: {counted}. No event lost, self-checks passed: {checks}."
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_race_ends_with_the_suspends_own_exit_code() {
        let script = race("stasis0", Kind::Checkpoint, &[(1250, 3), (7, 1)]);
        let raced = "(sleep 1.250; xl vcpu-set --ignore-host stasis0 3; sleep 0.007; xl vcpu-set --ignore-host stasis0 1; ) \
             >/dev/null 2>&1 & job=$!\n\
             (trap 'rm -f /var/lib/xen/stasis0.save' EXIT; xl save -c stasis0 /var/lib/xen/stasis0.save); code=$?; wait $job; exit $code";
        assert_eq!(script, format!("# save -c while the number of vCPUs is set\n{}", swept("stasis0", raced)));
    }

    #[test]
    fn how_many_are_up_is_what_the_last_change_says() {
        assert_eq!(told_up("stasis: vcpu cpu=3 state=down up=2 ns=5"), Some(2));
        assert_eq!(told_up("stasis: vcpu cpu=3 state=up up=4 ns=5 failed=\"no\""), Some(4));
        for other in ["stasis: online vcpus=3 ns=5", "stasis: vcpu cpu=3", "(XEN) vcpu up=3"] {
            assert_eq!(told_up(other), None, "{other}");
        }
    }

    #[test]
    fn what_was_done_is_added_up() {
        let mut done = Done { guests: 2, sets: 3, checks: 9, ..Done::default() };
        done.suspends.insert("save -c", 4);
        done.via.insert("evtchn".into(), 4);
        for _ in 0..2 {
            let line = "stasis: check name=soak result=pass timers=5 calls=6 sends=7";
            add_up(&Line::parse(line).expect("ours").expect("well formed"), &mut done.counted);
        }
        let text = done.to_string();
        assert!(text.contains("2 guests; suspends: 4 save -c; asked by: 4 evtchn; vCPUs set 3 times"), "{text}");
        assert!(text.contains("12 calls") && text.contains("14 sends") && text.contains("10 timers"), "{text}");
    }
}
