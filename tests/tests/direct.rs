//! Self-tests inside the guest, booted as Xen's initial domain, and how it boots with odd input.
//!
//! The guest names its self-tests (`test=list`); each becomes a trial that boots it with `test=NAME`
//! and waits for that test's verdict. Each boot takes about two seconds.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use tests::{Invocation, Transcript, build, session, verdict};
use xtask::commands::direct::boot;
use xtask::contract::{Event, Said, read};
use xtask::drive::direct::{Goal, Told};
use xtask::drive::guest::backtrace;
use xtask::drive::watch::{Failure, Panic};
use xtask::lab::{self, DirectConfig, Prepared};
use xtask::logfmt::Line;

/// Some self-tests need several vCPUs; four on two processors is also the case with overcommit.
const VCPUS: u32 = 4;

/// What every boot needs.
struct Bench {
    prepared: Prepared,
    kernel: PathBuf,
    logs: PathBuf,
}

/// A trial that needs no more than the bench.
type Work = fn(&Bench) -> Result<()>;

/// A boot and all that came out of it.
struct Seen {
    outcome: Result<Told>,
    lines: Vec<String>,
}

impl Bench {
    fn set_up() -> Result<Bench> {
        let session = session("direct")?;
        let kernel = build(&session)?.path;
        let prepared = lab::prepare(&session.terminal, false)?;
        Ok(Bench { prepared, kernel, logs: session.logs })
    }

    fn boot(&self, name: &str, cmdline: &str, vcpus: u32, memory_mib: u32, goal: Goal) -> Result<Seen> {
        // Benches pass thousands of events between two vCPUs: seconds, but minutes where their processors take turns.
        let more = if goal == Goal::Benches { 300 } else { 0 };
        let config = DirectConfig {
            kernel: self.kernel.clone(),
            cmdline: cmdline.to_owned(),
            vcpus,
            memory_mib,
            host_cpus: 2,
            xen_args: Vec::new(),
            deterministic: false,
            logs: self.logs.join(name.replace("::", "-")),
            limit: Duration::from_secs(60 + u64::from(vcpus) + more),
        };
        let mut transcript = Transcript::open(&self.logs, name)?;
        let mut lines = Vec::new();
        let outcome = boot(&self.prepared, &config, goal, &mut |line| {
            transcript.line(line);
            lines.push(line.to_owned());
        });
        Ok(Seen { outcome, lines })
    }

    fn good(&self, name: &str, cmdline: &str, vcpus: u32, memory_mib: u32) -> Result<Told> {
        self.boot(name, cmdline, vcpus, memory_mib, Goal::from_cmdline(cmdline, 2))?.outcome
    }
}

impl Seen {
    fn says(&self, parts: &[&str]) -> bool {
        self.lines.iter().any(|line| line.starts_with("stasis: ") && parts.iter().all(|part| line.contains(part)))
    }

    fn all(&self) -> String {
        self.lines.join("\n")
    }

    /// The panic that ended it, with `reason` in its message. One that hangs, or goes without a word, does not pass.
    fn panics(&self, reason: &str) -> Result<&Panic> {
        let error = match &self.outcome {
            Ok(told) => bail!("it must panic ({reason}), but: {told:?}\n{}", self.all()),
            Err(error) => error,
        };
        match error.downcast_ref::<Failure>() {
            Some(Failure::Panic(panic)) if panic.msg.contains(reason) => Ok(panic),
            _ => bail!("it must panic ({reason}), but: {error:#}"),
        }
    }
}

/// An unknown key is named on the console, said to be none, and ignored.
fn unknown_key(bench: &Bench) -> Result<()> {
    let seen = bench.boot("unknown-key", "workload=idle frobnicate=7", 2, 64, Goal::Online)?;
    // The boot line quotes the command line, so the key's name alone says nothing.
    ensure!(seen.says(&["frobnicate= is not a key that this kernel knows"]), "nobody objects:\n{}", seen.all());
    ensure!(!seen.says(&["workload= is not a key"]), "a known key is objected to:\n{}", seen.all());
    seen.outcome.map(drop)
}

/// A malformed value stops the boot and says which key and value.
fn malformed_value(bench: &Bench) -> Result<()> {
    for (key, value) in
        [("evtchn", "banana"), ("workload", "nonsense"), ("suspend", "perhaps"), ("resume", "fast"), ("log", "loud")]
    {
        let seen = bench.boot(&format!("malformed-{key}"), &format!("{key}={value}"), 2, 64, Goal::End)?;
        ensure!(!seen.says(&["stasis: online"]), "{key}={value} went online:\n{}", seen.all());
        seen.panics(&format!("{key}={value} is not understood, expected {key}="))?;
    }
    Ok(())
}

