//! What goes wrong outside the guest, and must leave it as it was.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::drive::cycles::{Kind, came_back, suspend};
use xtask::drive::guest::Guest;

use crate::place::Place;
use crate::steps::{WELL, domid};

/// The guest beats, and a good suspend still works.
fn still_well(guest: &mut Guest<'_>) -> Result<()> {
    guest.wait_heartbeats(2)?;
    suspend(guest, Kind::Checkpoint, WELL).context("the suspend after the trouble")?;
    guest.power_off()
}

/// The receiver ends before the guest has been asked to suspend: the guest does not even notice.
pub(crate) fn receiver_never_answers(place: &mut Place) -> Result<()> {
    place.with_guest(8, 64, |guest| {
        let script = format!("xl migrate -s '' {} true", guest.name());
        let exit = guest.command(&script, guest.limits().transfer)?;
        ensure!(!exit.ok(), "a migration to nobody went well:\n{}", exit.output);
        still_well(guest)
    })
}

/// The receiver is killed while the guest is suspended: the guest goes on where it was.
pub(crate) fn receiver_killed(place: &mut Place) -> Result<()> {
    place.with_guest(8, 64, |guest| {
        let name = guest.name().to_owned();
        // The receiver tells its process id before it becomes xl; `xl list` shows a suspended domain by its
        // s. Sender and receiver both end with an error then, the receiver's half-made domain stays.
        let script = format!(
            "rm -f /tmp/receiver; \
             xl migrate -s '' {name} 'echo $$ >/tmp/receiver; exec xl migrate-receive' >/tmp/sender.log 2>&1 & \
             sender=$!; i=0; \
             until xl list {name} 2>/dev/null | tail -n 1 | grep -q -e '-[-p]s'; do \
               i=$((i+1)); [ $i -lt 600 ] || {{ cat /tmp/sender.log; exit 9; }}; \
               kill -0 $sender 2>/dev/null || {{ cat /tmp/sender.log; exit 8; }}; \
             done; \
             kill -9 $(cat /tmp/receiver); wait $sender; code=$?; cat /tmp/sender.log; \
             xl destroy {name}--incoming 2>/dev/null; exit $code"
        );
        let exit = guest.command(&script, guest.limits().transfer)?;
        ensure!(exit.code != 9, "the guest was never suspended:\n{}", exit.output);
        ensure!(exit.code != 8, "the sender ended before the guest was suspended:\n{}", exit.output);
        ensure!(!exit.ok(), "the migration went well without a receiver:\n{}", exit.output);
        came_back(guest, Kind::Checkpoint, Duration::ZERO)
            .with_context(|| format!("the sender said:\n{}", exit.output))?;
        still_well(guest)
    })
}

/// A request that is none is named on the console, acknowledged, and changes nothing.
pub(crate) fn garbage_request(place: &mut Place) -> Result<()> {
    place.with_guest(2, 32, |guest| {
        let domid = domid(guest)?;
        let node = format!("/local/domain/{domid}/control/shutdown");
        for garbage in ["frobnicate", "Suspend", "poweroff now", "\u{fc}ber"] {
            let script = format!("xenstore-write {node} '{garbage}'");
            guest.command_ok(&script, guest.limits().command)?;
            let what = format!("the guest to name `{garbage}`");
            guest.wait_for(&what, guest.limits().word, |said| {
                said.line.pairs.iter().any(|(_, value)| value == garbage).then_some(())
            })?;
            let script = format!(
                "i=0; while [ -n \"$(xenstore-read {node})\" ]; do i=$((i+1)); [ $i -lt 100 ] || exit 1; sleep 0.1; done"
            );
            guest.command_ok(&script, guest.limits().command).context("no acknowledgement")?;
        }
        // Far too long for any request there is.
        let script = format!("xenstore-write {node} $(head -c 1500 /dev/zero | tr '\\0' x)");
        guest.command_ok(&script, guest.limits().command)?;
        still_well(guest)
    })
}

/// A request that is withdrawn at once is answered or ignored, but never half done.
pub(crate) fn withdrawn_request(place: &mut Place) -> Result<()> {
    place.with_guest(2, 32, |guest| {
        let domid = domid(guest)?;
        let node = format!("/local/domain/{domid}/control/shutdown");
        let script = format!("for i in 1 2 3 4 5; do xenstore-write {node} bogus {node} ''; done");
        guest.command_ok(&script, guest.limits().command)?;
        still_well(guest)
    })
}

/// A second checkpoint is asked for while the guest is suspended for the first one: both are made.
pub(crate) fn second_request(place: &mut Place) -> Result<()> {
    place.with_guest(8, 64, |guest| {
        let name = guest.name().to_owned();
        let script = format!(
            "xl save -c {name} /tmp/first >/tmp/first.log 2>&1 & first=$!; i=0; \
             until xl list {name} | tail -n 1 | grep -q -e '-[-p]s'; do \
               i=$((i+1)); [ $i -lt 600 ] || {{ cat /tmp/first.log; exit 9; }}; \
               kill -0 $first 2>/dev/null || {{ cat /tmp/first.log; exit 8; }}; \
             done; \
             xl save -c {name} /tmp/second; second=$?; wait $first; first=$?; \
             cat /tmp/first.log; rm -f /tmp/first /tmp/second; echo first=$first second=$second"
        );
        let output = guest.command_ok(&script, guest.limits().transfer * 2)?;
        // The second xl may be refused (it met a suspended domain); the guest must not mind either way.
        ensure!(output.contains("first=0") || output.contains("second=0"), "no checkpoint was made:\n{output}");
        came_back(guest, Kind::Checkpoint, Duration::ZERO).with_context(|| output.clone())?;
        still_well(guest)
    })
}
