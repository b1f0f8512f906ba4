//! What the guest says, typed: the events of the console contract.
//!
//! Owns the meaning of each event's keys and what counts as a contradiction to the contract. Pure,
//! runs on the host. An event of the contract with a missing or unreadable key is an error (the guest
//! broke its word); an unknown event or an extra key is not (the contract may grow). Turned down: a map
//! of strings read where needed, which finds a misspelt key only when somebody looks for it.

#![forbid(unsafe_code)]

use std::fmt;

use crate::logfmt::{Broken, Line};

/// The nanosecond figures of one suspend; what each measures is the contract's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// Request seen to suspend hypercall.
    pub prepare_ns: u64,
    /// That call to the first instruction after it, in guest time.
    pub blackout_ns: u64,
    /// From there until every vCPU has taken a timer event and an IPI.
    pub resume_ns: u64,
}

/// A line of the contract.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the contract's keys, spelled the same")]
pub enum Event {
    Boot {
        version: String,
        xen: String,
        vcpus: u32,
        mem_pages: u64,
        abi: String,
        cmdline: String,
    },
    Online {
        vcpus: u32,
        ns: u64,
    },
    SuspendRequest {
        via: String,
    },
    SuspendAbort {
        reason: String,
        missing: String,
    },
    Resumed {
        incarnation: u64,
        vcpus: u32,
        phases: Phases,
        slowest_vcpu: u32,
    },
    /// `slowest_vcpu` is not promised here, but may be told.
    Continued {
        incarnation: u64,
        vcpus: u32,
        phases: Phases,
        slowest_vcpu: Option<u32>,
    },
    Heartbeat {
        seq: u64,
        vcpus: u32,
        beats_min: u64,
        max_gap_ns: u64,
        lost: u64,
    },
    Check {
        name: String,
        pass: bool,
    },
    Bench {
        name: String,
    },
    /// The run of benches is over; so many figures were told.
    BenchEnd {
        benches: u64,
    },
    /// One name that `bench=` knows, said under `bench=list`.
    BenchName {
        name: String,
    },
    Panic {
        cpu: u32,
        msg: String,
        at: String,
    },
    /// One return address of the stack that panicked; follows its `Panic`.
    Backtrace {
        cpu: u32,
        pc: u64,
    },
    Shutdown {
        reason: String,
    },
    /// One name that `test=` knows, said under `test=list`.
    Test {
        name: String,
    },
    /// An event the contract does not know (yet).
    Other,
}

/// How one line failed to be what the contract says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Breach {
    /// Not even a well-formed line.
    Syntax(Broken),
    /// This event lacks this key.
    Missing {
        /// The event.
        event: String,
        /// The key.
        key: &'static str,
    },
    /// This key of this event cannot be read as what it should be.
    Unreadable {
        /// The event.
        event: String,
        /// The key.
        key: &'static str,
        /// What stood there.
        value: String,
    },
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Breach::Syntax(broken) => broken.fmt(f),
            Breach::Missing { event, key } => write!(f, "`{event}` without `{key}=`"),
            Breach::Unreadable { event, key, value } => {
                write!(f, "`{event}` has `{key}={value}`, which cannot be read")
            }
        }
    }
}

impl std::error::Error for Breach {}

/// An event and the line it came from, which keeps the keys that the event has no field for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The typed event.
    pub event: Event,
    /// The whole line.
    pub line: Line,
}

/// Reads one console line. `None`: not one of the guest's contract lines.
///
/// # Errors
/// [`Breach`] for a line that starts like one but does not keep the contract.
pub fn read(text: &str) -> Option<Result<Said, Breach>> {
    let line = match Line::parse(text)? {
        Ok(line) => line,
        Err(broken) => return Some(Err(Breach::Syntax(broken))),
    };
    Some(type_event(&line).map(|event| Said { event, line }))
}

fn type_event(line: &Line) -> Result<Event, Breach> {
    let keys = Keys(line);
    Ok(match line.event.as_str() {
        "boot" => Event::Boot {
            version: keys.text("version")?,
            xen: keys.text("xen")?,
            vcpus: keys.number("vcpus")?,
            mem_pages: keys.number("mem_pages")?,
            abi: keys.text("abi")?,
            cmdline: keys.text("cmdline")?,
        },
        "online" => Event::Online { vcpus: keys.number("vcpus")?, ns: keys.number("ns")? },
        "suspend-request" => Event::SuspendRequest { via: keys.text("via")? },
        "suspend-abort" => Event::SuspendAbort { reason: keys.text("reason")?, missing: keys.text("missing")? },
        "resumed" => Event::Resumed {
            incarnation: keys.number("incarnation")?,
            vcpus: keys.number("vcpus")?,
            phases: keys.phases()?,
            slowest_vcpu: keys.number("slowest_vcpu")?,
        },
        "continued" => Event::Continued {
            incarnation: keys.number("incarnation")?,
            vcpus: keys.number("vcpus")?,
            phases: keys.phases()?,
            slowest_vcpu: line.get("slowest_vcpu").map(|_| keys.number("slowest_vcpu")).transpose()?,
        },
        "heartbeat" => Event::Heartbeat {
            seq: keys.number("seq")?,
            vcpus: keys.number("vcpus")?,
            beats_min: keys.number("beats_min")?,
            max_gap_ns: keys.number("max_gap_ns")?,
            lost: keys.number("lost")?,
        },
        "check" => Event::Check { name: keys.text("name")?, pass: keys.verdict("result")? },
        "bench" => Event::Bench { name: keys.text("name")? },
        "bench-end" => Event::BenchEnd { benches: keys.number("benches")? },
        "bench-name" => Event::BenchName { name: keys.text("name")? },
        "panic" => Event::Panic { cpu: keys.number("cpu")?, msg: keys.text("msg")?, at: keys.text("at")? },
        "backtrace" => Event::Backtrace { cpu: keys.number("cpu")?, pc: keys.address("pc")? },
        "shutdown" => Event::Shutdown { reason: keys.text("reason")? },
        "test" => Event::Test { name: keys.text("name")? },
        _ => Event::Other,
    })
}

