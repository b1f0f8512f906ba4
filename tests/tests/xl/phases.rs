//! What the guest tells of each suspend: every vCPU is in there, with all that it must have reached, in order.

use anyhow::{Context, Result, bail, ensure};
use smp::trace::Mark;
use xtask::drive::cycles::{Kind, Suspend, suspend, timeline};
use xtask::drive::guest::Guest;
use xtask::timeline::{Lane, Timeline, picture};

use crate::place::Place;
use crate::steps::{WELL, domid};

const VCPUS: u32 = 4;

/// On vCPU 0, whatever the outcome, up to the hypercall and from its return on; and what stands between return and release.
const LEADER_BEFORE: [Mark; 14] = [
    Mark::Asked,
    Mark::Answered,
    Mark::Quiet,
    Mark::Begun,
    Mark::Rung,
    Mark::AllArrived,
    Mark::AllStopped,
    Mark::LegacyMasked,
    Mark::EventsDetached,
    Mark::SharedInfoUnmapped,
    Mark::RingsToPfns,
    Mark::OthersDown,
    Mark::Suspending,
    Mark::Back,
];
const TAKEN_OVER: [Mark; 8] = [
    Mark::SharedInfoMapped,
    Mark::NewLegacyMasked,
    Mark::VcpuInfoPlaced,
    Mark::ClockRebased,
    Mark::P2mPublished,
    Mark::EventsAttached,
    Mark::OthersBound,
    Mark::OthersInitialised,
];
const FOLLOWER_BEFORE: [Mark; 3] = [Mark::Parked, Mark::Arrived, Mark::Released];

/// Told without being asked: after a save and restore, and after a migration.
pub(crate) fn of_every_vcpu(place: &mut Place, kinds: &[Kind]) -> Result<()> {
    place.with_guest_of("trace=suspend", VCPUS, 32, |guest| {
        for (n, kind) in kinds.iter().enumerate() {
            let done = suspend(guest, *kind, WELL).with_context(|| kind.name().to_owned())?;
            let told = timeline(guest, n).with_context(|| kind.name().to_owned())?;
            ensure!(told.suspend == n as u64 + 1, "suspend {} is called {}", n + 1, told.suspend);
            check(&told, *kind, &done).with_context(|| format!("after {}: {told:#?}", kind.name()))?;
            in_xenstore(guest, &told)?;
        }
        guest.power_off()
    })
}

/// Told to who types `phases`: that there is nothing to tell at first, then the last suspend, as often as one likes.
pub(crate) fn when_asked(place: &mut Place) -> Result<()> {
    place.with_guest(VCPUS, 32, |guest| {
        ask(guest)?;
        guest.wait_for("`stasis: phases outcome=none`", guest.limits().word, |said| {
            (said.line.event == "phases" && said.line.get("outcome") == Some("none")).then_some(())
        })?;
        let done = suspend(guest, Kind::SaveRestore, WELL)?;
        for n in 0..2 {
            ask(guest)?;
            let told = timeline(guest, n)?;
            check(&told, Kind::SaveRestore, &done).with_context(|| format!("{told:#?}"))?;
        }
        guest.power_off()
    })
}

fn ask(guest: &mut Guest<'_>) -> Result<()> {
    let domid = domid(guest)?;
    let script = format!("echo phases >$(xenstore-read /local/domain/{domid}/console/tty)");
    guest.command_ok(&script, guest.limits().command).map(drop)
}

