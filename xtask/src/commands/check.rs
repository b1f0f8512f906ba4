//! `cargo xtask check`: the one command before a commit.
//!
//! Owns the list of quick checks: format, lints for host and image, host tests, docs, licences; also
//! used as the first layers of `cargo xtask test`. All of it needs the pinned toolchain; only the comparison
//! of the ABI with Xen's headers needs Debian packages, and is skipped aloud where they cannot be had.

#![forbid(unsafe_code)]

use anyhow::Result;
use clap::Args;

use super::steps::{Steps, Tally};
use super::{Session, models};
use crate::image::{self, TARGET};
use crate::lab;
use crate::options::LogOptions;
use crate::workspace::{KERNEL, Workspace};
use crate::{cargo, licences};

/// What compiles and holds Xen's headers, for `xen-sys/tests/abi.rs`.
pub const ABI_PACKAGES: [&str; 3] = ["gcc", "libc6-dev", "libxen-dev"];
/// The one test that needs them.
const ABI_TEST: &str = "everything_is_as_in_xens_headers";
/// Takes seconds where it is optimised and half a minute where not: a step of its own.
const LARGE_TEST: &str = "domain_of_8_gib";
/// Boot Xen: part of the layer xl.
pub const LAB_TESTS: &str = "lab::tests::";

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
    let mut steps = Steps::new(&session);
    if let Some(workspace) = steps.workspace("lints") {
        lints(&mut steps, &workspace);
        unit(&mut steps);
        property(&mut steps);
    }
    let outcome = steps.summary().map(|table| format!("{table}\n{}", steps.closing()));
    drop(steps);
    session.end(outcome)
}

/// Format, lints, docs and licences.
pub fn lints(steps: &mut Steps<'_>, workspace: &Workspace) {
    let mut fmt = cargo::cargo();
    fmt.args(["fmt", "--all", "--check"]);
    steps.run("lints", "format", fmt, Tally::Step);
    let mut host = cargo::cargo();
    host.args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    steps.run("lints", "clippy on the host side", host, Tally::Step);
    let mut docs = cargo::cargo();
    docs.args(["doc", "--workspace", "--exclude", KERNEL, "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings");
    steps.run("lints", "docs of the host side", docs, Tally::Step);
    steps.run("lints", "clippy on the models", models::clippy(workspace), Tally::Step);
    let target = image::ensure_target(steps.terminal());
    if steps.verdict_of("lints", target).is_some() {
        of_the_image(steps);
    }
    licence_list(steps, workspace);
}

/// Tests inside the crates.
pub fn unit(steps: &mut Steps<'_>) {
    let mut inside = cargo::cargo();
    inside.args(["test", "--workspace", "--no-fail-fast", "--lib", "--bins", "--", "--skip", LAB_TESTS]);
    steps.run("unit", "tests inside the crates", inside, Tally::Tests);
    let mut doc = cargo::cargo();
    doc.args(["test", "--workspace", "--no-fail-fast", "--doc"]);
    steps.run("unit", "examples in the docs", doc, Tally::Tests);
}

/// Tests beside the crates: properties, and the ABI against Xen's headers.
pub fn property(steps: &mut Steps<'_>) {
    let mut beside = cargo::cargo();
    beside.args(["test", "--workspace", "--exclude", "tests", "--exclude", "benches"]);
    beside.args(["--no-fail-fast", "--test", "*", "--", "--skip", LARGE_TEST]);
    if let Err(error) = lab::require(&ABI_PACKAGES, steps.terminal()) {
        steps.skip("property", &format!("the ABI against Xen's headers: {error:#}"));
        beside.args(["--skip", ABI_TEST]);
    }
    steps.run("property", "properties, and the ABI against Xen's headers", beside, Tally::Tests);
    let mut large = cargo::cargo();
    large.args(["test", "--package", "mm", "--release", "--test", "address_space", LARGE_TEST]);
    steps.run("property", "a domain of 8 GiB", large, Tally::Tests);
}

fn of_the_image(steps: &mut Steps<'_>) {
    let mut clippy = cargo::cargo();
    clippy.args(["clippy", "--package", KERNEL, "--target", TARGET, "--", "-D", "warnings"]);
    steps.run("lints", "clippy on the image", clippy, Tally::Step);
    let mut docs = cargo::cargo();
    docs.args(["doc", "--package", KERNEL, "--target", TARGET, "--no-deps", "--document-private-items"]);
    docs.env("RUSTDOCFLAGS", "-D warnings");
    steps.run("lints", "docs of the kernel", docs, Tally::Step);
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
