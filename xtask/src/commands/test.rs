//! `cargo xtask test`: every layer of tests, in order, and a count of what happened.
//!
//! Owns which layers there are and their order: quick ones first. A layer that cannot run or is not
//! wanted is said aloud and counted as skipped, never left out in silence.

#![forbid(unsafe_code)]

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use super::steps::{Steps, Tally};
use super::{Session, check, models};
use crate::cargo;
use crate::host::Progress;
use crate::options::LogOptions;
use crate::workspace::Workspace;

/// A layer of tests; the order here is the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LayerName {
    /// Format, lints and docs for the host side and the image; licences.
    Lints,
    /// Tests inside the crates, and the examples in their docs.
    Unit,
    /// Properties, and the ABI against Xen's headers.
    Property,
    /// Models of the lock-free parts, every interleaving.
    Loom,
    /// Scenes with more CPUs than loom can take, on random schedules.
    Shuttle,
    /// The host tests under Miri.
    Miri,
    /// Self-tests inside the guest, booted as Xen's initial domain.
    Direct,
    /// The ladder under xl: save, restore, checkpoint, migrate, fail.
    Xl,
    /// The same ways with Debian's Linux as the guest, only when named: where that fails too, the lab is at fault and not
    /// our kernel.
    Lab,
}

/// Options of the command.
#[derive(Clone, Debug, Args)]
pub struct TestOptions {
    /// Only these layers (in any case in their own order).
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LAYER")]
    only: Vec<LayerName>,
    /// Leave out the layers that need Xen (direct and xl); they are counted as skipped.
    #[arg(long)]
    skip_lab: bool,
    #[command(flatten)]
    logs: LogOptions,
}

/// Runs the command. The last line of its output is `N passed, N failed`, with `, N skipped` where
/// something was.
///
/// # Errors
/// When anything failed; the closing line has been printed then, too.
pub fn run(options: &TestOptions) -> Result<()> {
    let session = Session::start("test", options.logs)?;
    let mut steps = Steps::new(&session);
    if let Some(workspace) = steps.workspace("lints") {
        for layer in LayerName::value_variants() {
            run_layer(*layer, options, &workspace, &mut steps);
        }
    }
    let (summary, closing) = (steps.summary(), steps.closing());
    drop(steps);
    let failed = summary.is_err();
    let text = summary.unwrap_or_else(|error| format!("{error:#}"));
    session.terminal.finished();
    session.terminal.say(&format!("{text}\nlogs: {}\n{closing}", super::relative(&session.logs)));
    if failed {
        bail!(AlreadyTold);
    }
    Ok(())
}

fn run_layer(layer: LayerName, options: &TestOptions, workspace: &Workspace, steps: &mut Steps<'_>) {
    let name = layer_name(layer);
    if !options.only.is_empty() && !options.only.contains(&layer) {
        return steps.skip(&name, "left out by --only");
    }
    match layer {
        LayerName::Lints => check::lints(steps, workspace),
        LayerName::Unit => check::unit(steps),
        LayerName::Property => check::property(steps),
        LayerName::Loom => models::loom(steps, workspace),
        LayerName::Shuttle => models::shuttle(steps, workspace),
        LayerName::Miri => models::miri(steps, workspace),
        LayerName::Direct | LayerName::Xl if options.skip_lab => steps.skip(&name, "left out by --skip-lab"),
        LayerName::Direct | LayerName::Xl => on_xen(steps, &name),
        LayerName::Lab if options.only.is_empty() => {
            steps.skip(&name, "Linux in the lab, which is about the lab: --only lab");
        }
        LayerName::Lab => the_lab_itself(steps, &name),
    }
}

fn layer_name(layer: LayerName) -> String {
    layer.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn on_xen(steps: &mut Steps<'_>, layer: &str) {
    let mut command = cargo::cargo();
    command.args(["test", "--package", "tests", "--test", layer]);
    command.env("STASIS_TEST_LOGS", steps.logs().join(layer));
    steps.run(layer, "guests on Xen", command, Tally::SlowTests);
}

fn the_lab_itself(steps: &mut Steps<'_>, layer: &str) {
    let mut command = cargo::cargo();
    command.args(["test", "--package", "xtask", "--lib", check::LAB_TESTS, "--", "--ignored", "--test-threads", "1"]);
    steps.run(layer, "Linux in the lab", command, Tally::SlowTests);
}

/// The failure has been shown with all its details: `main` only has to set the exit code.
#[derive(Debug)]
pub struct AlreadyTold;

impl std::fmt::Display for AlreadyTold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("see above")
    }
}

impl std::error::Error for AlreadyTold {}
