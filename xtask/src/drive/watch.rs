//! Judges what a guest says, line by line: what is a failure wherever it comes, and what is kept.
//!
//! Owns the verdict on a stream of console lines; knows nothing of time, hosts or commands, so it is
//! tested with plain text. A panic is a failure only when its backtrace has been heard out, or the
//! report would lack it. Turned down: judging in each command; a lost event during a migration's
//! warm-up would count in one and not in another.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::fmt;
use std::ops::RangeInclusive;

use crate::contract::{self, Event, Said};
use crate::timeline::{Timeline, Timelines};

/// Lines kept for the report of a failure.
const LAST_WORDS: usize = 30;

/// What a dying guest said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panic {
    /// The CPU that died first.
    pub cpu: u32,
    /// Its words.
    pub msg: String,
    /// Source position of the panic.
    pub at: String,
    /// The raw return addresses that it printed, innermost first.
    pub pcs: Vec<u64>,
}

/// What a guest did that no run may survive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It panicked.
    Panic(Panic),
    /// A self-check failed; the whole line.
    Check(String),
    /// A heartbeat counted lost, doubled or reordered events.
    Lost {
        /// How many.
        lost: u64,
        /// Sequence number of the heartbeat.
        seq: u64,
    },
    /// An event says another number of vCPUs than the guest was given.
    Vcpus {
        /// Which event.
        event: String,
        /// What it says.
        said: u32,
        /// What was asked for.
        given: u32,
    },
    /// It came back with an incarnation that does not follow from the one before.
    Incarnation {
        /// What it said now.
        said: u64,
        /// What it had said before.
        before: u64,
    },
    /// It booted a second time without being asked to.
    BootedAgain,
    /// It shut down by itself, for this reason.
    Shutdown(String),
    /// It broke the contract: the line and what is wrong with it.
    Breach {
        /// The line.
        line: String,
        /// What is wrong.
        why: String,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Panic(Panic { cpu, msg, at, .. }) => {
                write!(f, "the guest panicked on CPU {cpu}: {msg} (at {at})")
            }
            Failure::Check(line) => write!(f, "a self-check of the guest failed: {line}"),
            Failure::Lost { lost, seq } => {
                write!(f, "the guest counted {lost} lost, doubled or reordered events in heartbeat {seq}; must be 0")
            }
            Failure::Vcpus { event, said, given } => {
                write!(f, "`{event}` tells of {said} vCPUs, but the guest was given {given}")
            }
            Failure::Incarnation { said, before } => {
                write!(f, "the guest calls itself incarnation {said} after incarnation {before}")
            }
            Failure::BootedAgain => f.write_str("the guest booted a second time"),
            Failure::Shutdown(reason) => write!(f, "the guest shut down by itself: {reason}"),
            Failure::Breach { line, why } => write!(f, "the guest broke the console contract: {why}: {line}"),
        }
    }
}

impl std::error::Error for Failure {}

/// The judge of one guest's console.
#[derive(Debug)]
pub struct Watch {
    vcpus: u32,
    /// How many of them may be up, as far as is known outside.
    up: RangeInclusive<u32>,
    booted: bool,
    may_shut_down: bool,
    may_boot_again: bool,
    incarnation: Option<u64>,
    continued: bool,
    checks_passed: u64,
    memory_checks: u64,
    timelines: Timelines,
    last_words: VecDeque<String>,
    dying: Option<Panic>,
}

impl Watch {
    /// For a guest that was given `vcpus`.
    pub fn new(vcpus: u32) -> Watch {
        Watch {
            vcpus,
            up: vcpus..=vcpus,
            booted: false,
            may_shut_down: false,
            may_boot_again: false,
            incarnation: None,
            continued: false,
            checks_passed: 0,
            memory_checks: 0,
            timelines: Timelines::default(),
            last_words: VecDeque::new(),
            dying: None,
        }
    }

    /// From now on a `shutdown` event is what we asked for.
    pub fn expect_shutdown(&mut self) {
        self.may_shut_down = true;
    }

    /// The next `boot` is a reboot that we asked for, and the `shutdown` before it too.
    pub fn expect_reboot(&mut self) {
        self.may_shut_down = true;
        self.may_boot_again = true;
    }

    /// From now on so many of its vCPUs are up; a range where they are just being changed.
    pub fn expect_up(&mut self, up: RangeInclusive<u32>) {
        self.up = up;
    }

    /// How many of its vCPUs are up, at most.
    pub fn up(&self) -> u32 {
        *self.up.end()
    }

    /// Self-checks that said "pass" so far.
    pub fn checks_passed(&self) -> u64 {
        self.checks_passed
    }

    /// Those of them that looked at pages of its memory.
    pub fn memory_checks(&self) -> u64 {
        self.memory_checks
    }

    /// Whether it has gone on in the domain that it is in now after a suspend.
    pub fn continued(&self) -> bool {
        self.continued
    }