fn check(told: &Timeline, kind: Kind, done: &Suspend) -> Result<()> {
    let outcome = if kind.continues() { "continued" } else { "resumed" };
    ensure!(told.outcome == outcome, "outcome={}", told.outcome);
    let vcpus: Vec<u32> = told.lanes.iter().map(|lane| lane.vcpu).collect();
    ensure!(vcpus.iter().copied().eq(0..VCPUS), "vCPUs {vcpus:?}");
    for lane in &told.lanes {
        let all_of_it = || format!("vCPU {}", lane.vcpu);
        let before: Vec<Mark> = match (lane.vcpu, kind.continues()) {
            (0, true) => LEADER_BEFORE.to_vec(),
            (0, false) => [&LEADER_BEFORE[..], &TAKEN_OVER].concat(),
            _ => FOLLOWER_BEFORE.to_vec(),
        };
        in_order(lane, &before).with_context(all_of_it)?;
        let bound: &[Mark] = if kind.continues() { &[] } else { &[Mark::Bound] };
        let restored = [bound, &[Mark::InboxServed, Mark::Joined]].concat();
        let after = if lane.vcpu == 0 {
            let (first, last): (&[Mark], &[Mark]) =
                if kind.continues() { (&[Mark::OthersUpAgain], &[]) } else { (&[], &[Mark::OthersUp]) };
            [&[Mark::Back], first, &restored, &[Mark::AllReleased], last, &[Mark::Timer]].concat()
        } else {
            [&[Mark::Released][..], &restored, &[Mark::Timer]].concat()
        };
        in_order(lane, &after).with_context(all_of_it)?;
        in_order(lane, &[Mark::Joined, Mark::Ipi]).with_context(all_of_it)?;
        let sorted = lane.marks.is_sorted_by_key(|(_, ns)| *ns);
        ensure!(sorted, "vCPU {}: time goes back", lane.vcpu);
    }
    across(told)?;
    let gone = told.at(Mark::Suspending).zip(told.at(Mark::Back)).context("no hypercall")?;
    let away_ns = gone.1.saturating_sub(gone.0);
    // Both figures are made from the same two readings of the TSC.
    ensure!(away_ns == done.phases.blackout_ns, "away for {away_ns} ns, said was {}", done.phases.blackout_ns);
    ensure!(picture::draw(told, kind.name()).is_some_and(|svg| svg.contains("vcpu-3")), "it cannot be drawn");
    Ok(())
}

/// What one vCPU reaches for all comes after, or before, what all others reach.
fn across(told: &Timeline) -> Result<()> {
    let of_zero = |mark| told.at(mark).with_context(|| format!("vCPU 0 has no {mark:?}"));
    // In the same domain they see the release before vCPU 0 has marked it; in a new one they are brought up after that.
    let no_earlier = if told.outcome == "resumed" { Mark::AllReleased } else { Mark::OthersUpAgain };
    for lane in told.lanes.iter().filter(|lane| lane.vcpu != 0) {
        for (mine, for_all, first) in [
            (Mark::Arrived, Mark::AllArrived, true),
            (Mark::Released, no_earlier, false),
            (Mark::Ipi, Mark::AllAlive, true),
            (Mark::Timer, Mark::AllAlive, true),
        ] {
            let ns = lane.at(mine).with_context(|| format!("vCPU {} has no {mine:?}", lane.vcpu))?;
            let all_ns = of_zero(for_all)?;
            let fine = if first { ns <= all_ns } else { ns >= all_ns };
            ensure!(fine, "vCPU {}: {mine:?} at {ns} ns, {for_all:?} at {all_ns} ns", lane.vcpu);
        }
    }
    Ok(())
}

fn in_order(lane: &Lane, marks: &[Mark]) -> Result<()> {
    let mut reached = lane.marks.iter();
    for mark in marks {
        if !reached.any(|(reached, _)| reached == mark) {
            bail!("{mark:?} is missing, or not where it should be");
        }
    }
    Ok(())
}

/// The longest times stand in xenstore, and are of a vCPU of this guest.
fn in_xenstore(guest: &mut Guest<'_>, told: &Timeline) -> Result<()> {
    let script = format!("xenstore-ls /local/domain/{}/data/stasis", domid(guest)?);
    let nodes = guest.command_ok(&script, guest.limits().command)?;
    for stage in ["quiesce", "gather", "stand", "suspended", "take_over", "restore", "prove"] {
        let read = |key: &str| -> Result<u64> {
            let node = format!("stage_{stage}_{key} = \"");
            let value = nodes.lines().find_map(|line| line.strip_prefix(&node)?.strip_suffix('"'));
            value.and_then(|value| value.parse().ok()).with_context(|| format!("no number {node}…\" in\n{nodes}"))
        };
        let (ns, vcpu) = (read("ns")?, read("vcpu")?);
        ensure!(vcpu < u64::from(VCPUS), "stage_{stage}_vcpu is {vcpu}");
        let lane = &told.lanes[usize::try_from(vcpu)?];
        let sum: u64 =
            told.spans(lane).iter().filter(|span| span.stage.name() == stage).map(smp::trace::Span::ns).sum();
        ensure!(ns == sum, "stage_{stage}_ns is {ns}, told was {sum}");
    }
    Ok(())
}
