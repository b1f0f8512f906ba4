//! A host without a machine: answers the scripts that `drive` runs and speaks for the guest.
//!
//! Owns the tests of `guest` and `cycles`. One well-behaved guest and one knob per way to go wrong, so
//! each test is the good run with one thing changed. No threads, no time: all lines are in the channel
//! before the script returns. Turned down: mocks that list expected calls; they test the script's text.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::cycles::{Expect, Kind, Suspend, suspend};
use super::guest::{Guest, Limits};
use super::watch::{Failure, Panic};
use crate::contract::Phases;
use crate::ending::AtEnd;
use crate::host::{ConsoleLine, Exit, Host};
use crate::xlcfg::GuestConfig;

/// The one thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Nothing,
    CreateFails,
    PanicsAtBoot,
    NeverPrints,
    ConsoleEnds,
    OnlineWithFewer,
    CommandFails,
    CommandHangs,
    ResumesWithFewer,
    NeverResumes,
    ContinuesInstead,
    Aborts,
    LateWords,
    Panics,
    PanicsWithoutMore,
    LosesEvents,
    OneCpuSilent,
    CheckFails,
    NoCheck,
    ChecksNothing,
    LeavesThingsBehind,
}

struct FakeHost {
    fault: Fault,
    vcpus: u32,
    incarnation: u64,
    /// No xl waits for the domain's end.
    unattended: bool,
    /// `None`: the place is gone.
    say: Option<Sender<ConsoleLine>>,
    lines: Receiver<ConsoleLine>,
    scripts: Vec<String>,
    followed: bool,
    seq: u64,
}

impl FakeHost {
    fn new(fault: Fault, vcpus: u32) -> FakeHost {
        let (say, lines) = channel();
        FakeHost {
            fault,
            vcpus,
            incarnation: 1,
            unattended: false,
            say: Some(say),
            lines,
            scripts: Vec::new(),
            followed: false,
            seq: 0,
        }
    }

    fn guest_says(&self, text: &str) {
        assert!(self.followed, "nothing may be said before somebody listens");
        let line = |domain: &str| ConsoleLine { domain: domain.into(), text: text.into(), at: Instant::now() };
        if let Some(say) = &self.say {
            // Another guest's lines must not disturb.
            say.send(line("neighbour")).expect("the receiver is ours");
            say.send(line("stasis")).expect("the receiver is ours");
        }
    }

    fn beats(&mut self, lost: u64) {
        for _ in 0..6 {
            self.seq += 1;
            let (seq, vcpus) = (self.seq, self.vcpus);
            let least = if self.fault == Fault::OneCpuSilent { 0 } else { 9 };
            self.guest_says(&format!(
                "stasis: heartbeat seq={seq} vcpus={vcpus} beats_min={least} max_gap_ns=5 lost={lost}"
            ));
        }
    }

    fn boots(&mut self) {
        let vcpus = self.vcpus;
        self.guest_says(&format!(
            "stasis: boot version=0.1.0 xen=4.17 vcpus={vcpus} mem_pages=16384 abi=2l cmdline=\"workload=heartbeat\""
        ));
        let online = if self.fault == Fault::OnlineWithFewer { vcpus - 1 } else { vcpus };
        self.guest_says(&format!("stasis: online vcpus={online} ns=7000000"));
        self.beats(0);
        if self.fault == Fault::LateWords {
            self.late_words();
        }
    }

    /// Of a suspend that is over and nobody has waited for.
    fn late_words(&self) {
        let figures = format!("vcpus={} prepare_ns=7 blackout_ns=8 resume_ns=9", self.vcpus);
        self.guest_says(&format!("stasis: continued incarnation={} {figures}", self.incarnation));
    }

    fn panics(&self) {
        self.guest_says("stasis: panic cpu=1 msg=\"no way\" at=smp/src/x.rs:9");
        self.guest_says("stasis: backtrace cpu=1 pc=0xffffffff80001234");
        if self.fault == Fault::Panics {
            self.guest_says("stasis: shutdown reason=crash");
        }
    }