    /// The timelines of suspends that it has told of, oldest first.
    pub fn timelines(&self) -> &[Timeline] {
        self.timelines.told()
    }

    /// The newest lines, oldest first.
    pub fn last_words(&self) -> impl Iterator<Item = &str> {
        self.last_words.iter().map(String::as_str)
    }

    /// The panic that is still being heard out, if the guest is dying.
    pub fn dying(&self) -> Option<&Panic> {
        self.dying.as_ref()
    }

    /// Takes one console line; the event, if it is one of the contract.
    ///
    /// # Errors
    /// The [`Failure`] that the line makes certain. After a panic this is the first line that no longer
    /// belongs to it; a caller that runs out of lines asks [`Watch::dying`].
    pub fn take(&mut self, text: &str) -> Result<Option<Said>, Failure> {
        if self.last_words.len() == LAST_WORDS {
            self.last_words.pop_front();
        }
        self.last_words.push_back(text.to_owned());
        let said = match contract::read(text) {
            None => return Ok(None),
            Some(Ok(said)) => said,
            Some(Err(breach)) => {
                return Err(Failure::Breach { line: text.to_owned(), why: breach.to_string() });
            }
        };
        match (self.dying.take(), &said.event) {
            (None, _) => {
                self.judge(&said, text)?;
                let breach = |why| Failure::Breach { line: text.to_owned(), why };
                self.timelines.take(&said.line).map_err(breach)?;
            }
            (Some(mut panic), Event::Backtrace { pc, .. }) => {
                panic.pcs.push(*pc);
                self.dying = Some(panic);
            }
            // Another CPU's panic while the first dies adds nothing.
            (Some(panic), Event::Panic { .. }) => self.dying = Some(panic),
            (Some(panic), _) => return Err(Failure::Panic(panic)),
        }
        Ok(Some(said))
    }

    fn judge(&mut self, said: &Said, text: &str) -> Result<(), Failure> {
        match &said.event {
            Event::Boot { vcpus, .. } => {
                if self.booted && !self.may_boot_again {
                    return Err(Failure::BootedAgain);
                }
                if self.may_boot_again {
                    (self.may_boot_again, self.may_shut_down, self.incarnation) = (false, false, None);
                }
                self.booted = true;
                Watch::are_vcpus("boot", *vcpus, &(self.vcpus..=self.vcpus))
            }
            Event::Online { vcpus, .. } => Watch::are_vcpus("online", *vcpus, &self.up),
            Event::Resumed { vcpus, incarnation, .. } => {
                self.next_incarnation(*incarnation, 1)?;
                self.continued = false;
                Watch::are_vcpus("resumed", *vcpus, &self.up)
            }
            Event::Continued { vcpus, incarnation, .. } => {
                self.next_incarnation(*incarnation, 0)?;
                self.continued = true;
                Watch::are_vcpus("continued", *vcpus, &self.up)
            }
            Event::Heartbeat { lost, seq, .. } if *lost > 0 => Err(Failure::Lost { lost: *lost, seq: *seq }),
            Event::Check { pass: false, .. } => Err(Failure::Check(text.to_owned())),
            Event::Check { pass: true, .. } => {
                self.checks_passed += 1;
                self.memory_checks += u64::from(is_memory_check(said));
                Ok(())
            }
            Event::Panic { cpu, msg, at } => {
                self.dying = Some(Panic { cpu: *cpu, msg: msg.clone(), at: at.clone(), pcs: Vec::new() });
                Ok(())
            }
            Event::Shutdown { reason } if !self.may_shut_down => Err(Failure::Shutdown(reason.clone())),
            _ => Ok(()),
        }
    }

    fn are_vcpus(event: &str, said: u32, given: &RangeInclusive<u32>) -> Result<(), Failure> {
        if given.contains(&said) {
            return Ok(());
        }
        Err(Failure::Vcpus { event: event.to_owned(), said, given: *given.end() })
    }

    fn next_incarnation(&mut self, said: u64, step: u64) -> Result<(), Failure> {
        // The first one may count from 0 or 1; from then on each new domain adds one.
        if let Some(before) = self.incarnation.filter(|before| before.checked_add(step) != Some(said)) {
            return Err(Failure::Incarnation { said, before });
        }
        self.incarnation = Some(said);
        Ok(())
    }
}

