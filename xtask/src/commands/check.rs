//! `cargo xtask check`: the one command before a commit.
//!
//! Owns the list of quick checks: format, lints for host and image, host tests, docs, licences; also
//! used as the first layers of `cargo xtask test`. All of it needs only the pinned toolchain.

#![forbid(unsafe_code)]

use anyhow::Result;
use clap::Args;

use super::Session;
use super::steps::{Steps, Tally};
use crate::image::{self, TARGET};
use crate::options::LogOptions;
use crate::workspace::{KERNEL, Workspace};
use crate::{cargo, licences};

/// Options of the command.
#[derive(Clone, Copy, Debug, Args)]
pub struct CheckOptions {
    #[command(flatten)]
    logs: LogOptions,
}

/// Runs the command.
///
/// # Errors
/// When anything is not as it should be; all of it is named.
pub fn run(options: CheckOptions) -> Result<()> {
    let session = Session::start("check", options.logs)?;
    let workspace = Workspace::load()?;
    let mut steps = Steps::new(&session);
    let done = lints(&mut steps, &workspace).and_then(|()| unit(&mut steps)).and_then(|()| property(&mut steps));
    let outcome = done.and_then(|()| steps.summary()).map(|table| format!("{table}\n{}", steps.closing()));
    drop(steps);
    session.end(outcome)
}

/// Format, lints, docs and licences.
///
/// # Errors
/// When the kernel's target cannot be had.
pub fn lints(steps: &mut Steps<'_>, workspace: &Workspace) -> Result<()> {
    let mut fmt = cargo::cargo();
    fmt.args(["fmt", "--all", "--check"]);
    steps.run("lints", "format", fmt, Tally::Step)?;
    let mut host = cargo::cargo();
    host.args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    steps.run("lints", "clippy on the host side", host, Tally::Step)?;
    image::ensure_target(steps.terminal())?;
    let mut kernel = cargo::cargo();
    kernel.args(["clippy", "--package", KERNEL, "--target", TARGET, "--", "-D", "warnings"]);
    steps.run("lints", "clippy on the image", kernel, Tally::Step)?;
    docs(steps)?;
    licence_list(steps, workspace);
    Ok(())
}

/// Tests inside the crates.
///
/// # Errors
/// Only when nothing can be run at all.
pub fn unit(steps: &mut Steps<'_>) -> Result<()> {
    let mut inside = cargo::cargo();
    inside.args(["test", "--workspace", "--no-fail-fast", "--lib", "--bins"]);
    steps.run("unit", "tests inside the crates", inside, Tally::Tests)?;
    let mut doc = cargo::cargo();
    doc.args(["test", "--workspace", "--no-fail-fast", "--doc"]);
    steps.run("unit", "examples in the docs", doc, Tally::Tests)
}

/// Tests beside the crates: properties, and the ABI against Xen's headers.
///
/// # Errors
/// Only when nothing can be run at all.
pub fn property(steps: &mut Steps<'_>) -> Result<()> {
    let mut beside = cargo::cargo();
    beside.args(["test", "--workspace", "--exclude", "tests", "--exclude", "benches"]);
    beside.args(["--no-fail-fast", "--test", "*"]);
    steps.run("property", "properties, and the ABI against Xen's headers", beside, Tally::Tests)
}

fn docs(steps: &mut Steps<'_>) -> Result<()> {
    let mut host = cargo::cargo();
    host.args(["doc", "--workspace", "--exclude", KERNEL, "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings");
    steps.run("lints", "docs of the host side", host, Tally::Step)?;
    let mut kernel = cargo::cargo();
    kernel.args(["doc", "--package", KERNEL, "--target", TARGET, "--no-deps", "--document-private-items"]);
    kernel.env("RUSTDOCFLAGS", "-D warnings");
    steps.run("lints", "docs of the kernel", kernel, Tally::Step)
}

fn licence_list(steps: &mut Steps<'_>, workspace: &Workspace) {
    for dependency in workspace.dependencies.iter().filter(|d| !licences::allowed(&d.licence)) {
        let text = format!("{} is under `{}`, which is not on our list", dependency.name, dependency.licence);
        steps.verdict("lints", Err(text));
    }
    if workspace.dependencies.iter().all(|d| licences::allowed(&d.licence)) {
        steps.verdict("lints", Ok(()));
    }
}