    fn suspends(&mut self, continues: bool) -> Exit {
        if self.fault == Fault::LateWords {
            self.late_words();
        }
        self.guest_says("stasis: suspend-request via=xenstore");
        match self.fault {
            Fault::CommandFails => return exit(1, "migration target: Failure, Domain has not been suspended"),
            Fault::Panics | Fault::PanicsWithoutMore => {
                self.panics();
                return exit(1, "Domain did not respond");
            }
            Fault::NeverResumes => return exit(0, ""),
            Fault::Aborts => {
                self.guest_says("stasis: suspend-abort reason=xenstore-busy missing=none");
                return exit(0, "");
            }
            _ => {}
        }
        self.unattended = continues;
        let continues = continues || self.fault == Fault::ContinuesInstead;
        let vcpus = if self.fault == Fault::ResumesWithFewer { self.vcpus - 1 } else { self.vcpus };
        let figures = format!("vcpus={vcpus} prepare_ns=1 blackout_ns=2 resume_ns=3");
        if continues {
            self.guest_says(&format!("stasis: continued incarnation={} {figures}", self.incarnation));
        } else {
            self.incarnation += 1;
            self.guest_says(&format!("stasis: resumed incarnation={} {figures} slowest_vcpu=1", self.incarnation));
        }
        match self.fault {
            Fault::CheckFails => self.guest_says("stasis: check name=memory result=fail page=77"),
            Fault::NoCheck => {}
            Fault::ChecksNothing => self.guest_says("stasis: check name=memory result=pass pages=0"),
            _ => self.guest_says("stasis: check name=memory result=pass pages=8000"),
        }
        self.beats(if self.fault == Fault::LosesEvents { 2 } else { 0 });
        exit(0, "")
    }
}

fn exit(code: i32, output: &str) -> Exit {
    Exit { code, output: output.into() }
}

impl Host for FakeHost {
    fn describe(&self) -> String {
        "fake".into()
    }

    fn sh(&mut self, script: &str, _limit: Duration) -> Result<Exit> {
        self.scripts.push(script.into());
        Ok(match script {
            s if s.starts_with("xl create") => match self.fault {
                Fault::CreateFails => exit(3, "xl: out of memory"),
                Fault::NeverPrints => exit(0, ""),
                Fault::PanicsAtBoot => {
                    self.panics();
                    exit(0, "")
                }
                Fault::ConsoleEnds => {
                    self.say = None;
                    exit(0, "")
                }
                _ => {
                    self.boots();
                    exit(0, "")
                }
            },
            s if s.contains("xl migrate ") || s.contains("xl save ") => {
                if self.fault == Fault::CommandHangs {
                    bail!("no end within the limit; so far: Saving to stream");
                }
                let continues = s.contains("save -c");
                self.suspends(continues)
            }
            s if s.starts_with("xl domid") => exit(0, "4\n"),
            s if s.starts_with("xl shutdown") => {
                self.guest_says("stasis: shutdown reason=poweroff");
                exit(0, "")
            }
            s if s.contains("until domain 4 is gone") => match self.fault {
                _ if self.unattended => exit(1, "4 stasis ---s--"),
                Fault::LeavesThingsBehind => exit(1, "/local/domain/4/data = \"\""),
                _ => exit(0, ""),
            },
            s if s.contains("has shut down, and destroy it") => {
                self.unattended = false;
                exit(0, "")
            }
            s if s.starts_with("# destroy the domain stasis\n") => exit(0, ""),
            other => bail!("the fake knows no `{other}`"),
        })
    }

    fn at_end(&self, _script: &str) -> Option<AtEnd> {
        None
    }

    fn put(&mut self, name: &str, bytes: &[u8]) -> Result<String> {
        assert!(!bytes.is_empty() && !name.contains('/'));
        Ok(format!("/run/{name}"))
    }

