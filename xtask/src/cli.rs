//! The command line: which commands there are, and their help texts, which are the manual.

#![forbid(unsafe_code)]

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::commands::{
    bench, check, direct, dirty, image, models, mutate, remus, run, setup, soak, suspend, test, timeline,
};
use crate::drive::cycles::Kind;

/// Builds, runs, migrates and checks stasis, a Xen PV guest kernel made to be suspended.
///
/// Two places to run: the lab (QEMU with real Xen and a Debian dom0; the default, works on any Debian
/// machine) and this machine's own Xen (--on host). What is missing is fetched and installed, and kept
/// in .cache/lab (or $STASIS_CACHE); what happened last is in target/logs/COMMAND/.
///
/// Try first: cargo xtask migrate
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a guest under xl, live-migrate it while all its vCPUs beat, and see every one come back.
    ///
    /// The guest is migrated to the same machine by `xl migrate`, --cycles times. Shown: what the guest
    /// says, and for each migration how long each phase took. It fails unless after each one all vCPUs
    /// beat, no event was lost and the guest's memory holds what it held.
    ///
    /// Live migration of PV guests needs a Xen with shadow paging; for the lab it is built from
    /// Debian's source the first time (about 70 s on two processors).
    Migrate(suspend::SuspendOptions),
    /// The same with `xl save` and `xl restore`, or with checkpoints.
    SaveRestore {
        #[command(flatten)]
        options: suspend::SuspendOptions,
        /// `xl save -c`: the guest goes on in the same domain.
        #[arg(long)]
        checkpoint: bool,
    },
    /// Checkpoint a guest without a pause by `xl remus`, into a null sink, --rounds times.
    ///
    /// The guest asks for the suspend event channel (suspend=evtchn; --extra suspend=xenstore for the other way). Shown: the spread of
    /// what each phase took, and how many pages each round has sent. It fails unless the guest has gone on from every one.
    Remus(remus::RemusOptions),
    /// Suspend guests in every way and change their vCPUs at random moments, under storms of events, timers and IPIs, for --minutes.
    ///
    /// Guest after guest with a random number of vCPUs, either event ABI and either way to be asked (suspend=xenstore|evtchn); each is
    /// checkpointed, saved and restored, and migrated, while vCPUs go down and come back. It fails at the first lost event, word
    /// of memory that is not what it was, or clock that goes back. Every decision is shown and follows from the seed.
    Soak(soak::SoakOptions),
    /// Count the pages that an idle guest writes to, in a second, in a checkpoint and in a restore.
    ///
    /// Counted by Xen's log-dirty mode. An idle guest that writes to 50 pages a second or more fails.
    DirtyPages(dirty::DirtyOptions),
    /// Boot the kernel as Xen's initial domain: two seconds, no xl, no suspend.
    ///
    /// For self-tests (--extra test=NAME; test=list names them), for benches (--extra bench=NAME, bench=all,
    /// bench=list) and for a quick look. The run is good when the test passes, when the benches have told all
    /// their figures or, under workload=heartbeat, when --beats heartbeats came.
    Direct(direct::DirectOptions),
    /// Start a guest under xl with its console on this terminal; Ctrl-] leaves.
    Run(run::RunOptions),
    /// Measure events, IPIs, timers and hypercalls in the guest; with --against linux in Linux too, and compare.
    ///
    /// Shown: each figure as it comes, then a table with medians, ratios and their spread over the rounds, and the targets
    /// where there are some. Raw histograms are left in target/bench/ as JSON. Real time says something only on a machine
    /// that does nothing else; --deterministic counts instructions instead.
    Bench(bench::BenchOptions),
    /// Draw the suspends that a guest's console log tells of: what each vCPU did when.
    ///
    /// One SVG for each: vCPUs down, time across, one colour for each phase; point at a stretch for its exact length. The
    /// guest tells of them under trace=suspend, and when `phases` is typed on its console. `migrate` and `save-restore` do
    /// all of it with --timeline.
    Timeline(timeline::TimelineOptions),
    /// Build the kernel, check its ELF notes and segments, leave it at target/stasis.elf.
    Image,
    /// The one command before a commit: format, lints, host tests, docs, licences.
    Check(check::CheckOptions),
    /// All layers of tests: lints, unit, property, loom, shuttle, Miri, self-tests on Xen, the xl ladder.
    ///
    /// The last line is `N passed, N failed`, and `, N skipped` where something was not run.
    Test(test::TestOptions),
    /// Explore the interleavings of the lock-free parts: every loom test, then shuttle's scenes with a dozen CPUs.
    Model(models::ModelOptions),
    /// Weaken every atomic ordering of the lock-free parts, one at a time, and see a loom test fail.
    ///
    /// The edits are made in a copy of the tree, target/mutate/tree. An ordering that no test misses fails the run,
    /// unless its comment ends in `UNTESTED: reason` (or `UNTESTED Acquire: reason`, where there are two); that is told
    /// as skipped. The last line is `N passed, N failed`, one for each edit, and `, N skipped`.
    Mutate(mutate::MutateOptions),
    /// Run the host tests under Miri.
    Miri(models::ModelOptions),
    /// Fetch and build now what the other commands need, instead of when they need it.
    Setup(setup::SetupOptions),
}

