//! Checkpoints without a pause, and what the guest writes to: both need log-dirty mode.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::commands::dirty::IDLE_BUDGET;
use xtask::drive::cycles::{Kind, suspend};
use xtask::drive::dirty::LogDirty;
use xtask::drive::remus;
use xtask::lab;

use crate::channel;
use crate::place::Place;
use crate::steps::WELL;

const VCPUS: u32 = 4;

/// A few rounds of `xl remus` into a null sink, asked for in the way that `words` choose; then the guest is fit for a migration.
/// `cargo xtask remus` does a thousand.
pub(crate) fn remus(place: &mut Place, words: &str, via: &str) -> Result<()> {
    const ROUNDS: u32 = 5;
    place.with_guest_of(words, VCPUS, 32, |guest| {
        if via == "evtchn" {
            channel::offered(guest)?;
        }
        let run = remus::run(guest, 50, ROUNDS, |_| {})?;
        ensure!(run.via == via, "requests came by {:?}", run.via);
        ensure!(run.rounds.len() == ROUNDS as usize, "{} rounds", run.rounds.len());
        ensure!(run.pages.len() >= ROUNDS as usize - 1, "xl tells of pages for {} rounds", run.pages.len());
        guest.wait_heartbeats(2).context("after xl remus")?;
        suspend(guest, Kind::Migrate, WELL).context("after xl remus")?;
        guest.power_off()
    })
}

/// An idle guest keeps to its budget, and a checkpoint and a restore write to few pages: those of the image's data and of the heap's first
/// part that they have to, and two or three for each vCPU.
pub(crate) fn budget(place: &mut Place) -> Result<()> {
    const SECONDS: u32 = 5;
    const SUSPEND_BUDGET: u64 = 32 + 4 * VCPUS as u64;
    let program = lab::program(lab::Program::LogDirty, place.terminal())?;
    let log_dirty = LogDirty::put(place.host(), &program)?;
    place.with_guest_of("workload=idle", VCPUS, 32, |guest| {
        let idle = log_dirty.within(guest, SECONDS)?;
        let a_second = idle.pages.div_ceil(SECONDS.into());
        ensure!(a_second < IDLE_BUDGET, "an idle guest wrote to {a_second} pages a second: {}", idle.pfns);
        let script = format!("d=$(xl domid {}) && xl sysrq $d h", guest.name());
        guest.command_ok(&script, guest.limits().command)?;
        guest.wait_for("the letters", guest.limits().word, |said| (said.line.event == "sysrq").then_some(()))?;
        let asked = log_dirty.now(guest)?;
        ensure!(asked.pages > 0, "it has told of letters and written to no page: this counts nothing");
        let checkpoints = remus::run(guest, 1000, 4, |_| {})?.pages;
        let least = checkpoints.iter().min().context("xl remus has told of no pages")?;
        // What else happens within the second is the guest's too, so the least counts.
        ensure!((1..=SUSPEND_BUDGET).contains(least), "checkpoints wrote to {checkpoints:?} pages");
        let (_, restore) = log_dirty.of_restore(guest, 2)?;
        let pages = restore.pages;
        ensure!((1..=SUSPEND_BUDGET).contains(&pages), "a restore wrote to {pages} pages: {}", restore.pfns);
        suspend(guest, Kind::Checkpoint, xtask::drive::cycles::Expect { heartbeat: false })?;
        let off = guest.command(&log_dirty.take(guest.name()), Duration::from_secs(60))?;
        ensure!(!off.ok(), "the save has switched log-dirty mode off, and yet there is a count: {}", off.output);
        guest.power_off()
    })
}
