//! `cargo xtask bench downtime`: what a suspend costs a guest's tasks, against Linux on the same Xen where that is asked for.
//!
//! Owns the order of boots and what the user sees and gets: each suspend as it comes, the comparison, the record, the plots. For each
//! scheduler one machine is booted, and in it, round by round and for each number of vCPUs, both guests, in turns, each alone:
//! whatever changes on the machine meets both. Within a boot every kind of suspend is repeated, and the median counts once: a boot that
//! went one way or the other does not count as many times.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use super::bench::Against;
use super::bench_downtime_guests::{Guests, News, Task};
use super::suspend::require_log_dirty;
use super::{Session, relative};
use crate::bench::Side;
use crate::bench::downtime::record::{Circumstances, record};
use crate::bench::downtime::{Boot, Sched, Stops, Suspended, plot, table};
use crate::cargo;
use crate::drive::cycles::Kind;
use crate::host::{Host, Progress};
use crate::image::Image;
use crate::lab::{self, BenchPeer, Lab, LabConfig};
use crate::options::LogOptions;

/// Which of Xen's schedulers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scheds {
    Credit2,
    Credit,
    Both,
}

impl Scheds {
    fn all(self) -> &'static [Sched] {
        match self {
            Scheds::Credit2 => &[Sched::Credit2],
            Scheds::Credit => &[Sched::Credit],
            Scheds::Both => &[Sched::Credit2, Sched::Credit],
        }
    }
}

/// A way to suspend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Operation {
    /// `xl save -c`.
    Checkpoint,
    /// `xl save`, then `xl restore`.
    SaveRestore,
    /// `xl migrate` to the same machine.
    Migrate,
}

impl Operation {
    fn kind(self) -> Kind {
        match self {
            Operation::Checkpoint => Kind::Checkpoint,
            Operation::SaveRestore => Kind::SaveRestore,
            Operation::Migrate => Kind::Migrate,
        }
    }
}

/// Options of the command.
#[derive(Clone, Debug, Args)]
pub(super) struct DowntimeOptions {
    /// Measure the same in Linux, in the same lab, and compare.
    #[arg(long, value_enum)]
    against: Option<Against>,
    /// Virtual processors of the guests, one after the other.
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "2,4,8,16,32", value_parser = clap::value_parser!(u32).range(1..=1024))]
    vcpus: Vec<u32>,
    /// What is done to each guest, in this order.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "WAYS",
        default_value = "checkpoint,save-restore,migrate"
    )]
    operations: Vec<Operation>,
    /// How many times in a row each of them is done to each guest; the median is taken. After a restore or a migration a guest stands in
    /// other memory, and what it does first there runs code that an emulator has not translated and a processor has not cached.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    times: u32,
    /// Xen's scheduler.
    #[arg(long, value_enum, default_value_t = Scheds::Credit2)]
    sched: Scheds,
    /// Time is instructions executed, one processor at a time: slower, but what else the machine does makes no difference.
    #[arg(long)]
    deterministic: bool,
    /// How many times each guest is booted; 3 where not given, 1 with --deterministic.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Memory of each guest, in MiB.
    #[arg(long, default_value_t = 128, value_name = "MIB", value_parser = clap::value_parser!(u32).range(64..=65_536))]
    memory: u32,
    /// Processors of the emulated machine, for the guest and dom0 together.
    #[arg(long, default_value_t = lab::USUAL_CPUS, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    host_cpus: u32,
    /// What a boot, a command or a guest's answer may take, in seconds.
    #[arg(long, default_value_t = 900, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    #[command(flatten)]
    logs: LogOptions,
}

impl DowntimeOptions {
    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.deterministic { 1 } else { 3 })
    }

    /// What is done to each guest, from first to last.
    fn each_time(&self) -> impl Iterator<Item = Kind> + '_ {
        self.operations.iter().flat_map(|operation| (0..self.times).map(|_| operation.kind()))
    }
}

/// Runs the command.
///
/// # Errors
/// When a guest fails, tells something that cannot be true, or xl fails.
pub(super) fn run(options: &DowntimeOptions) -> Result<()> {
    let session = Session::start("bench-downtime", options.logs)?;
    let outcome = all_of_it(&session, options);
    session.end(outcome)
}

/// The boots so far, and the files that hold them.
struct Book {
    circumstances: Circumstances,
    /// Without the extension.
    path: PathBuf,
    boots: Vec<Boot>,
    /// Boots that came to nothing.
    failed: Vec<String>,
}

impl Book {
    fn open(options: &DowntimeOptions) -> Result<Book> {
        let dir = cargo::results_dir().join("bench");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let path = dir.join(format!("downtime-{}", since_1970.as_secs()));
        Ok(Book {
            circumstances: Circumstances {
                places: Vec::new(),
                tsc_khz: 0,
                memory_mib: options.memory,
                deterministic: options.deterministic,
            },
            path,
            boots: Vec::new(),
            failed: Vec::new(),
        })
    }