impl Cli {
    /// Does what was asked for.
    ///
    /// # Errors
    /// What the command says.
    pub fn run(self) -> Result<()> {
        match self.command {
            Command::Migrate(options) => suspend::run(Kind::Migrate, &options),
            Command::SaveRestore { options, checkpoint: false } => suspend::run(Kind::SaveRestore, &options),
            Command::SaveRestore { options, checkpoint: true } => suspend::run(Kind::Checkpoint, &options),
            Command::Remus(options) => remus::run(&options),
            Command::Soak(options) => soak::run(&options),
            Command::DirtyPages(options) => dirty::run(&options),
            Command::Direct(options) => direct::run(&options),
            Command::Run(options) => run::run(&options),
            Command::Bench(options) => bench::run(&options),
            Command::Timeline(options) => timeline::run(&options),
            Command::Image => image::run(),
            Command::Check(options) => check::run(options),
            Command::Test(options) => test::run(&options),
            Command::Model(options) => models::run_model(&options),
            Command::Mutate(options) => mutate::run(&options),
            Command::Miri(options) => models::run_miri(&options),
            Command::Setup(options) => setup::run(options),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_the_options_that_all_share() {
        let with = |words: &str| Cli::try_parse_from(format!("xtask {words}").split(' '));
        let guest = "--vcpus 4 --memory 32 --host-cpus 1 --extra log=debug --keep-logs";
        for command in ["migrate", "save-restore", "remus", "dirty-pages", "run"] {
            assert!(with(&format!("{command} {guest} --on host")).is_ok(), "{command}");
            assert!(with(&format!("{command} {guest} --on lab --stock-xen")).is_ok(), "{command}");
        }
        assert!(with(&format!("direct {guest}")).is_ok());
        assert!(with("migrate --cycles 3 --timeline").is_ok());
        assert!(with("timeline guest.log --out /tmp").is_ok());
        assert!(with("bench drain,storm ipi-call --against linux --rounds 2").is_ok());
        assert!(with("bench downtime --against linux --vcpus 2,4 --sched both --rounds 1 --keep-logs").is_ok());
        assert!(with("remus --rounds 1000 --interval 20").is_ok());
        assert!(with("soak --minutes 3 --seed 18446744073709551615 --most-vcpus 4 --keep-logs").is_ok());
        assert!(with("dirty-pages --seconds 10").is_ok());
        assert!(with("mutate evtchn smp --file word.rs --line 80 --list --limit 9 --keep-logs").is_ok());
        assert!(with("save-restore --cycles 3 --checkpoint").is_ok());
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [
            "migrate --vcpus 0",
            "migrate --vcpus 1025",
            "migrate --cycles 0",
            "migrate --on moon",
            "frobnicate",
            "bench drain downtime",
            "bench downtime drain",
            "bench --deterministic downtime",
        ] {
            assert!(Cli::try_parse_from(format!("xtask {words}").split(' ')).is_err(), "{words}");
        }
    }
}