/// A self-test that does not exist ends the domain, and says so.
fn unknown_test(bench: &Bench) -> Result<()> {
    let seen = bench.boot("unknown-test", "test=no-such-test", 2, 64, Goal::End)?;
    ensure!(!seen.says(&["result=pass"]), "an unknown test passed:\n{}", seen.all());
    seen.panics("test=no-such-test: no such test").map(drop)
}

/// A bench that does not exist ends the domain before it does anything, and the message names those that do.
fn unknown_bench(bench: &Bench) -> Result<()> {
    let seen = bench.boot("unknown-bench", "bench=null-hypercall,no-such-bench", 2, 64, Goal::End)?;
    ensure!(!seen.says(&["stasis: online"]), "an unknown bench went online:\n{}", seen.all());
    let panic = seen.panics("bench=no-such-bench: no such bench")?;
    ensure!(panic.msg.contains("null-hypercall"), "it does not name those that there are: {panic:?}");
    Ok(())
}

/// One bench's figures and the buckets behind them.
struct Figures {
    line: Said,
    parts: Vec<Said>,
}

impl Figures {
    /// All that a guest has told, in order.
    fn all(lines: &[String]) -> Result<Vec<Figures>> {
        let mut all: Vec<Figures> = Vec::new();
        for said in lines.iter().filter_map(|line| read(line)) {
            let said = said?;
            if matches!(said.event, Event::Bench { .. }) {
                all.push(Figures { line: said, parts: Vec::new() });
            } else if said.line.event == "bench-hist" {
                let Some(last) = all.last_mut() else { bail!("buckets of no bench: {said:?}") };
                last.parts.push(said);
            }
        }
        Ok(all)
    }

    fn name(&self) -> Result<&str> {
        text(&self.line, "name")
    }

    /// The figures are in order, and the buckets hold what they say. How large they are is the machine's.
    fn hold(&self) -> Result<()> {
        let keys = ["min", "p50", "p90", "p99", "p999", "max"];
        let figures = keys.into_iter().map(|key| number(&self.line, key)).collect::<Result<Vec<_>>>()?;
        ensure!(figures.is_sorted(), "{keys:?} are {figures:?}");
        let n = number(&self.line, "n")?;
        ensure!(n > 0, "no samples");
        let mut buckets = Vec::new();
        for (part, said) in (1..).zip(&self.parts) {
            ensure!(text(said, "name")? == self.name()?, "buckets of another bench: {said:?}");
            ensure!((number(said, "part")?, number(said, "of")?) == (part, self.parts.len() as u64), "{said:?}");
            for bucket in text(said, "buckets")?.split(',') {
                let Some((low, count)) = bucket.split_once(':') else { bail!("{bucket:?} is no bucket: {said:?}") };
                buckets.push((low.parse::<u64>()?, count.parse::<u64>()?));
            }
        }
        ensure!(buckets.is_sorted_by(|one, next| one.0 < next.0), "the buckets do not ascend: {buckets:?}");
        let inside = buckets.iter().map(|(_, count)| count).sum::<u64>();
        ensure!(inside == n, "{n} samples, and {inside} in the buckets: {buckets:?}");
        let ends = buckets.first().zip(buckets.last()).map(|((first, _), (last, _))| (*first, *last));
        let within = ends.is_some_and(|(first, last)| first <= figures[0] && last <= figures[figures.len() - 1]);
        ensure!(within, "least and greatest are not in the first and last bucket: {figures:?}, {buckets:?}");
        Ok(())
    }
}

fn text<'a>(said: &'a Said, key: &str) -> Result<&'a str> {
    said.line.get(key).with_context(|| format!("no {key}= in {said:?}"))
}

fn number(said: &Said, key: &str) -> Result<u64> {
    let value = text(said, key)?;
    value.parse().with_context(|| format!("{key}={value} in {said:?}"))
}