    fn follow(&mut self, domain: &str) -> Result<()> {
        assert_eq!(domain, "stasis");
        self.followed = true;
        Ok(())
    }

    fn lines(&mut self) -> &Receiver<ConsoleLine> {
        &self.lines
    }

    fn interactive(&mut self, _domain: &str) -> Result<()> {
        bail!("nobody is there")
    }
}

/// A whole run on `host`: create, wait, suspend `cycles` times, power off.
fn run_on(host: &mut FakeHost, kind: Kind, cycles: u32) -> Result<(Vec<Suspend>, Vec<String>)> {
    let short = Duration::from_millis(20);
    let limits = Limits { boot: short, transfer: short, word: short, command: short, dying: short };
    let config = GuestConfig {
        name: "stasis".into(),
        kernel: "/run/stasis.elf".into(),
        vcpus: host.vcpus,
        max_vcpus: host.vcpus,
        memory_mib: 64,
        cmdline: "workload=heartbeat".into(),
    };
    let expect = Expect::from_cmdline(&config.cmdline);
    let mut shown = Vec::new();
    let mut show = |line: &str| shown.push(line.to_owned());
    let mut guest = Guest::create(host, config, limits, None, &mut show)?;
    guest.wait_online()?;
    guest.wait_heartbeats(2)?;
    let done = (0..cycles).map(|_| suspend(&mut guest, kind, expect)).collect::<Result<Vec<_>>>()?;
    guest.power_off()?;
    drop(guest);
    Ok((done, shown))
}

fn run(fault: Fault, kind: Kind, cycles: u32) -> Result<(Vec<Suspend>, Vec<String>)> {
    run_on(&mut FakeHost::new(fault, 8), kind, cycles)
}

#[test]
fn nothing_of_a_failed_guest_is_left() {
    for (fault, destroyed) in [
        (Fault::Nothing, false),
        (Fault::CreateFails, true),
        (Fault::PanicsAtBoot, true),
        (Fault::NeverPrints, true),
        (Fault::CommandHangs, true),
        (Fault::LeavesThingsBehind, true),
    ] {
        let mut host = FakeHost::new(fault, 8);
        assert_eq!(run_on(&mut host, Kind::Migrate, 1).is_err(), destroyed, "{fault:?}");
        let last = host.scripts.last().map(String::as_str).unwrap_or_default();
        for name in ["stasis", "stasis--incoming", "stasis--migratedaway", "/var/lib/xen/stasis.save"] {
            let cleared = last.starts_with("# destroy the domain") && last.split([' ', '\'', ';']).any(|w| w == name);
            assert_eq!(cleared, destroyed, "{fault:?}, {name}: {last}");
        }
    }
}

fn error_of(fault: Fault, kind: Kind) -> (String, Option<Failure>) {
    let error = run(fault, kind, 1).expect_err("must fail");
    (format!("{error:#}"), error.downcast_ref::<Failure>().cloned())
}

#[test]
fn a_good_guest_migrates_and_is_restored_again_and_again() {
    for kind in [Kind::Migrate, Kind::SaveRestore] {
        let (done, shown) = run(Fault::Nothing, kind, 3).expect("good");
        let figures = |s: &Suspend| (s.kind, s.incarnation, s.vcpus, s.phases, s.slowest_vcpu);
        let phases = Phases { prepare_ns: 1, blackout_ns: 2, resume_ns: 3 };
        let want: Vec<_> = (2..=4).map(|incarnation| (kind, incarnation, 8, phases, Some(1))).collect();
        assert_eq!(done.iter().map(figures).collect::<Vec<_>>(), want);
        assert!(shown.iter().filter(|line| line.contains("stasis: resumed")).count() == 3);
        assert!(!shown.is_empty(), "the user sees the guest's words");
    }
}

