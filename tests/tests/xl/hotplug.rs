//! `xl vcpu-set`: vCPUs go down and come back, over suspends of every kind, and while one runs.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use xtask::contract::Event;
use xtask::drive::cycles::{Kind, suspend};
use xtask::drive::guest::Guest;
use xtask::drive::vcpu_set::{swept, vcpu_set};

use crate::place::Place;
use crate::steps::{WELL, domid};

/// Has `vcpus` of them up, of which `before` were, and sees each that changes say so, once.
fn set(guest: &mut Guest<'_>, before: u32, vcpus: u32) -> Result<()> {
    guest.watch().expect_up(before.min(vcpus)..=before.max(vcpus));
    let script = vcpu_set(guest.name(), vcpus);
    guest.command_ok(&script, guest.limits().command)?;
    let state = if vcpus < before { "down" } else { "up" };
    let mut left: BTreeSet<String> = (before.min(vcpus)..before.max(vcpus)).map(|cpu| cpu.to_string()).collect();
    let what = format!("vCPUs {left:?} to be {state}");
    let wrong = guest.wait_for(&what, guest.limits().word, |said| {
        if said.line.event != "vcpu" {
            return None;
        }
        let right = said.line.get("state") == Some(state) && said.line.get("failed").is_none();
        let known = said.line.get("cpu").is_some_and(|cpu| left.remove(cpu));
        if !right || !known {
            return Some(Some(said.line.clone()));
        }
        left.is_empty().then_some(None)
    })?;
    if let Some(line) = wrong {
        bail!("while {before} vCPUs became {vcpus}, it says `{line}`");
    }
    guest.watch().expect_up(vcpus..=vcpus);
    // The first may tell of a second in which not all were up.
    guest.wait_heartbeats(2).with_context(|| format!("with {vcpus} of the vCPUs up"))
}

/// The dump names those that are down, and has all others dump themselves.
fn dump_shows_who_is_down(guest: &mut Guest<'_>, up: u32, all: u32) -> Result<()> {
    let script = format!("xl sysrq {} w", guest.name());
    guest.command_ok(&script, guest.limits().command)?;
    let mut left: BTreeSet<u32> = (0..all).collect();
    guest
        .wait_for("every vCPU in the dump, up or down", guest.limits().word, |said| {
            if said.line.event == "debug" {
                let cpu = said.line.get("cpu").and_then(|cpu| cpu.parse().ok())?;
                if (said.line.get("state") == Some("down")) == (cpu >= up) {
                    left.remove(&cpu);
                }
            }
            left.is_empty().then_some(())
        })
        .with_context(|| format!("{up} of {all} vCPUs are up"))
}

/// Some go down, and are down over every kind of suspend; they come back in the domain that they went down in, and in a later
/// one.
pub(crate) fn down_and_up(place: &mut Place, words: &str, vcpus: u32) -> Result<()> {
    place.with_guest_of(words, vcpus, 64, |guest| {
        set(guest, vcpus, 2)?;
        dump_shows_who_is_down(guest, 2, vcpus)?;
        set(guest, 2, vcpus)?;
        set(guest, vcpus, 1)?;
        for kind in [Kind::Checkpoint, Kind::SaveRestore, Kind::Checkpoint] {
            let done = suspend(guest, kind, WELL).with_context(|| format!("{} with one vCPU up", kind.name()))?;
            ensure!(done.vcpus == 1, "{} vCPUs came back of 1", done.vcpus);
        }
        // One that goes down again in the new domain, and others that have not been up in it, over one more.
        set(guest, 1, 3)?;
        set(guest, 3, 2)?;
        suspend(guest, Kind::Migrate, WELL).context("migrate with two vCPUs up")?;
        set(guest, 2, vcpus)?;
        suspend(guest, Kind::SaveRestore, WELL).context("save with all vCPUs up again")?;
        set(guest, vcpus, 2)?;
        guest.power_off()
    })
}

