//! The command line: `key=value` words, separated by white space.
//!
//! An unknown key is kept to be named on the console, and ignored. A key that we know with a value that we
//! do not stops the boot: a guest that silently ran something else than it was asked to would spoil a measurement. Where a
//! key stands twice the last one holds.
#![forbid(unsafe_code)]

use core::fmt;

/// Event channel ABI, `evtchn=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    /// `2l`: two-level bitmaps.
    TwoLevel,
    /// `fifo`: event words, linked in queues.
    Fifo,
}

/// How the toolstack is asked to ask us to suspend, `suspend=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuspendVia {
    /// `xenstore`: `control/shutdown`.
    Xenstore,
    /// `evtchn`: the suspend event channel.
    Evtchn,
}

/// The least severe messages that the console shall carry, `log=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// What went wrong.
    Error,
    /// And what looks wrong.
    Warn,
    /// And what happens.
    Info,
    /// And how.
    Debug,
}

/// What the kernel does once it is up, `workload=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Nothing, as cheaply as can be.
    Idle,
    /// Timers and IPIs on every vcpu, checked; a memory pattern, verified after every resume.
    Heartbeat,
    /// What a suspend costs a task on each vcpu, measured.
    Blackout,
    /// Vector registers of every vcpu, verified after every resume.
    Vectors,
    /// A process on every vcpu that never leaves user mode by itself, verified after every resume.
    User,
    /// The heartbeat, and with it storms of events, timers and IPIs on every vcpu, checked without end.
    Soak,
}

/// What is kept and told of when each vcpu reached what in a suspend, `trace=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// `off`: nothing is kept.
    Off,
    /// `keep`: the last suspends are kept, and told when somebody asks.
    Keep,
    /// `suspend`: and each is told once it is over.
    Suspend,
}

/// Who binds a vcpu's virqs and IPIs after a restore, `resume=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// `parallel`: each its own, by one multicall.
    Parallel,
    /// `batched`: vcpu 0 for all others, by few multicalls, before it releases them.
    Batched,
    /// `serial`: vcpu 0 for all others, call by call.
    Serial,
}

/// The command line, parsed. Texts borrow from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cmdline<'a> {
    /// `evtchn=`; the default is what measures better.
    pub abi: Abi,
    /// `workload=`
    pub workload: Workload,
    /// `suspend=`
    pub suspend: SuspendVia,
    /// `test=`: one self-test by name.
    pub test: Option<&'a str>,
    /// `bench=`: names, separated by commas.
    pub bench: Option<&'a str>,
    /// `log=`
    pub log: LogLevel,
    /// `trace=`
    pub trace: Trace,
    /// `resume=`; the default is what measures better.
    pub resume: Resume,
    /// `seed=`: what a workload draws at random follows from it.
    pub seed: u64,
    text: &'a str,
}

/// A key that we know with a value that we do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadValue<'a> {
    /// The key.
    pub key: &'a str,
    /// What stands behind its `=`; empty where there is none.
    pub value: &'a str,
    /// What may stand there.
    pub expected: &'static str,
}

impl fmt::Display for BadValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "command line: {}={} is not understood, expected {}={}",
            self.key, self.value, self.key, self.expected
        )
    }
}

/// One of a key's values by its word.
fn choose<'a, T: Copy>(
    key: &'a str,
    value: &'a str,
    expected: &'static str,
    choices: &[(&str, T)],
) -> Result<T, BadValue<'a>> {
    choices.iter().find_map(|(word, choice)| (*word == value).then_some(*choice)).ok_or(BadValue {
        key,
        value,
        expected,
    })
}

/// Names are lower-case letters, digits, `_` and `-`; a list has commas between.
fn names<'a>(key: &'a str, value: &'a str, expected: &'static str, list: bool) -> Result<&'a str, BadValue<'a>> {
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b))
    };
    let good = if list { value.split(',').all(is_name) } else { is_name(value) };
    if good { Ok(value) } else { Err(BadValue { key, value, expected }) }
}