/// All benches run to their end with this ABI, and say figures that hold together.
fn benches(bench: &Bench, abi: &str) -> Result<()> {
    let names = bench.good(&format!("bench-list::{abi}"), "bench=list", 1, 64)?.benches;
    let seen = bench.boot(&format!("bench::{abi}"), &format!("bench=all evtchn={abi}"), 2, 64, Goal::Benches)?;
    let all = Figures::all(&seen.lines)?;
    seen.outcome?;
    for figures in &all {
        ensure!(text(&figures.line, "abi")? == abi, "another ABI: {:?}", figures.line);
        figures.hold().with_context(|| format!("{:?}", figures.line))?;
    }
    let told = all.iter().map(Figures::name).collect::<Result<Vec<_>>>()?;
    let missing: Vec<_> = names.iter().filter(|name| !told.contains(&name.as_str())).collect();
    ensure!(missing.is_empty(), "no figures of {missing:?}, but of {told:?}");
    Ok(())
}

/// What takes two vCPUs is left out where there is one, and said to be.
fn benches_alone(bench: &Bench) -> Result<()> {
    let seen = bench.boot("bench-alone", "bench=null-hypercall,ipi-call", 1, 64, Goal::Benches)?;
    let (skipped, all) = (seen.says(&["bench-skip", "name=ipi-call", "needs two vcpus"]), Figures::all(&seen.lines)?);
    seen.outcome?;
    ensure!(skipped, "nothing is said of ipi-call");
    ensure!(all.len() == 1, "figures of {} benches", all.len());
    all.iter().try_for_each(Figures::hold)
}

/// More vCPUs than supported: said, and not half run.
fn too_many_vcpus(bench: &Bench) -> Result<()> {
    let seen = bench.boot("too-many-vcpus", "workload=idle", 1025, 256, Goal::End)?;
    ensure!(!seen.says(&["stasis: online"]), "1025 vCPUs went online:\n{}", seen.all());
    seen.panics("this kernel runs at most 1024: lower vcpus=").map(drop)
}

/// Too little memory: said, not a triple fault. (6 MiB are enough for 64 vCPUs.)
fn too_little_memory(bench: &Bench) -> Result<()> {
    let seen = bench.boot("too-little-memory", "workload=idle", 300, 6, Goal::End)?;
    ensure!(!seen.says(&["stasis: online"]), "300 vCPUs went online in 6 MiB:\n{}", seen.all());
    seen.panics("memory").map(drop)
}

/// A panic on the last vCPU ends the domain, tells that CPU, and its backtrace leads to the culprit.
fn dies_well(bench: &Bench, test: &str, culprit: &str) -> Result<()> {
    let seen = bench.boot(&format!("test::{test}"), &format!("test={test}"), VCPUS, 64, Goal::End)?;
    let panic = seen.panics("")?;
    ensure!(panic.cpu == VCPUS - 1, "it panicked on CPU {}, not on the last: {panic:?}", panic.cpu);
    let frames = backtrace(&panic.pcs, Some(&bench.kernel)).join("\n");
    ensure!(frames.contains(culprit), "the backtrace does not lead to {culprit}:\n{frames}");
    Ok(())
}

/// A stack overflow hits the guard page: the domain is ended by Xen, nothing is overwritten in silence.
fn stack_overflow(bench: &Bench) -> Result<()> {
    let seen = bench.boot("test::stack-overflow", "test=stack-overflow", VCPUS, 64, Goal::End)?;
    ensure!(!seen.says(&["stack-overflow", "result="]), "the guest lived on:\n{}", seen.all());
    let by_xen = seen.lines.iter().any(|line| line.starts_with("(XEN)") && line.to_lowercase().contains("crash"));
    ensure!(by_xen, "Xen did not end the domain:\n{}", seen.all());
    match seen.outcome {
        Err(error) if format!("{error:#}").contains("before the machine ended") => Ok(()),
        Err(error) => Err(error.context("the machine must end with the domain")),
        Ok(told) => bail!("it shut down by itself: {told:?}"),
    }
}

/// Self-tests that events have a part in; they run with each event channel ABI.
const OF_EVENTS: [&str; 12] = [
    "timer",
    "clock",
    "ipi",
    "port",
    "affinity",
    "storm",
    "late",
    "rendezvous",
    "hotplug",
    "lost-event",
    "user",
    "freeze",
];

/// How the self-test of this name is judged: most give their own verdict, some are meant to die.
fn self_test(bench: &Bench, name: &str) -> Result<()> {
    match name {
        "panic" | "exception" => dies_well(bench, name, "selftest::fatal"),
        "stack-overflow" => stack_overflow(bench),
        "many-ports" => many_ports(bench, "test=many-ports"),
        _ => bench.good(&format!("test::{name}"), &format!("test={name}"), VCPUS, 64).map(drop),
    }
}