/// A domain that is made with fewer vCPUs online than it has starts no more than those; the toolstack makes one so by `maxvcpus=`, and
/// from a domain that reboots with some down.
pub(crate) fn boots_with_fewer(place: &mut Place) -> Result<()> {
    place.with_guest_that_has("", (2, 4), 64, |guest| {
        set(guest, 2, 4)?;
        set(guest, 4, 2)?;
        let before = domid(guest)?;
        guest.watch().expect_reboot();
        let script = format!("xl reboot {}", guest.name());
        guest.command_ok(&script, guest.limits().command)?;
        guest.wait_online().context("after the reboot")?;
        guest.wait_heartbeats(2)?;
        guest.wait_gone(&before)?;
        suspend(guest, Kind::SaveRestore, WELL).context("save with two vCPUs that have never run")?;
        set(guest, 2, 4)?;
        guest.power_off()
    })
}

/// vCPUs go down and come back all the time while checkpoints are made, and while the domain is saved and restored, and migrated.
pub(crate) fn while_suspends_run(place: &mut Place) -> Result<()> {
    const VCPUS: u32 = 4;
    place.with_guest(VCPUS, 64, |guest| {
        guest.watch().expect_up(1..=VCPUS);
        let name = guest.name().to_owned();
        let (checkpoint, save) = (Kind::Checkpoint.script(&name), Kind::SaveRestore.script(&name));
        let script = format!("for n in 1 2 3 4; do ({checkpoint}) || exit 1; done; {save}");
        race(guest, &script, &["continued", "continued", "continued", "continued", "resumed"])?;
        all_up(guest, VCPUS)?;
        guest.watch().expect_up(1..=VCPUS);
        race(guest, &Kind::Migrate.script(&name), &["resumed"])?;
        all_up(guest, VCPUS)?;
        suspend(guest, Kind::SaveRestore, WELL).context("the save after the trouble")?;
        set(guest, VCPUS, 2)?;
        guest.power_off()
    })
}

/// Has all of them up, wherever a race has left it.
fn all_up(guest: &mut Guest<'_>, vcpus: u32) -> Result<()> {
    let script = vcpu_set(guest.name(), vcpus);
    guest.command_ok(&script, guest.limits().command)?;
    guest.wait_heartbeats(2)?;
    guest.watch().expect_up(vcpus..=vcpus);
    Ok(())
}

/// Runs `suspends` while the number of vCPUs is set again and again, and sees the guest tell that these ended as `expected`, and that
/// vCPUs changed in the meantime.
fn race(guest: &mut Guest<'_>, suspends: &str, expected: &[&str]) -> Result<()> {
    // Where the domain is not there, between save and restore, setting fails.
    let script = format!(
        "rm -f /tmp/over; (i=0; until [ -e /tmp/over ]; do \
           for n in 2 4 1 3; do {}; done 2>/dev/null; i=$((i+1)); \
         done; echo changed $i) & job=$!; \
         ({suspends}); code=$?; touch /tmp/over; wait $job; rm -f /tmp/over; exit $code",
        vcpu_set(guest.name(), "$n")
    );
    guest.pass_over()?;
    let output = guest.command_ok(&swept(guest.name(), &script), guest.limits().transfer * 4)?;
    let (mut told, mut changed) = (Vec::new(), 0);
    let what = format!("{} suspends", expected.len());
    guest
        .wait_for(&what, guest.limits().word, |said| {
            match said.event {
                Event::SuspendAbort { .. } => told.push("abort"),
                Event::Continued { .. } => told.push("continued"),
                Event::Resumed { .. } => told.push("resumed"),
                _ => changed += usize::from(said.line.event == "vcpu" && said.line.get("failed").is_none()),
            }
            (told.len() == expected.len()).then_some(())
        })
        .with_context(|| output.clone())?;
    ensure!(told == expected, "{told:?}:\n{output}");
    // All of it is from before the last of them ended; a migration has copied memory for long by then.
    ensure!(changed > 0, "no vCPU went down or came back meanwhile: this was no race:\n{output}");
    Ok(())
}
