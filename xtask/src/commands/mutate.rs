//! `cargo xtask mutate`: weakens every ordering, one at a time, and expects a loom test to fail.
//!
//! Owns the order of the work and what is said about it: the test that a comment names is tried first, then the crate's
//! others. What no test fails for is a survivor, and fails the run, unless its comment says `UNTESTED` and why; then it is
//! told as skipped. Each mutant counts as one test.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::Session;
use super::test::AlreadyTold;
use crate::counts::{self, Layer};
use crate::host::Progress;
use crate::mutate::copy::Copy;
use crate::mutate::sites::{self, Site};
use crate::mutate::trial::{Bench, Ended, Test};
use crate::mutate::weaken::{self, Weakening};
use crate::mutate::{comment, sources};
use crate::options::LogOptions;
use crate::progress::Terminal;
use crate::report::{self, Survivor};
use crate::workspace::{Member, Workspace};
use crate::{cargo, ending};

/// Options of the command.
#[derive(Clone, Debug, Args)]
pub struct MutateOptions {
    /// Only these crates.
    #[arg(value_name = "CRATE")]
    crates: Vec<String>,
    /// Only this file, such as evtchn/src/fifo/word.rs (the end of its path is enough).
    #[arg(long, value_name = "F")]
    file: Option<PathBuf>,
    /// Only this line.
    #[arg(long, value_name = "N")]
    line: Option<usize>,
    /// Only say what would be weakened, and which tests the comments name.
    #[arg(long)]
    list: bool,
    /// How long one test may take for one mutant.
    #[arg(long, default_value_t = 120, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    #[command(flatten)]
    logs: LogOptions,
}

/// One edit, and where to look for its failure.
struct Mutant {
    of: String,
    file: PathBuf,
    site: Site,
    way: Weakening,
    /// In the order in which they are tried.
    tests: Vec<Test>,
    /// How many of them, the first, the comment names.
    nr_named: usize,
}

impl Mutant {
    fn place(&self) -> String {
        format!("{}:{}", self.file.display(), self.site.line)
    }

    fn what(&self) -> String {
        format!("{} to {}", self.site.strength.name(), self.way.to)
    }

    fn untested(&self) -> Option<&str> {
        comment::untested(&self.site.comment, self.way.loses)
    }
}

/// What became of a mutant.
enum Fate {
    Red(String),
    Survived(String),
    Broken(String),
}

/// Runs the command.
///
/// # Errors
/// When a mutant survives or does not compile, and when a test is red before anything was weakened.
pub fn run(options: &MutateOptions) -> Result<()> {
    let session = Session::start("mutate", options.logs)?;
    let terminal = &session.terminal;
    terminal.stage("asking cargo for the crates (the first time it downloads them)");
    let workspace = Workspace::load()?;
    terminal.finished();
    if options.list {
        let mutants = mutants(options, &cargo::root(), &workspace)?;
        mutants.iter().for_each(|mutant| terminal.say(&listed(mutant)));
        return session.end(Ok(format!("{} mutants", mutants.len())));
    }
    let home = cargo::results_dir().join("mutate");
    let copy = Copy::of(&cargo::root(), &home)?;
    // Of the copy, which nobody edits meanwhile.
    let mutants = mutants(options, copy.tree(), &workspace)?;
    let limit = Duration::from_secs(options.limit);
    let bench = Bench { copy: &copy, target: home.join("target"), log: session.logs.join("mutate.log"), limit };
    let mut trials = Trials { bench, green: HashSet::new() };
    let mut layers: Vec<Layer> = Vec::new();
    let mut survivors = Vec::new();
    for (nr, mutant) in (1..).zip(&mutants) {
        terminal.stage(&format!("{nr}/{}: {} {}", mutants.len(), mutant.place(), mutant.what()));
        let started = Instant::now();
        let fate = trials.fate(mutant, terminal)?;
        // What a signal has ended has shown nothing.
        ending::give_way();
        terminal.finished();
        let at = layers.iter().position(|layer| layer.name == mutant.of).unwrap_or_else(|| {
            layers.push(Layer::new(&mutant.of));
            layers.len() - 1
        });
        count(mutant, verdict(fate, mutant.untested()), &mut layers[at], &mut survivors, terminal);
        layers[at].took += started.elapsed();
    }
    let total = counts::total(&layers);
    let mut text = report::layers(&layers);
    if !survivors.is_empty() {
        text = format!("{text}\n\nsurvivors:\n{}", report::survivors(&survivors));
    }
    terminal.say(&format!("{text}\nlogs: {}\n{total}", super::relative(&session.logs)));
    if total.failed > 0 {
        bail!(AlreadyTold);
    }
    Ok(())
}

