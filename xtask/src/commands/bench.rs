//! `cargo xtask bench`: measures stasis, against Linux on the same Xen where that is asked for.
//!
//! Owns the order of boots and what the user sees and gets: figures as they come, the comparison, the record. Both sides are
//! booted anew for each round and ABI, in turns, so that whatever changes on the machine meets both. Turned down: both guests
//! at once, where each would be a part of what the other one measures.

#![forbid(unsafe_code)]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};

use super::bench_downtime::{self, DowntimeOptions};
use super::bench_guests::{Guests, Shape, direct};
use super::{Session, relative};
use crate::bench::record::{Circumstances, record};
use crate::bench::said::Figures;
use crate::bench::{self, Run, Side, table};
use crate::cargo;
use crate::host::Progress;
use crate::lab::{self, Lab, LabConfig};
use crate::options::LogOptions;

/// What one boot may take, by this machine's clock. A busy machine in the deterministic mode needs a fifth of it.
const LIMIT: Duration = Duration::from_secs(1200);

/// Whom to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Against {
    /// Debian's Linux as a PV guest, with a module that measures the same.
    Linux,
}

/// Which event channel ABIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Abis {
    #[value(name = "2l")]
    TwoLevel,
    Fifo,
    Both,
}

impl Abis {
    fn names(self) -> &'static [&'static str] {
        match self {
            Abis::TwoLevel => &["2l"],
            Abis::Fifo => &["fifo"],
            Abis::Both => &["2l", "fifo"],
        }
    }
}

/// What is measured by more than one guest's benches.
#[derive(Clone, Debug, Subcommand)]
enum Apart {
    /// Suspend guests in every way, and measure what it costs their tasks; with --against linux Linux' too, and compare.
    ///
    /// In each guest a task on every vCPU reads the clock every 200 us. Shown, for each number of vCPUs, way and scheduler: how long
    /// all others take to stop, the largest gap that any task saw (the blackout), what of it is not the time that Xen and the
    /// toolstack held the domain, what the guest itself needed, and that time; medians over the rounds, their spread, ratios.
    /// Every vCPU's figures are left in target/bench/ as JSON, with a plot for each scheduler. Real time says something only
    /// on a machine that does nothing else. --deterministic counts instructions instead. `--vcpus 2,4 --rounds 1` is
    /// a short run.
    Downtime(DowntimeOptions),
}

/// Options of the command.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchOptions {
    #[command(subcommand)]
    apart: Option<Apart>,
    /// What to measure, with spaces or commas between; everything where nothing is named.
    ///
    /// null-hypercall, self-event, self-event-return, drain, ipi-call, ipi-broadcast, event-other, timer-busy, storm; and what
    /// stasis alone has: bare-ipi, what an IPI costs when nothing is done with it; bind, ports bound in one multicall; and
    /// rendezvous, all vCPUs gathered and released, best seen with more of them than --host-cpus.
    #[arg(value_name = "NAMES", value_delimiter = ',', value_parser = name)]
    names: Vec<String>,
    /// Measure the same in Linux, in the same lab, and compare. Without it stasis alone is booted, without dom0.
    #[arg(long, value_enum)]
    against: Option<Against>,
    /// Time is instructions executed: figures repeat whatever else the machine does, and targets are judged.
    #[arg(long)]
    deterministic: bool,
    /// How many times each is booted; 3 where not given, 1 with --deterministic.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Virtual processors of each guest, each pinned to a processor of its own unless --host-cpus says otherwise.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1024))]
    vcpus: u32,
    /// Processors of the emulated machine, without --against: fewer than vCPUs, which are not pinned then.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64), conflicts_with = "against")]
    host_cpus: Option<u32>,
    /// Xen's scheduler, without --against: credit2, which is its default, credit, rtds or null.
    #[arg(long, value_name = "NAME", conflicts_with = "against")]
    sched: Option<String>,
    /// Event channel ABI, of both sides.
    #[arg(long, value_enum, default_value_t = Abis::Both)]
    evtchn: Abis,
    /// Memory of each guest, in MiB.
    #[arg(long, default_value_t = 128, value_name = "MIB", value_parser = clap::value_parser!(u32).range(64..=65_536))]
    memory: u32,
    #[command(flatten)]
    logs: LogOptions,
}

fn name(text: &str) -> Result<String, String> {
    let known = bench::BENCHES.map(|known| known.name).join(", ");
    match bench::find(text) {
        Some(found) => Ok(found.name.to_owned()),
        None => Err(format!("there is no such bench; there are {known}")),
    }
}

/// Runs the command.
///
/// # Errors
/// When a guest fails, tells something that cannot be true, or does not come to an end.
pub fn run(options: &BenchOptions) -> Result<()> {
    if let Some(Apart::Downtime(options)) = &options.apart {
        return bench_downtime::run(options);
    }
    let plan = Plan::of(options)?;
    let session = Session::start("bench", options.logs)?;
    let outcome = all_of_it(&session, &plan);
    session.end(outcome)
}

