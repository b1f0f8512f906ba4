//! The good ways through the ladder.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use xtask::contract::Event;
use xtask::drive::cycles::{Expect, Kind, suspend};
use xtask::drive::guest::Guest;

use crate::place::Place;

/// Heartbeats, and the memory check after every suspend.
pub(crate) const WELL: Expect = Expect { heartbeat: true };

/// Starts, beats, powers off.
pub(crate) fn start(place: &mut Place, vcpus: u32, memory_mib: u32) -> Result<()> {
    place.with_guest(vcpus, memory_mib, |guest| {
        guest.wait_heartbeats(2)?;
        guest.power_off()
    })
}

/// Suspends `times` in one way.
pub(crate) fn suspends(place: &mut Place, kind: Kind, vcpus: u32, memory_mib: u32, times: u32) -> Result<()> {
    place.with_guest(vcpus, memory_mib, |guest| {
        for n in 1..=times {
            let done = suspend(guest, kind, WELL).with_context(|| format!("{} {n} of {times}", kind.name()))?;
            ensure!(done.vcpus == vcpus, "{} of {vcpus} vCPUs came back", done.vcpus);
        }
        guest.power_off()
    })
}

/// All three ways in the life of one guest: each leaves it fit for the next.
pub(crate) fn mixed(place: &mut Place, words: &str, vcpus: u32, memory_mib: u32) -> Result<()> {
    place.with_guest_of(words, vcpus, memory_mib, |guest| {
        for kind in [Kind::Checkpoint, Kind::Migrate, Kind::Checkpoint, Kind::SaveRestore, Kind::Migrate] {
            suspend(guest, kind, WELL).with_context(|| kind.name().to_owned())?;
        }
        guest.power_off()
    })
}

/// Two lives more, by whichever way `words` choose, and a checkpoint in between.
pub(crate) fn resumes(place: &mut Place, words: &str, vcpus: u32, memory_mib: u32) -> Result<()> {
    place.with_guest_of(words, vcpus, memory_mib, |guest| {
        for kind in [Kind::SaveRestore, Kind::Checkpoint, Kind::SaveRestore] {
            let done = suspend(guest, kind, WELL).with_context(|| kind.name().to_owned())?;
            ensure!(done.vcpus == vcpus, "{} of {vcpus} vCPUs came back", done.vcpus);
        }
        guest.power_off()
    })
}

/// Under workload=blackout every suspend's cost is told: of each vCPU, and none of them shorter than the hypercall.
pub(crate) fn blackout(place: &mut Place) -> Result<()> {
    const VCPUS: u32 = 3;
    place.with_guest_of("workload=blackout", VCPUS, 32, |guest| {
        let limit = guest.limits().boot;
        guest.wait_for("its tasks to read the clock", limit, |said| {
            (said.line.event == "blackout-ready").then_some(())
        })?;
        for (kind, outcome) in [(Kind::Checkpoint, "continued"), (Kind::SaveRestore, "resumed")] {
            suspend(guest, kind, Expect { heartbeat: false })?;
            let mut gaps: Vec<u64> = Vec::new();
            let line = guest.wait_for("what the suspend cost", limit, |said| match said.line.event.as_str() {
                "blackout-gaps" => {
                    let listed = said.line.get("gaps").unwrap_or_default().split(',');
                    gaps.extend(listed.filter_map(|gap| gap.parse::<u64>().ok()));
                    None
                }
                "blackout" => Some(said.line.clone()),
                _ => None,
            })?;
            let held: u64 = line.get("held").and_then(|held| held.parse().ok()).context("no held= in ticks")?;
            ensure!(line.get("outcome") == Some(outcome), "{line} after {}", kind.name());
            ensure!(gaps.len() == VCPUS as usize && gaps.iter().all(|gap| *gap >= held), "gaps {gaps:?} of {line}");
        }
        guest.power_off()
    })
}

/// `xl shutdown -w` is answered and waited for.
pub(crate) fn shutdown(place: &mut Place) -> Result<()> {
    place.with_guest(2, 32, |guest| {
        let domid = domid(guest)?;
        guest.watch().expect_shutdown();
        let script = format!("xl shutdown -w {}", guest.name());
        guest.command_ok(&script, guest.limits().command)?;
        said_shutdown(guest, "poweroff")?;
        guest.wait_gone(&domid)
    })
}