/// What that means for the run.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Passed(String),
    Failed(String),
    /// Nothing was expected of it.
    Skipped(String),
}

fn verdict(fate: Fate, untested: Option<&str>) -> Verdict {
    match (fate, untested) {
        (Fate::Red(why), None) => Verdict::Passed(why),
        (Fate::Red(why), Some(_)) => Verdict::Failed(format!("the comment says UNTESTED, but {why}")),
        (Fate::Survived(_), Some(reason)) => Verdict::Skipped(reason.to_owned()),
        (Fate::Survived(why) | Fate::Broken(why), _) => Verdict::Failed(why),
    }
}

/// Says a verdict aloud and counts it.
fn count(mutant: &Mutant, verdict: Verdict, layer: &mut Layer, survivors: &mut Vec<Survivor>, terminal: &Terminal) {
    let (place, what) = (mutant.place(), mutant.what());
    match verdict {
        Verdict::Passed(why) => {
            terminal.say(&format!("red: {place} {what}: {why}"));
            layer.counts.passed += 1;
        }
        Verdict::Failed(why) => {
            terminal.say(&format!("FAILED: {place} {what}: {why}"));
            layer.counts.failed += 1;
            // All of it has just been said.
            let why = why.lines().next().unwrap_or_default().to_owned();
            survivors.push(Survivor { place, what, why });
        }
        Verdict::Skipped(reason) => {
            terminal.say(&format!("SKIPPED: {place} {what} is not tested: {reason}"));
            layer.counts.skipped += 1;
            layer.skip(&format!("UNTESTED: {place}"));
        }
    }
}

fn listed(mutant: &Mutant) -> String {
    let named: Vec<String> = mutant.tests[..mutant.nr_named].iter().map(Test::to_string).collect();
    let tests = match (mutant.untested(), named.as_slice()) {
        (Some(reason), _) => format!("UNTESTED: {reason}"),
        (None, []) => "no test is named".to_owned(),
        (None, names) => names.join(", "),
    };
    format!("{} {}: {tests}", mutant.place(), mutant.what())
}

/// Runs tests, and remembers which of them are green as things are.
struct Trials<'c> {
    bench: Bench<'c>,
    green: HashSet<Test>,
}

impl Trials<'_> {
    /// An error where nothing can be learned from any mutant.
    fn fate(&mut self, mutant: &Mutant, progress: &dyn Progress) -> Result<Fate> {
        let text = self.bench.copy.read(&mutant.file)?;
        let mut stayed = Vec::new();
        for test in &mutant.tests {
            if !self.green.contains(test) {
                progress.note(&format!("{test} as it is"));
                self.check(test)?;
            }
            progress.note(&test.to_string());
            self.bench.copy.write(&mutant.file, &mutant.way.apply(&text))?;
            let ended = self.bench.build(test).map(|program| self.bench.run(test, &program));
            self.bench.copy.write(&mutant.file, &text)?;
            match ended {
                Err(error) if ending::begun() => return Err(error),
                Err(error) => return Ok(Fate::Broken(format!("does not compile, an error of this tool\n{error:#}"))),
                Ok(Err(error)) => return Err(error),
                Ok(Ok(Ended::Red(why))) => return Ok(Fate::Red(format!("{} {why}", test.name))),
                Ok(Ok(Ended::Green)) => stayed.push(format!("{} green", test.name)),
                Ok(Ok(Ended::TooLarge(at))) => stayed.push(format!("{} ran out of branches in {at}", test.name)),
                Ok(Ok(Ended::Late)) => {
                    stayed.push(format!("{} undecided after {} s (--limit)", test.name, self.bench.limit.as_secs()));
                }
            }
        }
        Ok(Fate::Survived(stayed.join(", ")))
    }

    /// A test that is red as things are would make all mutants red.
    fn check(&mut self, test: &Test) -> Result<()> {
        let program = self.bench.build(test)?;
        match self.bench.run(test, &program)? {
            Ended::Green => {}
            Ended::Red(why) => bail!("{test} fails though nothing was weakened: {why}"),
            Ended::TooLarge(at) => bail!("{test} runs out of branches in {at}, though nothing was weakened"),
            Ended::Late => bail!("{test} takes longer than --limit though nothing was weakened"),
        }
        self.green.insert(test.clone());
        Ok(())
    }
}

