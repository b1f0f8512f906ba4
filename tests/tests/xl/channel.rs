//! `suspend=evtchn`: every way to suspend, asked for by ringing the port that the guest offers, and what comes of an emptied node.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use xtask::contract::Event;
use xtask::drive::cycles::{Kind, NextSuspend, heartbeats_after};
use xtask::drive::domain::image;
use xtask::drive::guest::Guest;

use crate::place::Place;
use crate::steps::domid;

const WORDS: &str = "suspend=evtchn";
const VCPUS: u32 = 4;

/// Checkpoints, a save and a migration in a row: each by a ring, with a port of the new domain after each restore.
pub(crate) fn every_way(place: &mut Place, abi: &str) -> Result<()> {
    place.with_guest_of(&format!("{WORDS} evtchn={abi}"), VCPUS, 32, |guest| {
        offered(guest)?;
        for kind in [Kind::Checkpoint, Kind::Checkpoint, Kind::SaveRestore, Kind::Migrate, Kind::Checkpoint] {
            suspend_by_ring(guest, kind).with_context(|| kind.name().to_owned())?;
        }
        guest.power_off()
    })
}

/// Xen tells only the port's other end of a suspend once a toolstack has used it; so a request by `control/shutdown`, as it comes when
/// somebody has emptied the node, is refused, the guest goes on, and the node is good again.
pub(crate) fn emptied_node(place: &mut Place) -> Result<()> {
    place.with_guest_of(WORDS, VCPUS, 32, |guest| {
        let port = offered(guest)?;
        suspend_by_ring(guest, Kind::Checkpoint)?;
        let home = format!("/local/domain/{}", domid(guest)?);
        let script = format!(
            "xenstore-write {home}/device/suspend/event-channel '' && xenstore-write {home}/control/shutdown suspend"
        );
        guest.command_ok(&script, guest.limits().command)?;
        let reason = guest.wait_for("the request to be refused", guest.limits().word, |said| match &said.event {
            Event::SuspendAbort { reason, .. } => Some(Ok(reason.clone())),
            Event::Continued { .. } | Event::Resumed { .. } => Some(Err(said.line.clone())),
            _ => None,
        })?;
        match reason {
            Ok(reason) => ensure!(reason == "suspend-port-is-subscribed", "it is refused for {reason}"),
            Err(line) => bail!("the guest has suspended where nobody would be told: {line}"),
        }
        ensure!(offered(guest)? == port, "another port than {port} is offered in the same life of the domain");
        suspend_by_ring(guest, Kind::Checkpoint).context("after the refusal")?;
        guest.power_off()
    })
}

/// A toolstack that rings and goes away before the guest has seen it: nobody would have the guest go on, so it does not suspend.
pub(crate) fn toolstack_gone(place: &mut Place) -> Result<()> {
    place.with_guest_of(WORDS, VCPUS, 32, |guest| {
        offered(guest)?;
        let (name, image) = (guest.name().to_owned(), image(guest.name()));
        // Paused it takes the ring when it is unpaused. xl says nothing between the ring and the end of its patience.
        let script = format!(
            "trap 'rm -f {image}' EXIT; xl pause {name}; xl save -c {name} {image} >/tmp/{name}.log 2>&1 & job=$!\n\
             sleep 8; kill -0 $job || {{ cat /tmp/{name}.log; exit 8; }}\n\
             kill -KILL $job $(ps -o pid,ppid | while read pid parent; do [ \"$parent\" = $job ] && echo $pid; done)\n\
             sleep 1; xl unpause {name}"
        );
        guest.command_ok(&script, guest.limits().transfer)?;
        let reason = guest.wait_for("the ring to be refused", guest.limits().word, |said| match &said.event {
            Event::SuspendAbort { reason, .. } => Some(Ok(reason.clone())),
            Event::Continued { .. } | Event::Resumed { .. } => Some(Err(said.line.clone())),
            _ => None,
        })?;
        match reason {
            Ok(reason) => ensure!(reason == "toolstack-is-gone", "it is refused for {reason}"),
            Err(line) => bail!("the guest has suspended for nobody: {line}"),
        }
        guest.wait_heartbeats(2)?;
        suspend_by_ring(guest, Kind::Checkpoint).context("by a toolstack that stays")?;
        guest.power_off()
    })
}

/// Waits for the guest's offer; the port as it stands in xenstore. Not for its word on the console, which may have been passed over.
pub(crate) fn offered(guest: &mut Guest<'_>) -> Result<String> {
    let script = format!(
        "# wait until {name} offers a port\n\
         i=0; while p=$(xenstore-read /local/domain/$(xl domid {name})/device/suspend/event-channel); [ -z \"$p\" ]; do \
         i=$((i+1)); [ $i -lt 300 ] || exit 1; sleep 0.2; done; echo $p",
        name = guest.name()
    );
    let port = guest.command_ok(&script, guest.limits().command)?.trim().to_owned();
    ensure!(port.parse::<u32>().is_ok(), "its node says {port:?}");
    Ok(port)
}

fn suspend_by_ring(guest: &mut Guest<'_>, kind: Kind) -> Result<()> {
    let next = NextSuspend::of(guest)?;
    let script = kind.script(guest.name());
    guest.command_ok(&script, guest.limits().transfer)?;
    let done = next.came_back(guest, kind, Duration::ZERO)?;
    ensure!(done.via == "evtchn", "the request came by {}", done.via);
    if !kind.continues() {
        offered(guest).context("in the new domain")?;
    }
    guest.wait_heartbeats(heartbeats_after(done.vcpus)).context("after the suspend")
}