/// A self-check of the guest's memory that had any page to look at.
pub fn is_memory_check(said: &Said) -> bool {
    let pages = said.line.get("pages").and_then(|pages| pages.parse::<u64>().ok());
    matches!(&said.event, Event::Check { name, pass: true } if name == "memory") && pages > Some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: &str = "stasis: boot version=1 xen=4.17 vcpus=2 mem_pages=9 abi=2l cmdline=\"\"";
    const RESUMED: &str = "prepare_ns=1 blackout_ns=2 resume_ns=3 slowest_vcpu=1";

    fn feed(watch: &mut Watch, lines: &[&str]) -> Result<(), Failure> {
        lines.iter().try_for_each(|line| watch.take(line).map(|_| ()))
    }

    #[test]
    fn a_good_life_has_no_failure() {
        let mut watch = Watch::new(2);
        let resumed = |n| format!("stasis: resumed incarnation={n} vcpus=2 {RESUMED}");
        let lines = [
            "Xen says something",
            BOOT,
            "stasis: online vcpus=2 ns=5",
            "stasis: heartbeat seq=1 vcpus=2 beats_min=9 max_gap_ns=1 lost=0",
            &resumed(1),
            "stasis: check name=memory result=pass pages=7",
            "stasis: check name=memory result=pass pages=0",
            "stasis: check name=memory result=pass",
            "stasis: check name=timer result=pass pages=7",
            "stasis: continued incarnation=1 vcpus=2 prepare_ns=1 blackout_ns=2 resume_ns=3",
            &resumed(2),
            "stasis: something-new a=b",
        ];
        assert_eq!(feed(&mut watch, &lines), Ok(()));
        assert_eq!((watch.checks_passed(), watch.memory_checks()), (4, 1));
        assert!(!watch.continued(), "the last suspend made a new domain");
        watch.expect_shutdown();
        assert_eq!(feed(&mut watch, &["stasis: shutdown reason=poweroff"]), Ok(()));
    }

    #[test]
    fn each_failure_is_found() {
        let given = 2;
        for (line, want) in [
            ("stasis: online vcpus=1 ns=5", Failure::Vcpus { event: "online".into(), said: 1, given }),
            (
                &format!("stasis: resumed incarnation=1 vcpus=1 {RESUMED}"),
                Failure::Vcpus { event: "resumed".into(), said: 1, given },
            ),
            ("stasis: heartbeat seq=3 vcpus=2 beats_min=9 max_gap_ns=1 lost=4", Failure::Lost { lost: 4, seq: 3 }),
            (
                "stasis: check name=memory result=fail page=3",
                Failure::Check("stasis: check name=memory result=fail page=3".into()),
            ),
            ("stasis: shutdown reason=crash", Failure::Shutdown("crash".into())),
            (BOOT, Failure::BootedAgain),
            (
                "stasis: online vcpus=2",
                Failure::Breach { line: "stasis: online vcpus=2".into(), why: "`online` without `ns=`".into() },
            ),
        ] {
            let mut watch = Watch::new(given);
            assert_eq!(feed(&mut watch, &[BOOT]), Ok(()));
            assert_eq!(feed(&mut watch, &[line]), Err(want), "{line}");
        }
    }

    #[test]
    fn incarnations_follow_each_other() {
        let resumed = |n| format!("stasis: resumed incarnation={n} vcpus=2 {RESUMED}");
        for first in [1, 2] {
            let mut watch = Watch::new(2);
            assert_eq!(feed(&mut watch, &[&resumed(first), &resumed(first + 1)]), Ok(()));
            let again = Failure::Incarnation { said: first + 1, before: first + 1 };
            assert_eq!(feed(&mut watch, &[&resumed(first + 1)]), Err(again));
        }
    }

    #[test]
    fn a_panic_is_heard_out() {
        let mut watch = Watch::new(2);
        let lines = [
            "stasis: panic cpu=1 msg=\"no way\" at=kernel/src/x.rs:3",
            "stasis: backtrace cpu=1 pc=0x10",
            "some noise",
            "stasis: backtrace cpu=1 pc=0x20",
        ];
        assert_eq!(feed(&mut watch, &lines), Ok(()));
        let want = Panic { cpu: 1, msg: "no way".into(), at: "kernel/src/x.rs:3".into(), pcs: vec![16, 32] };
        assert_eq!(watch.dying(), Some(&want));
        assert_eq!(feed(&mut watch, &["stasis: shutdown reason=crash"]), Err(Failure::Panic(want)));
    }

    #[test]
    fn a_reboot_that_was_asked_for_is_none() {
        let mut watch = Watch::new(2);
        assert_eq!(feed(&mut watch, &[BOOT]), Ok(()));
        watch.expect_reboot();
        assert_eq!(feed(&mut watch, &["stasis: shutdown reason=reboot", BOOT]), Ok(()));
        assert_eq!(feed(&mut watch, &[BOOT]), Err(Failure::BootedAgain));
    }

    #[test]
    fn the_last_words_are_the_newest() {
        let mut watch = Watch::new(1);
        for n in 0..100 {
            assert_eq!(watch.take(&format!("line {n}")), Ok(None));
        }
        let words: Vec<&str> = watch.last_words().collect();
        assert_eq!((words.len(), words[0], words[29]), (LAST_WORDS, "line 70", "line 99"));
    }
}
