//! `cargo xtask dirty-pages`: counts the pages that a guest writes to when nothing happens, in a checkpoint and in a restore.
//!
//! Owns what is measured, and the budget. A page that is written to is one that a live migration sends again. Turned down: to count in
//! the guest, which does not see its own log-dirty bitmap, and would write to memory to count.

#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use clap::Args;

use super::suspend::require_log_dirty;
use super::{Needs, Session, open, the_guest};
use crate::drive::dirty::LogDirty;
use crate::drive::guest::{Guest, Limits};
use crate::drive::remus;
use crate::host::Progress;
use crate::options::{GuestOptions, LogOptions, PlaceOptions};
use crate::{image, lab, report};

/// An idle guest writes to fewer pages a second.
pub const IDLE_BUDGET: u64 = 50;

/// How long what comes after a restore is counted.
const SETTLE_S: u32 = 2;

/// Checkpoints that are counted, one a second.
const CHECKPOINTS: u32 = 6;

/// Options of the command.
#[derive(Clone, Debug, Args)]
pub struct DirtyOptions {
    #[command(flatten)]
    guest: GuestOptions,
    #[command(flatten)]
    place: PlaceOptions,
    #[command(flatten)]
    logs: LogOptions,
    /// How long to count when nothing happens, in seconds.
    #[arg(long, default_value_t = 10, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
}

/// Runs the command.
///
/// # Errors
/// With all that is known about the failure; when an idle guest is over its budget.
pub fn run(options: &DirtyOptions) -> Result<()> {
    let session = Session::start("dirty-pages", options.logs)?;
    let outcome = all_of_it(&session, options);
    session.end(outcome)
}

fn all_of_it(session: &Session, options: &DirtyOptions) -> Result<String> {
    let image = image::build(&session.terminal, &session.logs)?;
    let GuestOptions { vcpus, memory, extra, .. } = &options.guest;
    let needs = Needs { vcpus: options.guest.most_vcpus()?, memory_mib: *memory, copies: 2, log_dirty: true };
    let program = lab::program(lab::Program::LogDirty, &session.terminal)?;
    let mut host = open(options.place, needs, session)?;
    session.terminal.say(&format!("on:     {}", host.describe()));
    require_log_dirty(host.as_mut())?;
    let log_dirty = LogDirty::put(host.as_mut(), &program)?;
    let config = the_guest(host.as_mut(), &image, options.place, &options.guest, ("idle", extra))?;
    session.terminal.say(&format!("guest:  {vcpus} vCPUs, {memory} MiB, {}", config.cmdline));
    let idle = config.cmdline.split_whitespace().any(|word| word == "workload=idle");
    let mut show = |line: &str| session.terminal.say(&format!("  | {line}"));
    session.terminal.stage("starting the guest");
    let limits = Limits::for_guest(*vcpus, *memory);
    let mut guest = Guest::create(host.as_mut(), config, limits, Some(image.path), &mut show)?;
    guest.wait_online()?;
    let counted = count(&mut guest, session, &log_dirty, options.seconds)?;
    guest.power_off()?;
    session.terminal.finished();
    let a_second = counted.while_nothing.div_ceil(options.seconds.into());
    ensure!(
        !idle || a_second < IDLE_BUDGET,
        "an idle guest wrote to {a_second} pages a second; its budget is {IDLE_BUDGET}"
    );
    Ok(report::dirty(&[
        (
            format!("nothing happens, for {} s", options.seconds),
            format!("{} ({a_second} a second)", counted.while_nothing),
        ),
        (
            format!("a checkpoint, and nothing else for a second; {} of them", counted.checkpoints.len()),
            report::counts(&counted.checkpoints),
        ),
        (format!("a restore, from its first instruction until {SETTLE_S} s after it"), counted.restore.to_string()),
    ]))
}

struct Counted {
    while_nothing: u64,
    checkpoints: Vec<u64>,
    restore: u64,
}

fn count(guest: &mut Guest<'_>, session: &Session, log_dirty: &LogDirty, seconds: u32) -> Result<Counted> {
    session.terminal.stage("counting while nothing happens");
    let while_nothing = log_dirty.within(guest, seconds)?;
    session.terminal.say(&format!("pages written to: {}", while_nothing.pfns));
    session.terminal.stage("checkpoints, by xl remus");
    let checkpoints = remus::run(guest, 1000, CHECKPOINTS, |_| {})?.pages;
    ensure!(!checkpoints.is_empty(), "xl remus has told of no pages");
    session.terminal.stage("a restore");
    let (_, restore) = log_dirty.of_restore(guest, SETTLE_S)?;
    session.terminal.say(&format!("pages written to: {}", restore.pfns));
    Ok(Counted { while_nothing: while_nothing.pages, checkpoints, restore: restore.pages })
}