#[test]
fn a_checkpointed_guest_continues_as_the_same() {
    let (done, _) = run(Fault::Nothing, Kind::Checkpoint, 2).expect("good");
    let got: Vec<_> = done.iter().map(|s| (s.incarnation, s.slowest_vcpu)).collect();
    assert_eq!(got, [(1, None), (1, None)]);
}

/// Whether they were heard before the suspend is asked for, or come after that.
#[test]
fn late_words_on_an_earlier_suspend_are_not_taken_for_this_one() {
    for kind in [Kind::Checkpoint, Kind::Migrate] {
        let (done, _) = run(Fault::LateWords, kind, 2).expect("good");
        assert_eq!(done.iter().map(|s| (s.phases.resume_ns, s.via.as_str())).collect::<Vec<_>>(), [(3, "xenstore"); 2]);
    }
}

#[test]
fn what_the_guest_does_wrong_is_typed_and_told() {
    let vcpus = |event: &str| Failure::Vcpus { event: event.into(), said: 7, given: 8 };
    let panic = Panic { cpu: 1, msg: "no way".into(), at: "smp/src/x.rs:9".into(), pcs: vec![0xffff_ffff_8000_1234] };
    for (fault, want) in [
        (Fault::OnlineWithFewer, vcpus("online")),
        (Fault::ResumesWithFewer, vcpus("resumed")),
        (Fault::LosesEvents, Failure::Lost { lost: 2, seq: 7 }),
        (Fault::CheckFails, Failure::Check("stasis: check name=memory result=fail page=77".into())),
        (Fault::Panics, Failure::Panic(panic.clone())),
        (Fault::PanicsWithoutMore, Failure::Panic(panic)),
    ] {
        let (text, failure) = error_of(fault, Kind::Migrate);
        assert_eq!(failure, Some(want.clone()), "{text}");
        assert!(text.contains("last words"), "{text}");
        assert_eq!(text.matches(&want.to_string()).count(), 1, "said once: {text}");
    }
}

#[test]
fn a_panic_tells_its_backtrace_and_what_was_being_done() {
    let (text, _) = error_of(Fault::Panics, Kind::Migrate);
    for part in ["0xffffffff80001234", "no way", "smp/src/x.rs:9", "while `xl migrate", "Domain did not respond"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn what_does_not_come_is_named() {
    for (fault, kind, parts) in [
        (Fault::CreateFails, Kind::Migrate, &["xl create", "exit code 3", "out of memory", "said nothing at all"][..]),
        (Fault::NeverPrints, Kind::Migrate, &["for `stasis: boot`, in vain", "said nothing at all"]),
        (Fault::ConsoleEnds, Kind::Migrate, &["console is gone"]),
        (Fault::CommandFails, Kind::Migrate, &["xl migrate", "exit code 1", "has not been suspended", "last words"]),
        (Fault::CommandHangs, Kind::SaveRestore, &["xl save", "no end within the limit"]),
        (Fault::NeverResumes, Kind::Migrate, &["for `stasis: resumed`, in vain"]),
        (Fault::NeverResumes, Kind::Checkpoint, &["for `stasis: continued`, in vain"]),
        (Fault::ContinuesInstead, Kind::Migrate, &["must say `resumed`", "says `continued`"]),
        (Fault::Aborts, Kind::Migrate, &["must say `resumed`", "says `suspend-abort`", "reason=xenstore-busy"]),
        (Fault::OneCpuSilent, Kind::Migrate, &["a heartbeat of all 8 vCPUs, in vain"]),
        (Fault::NoCheck, Kind::Migrate, &["self-check of its memory", "in vain"]),
        (Fault::ChecksNothing, Kind::Migrate, &["self-check of its memory", "in vain"]),
        (Fault::LeavesThingsBehind, Kind::Migrate, &["does not go away", "/local/domain/4/data"]),
    ] {
        let (text, failure) = error_of(fault, kind);
        assert_eq!(failure, None, "{text}");
        for part in parts {
            assert!(text.contains(part), "{fault:?}: {part} is not in: {text}");
        }
    }
}