/// What is to be booted, and with which words.
#[derive(Clone, Debug)]
struct Plan {
    /// For `bench=` of stasis.
    ours: String,
    /// The same for the peer, where there is one.
    peers: Option<String>,
    abis: &'static [&'static str],
    rounds: u32,
    shape: Shape,
    host_cpus: u32,
    xen_args: Vec<String>,
    deterministic: bool,
}

/// Xen's word for a processor of its own for each vCPU of the initial domain.
const PIN: &str = "dom0_vcpus_pin";

/// With a processor for each vCPU, and one for dom0.
const PINNED_MAX: u32 = 63;

impl Plan {
    fn of(options: &BenchOptions) -> Result<Plan> {
        let words = |names: &[String]| if names.is_empty() { "all".to_owned() } else { names.join(",") };
        let peers = match options.against {
            None => None,
            Some(Against::Linux) => {
                let has = |name: &&String| bench::find(name).is_some_and(|known| known.peer);
                let both: Vec<String> = options.names.iter().filter(has).cloned().collect();
                if both.is_empty() && !options.names.is_empty() {
                    bail!("Linux has nothing like {}: leave out --against linux", options.names.join(" and "));
                }
                Some(words(&both))
            }
        };
        if options.host_cpus.is_none() && options.vcpus > PINNED_MAX {
            bail!("with more than {PINNED_MAX} vCPUs say on how many processors: --host-cpus 2");
        }
        let sched = options.sched.iter().map(|name| format!("sched={name}"));
        let pinned = options.host_cpus.is_none().then(|| PIN.to_owned());
        Ok(Plan {
            host_cpus: options.host_cpus.unwrap_or(options.vcpus),
            xen_args: sched.chain(pinned).collect(),
            ours: words(&options.names),
            peers,
            abis: options.evtchn.names(),
            rounds: options.rounds.unwrap_or(if options.deterministic { 1 } else { 3 }),
            shape: Shape { vcpus: options.vcpus, memory_mib: options.memory },
            deterministic: options.deterministic,
        })
    }
}

impl Plan {
    /// Where the guests' vCPUs run, for people.
    fn placing(&self) -> String {
        let pinned = self.xen_args.iter().any(|arg| arg == PIN) || self.peers.is_some();
        let place = if pinned { "each pinned".to_owned() } else { format!("on {} processors", self.host_cpus) };
        let sched = self.xen_args.iter().filter(|arg| *arg != PIN).map(|arg| format!(", {arg}"));
        std::iter::once(place).chain(sched).collect()
    }
}

/// The runs so far, and the file that holds them.
struct Book {
    circumstances: Circumstances,
    path: PathBuf,
    runs: Vec<Run>,
}

impl Book {
    fn open(session: &Session, plan: &Plan, place: String) -> Result<Book> {
        let dir = cargo::results_dir().join("bench");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let circumstances = Circumstances { place, vcpus: plan.shape.vcpus, deterministic: plan.deterministic };
        let path = dir.join(format!("{}.json", since_1970.as_secs()));
        let book = Book { circumstances, path, runs: Vec::new() };
        session.terminal.say(&book.heading(plan));
        Ok(book)
    }

    fn heading(&self, plan: &Plan) -> String {
        let mode = if plan.deterministic { "time is instructions" } else { "time is the machine's" };
        format!(
            "on:     {}\nguests: {} vCPUs, {}; {mode}; {} of each; figures are TSC ticks",
            self.circumstances.place,
            plan.shape.vcpus,
            plan.placing(),
            if plan.rounds == 1 { "one round".to_owned() } else { format!("{} rounds", plan.rounds) },
        )
    }