/// All mutants of the tree at `root` that the options ask for.
fn mutants(options: &MutateOptions, root: &Path, workspace: &Workspace) -> Result<Vec<Mutant>> {
    if let Some(unknown) = options.crates.iter().find(|name| !workspace.members.iter().any(|m| m.name == **name)) {
        bail!("no crate `{unknown}` in this workspace");
    }
    let mut mutants = Vec::new();
    let wanted = |member: &&Member| options.crates.is_empty() || options.crates.contains(&member.name);
    for member in workspace.members.iter().filter(|member| member.is_kernel_side()).filter(wanted) {
        if member.loom_tests().next().is_none() {
            continue;
        }
        for file in sources::of(root, member)? {
            if options.file.as_ref().is_none_or(|end| file.ends_with(end)) {
                of_file(root, &file, member, workspace, &mut mutants)?;
            }
        }
    }
    mutants.retain(|mutant| options.line.is_none_or(|line| mutant.site.line == line));
    if mutants.is_empty() {
        bail!("no ordering is there to be weakened");
    }
    Ok(mutants)
}

fn of_file(root: &Path, file: &Path, member: &Member, workspace: &Workspace, mutants: &mut Vec<Mutant>) -> Result<()> {
    let text = fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {}", file.display()))?;
    let lines: Vec<&str> = text.lines().collect();
    for site in sites::find(&text).with_context(|| file.display().to_string())? {
        let mut named = comment::named(&site.comment);
        if named.is_empty() {
            named = comment::named(&comment::header(&lines));
        }
        let mut tests = Vec::new();
        for name in named {
            let test = Test { of: name.of.unwrap_or_else(|| member.name.clone()), name: name.test };
            let is_there = |of: &Member| of.name == test.of && of.loom_tests().any(|name| name == test.name);
            if !workspace.members.iter().any(is_there) {
                bail!("{}:{} names {test}, which there is not", file.display(), site.line);
            }
            if !tests.contains(&test) {
                tests.push(test);
            }
        }
        let nr_named = tests.len();
        for name in member.loom_tests() {
            let test = Test { of: member.name.clone(), name: name.to_owned() };
            if !tests.contains(&test) {
                tests.push(test);
            }
        }
        for way in weaken::ways(site.strength, &site.operation, &site.bytes) {
            mutants.push(Mutant {
                of: member.name.clone(),
                file: file.to_path_buf(),
                site: site.clone(),
                way,
                tests: tests.clone(),
                nr_named,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_to_be_untested_may_stay_green() {
        let (red, green) = (|| Fate::Red("lost".to_owned()), || Fate::Survived("loom_a green".to_owned()));
        assert_eq!(verdict(red(), None), Verdict::Passed("lost".to_owned()));
        assert_eq!(verdict(green(), None), Verdict::Failed("loom_a green".to_owned()));
        assert_eq!(verdict(green(), Some("Xen reads it.")), Verdict::Skipped("Xen reads it.".to_owned()));
        assert!(matches!(verdict(red(), Some("Xen reads it.")), Verdict::Failed(_)), "the reason is stale");
        let broken = Fate::Broken("does not compile".to_owned());
        assert_eq!(verdict(broken, Some("Xen reads it.")), Verdict::Failed("does not compile".to_owned()));
    }

    #[test]
    fn the_tests_that_a_comment_names_come_first() {
        if cfg!(miri) {
            return;
        }
        let below = std::env::temp_dir().join(format!("stasis-mutate-{}", std::process::id()));
        fs::create_dir_all(&below).expect("ours");
        let member = Member { name: "a".to_owned(), tests: ["loom_x", "loom_y"].map(str::to_owned).to_vec() };
        let workspace = Workspace { members: vec![member.clone()], dependencies: Vec::new() };
        let mutants = |text: &str| {
            let mut mutants = Vec::new();
            fs::write(below.join("a.rs"), text).expect("ours");
            of_file(&below, Path::new("a.rs"), &member, &workspace, &mut mutants).map(|()| mutants)
        };
        let text = "//! All of it: tests/loom_x.rs.\nfn f() {\n    // ORDERING: x, see loom_y.\n    a.swap(0, Ordering::AcqRel);\n\n    b.load(Ordering::Acquire);\n}\n";
        let found: Vec<String> = mutants(text).expect("both tests are there").iter().map(listed).collect();
        let expected = [
            "a.rs:4 AcqRel to Acquire: a/tests/loom_y.rs",
            "a.rs:4 AcqRel to Release: a/tests/loom_y.rs",
            "a.rs:6 Acquire to Relaxed: a/tests/loom_x.rs",
        ];
        assert_eq!(found, expected);
        assert_eq!(mutants(text).expect("as above")[0].tests.len(), 2, "and then the others");
        let error = mutants("//! loom_z\nfn f() { a.load(Ordering::Acquire); }").err().expect("there is none");
        assert_eq!(error.to_string(), "a.rs:2 names a/tests/loom_z.rs, which there is not");
        fs::remove_dir_all(below).expect("ours");
    }
}