struct Keys<'a>(&'a Line);

impl Keys<'_> {
    fn raw(&self, key: &'static str) -> Result<&str, Breach> {
        self.0.get(key).ok_or_else(|| Breach::Missing { event: self.0.event.clone(), key })
    }

    fn unreadable(&self, key: &'static str, value: &str) -> Breach {
        Breach::Unreadable { event: self.0.event.clone(), key, value: value.to_owned() }
    }

    fn text(&self, key: &'static str) -> Result<String, Breach> {
        self.raw(key).map(str::to_owned)
    }

    fn number<T: std::str::FromStr>(&self, key: &'static str) -> Result<T, Breach> {
        let value = self.raw(key)?;
        value.parse().map_err(|_| self.unreadable(key, value))
    }

    fn address(&self, key: &'static str) -> Result<u64, Breach> {
        let value = self.raw(key)?;
        let digits = value.strip_prefix("0x").ok_or_else(|| self.unreadable(key, value))?;
        u64::from_str_radix(digits, 16).map_err(|_| self.unreadable(key, value))
    }

    fn verdict(&self, key: &'static str) -> Result<bool, Breach> {
        match self.raw(key)? {
            "pass" => Ok(true),
            "fail" => Ok(false),
            other => Err(self.unreadable(key, other)),
        }
    }

    fn phases(&self) -> Result<Phases, Breach> {
        Ok(Phases {
            prepare_ns: self.number("prepare_ns")?,
            blackout_ns: self.number("blackout_ns")?,
            resume_ns: self.number("resume_ns")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(text: &str) -> Result<Event, Breach> {
        read(text).expect("ours").map(|said| said.event)
    }

    #[test]
    fn each_event_of_the_contract_is_read() {
        let phases = Phases { prepare_ns: 1, blackout_ns: 2, resume_ns: 3 };
        for (text, want) in [
            ("online vcpus=8 ns=12", Event::Online { vcpus: 8, ns: 12 }),
            ("suspend-request via=xenstore", Event::SuspendRequest { via: "xenstore".into() }),
            (
                "suspend-abort reason=timeout missing=3,7-9",
                Event::SuspendAbort { reason: "timeout".into(), missing: "3,7-9".into() },
            ),
            (
                "resumed incarnation=2 vcpus=8 prepare_ns=1 blackout_ns=2 resume_ns=3 slowest_vcpu=5",
                Event::Resumed { incarnation: 2, vcpus: 8, phases, slowest_vcpu: 5 },
            ),
            (
                "continued incarnation=1 vcpus=8 prepare_ns=1 blackout_ns=2 resume_ns=3",
                Event::Continued { incarnation: 1, vcpus: 8, phases, slowest_vcpu: None },
            ),
            (
                "heartbeat seq=4 vcpus=8 beats_min=99 max_gap_ns=7 lost=0",
                Event::Heartbeat { seq: 4, vcpus: 8, beats_min: 99, max_gap_ns: 7, lost: 0 },
            ),
            ("check name=memory result=fail why=x", Event::Check { name: "memory".into(), pass: false }),
            ("bench name=null unit=ns n=3", Event::Bench { name: "null".into() }),
            ("bench-end benches=16", Event::BenchEnd { benches: 16 }),
            ("bench-name name=null", Event::BenchName { name: "null".into() }),
            ("panic cpu=1 msg=\"a b\" at=x.rs:3", Event::Panic { cpu: 1, msg: "a b".into(), at: "x.rs:3".into() }),
            ("backtrace cpu=1 pc=0xffffffff80001000", Event::Backtrace { cpu: 1, pc: 0xffff_ffff_8000_1000 }),
            ("shutdown reason=poweroff", Event::Shutdown { reason: "poweroff".into() }),
            ("test name=timer", Event::Test { name: "timer".into() }),
            ("weather is=fine", Event::Other),
        ] {
            assert_eq!(event(&format!("stasis: {text}")), Ok(want), "{text}");
        }
        let boot = event(
            "stasis: boot version=0.1.0 xen=4.17 vcpus=8 mem_pages=16384 abi=2l cmdline=\"workload=heartbeat\" more=1",
        );
        assert!(matches!(boot, Ok(Event::Boot { vcpus: 8, mem_pages: 16384, .. })), "{boot:?}");
    }

    #[test]
    fn extra_keys_stay_in_the_line() {
        let said = read("stasis: online vcpus=1 ns=2 first=3").expect("ours").expect("kept");
        assert_eq!(said.line.get("first"), Some("3"));
    }

    #[test]
    fn a_missing_or_unreadable_key_is_a_breach() {
        let missing = Breach::Missing { event: "online".into(), key: "ns" };
        assert_eq!(event("stasis: online vcpus=1"), Err(missing));
        for text in [
            "online vcpus=-1 ns=2",
            "check name=a result=maybe",
            "backtrace cpu=0 pc=12",
            "online vcpus=99999999999 ns=1",
        ] {
            assert!(matches!(event(&format!("stasis: {text}")), Err(Breach::Unreadable { .. })), "{text}");
        }
        assert!(matches!(event("stasis: online vcpus"), Err(Breach::Syntax(_))));
    }
}