/// Every port that a list has is told in a line of its own, also where there are thousands.
fn many_ports(bench: &Bench, cmdline: &str) -> Result<()> {
    let goal = Goal::from_cmdline(cmdline, 2);
    let seen = bench.boot(&cmdline.replace([' ', '='], "-"), cmdline, VCPUS, 64, goal)?;
    let lines: Vec<Line> = seen.lines.iter().filter_map(|line| Line::parse(line)?.ok()).collect();
    seen.outcome?;
    let (mut told, mut lists) = (0, 0);
    for line in lines {
        match line.event.as_str() {
            "debug-port" => told += 1,
            "debug-end" => {
                ensure!(line.get("ports") == Some(&told.to_string()), "{told} ports are told, then `{line}`");
                (told, lists) = (0, lists + 1);
            }
            _ => {}
        }
    }
    ensure!((lists, told) == (3, 0), "{lists} lists are told, then {told} ports more");
    Ok(())
}

fn trials(bench: Bench, self_tests: Vec<String>) -> Vec<Trial> {
    let bench = Arc::new(bench);
    let mut trials = Vec::new();
    // Those that wait for a suspend are run under xl.
    for name in self_tests.into_iter().filter(|name| !name.ends_with("-in-suspend")) {
        let bench = Arc::clone(&bench);
        trials.push(Trial::test(format!("self_test::{name}"), move || verdict(self_test(&bench, &name))));
    }
    for name in OF_EVENTS {
        let bench = Arc::clone(&bench);
        let run =
            move || bench.good(&format!("fifo::{name}"), &format!("test={name} evtchn=fifo"), VCPUS, 64).map(drop);
        trials.push(Trial::test(format!("self_test_fifo::{name}"), move || verdict(run())));
    }
    {
        let bench = Arc::clone(&bench);
        let run = move || many_ports(&bench, "test=many-ports evtchn=fifo");
        trials.push(Trial::test("self_test_fifo::many-ports", move || verdict(run())));
    }
    for vcpus in [1, 8, 128] {
        let bench = Arc::clone(&bench);
        let name = format!("heartbeat_fifo::{vcpus}_vcpus");
        let boot_name = name.clone();
        let run = move || bench.good(&boot_name, "workload=heartbeat evtchn=fifo", vcpus, 256).map(drop);
        trials.push(Trial::test(name, move || verdict(run())));
    }
    for (vcpus, memory_mib) in [(1, 16), (1, 64), (2, 64), (8, 64), (33, 64), (64, 128), (128, 256), (2, 1024)] {
        let bench = Arc::clone(&bench);
        let name = format!("heartbeat::{vcpus}_vcpus_{memory_mib}_mib");
        let boot_name = name.clone();
        let run = move || bench.good(&boot_name, "workload=heartbeat", vcpus, memory_mib).map(drop);
        trials.push(Trial::test(name, move || verdict(run())));
    }
    for abi in ["2l", "fifo"] {
        let bench = Arc::clone(&bench);
        trials.push(Trial::test(format!("bench::{abi}"), move || verdict(benches(&bench, abi))));
    }
    let odd: [(&str, Work); 7] = [
        ("bench::one_vcpu", benches_alone),
        ("odd::unknown_bench", unknown_bench),
        ("odd::unknown_key", unknown_key),
        ("odd::malformed_value", malformed_value),
        ("odd::unknown_test", unknown_test),
        ("odd::too_many_vcpus", too_many_vcpus),
        ("odd::too_little_memory", too_little_memory),
    ];
    for (name, work) in odd {
        let bench = Arc::clone(&bench);
        trials.push(Trial::test(name, move || verdict(work(&bench))));
    }
    trials
}

fn main() {
    let invocation = Invocation::from_env();
    // The names of the self-tests are the guest's: without booting it there is one trial for all.
    if !invocation.will_run() {
        let outcome = || bail!("the guest's tests are known when it has booted");
        invocation.conclude(vec![Trial::test("everything", move || verdict(outcome()))]);
    }
    let bench = match Bench::set_up() {
        Ok(bench) => bench,
        Err(error) => invocation.fail("set_up", error),
    };
    match bench.boot("list", "test=list", 1, 64, Goal::List).and_then(|seen| seen.outcome) {
        Ok(told) => invocation.conclude(trials(bench, told.tests)),
        Err(error) => invocation.fail("offers_self_tests", error),
    }
}
