//! What a soak does to one guest: all of it follows from a seed.
//!
//! Owns the decisions, made before the guest is. Pure. Turned down: a generator that is asked while the guest runs; what it
//! decides would follow from how fast things went.

#![forbid(unsafe_code)]

use std::fmt;
use std::ops::RangeInclusive;

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use crate::drive::cycles::Kind;

/// Suspends and changes in the life of one guest.
const STEPS: RangeInclusive<u32> = 4..=9;
/// Between two of them.
const WAIT_MS: RangeInclusive<u32> = 0..=2500;
/// How many times the number of vCPUs is set while a suspend runs, and how long after the one before.
const RACES: RangeInclusive<u32> = 1..=3;
const RACE_MS: RangeInclusive<u32> = 0..=1500;

/// One guest, and what happens to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What all of it follows from; the guest draws its own random numbers from it, too.
    pub seed: u64,
    /// The guest's vCPUs.
    pub vcpus: u32,
    /// Its memory.
    pub memory_mib: u32,
    /// `evtchn=`
    pub abi: &'static str,
    /// `suspend=`
    pub suspend: &'static str,
    /// In this order.
    pub steps: Vec<Step>,
}

/// A moment, and what happens then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// After the one before is over.
    pub wait_ms: u32,
    /// What.
    pub action: Action,
}

/// What can happen to a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is suspended and comes back.
    Suspend(Kind),
    /// So many of its vCPUs are to be up.
    Set(u32),
    /// It is suspended while that is set again and again.
    Race {
        /// How it is suspended.
        kind: Kind,
        /// How long after the start or the one before, and to what.
        sets: Vec<(u32, u32)>,
        /// What is set when the suspend is over.
        then: u32,
    },
}

impl Plan {
    /// The plan that follows from `seed`, for a guest of up to `most_vcpus`.
    pub fn new(seed: u64, most_vcpus: u32) -> Plan {
        let mut random = Random(SplitMix64::seed_from_u64(seed));
        let vcpus = random.within(1..=most_vcpus);
        let memory_mib = random.one_of([32, 48, 64]);
        let abi = random.one_of(["2l", "fifo"]);
        let suspend = random.one_of(["xenstore", "evtchn"]);
        let steps = (0..random.within(STEPS)).map(|_| Step::new(&mut random, vcpus)).collect();
        Plan { seed, vcpus, memory_mib, abi, suspend, steps }
    }

    /// The guest's command line.
    pub fn cmdline(&self) -> String {
        format!("workload=soak evtchn={} suspend={} seed={}", self.abi, self.suspend, self.seed)
    }
}

impl Step {
    fn new(random: &mut Random, vcpus: u32) -> Step {
        let wait_ms = random.within(WAIT_MS);
        let kind = random.one_of([Kind::Checkpoint, Kind::SaveRestore, Kind::Migrate]);
        // A guest with one vCPU has none to take down.
        let what = if vcpus == 1 { 0 } else { random.within(0..=5) };
        let action = match what {
            0..=2 => Action::Suspend(kind),
            3 => Action::Set(random.within(1..=vcpus)),
            _ => {
                let times = random.within(RACES);
                let sets = (0..times).map(|_| (random.within(RACE_MS), random.within(1..=vcpus))).collect();
                Action::Race { kind, sets, then: random.within(1..=vcpus) }
            }
        };
        Step { wait_ms, action }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { seed, vcpus, memory_mib, steps, .. } = self;
        write!(f, "seed {seed}: {vcpus} vCPUs, {memory_mib} MiB, {}, {} steps", self.cmdline(), steps.len())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {} ms {}", self.wait_ms, self.action)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Suspend(kind) => f.write_str(kind.name()),
            Action::Set(vcpus) => write!(f, "vcpu-set {vcpus}"),
            Action::Race { kind, sets, then } => {
                write!(f, "{} against vcpu-set", kind.name())?;
                for (after_ms, vcpus) in sets {
                    write!(f, " {vcpus} (+{after_ms} ms)")?;
                }
                write!(f, ", then vcpu-set {then}")
            }
        }
    }
}

/// Every seed has a stream of its own, also those that follow each other.
struct Random(SplitMix64);

impl Random {
    fn within(&mut self, range: RangeInclusive<u32>) -> u32 {
        let width = u64::from(range.end() - range.start()) + 1;
        let drawn = (u128::from(self.0.next_u64()) * u128::from(width)) >> 64;
        range.start() + u32::try_from(drawn).expect("it is below a width of u32")
    }

    fn one_of<T: Copy, const N: usize>(&mut self, all: [T; N]) -> T {
        let last = u32::try_from(N - 1).expect("a list in a source file");
        all[self.within(0..=last) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_follows_from_its_seed() {
        let plan = Plan::new(1, 4);
        let want = "seed 1: 3 vCPUs, 64 MiB, workload=soak evtchn=fifo suspend=xenstore seed=1, 6 steps";
        assert_eq!(plan.to_string(), want, "a seed means what it has always meant");
        let step = "after 1613 ms migrate against vcpu-set 1 (+99 ms) 1 (+744 ms) 1 (+430 ms), then vcpu-set 2";
        assert_eq!(plan.steps[3].to_string(), step);
        assert_ne!(Plan::new(7, 8).steps, Plan::new(8, 8).steps);
        let plan = Plan::new(u64::MAX, 8);
        assert!(plan.cmdline().ends_with("seed=18446744073709551615"), "{}", plan.cmdline());
    }

    #[test]
    fn plans_keep_to_the_guest_and_leave_nothing_out() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..500 {
            let plan = Plan::new(seed, 6);
            assert!((1..=6).contains(&plan.vcpus) && STEPS.contains(&u32::try_from(plan.steps.len()).expect("few")));
            seen.insert(format!("{} vCPUs", plan.vcpus));
            seen.insert(format!("{} {} MiB", plan.abi, plan.memory_mib));
            seen.insert(plan.suspend.to_owned());
            for step in &plan.steps {
                assert!(WAIT_MS.contains(&step.wait_ms));
                let (word, set) = match &step.action {
                    Action::Suspend(kind) => (kind.name(), vec![]),
                    Action::Set(vcpus) => ("set", vec![*vcpus]),
                    Action::Race { kind, sets, then } => {
                        seen.insert(format!("race {}", kind.name()));
                        ("race", sets.iter().map(|(_, vcpus)| *vcpus).chain([*then]).collect())
                    }
                };
                assert!(set.iter().all(|vcpus| (1..=plan.vcpus).contains(vcpus)), "{plan}: {step}");
                assert!(set.is_empty() || plan.vcpus > 1, "{plan}: {step}");
                seen.insert(word.to_owned());
            }
        }
        assert_eq!(seen.len(), 6 + 2 * 3 + 2 + 5 + 3, "{seen:?}");
    }

    #[test]
    fn a_step_says_all_that_it_does() {
        let race = Action::Race { kind: Kind::Migrate, sets: vec![(120, 2), (7, 3)], then: 4 };
        let text = Step { wait_ms: 30, action: race }.to_string();
        assert_eq!(text, "after 30 ms migrate against vcpu-set 2 (+120 ms) 3 (+7 ms), then vcpu-set 4");
    }
}