    /// Adds a boot and writes all of them: what was measured survives whatever comes next.
    fn add(&mut self, boot: Boot) -> Result<()> {
        self.boots.push(boot);
        self.write("json", &record(&self.circumstances, &self.boots).to_string()).map(drop)
    }

    fn write(&self, extension: &str, text: &str) -> Result<PathBuf> {
        let path = PathBuf::from(format!("{}.{extension}", self.path.display()));
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn closing(&self, scheds: &[Sched]) -> Result<String> {
        let rows = table::rows(&self.boots, self.circumstances.tsc_khz);
        let mut text = format!("\n{}\n", table::render(&rows));
        let growth = table::growth(&rows);
        if !growth.is_empty() {
            text.push_str(&format!("{growth}\n"));
        }
        text.push_str(&format!("record: {}.json", relative(&self.path)));
        for sched in scheds {
            if let Some(svg) = plot::svg(&rows, *sched)? {
                let path = self.write(&format!("{}.svg", sched.name()), &svg)?;
                text.push_str(&format!("\nplot:   {}", relative(&path)));
            }
        }
        Ok(text)
    }
}

fn all_of_it(session: &Session, options: &DowntimeOptions) -> Result<String> {
    let image = crate::image::build(&session.terminal, &session.logs)?;
    session.terminal.say(&format!("kernel: {}", image.describe()));
    let peer = match options.against {
        Some(Against::Linux) => Some(lab::bench_peer(&session.terminal)?),
        None => None,
    };
    let mut book = Book::open(options)?;
    for sched in options.sched.all() {
        if let Err(error) = under(session, options, *sched, &image, peer.as_ref(), &mut book) {
            session.terminal.abandon();
            session.terminal.say(&book.closing(options.sched.all())?);
            return Err(error);
        }
    }
    session.terminal.finished();
    let closing = book.closing(options.sched.all())?;
    if !book.failed.is_empty() {
        bail!("{closing}\nnot measured, for reasons told above: {}", book.failed.join("; "));
    }
    Ok(closing)
}

/// All that is measured under one scheduler, in one machine.
fn under(
    session: &Session,
    options: &DowntimeOptions,
    sched: Sched,
    image: &Image,
    peer: Option<&BenchPeer>,
    book: &mut Book,
) -> Result<()> {
    let operations: Vec<Kind> = options.each_time().collect();
    let most = options.vcpus.iter().max().copied().context("at least one number of vCPUs")?;
    let migrates = operations.contains(&Kind::Migrate);
    let config = LabConfig {
        host_cpus: options.host_cpus,
        memory: lab::memory_for(most, options.memory, 2),
        shadow_xen: migrates,
        xen_args: vec![format!("sched={}", sched.name())],
        deterministic: options.deterministic,
        logs: session.logs.join(sched.name()),
    };
    let terminal = &session.terminal;
    let mut lab = Lab::boot(&config, terminal)?;
    if migrates {
        require_log_dirty(&mut lab)?;
    }
    terminal.stage("putting the kernels into dom0");
    let place = lab.describe();
    let mut guests = Guests::put(&mut lab, &image.path, peer, Duration::from_secs(options.limit.into()))?;
    let tsc_khz = guests.tsc_khz(sched)?;
    terminal.finished();
    // The machine's TSC is the same for every Xen; each measures it anew, and ratios do not depend on it.
    if book.circumstances.tsc_khz == 0 {
        book.circumstances.tsc_khz = tsc_khz;
    }
    let linux = peer.map_or_else(String::new, |peer| format!("; peer Linux {}", peer.release));
    terminal.say(&format!("on:     {place}{linux}; TSC {tsc_khz} kHz, native"));
    book.circumstances.places.push(format!("{place}{linux}"));
    let khz = book.circumstances.tsc_khz;
    let rounds = options.rounds();
    for round in 1..=rounds {
        for vcpus in options.vcpus.iter().copied() {
            for side in sides(round, peer.is_some()) {
                let which = format!("{}, round {round} of {rounds}: {}, {vcpus} vCPUs", sched.name(), side.name());
                terminal.stage(&which);
                let path = config.logs.join(format!("{}-{vcpus}-{round}.log", side.name()));
                let mut log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
                let mut show = |news: News<'_>| match news {
                    // A full disk is no reason to stop measuring.
                    News::Says(line) => drop(writeln!(log, "{line}")),
                    News::Stops(stops) => terminal.say(&stops_line(side, vcpus, stops, khz)),
                    News::Suspends(kind) => terminal.stage(&format!("{which}, {}", kind.name())),
                    News::Suspended(kind, suspended) => terminal.say(&suspend_line(side, vcpus, kind, suspended, khz)),
                };
                let memory_mib = options.memory;
                let task = Task { sched, round, vcpus, memory_mib, side, operations: &operations };
                match guests.run(task, &mut show).with_context(|| which.clone()) {
                    Ok(boot) => book.add(boot)?,
                    // An hour of figures is not to be lost over one guest; but the run has failed.
                    Err(error) if guests.are_at_home() => {
                        terminal.abandon();
                        terminal.say(&format!("{error:#}"));
                        book.failed.push(which);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
    terminal.finished();
    Ok(())
}

/// Whoever is first finds another machine than the second one: they take turns.
fn sides(round: u32, both: bool) -> Vec<Side> {
    match (both, round % 2) {
        (false, _) => vec![Side::Stasis],
        (true, 1) => vec![Side::Stasis, Side::Linux],
        (true, _) => vec![Side::Linux, Side::Stasis],
    }
}

#[expect(clippy::cast_precision_loss, reason = "four digits are shown")]
fn ms(ticks: u64, khz: u64) -> f64 {
    ticks as f64 / khz.max(1) as f64
}

/// A boot's rendezvous as they are shown when they come.
fn stops_line(side: Side, vcpus: u32, stops: &Stops, khz: u64) -> String {
    let Stops { n, stopped, whole } = stops;
    let [stopped, most, whole] = [stopped.p50, stopped.max, whole.p50].map(|ticks| ms(ticks, khz));
    format!(
        "  {:<6} {vcpus:>4} vCPUs  {:<14} stopped {stopped:>10.3} ms  (max {most:.3})  whole {whole:>10.3} ms  n {n}",
        side.name(),
        "stop-machine",
    )
}

/// The same of a suspend.
fn suspend_line(side: Side, vcpus: u32, kind: Kind, suspended: &Suspended, khz: u64) -> String {
    let Suspended { prepare, held, resume, .. } = suspended;
    let [worst, held, prepare, resume] = [suspended.worst(), *held, *prepare, *resume].map(|ticks| ms(ticks, khz));
    format!(
        "  {:<6} {vcpus:>4} vCPUs  {:<14} blackout {worst:>9.1} ms  held {held:>8.1}  prepare {prepare:>8.2}  resume {resume:>8.2}",
        side.name(),
        kind.name(),
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: DowntimeOptions,
    }

    fn options(words: &str) -> Result<DowntimeOptions> {
        Ok(Line::try_parse_from(std::iter::once("downtime").chain(words.split_whitespace()))?.options)
    }

    #[test]
    fn what_is_not_said_is_all_of_it() {
        let all = options("--against linux").expect("well formed");
        assert_eq!((all.rounds(), all.sched.all()), (3, &[Sched::Credit2][..]));
        assert_eq!(all.vcpus, [2, 4, 8, 16, 32]);
        let rounds = |words| options(words).expect("well formed").rounds();
        assert_eq!((rounds("--deterministic"), rounds("--deterministic --rounds 2")), (1, 2));
        assert_eq!(all.operations, [Operation::Checkpoint, Operation::SaveRestore, Operation::Migrate]);
        let some = options("--vcpus 2,64 --operations migrate --sched both --rounds 1").expect("well formed");
        assert_eq!((some.vcpus, some.operations), (vec![2, 64], vec![Operation::Migrate]));
        let twice = options("--operations migrate,checkpoint --times 2").expect("well formed");
        let order = [Kind::Migrate, Kind::Migrate, Kind::Checkpoint, Kind::Checkpoint];
        assert_eq!(twice.each_time().collect::<Vec<_>>(), order);
        assert_eq!(some.sched.all(), [Sched::Credit2, Sched::Credit]);
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [
            "--vcpus 0",
            "--vcpus",
            "--rounds 0",
            "--times 0",
            "--sched null",
            "--operations fly",
            "--against bsd",
            "x",
        ] {
            assert!(options(words).is_err(), "{words}");
        }
    }

    #[test]
    fn guests_take_turns_at_being_first() {
        assert_eq!(sides(1, true), [Side::Stasis, Side::Linux]);
        assert_eq!(sides(2, true), [Side::Linux, Side::Stasis]);
        assert_eq!(sides(2, false), [Side::Stasis]);
    }

    #[test]
    fn a_suspend_is_told_in_milliseconds() {
        let suspended =
            Suspended { prepare: 5_000, held: 1_000_000, resume: 7_500, gaps: vec![1_100_000], ..Default::default() };
        let line = suspend_line(Side::Linux, 8, Kind::Migrate, &suspended, 1000);
        for part in ["linux", "8 vCPUs", "migrate", "1100.0 ms", "1000.0", "5.00", "7.50"] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }
}