impl<'a> Cmdline<'a> {
    const KEYS: [&'static str; 9] =
        ["evtchn", "workload", "suspend", "test", "bench", "log", "trace", "resume", "seed"];

    /// Parses `text`.
    ///
    /// # Errors
    /// [`BadValue`] for the first known key with a value that is not understood.
    pub fn parse(text: &'a str) -> Result<Cmdline<'a>, BadValue<'a>> {
        let mut line = Cmdline {
            abi: Abi::TwoLevel,
            workload: Workload::Idle,
            suspend: SuspendVia::Xenstore,
            test: None,
            bench: None,
            log: LogLevel::Info,
            trace: Trace::Keep,
            resume: Resume::Parallel,
            seed: 0,
            text,
        };
        for (key, value) in words(text) {
            match key {
                "evtchn" => {
                    line.abi = choose(key, value, "2l|fifo", &[("2l", Abi::TwoLevel), ("fifo", Abi::Fifo)])?;
                }
                "workload" => {
                    let choices = [
                        ("idle", Workload::Idle),
                        ("heartbeat", Workload::Heartbeat),
                        ("blackout", Workload::Blackout),
                        ("vectors", Workload::Vectors),
                        ("user", Workload::User),
                        ("soak", Workload::Soak),
                    ];
                    line.workload = choose(key, value, "idle|heartbeat|blackout|vectors|user|soak", &choices)?;
                }
                "suspend" => {
                    let choices = [("xenstore", SuspendVia::Xenstore), ("evtchn", SuspendVia::Evtchn)];
                    line.suspend = choose(key, value, "xenstore|evtchn", &choices)?;
                }
                "test" => line.test = Some(names(key, value, "NAME", false)?),
                "bench" => line.bench = Some(names(key, value, "NAME[,NAME]", true)?),
                "log" => {
                    let choices = [
                        ("error", LogLevel::Error),
                        ("warn", LogLevel::Warn),
                        ("info", LogLevel::Info),
                        ("debug", LogLevel::Debug),
                    ];
                    line.log = choose(key, value, "error|warn|info|debug", &choices)?;
                }
                "trace" => {
                    let choices = [("off", Trace::Off), ("keep", Trace::Keep), ("suspend", Trace::Suspend)];
                    line.trace = choose(key, value, "off|keep|suspend", &choices)?;
                }
                "resume" => {
                    let choices =
                        [("parallel", Resume::Parallel), ("batched", Resume::Batched), ("serial", Resume::Serial)];
                    line.resume = choose(key, value, "parallel|batched|serial", &choices)?;
                }
                "seed" => {
                    line.seed = value.parse().map_err(|_| BadValue { key, value, expected: "NUMBER" })?;
                }
                _ => {}
            }
        }
        Ok(line)
    }

    /// The keys that nobody knows, in order.
    pub fn unknown_keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        words(self.text).map(|(key, _)| key).filter(|key| !Self::KEYS.contains(key))
    }
}

fn words(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split_ascii_whitespace().map(|word| word.split_once('=').unwrap_or((word, "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_means_defaults() {
        let line = Cmdline::parse(" \t ").expect("nothing to misunderstand");
        assert_eq!((line.workload, line.log, line.test), (Workload::Idle, LogLevel::Info, None));
        assert_eq!((line.suspend, line.trace, line.seed), (SuspendVia::Xenstore, Trace::Keep, 0));
        assert_eq!(line.resume, Resume::Parallel);
    }

    #[test]
    fn every_key() {
        let text = "evtchn=fifo workload=heartbeat suspend=evtchn test=ipi-ring bench=null,event_self log=debug trace=off resume=serial seed=18446744073709551615";
        let line = Cmdline::parse(text).expect("well formed");
        assert_eq!((line.abi, line.workload, line.suspend), (Abi::Fifo, Workload::Heartbeat, SuspendVia::Evtchn));
        assert_eq!((line.test, line.bench, line.log), (Some("ipi-ring"), Some("null,event_self"), LogLevel::Debug));
        assert_eq!((line.trace, line.resume, line.seed), (Trace::Off, Resume::Serial, u64::MAX));
        assert_eq!(line.unknown_keys().count(), 0);
    }

    #[test]
    fn unknown_keys_are_named_and_ignored() {
        let line = Cmdline::parse("quiet root=/dev/xvda log=warn =x").expect("unknown keys are no error");
        assert_eq!(line.unknown_keys().collect::<Vec<_>>(), ["quiet", "root", ""]);
        assert_eq!(line.log, LogLevel::Warn);
    }

    #[test]
    fn malformed_values_stop_the_boot() {
        for (text, key) in [
            ("evtchn=3l", "evtchn"),
            ("evtchn", "evtchn"),
            ("log=", "log"),
            ("log=INFO", "log"),
            ("workload=storm,idle", "workload"),
            ("suspend=acpi", "suspend"),
            ("test=", "test"),
            ("test=a,b", "test"),
            ("trace=on", "trace"),
            ("resume=fast", "resume"),
            ("seed=-1", "seed"),
            ("seed=18446744073709551616", "seed"),
            ("bench=a,,b", "bench"),
            ("log=info evtchn=fifo log=loud", "log"),
        ] {
            let error = Cmdline::parse(text).expect_err(text);
            assert_eq!(error.key, key, "{text}");
            assert!(error.to_string().contains(error.expected), "{error}");
        }
    }

    #[test]
    fn the_last_one_holds() {
        assert_eq!(Cmdline::parse("log=warn log=error").map(|line| line.log), Ok(LogLevel::Error));
    }
}