/// `xl reboot` brings a new domain that boots from the start.
pub(crate) fn reboot(place: &mut Place) -> Result<()> {
    place.with_guest(2, 32, |guest| {
        let before = domid(guest)?;
        guest.watch().expect_reboot();
        let script = format!("xl reboot {}", guest.name());
        guest.command_ok(&script, guest.limits().command)?;
        said_shutdown(guest, "reboot")?;
        guest.wait_online().context("after the reboot")?;
        guest.wait_heartbeats(1)?;
        let after = domid(guest)?;
        ensure!(before != after, "domain {before} is still the same after a reboot");
        guest.wait_gone(&before)?;
        guest.power_off()
    })
}

/// `xl destroy` of a running guest leaves nothing.
pub(crate) fn destroy(place: &mut Place) -> Result<()> {
    place.with_guest(8, 64, |guest| {
        let domid = domid(guest)?;
        let script = format!("xl destroy {}", guest.name());
        guest.command_ok(&script, guest.limits().command)?;
        guest.wait_gone(&domid)
    })
}

/// The facts of the last suspend stand in xenstore as they were said on the console.
pub(crate) fn figures_in_xenstore(place: &mut Place) -> Result<()> {
    place.with_guest(4, 32, |guest| {
        for kind in [Kind::Checkpoint, Kind::SaveRestore] {
            let done = suspend(guest, kind, WELL)?;
            let domid = domid(guest)?;
            for (key, want) in [
                ("incarnation", done.incarnation),
                ("vcpus", u64::from(done.vcpus)),
                ("prepare_ns", done.phases.prepare_ns),
                ("blackout_ns", done.phases.blackout_ns),
                ("resume_ns", done.phases.resume_ns),
            ] {
                let script = format!("xenstore-read /local/domain/{domid}/data/stasis/{key}");
                let value = guest.command_ok(&script, guest.limits().command)?;
                let value = value.trim();
                ensure!(
                    value == want.to_string(),
                    "after {}: data/stasis/{key} is {value}, said was {want}",
                    kind.name()
                );
            }
        }
        for reason in ["poweroff", "reboot", "suspend"] {
            let domid = domid(guest)?;
            let script = format!("xenstore-read /local/domain/{domid}/control/feature-{reason}");
            let value = guest.command_ok(&script, guest.limits().command)?;
            ensure!(value.trim() == "1", "control/feature-{reason} is {value}");
        }
        guest.power_off()
    })
}

/// Xen's debug key `q` sends VIRQ_DEBUG to every vCPU, and each shows its state: before a suspend, and bound anew after.
/// vCPU 0 shows the store too, of which nothing is odd.
pub(crate) fn debug_key(place: &mut Place) -> Result<()> {
    const VCPUS: u32 = 4;
    place.with_guest(VCPUS, 32, |guest| {
        for when in ["at first", "after a restore"] {
            guest.command_ok("xl debug-keys q", guest.limits().command)?;
            let mut silent: BTreeSet<String> = (0..VCPUS).map(|cpu| cpu.to_string()).collect();
            let mut store = None;
            guest
                .wait_for("a dump of every vCPU and of the store", guest.limits().word, |said| {
                    match said.line.event.as_str() {
                        "debug" => {
                            let cpu = said.line.pairs.iter().find(|(key, _)| key == "cpu");
                            silent.retain(|silent| cpu.is_none_or(|(_, cpu)| cpu != silent));
                        }
                        "debug-xenstore" => store = Some(said.line.pairs.clone()),
                        _ => {}
                    }
                    (silent.is_empty() && store.is_some()).then_some(())
                })
                .with_context(|| when.to_owned())?;
            let store = store.unwrap_or_default();
            for key in ["awaited", "late", "oddities", "faults"] {
                let fine = store.iter().any(|(known, value)| known == key && value == "0");
                ensure!(fine, "{when}: {key} of the store is not 0: {store:?}");
            }
            guest.wait_heartbeats(1)?;
            if when == "at first" {
                suspend(guest, Kind::SaveRestore, WELL)?;
            }
        }
        guest.power_off()
    })
}

/// The guest's domain id right now.
pub(crate) fn domid(guest: &mut Guest<'_>) -> Result<String> {
    let script = format!("xl domid {}", guest.name());
    let id = guest.command_ok(&script, guest.limits().command)?.trim().to_owned();
    if id.is_empty() || !id.chars().all(|c| c.is_ascii_digit()) {
        bail!("`{script}` says {id:?}");
    }
    Ok(id)
}

fn said_shutdown(guest: &mut Guest<'_>, wanted: &str) -> Result<()> {
    let what = format!("`stasis: shutdown reason={wanted}`");
    guest.wait_for(&what, guest.limits().word, |said| match &said.event {
        Event::Shutdown { reason } if reason == wanted => Some(()),
        _ => None,
    })
}