    /// Adds a run and writes all of them: what was measured survives whatever comes next.
    fn add(&mut self, run: Run, asked_abi: &str) -> Result<()> {
        if let Some(other) = run.figures.iter().find(|figures| figures.abi != asked_abi) {
            bail!("{} was to use the ABI {asked_abi}, and says {} of {}", run.side.name(), other.abi, other.name);
        }
        self.runs.push(run);
        let text = record(&self.circumstances, &self.runs).to_string();
        fs::write(&self.path, text).with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn closing(&self, plan: &Plan) -> String {
        let table = table::render(&table::rows(&self.runs), plan.deterministic);
        format!("\n{table}\nhistograms: {}", relative(&self.path))
    }
}

fn all_of_it(session: &Session, plan: &Plan) -> Result<String> {
    let image = crate::image::build(&session.terminal, &session.logs)?;
    session.terminal.say(&format!("kernel: {}", image.describe()));
    let show = |side: Side, figures: &Figures| session.terminal.say(&one_line(side, figures));
    let Some(peers) = &plan.peers else {
        let prepared = lab::prepare(&session.terminal, false)?;
        let place = "lab: Xen's initial domain, in QEMU".to_owned();
        let mut book = Book::open(session, plan, place)?;
        for round in 1..=plan.rounds {
            for abi in plan.abis {
                session.terminal.stage(&format!("round {round} of {}: stasis, {abi}", plan.rounds));
                let config = lab::DirectConfig {
                    kernel: image.path.clone(),
                    cmdline: format!("bench={} evtchn={abi}", plan.ours),
                    vcpus: plan.shape.vcpus,
                    memory_mib: plan.shape.memory_mib,
                    host_cpus: plan.host_cpus,
                    xen_args: plan.xen_args.clone(),
                    deterministic: plan.deterministic,
                    logs: session.logs.clone(),
                    limit: LIMIT,
                };
                let figures = direct(&prepared, &config, &mut |figures| show(Side::Stasis, figures))?;
                book.add(Run { round, side: Side::Stasis, figures }, abi)?;
            }
        }
        return Ok(book.closing(plan));
    };
    let peer = lab::bench_peer(&session.terminal)?;
    let config = LabConfig {
        // One more for dom0: what it does while a guest measures is not done on the guest's processors.
        host_cpus: plan.shape.vcpus + 1,
        memory: lab::memory_for(plan.shape.vcpus, plan.shape.memory_mib, 1),
        shadow_xen: false,
        xen_args: Vec::new(),
        deterministic: plan.deterministic,
        logs: session.logs.clone(),
    };
    let mut lab = Lab::boot(&config, &session.terminal)?;
    session.terminal.stage("putting both kernels into dom0");
    let mut guests = Guests::put(&mut lab, &image.path, &peer, plan.shape, LIMIT)?;
    let place = guests.describe();
    session.terminal.finished();
    let mut book = Book::open(session, plan, place)?;
    for round in 1..=plan.rounds {
        for abi in plan.abis {
            // Whoever is first finds another machine than the second one: they take turns.
            let sides = if round % 2 == 1 { [Side::Stasis, Side::Linux] } else { [Side::Linux, Side::Stasis] };
            for side in sides {
                session.terminal.stage(&format!("round {round} of {}: {}, {abi}", plan.rounds, side.name()));
                let names = if side == Side::Stasis { &plan.ours } else { peers };
                let what = format!("{} with {abi} in round {round}", side.name());
                let ran = guests.run(side, round, names, abi, &mut |figures| show(side, figures));
                book.add(Run { round, side, figures: ran.context(what)? }, abi)?;
            }
        }
    }
    session.terminal.finished();
    Ok(book.closing(plan))
}

/// A bench as it is shown when it comes.
fn one_line(side: Side, figures: &Figures) -> String {
    let Figures { name, variant, abi, n, min, p50, p99, max, .. } = figures;
    let which = format!("{name} {variant}");
    format!("  {:<6} {abi:<4} {which:<28} p50 {p50:>7}  min {min:>7}  p99 {p99:>8}  max {max:>9}  n {n}", side.name())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: BenchOptions,
    }

    fn plan(words: &str) -> Result<Plan> {
        let line = Line::try_parse_from(std::iter::once("bench").chain(words.split_whitespace()))?;
        Plan::of(&line.options)
    }

    #[test]
    fn rounds_follow_the_mode_unless_given() {
        let rounds = |words| plan(words).expect("well formed").rounds;
        assert_eq!((rounds(""), rounds("--deterministic"), rounds("--deterministic --rounds 5")), (3, 1, 5));
    }

    #[test]
    fn each_side_is_asked_for_what_it_has() {
        let words = |line| plan(line).map(|plan| (plan.ours, plan.peers));
        assert_eq!(words("").expect("all"), ("all".to_owned(), None));
        assert_eq!(words("--against linux").expect("all"), ("all".to_owned(), Some("all".to_owned())));
        let both = ("bare-ipi,ipi-call,drain".to_owned(), Some("ipi-call,drain".to_owned()));
        assert_eq!(words("bare-ipi,ipi-call drain --against linux").expect("known"), both);
        assert!(words("bare-ipi --against linux").expect_err("nothing to compare").to_string().contains("bare-ipi"));
    }

    #[test]
    fn more_vcpus_than_processors_are_not_pinned() {
        let args = |words| plan(words).map(|plan| (plan.host_cpus, plan.xen_args.join(" ")));
        assert_eq!(args("--vcpus 4").expect("well formed"), (4, "dom0_vcpus_pin".to_owned()));
        let crowded = args("rendezvous --vcpus 512 --host-cpus 2 --sched credit").expect("well formed");
        assert_eq!(crowded, (2, "sched=credit".to_owned()));
        assert!(args("--vcpus 512").expect_err("on what?").to_string().contains("--host-cpus"));
        assert!(args("--host-cpus 2 --against linux").is_err());
    }

    #[test]
    fn nonsense_is_refused_and_says_what_there_is() {
        for words in ["--vcpus 1", "--rounds 0", "--memory 1", "--evtchn 3l", "--against bsd", "drain,,"] {
            assert!(plan(words).is_err(), "{words}");
        }
        assert!(plan("drian").expect_err("no such bench").to_string().contains("drain"));
    }
}
