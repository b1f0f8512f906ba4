//! `cargo xtask remus`: checkpoints a guest without a pause, as `xl remus` does, into a null sink.
//!
//! Owns the order of such a run and its report. The guest's figures are its own; the pages are those that xl has sent. Turned
//! down: one row a round, as the other suspends have; a thousand say less than their spread.

#![forbid(unsafe_code)]

use std::fs;
use std::io::Write;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::suspend::require_log_dirty;
use super::{Needs, Session, open, the_guest};
use crate::contract::Phases;
use crate::drive::cycles::{Expect, Kind, heartbeats_after, suspend};
use crate::drive::guest::{Guest, Limits};
use crate::drive::remus::{self, Run};
use crate::host::Progress;
use crate::options::{GuestOptions, LogOptions, PlaceOptions};
use crate::{image, report};

/// A progress line for so many rounds.
const SHOWN_EACH: u32 = 10;

/// Options of the command.
#[derive(Clone, Debug, Args)]
pub struct RemusOptions {
    #[command(flatten)]
    guest: GuestOptions,
    #[command(flatten)]
    place: PlaceOptions,
    #[command(flatten)]
    logs: LogOptions,
    /// How many checkpoints.
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long the guest runs between two of them, in ms.
    #[arg(long, default_value_t = 20, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..))]
    interval: u32,
}

/// Runs the command.
///
/// # Errors
/// With all that is known about the failure.
pub fn run(options: &RemusOptions) -> Result<()> {
    let session = Session::start("remus", options.logs)?;
    let outcome = all_of_it(&session, options);
    session.end(outcome)
}

fn all_of_it(session: &Session, options: &RemusOptions) -> Result<String> {
    let image = image::build(&session.terminal, &session.logs)?;
    let GuestOptions { vcpus, memory, extra, .. } = &options.guest;
    let needs = Needs { vcpus: options.guest.most_vcpus()?, memory_mib: *memory, copies: 2, log_dirty: true };
    let mut host = open(options.place, needs, session)?;
    session.terminal.say(&format!("on:     {}", host.describe()));
    require_log_dirty(host.as_mut())?;
    let by_ring =
        if extra.split_whitespace().any(|word| word.starts_with("suspend=")) { "" } else { "suspend=evtchn " };
    let config =
        the_guest(host.as_mut(), &image, options.place, &options.guest, ("heartbeat", &format!("{by_ring}{extra}")))?;
    let expect = Expect::from_cmdline(&config.cmdline);
    let path = session.logs.join("guest.log");
    let mut transcript = fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    // For reading after a failure; three lines a round are too many to watch.
    let mut show = |line: &str| drop(writeln!(transcript, "{line}"));
    session.terminal.stage("starting the guest");
    let limits = Limits::for_guest(*vcpus, *memory);
    let mut guest = Guest::create(host.as_mut(), config, limits, Some(image.path), &mut show)?;
    guest.wait_online()?;
    if expect.heartbeat {
        guest.wait_heartbeats(1)?;
    }
    let done = lead(&mut guest, session, options, expect)?;
    Ok(describe(&done, *vcpus, expect, guest.watch().checks_passed()))
}

/// Takes a created guest through the rounds; one more checkpoint shows that it is fit for whatever comes next.
fn lead(guest: &mut Guest<'_>, session: &Session, options: &RemusOptions, expect: Expect) -> Result<Run> {
    let (rounds, vcpus) = (options.rounds, options.guest.vcpus);
    session.terminal.stage(&format!("xl remus, {rounds} rounds"));
    let run = remus::run(guest, options.interval, rounds, |round| {
        if round % SHOWN_EACH == 0 {
            session.terminal.note(&format!("round {round} of {rounds}"));
        }
    })?;
    ensure!(!run.via.is_empty(), "not all requests came the same way");
    session.terminal.stage("one checkpoint by xl save -c after it");
    if expect.heartbeat {
        guest.wait_heartbeats(heartbeats_after(vcpus)).context("after xl remus")?;
    }
    suspend(guest, Kind::Checkpoint, expect).context("after xl remus")?;
    guest.power_off()?;
    session.terminal.finished();
    Ok(run)
}

fn describe(run: &Run, vcpus: u32, expect: Expect, checks: u64) -> String {
    let column = |pick: fn(&Phases) -> u64| run.rounds.iter().map(pick).collect::<Vec<_>>();
    let rows = [
        ("prepare", column(|phases| phases.prepare_ns)),
        ("blackout", column(|phases| phases.blackout_ns)),
        ("resume", column(|phases| phases.resume_ns)),
    ];
    let proof = if expect.heartbeat { format!(", no event lost, self-checks passed: {checks}") } else { String::new() };
    format!(
        "\n{}\nAll {vcpus} vCPUs came back from each of {} checkpoints, asked for by {}{proof}.\nPages sent in a round: {}. In all: {}.",
        report::spread(&rows),
        run.rounds.len(),
        run.via,
        report::counts(&run.pages),
        report::duration(run.took_ns),
    )
}
