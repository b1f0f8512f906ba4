//! `cargo xtask model` and `cargo xtask miri`: concurrency models and the undefined-behaviour checker.
//!
//! Owns how loom tests, shuttle's scenes and Miri are run, for these commands and as layers of `cargo xtask test`. Each
//! model checker gets a target directory of its own: its cfg would rebuild everything twice a day. Turned down: one
//! cargo call for all tests of one; one that explores too much could not be told from the others.

#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

use super::Session;
use super::steps::{Steps, Tally};
use crate::cargo;
use crate::host::Progress;
use crate::options::LogOptions;
use crate::workspace::{Member, Workspace};

/// Options of both commands.
#[derive(Clone, Debug, Args)]
pub struct ModelOptions {
    /// Only these crates.
    #[arg(value_name = "CRATE")]
    crates: Vec<String>,
    #[command(flatten)]
    logs: LogOptions,
}

/// Runs `model`.
///
/// # Errors
/// When a model fails, or there is none to run.
pub fn run_model(options: &ModelOptions) -> Result<()> {
    run(options, "model", |steps, workspace| {
        loom(steps, workspace);
        shuttle(steps, workspace);
    })
}

/// Runs `miri`.
///
/// # Errors
/// When Miri finds something, or cannot be had.
pub fn run_miri(options: &ModelOptions) -> Result<()> {
    run(options, "miri", miri)
}

fn run(options: &ModelOptions, name: &str, work: impl Fn(&mut Steps<'_>, &Workspace)) -> Result<()> {
    let session = Session::start(name, options.logs)?;
    let mut steps = Steps::new(&session);
    if let Some(mut workspace) = steps.workspace(name) {
        if let Some(unknown) = options.crates.iter().find(|name| !workspace.members.iter().any(|m| m.name == **name)) {
            bail!("no crate `{unknown}` in this workspace");
        }
        workspace.members.retain(|member| options.crates.is_empty() || options.crates.contains(&member.name));
        work(&mut steps, &workspace);
    }
    let outcome = steps.summary().map(|table| format!("{table}\n{}", steps.closing()));
    drop(steps);
    session.end(outcome)
}

/// Runs every loom test of the workspace.
pub fn loom(steps: &mut Steps<'_>, workspace: &Workspace) {
    model(steps, workspace, "loom", |member| member.loom_tests().collect());
}

/// Runs every scene that shuttle plays.
pub fn shuttle(steps: &mut Steps<'_>, workspace: &Workspace) {
    model(steps, workspace, "shuttle", |member| member.shuttle_tests().collect());
}

/// Runs the tests of one model checker, which is also the name of its cfg, one by one.
fn model(steps: &mut Steps<'_>, workspace: &Workspace, checker: &str, tests: impl Fn(&Member) -> Vec<&str>) {
    let mut any = false;
    for member in workspace.members.iter().filter(|member| member.is_kernel_side()) {
        for test in tests(member) {
            any = true;
            let mut command = cargo_under(checker);
            command.args(["test", "--package", &member.name, "--release", "--test", test]);
            // A backtrace from inside a model overflows its coroutine's stack, and hides what failed.
            command.env("RUST_BACKTRACE", "0");
            steps.run(checker, &format!("{} {test}", member.name), command, Tally::Tests);
        }
    }
    if !any {
        steps.skip(checker, &format!("no crate has tests/{checker}_*.rs"));
    }
}

/// Lints what loom runs: nothing else builds it but those runs, which take minutes.
pub fn clippy(workspace: &Workspace) -> Command {
    let mut command = cargo_under("loom");
    command.args(["clippy", "--release"]);
    for member in
        workspace.members.iter().filter(|member| member.is_kernel_side() && member.loom_tests().next().is_some())
    {
        command.args(["--package", &member.name]);
        command.args(member.loom_tests().flat_map(|test| ["--test", test]));
    }
    command.args(["--", "-D", "warnings"]);
    command
}

/// `cargo` with the cfg of a model checker.
fn cargo_under(checker: &str) -> Command {
    let mut command = cargo::cargo();
    command.env("RUSTFLAGS", format!("--cfg {checker}")).env("CARGO_TARGET_DIR", target_dir(checker));
    command
}

fn target_dir(checker: &str) -> PathBuf {
    let base = std::env::var_os("CARGO_TARGET_DIR").map_or_else(cargo::results_dir, PathBuf::from);
    base.join(checker)
}

/// Runs the host tests of every kernel-side crate under Miri; a missing nightly toolchain is a skip, said aloud.
pub fn miri(steps: &mut Steps<'_>, workspace: &Workspace) {
    if let Err(error) = ensure_miri(steps.terminal()) {
        return steps.skip("miri", &format!("{error:#}"));
    }
    let mut members: Vec<&Member> = workspace.members.iter().filter(|member| member.is_kernel_side()).collect();
    // An interpreter takes one processor, and minutes where a crate has many test programs: those first.
    members.sort_by_key(|member| Reverse(member.tests.len()));
    let commands = members.into_iter().map(|member| {
        let mut command = cargo::cargo_of("nightly");
        command.args(["miri", "test", "--package", &member.name, "--tests"]);
        (member.name.clone(), command)
    });
    steps.run_side_by_side("miri", commands.collect(), Tally::Tests);
}

/// Makes sure that a nightly toolchain with Miri is there.
///
/// # Errors
/// When it is not and rustup cannot bring it.
pub fn ensure_miri(progress: &dyn Progress) -> Result<()> {
    let works = || {
        let mut command = cargo::cargo_of("nightly");
        command.args(["miri", "--version"]);
        cargo::capture(command).is_ok() && has_rust_src()
    };
    if works() {
        return Ok(());
    }
    progress.stage("installing Miri (rustup toolchain install nightly --component miri rust-src)");
    let mut rustup = Command::new("rustup");
    rustup.args(["toolchain", "install", "nightly", "--profile", "minimal"]);
    rustup.args(["--component", "miri", "--component", "rust-src"]);
    let installed = cargo::capture(rustup);
    progress.finished();
    match installed {
        Ok(_) if works() => Ok(()),
        Ok(_) => bail!("the nightly toolchain that rustup has is without Miri"),
        Err(error) => bail!("no nightly toolchain with Miri can be had here ({})", first_line(&error)),
    }
}

fn first_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    text.lines().map(str::trim).filter(|line| !line.is_empty()).take(2).collect::<Vec<_>>().join(" ")
}

/// Miri builds the standard library from source.
fn has_rust_src() -> bool {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "rustc", "--print", "sysroot"]);
    cargo::capture(command)
        .is_ok_and(|sysroot| PathBuf::from(sysroot.trim()).join("lib/rustlib/src/rust/library").is_dir())
}
