//! What goes wrong outside the guest, and must leave it as it was.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser;
use xtask::cli::Cli;
use xtask::contract::Event;
use xtask::drive::cycles::{Kind, NextSuspend, suspend};
use xtask::drive::domain::{has_shut_down, image};
use xtask::drive::guest::Guest;

use crate::place::Place;
use crate::steps::{WELL, domid};

/// A Xen without log-dirty, asked to migrate: the whole command in a lab of its own, which says what is missing and
/// what to do about it.
pub(crate) fn no_log_dirty() -> Result<()> {
    // Not where the user's last migration has its logs.
    let words = ["xtask", "migrate", "--keep-logs", "--stock-xen", "--vcpus", "1", "--memory", "16"];
    let Err(error) = Cli::try_parse_from(words)?.run() else { bail!("Debian's own Xen has migrated a PV guest") };
    let said = format!("{error:#}");
    for part in ["this Xen cannot live-migrate PV guests", "CONFIG_SHADOW_PAGING=y", "leave out --stock-xen"] {
        ensure!(said.contains(part), "it does not say `{part}`: {said}");
    }
    Ok(())
}

/// The guest beats, and a good suspend still works.
fn still_well(guest: &mut Guest<'_>) -> Result<()> {
    guest.wait_heartbeats(2)?;
    suspend(guest, Kind::Checkpoint, WELL).context("the suspend after the trouble")?;
    guest.power_off()
}

/// The guest beats twice, and between now and then nobody has asked it to suspend.
fn undisturbed(guest: &mut Guest<'_>) -> Result<()> {
    for _ in 0..2 {
        guest
            .wait_for("a heartbeat", guest.limits().word, |said| match &said.event {
                Event::Heartbeat { .. } => Some(Ok(())),
                Event::SuspendRequest { .. } | Event::SuspendAbort { .. } => Some(Err(said.line.clone())),
                Event::Continued { .. } | Event::Resumed { .. } => Some(Err(said.line.clone())),
                _ => None,
            })?
            .map_err(|line| anyhow!("the guest has noticed: {line:?}"))?;
    }
    Ok(())
}

/// Shell: waits until the domain is suspended, while `$job` does it, and shows `log` if that ends before (8) or never
/// comes to it (9).
fn await_suspended(domain: &str, log: &str) -> String {
    format!(
        "i=0; until {}; do \
           i=$((i+1)); [ $i -lt 600 ] || {{ cat {log}; exit 9; }}; \
           kill -0 $job 2>/dev/null || {{ cat {log}; exit 8; }}; \
         done",
        has_shut_down(domain)
    )
}

/// The receiver ends before the guest has been asked to suspend: the guest does not even notice.
pub(crate) fn receiver_never_answers(place: &mut Place) -> Result<()> {
    place.with_guest(8, 64, |guest| {
        let script = format!("xl migrate -s '' {} true", guest.name());
        let exit = guest.command(&script, guest.limits().transfer)?;
        ensure!(!exit.ok(), "a migration to nobody went well:\n{}", exit.output);
        undisturbed(guest)?;
        still_well(guest)
    })
}

/// The receiver is killed while the guest is suspended: the guest goes on where it was.
pub(crate) fn receiver_killed(place: &mut Place) -> Result<()> {
    place.with_guest(8, 64, |guest| {
        let name = guest.name().to_owned();
        // The receiver tells its process id before it becomes xl. Sender and receiver both end with an error then, the
        // receiver's half-made domain stays.
        let script = format!(
            "rm -f /tmp/receiver; \
             xl migrate -s '' {name} 'echo $$ >/tmp/receiver; exec xl migrate-receive' >/tmp/sender.log 2>&1 & job=$!; \
             {}; \
             kill -9 $(cat /tmp/receiver); wait $job; code=$?; cat /tmp/sender.log; \
             xl destroy {name}--incoming 2>/dev/null; exit $code",
            await_suspended(&name, "/tmp/sender.log")
        );
        let next = NextSuspend::of(guest)?;
        let exit = guest.command(&script, guest.limits().transfer)?;
        ensure!(exit.code != 9, "the guest was never suspended:\n{}", exit.output);
        ensure!(exit.code != 8, "the sender ended before the guest was suspended:\n{}", exit.output);
        ensure!(!exit.ok(), "the migration went well without a receiver:\n{}", exit.output);
        next.came_back(guest, Kind::Checkpoint, Duration::ZERO)
            .with_context(|| format!("the sender said:\n{}", exit.output))?;
        still_well(guest)
    })
}

/// So much of a request the guest names at least, in bytes; it keeps no more of one that it does not know.
const NAMED: usize = 40;

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
        let start = "x".repeat(NAMED);
        guest.wait_for("the guest to name the start of it", guest.limits().word, |said| {
            said.line.pairs.iter().any(|(_, value)| value.starts_with(&start)).then_some(())
        })?;
        still_well(guest)
    })
}

/// A request that is withdrawn before the guest has seen it is none; one withdrawn at once is answered once or not at all.
pub(crate) fn withdrawn_request(place: &mut Place) -> Result<()> {
    place.with_guest(2, 32, |guest| {
        let (domid, name) = (domid(guest)?, guest.name().to_owned());
        let node = format!("/local/domain/{domid}/control/shutdown");
        // Two commands: one `xenstore-write` is one transaction, of which only the end is seen. Not `xenstore-rm`: the
        // node that is made next has other permissions, and the guest may not write to it.
        let script = format!(
            "withdraw() {{ xenstore-write {node} $1 && xenstore-write {node} ''; }}; \
             for i in $(seq 4); do \
               withdraw seen$i && xl pause {name} && withdraw unseen$i && xl unpause {name} || exit 1; \
             done; xenstore-write {node} last"
        );
        guest.command_ok(&script, guest.limits().command)?;
        let mut named = Vec::new();
        guest.wait_for("the guest to name `last`", guest.limits().word, |said| {
            named.extend(said.line.pairs.iter().filter(|(key, _)| key == "value").map(|(_, value)| value.clone()));
            named.last().is_some_and(|value| value == "last").then_some(())
        })?;
        named.pop();
        let numbers: Option<Vec<u32>> = named.iter().map(|value| value.strip_prefix("seen")?.parse().ok()).collect();
        let once_each = numbers.is_some_and(|numbers| numbers.is_sorted_by(|one, next| one < next));
        ensure!(once_each, "withdrawn requests were answered, or some twice or out of order: {named:?}");
        still_well(guest)
    })
}

/// A second checkpoint is asked for while the guest is suspended for the first one: it waits, and both are made.
pub(crate) fn second_request(place: &mut Place) -> Result<()> {
    place.with_guest(8, 64, |guest| {
        let name = guest.name().to_owned();
        let script = format!(
            "xl save -c {name} {one} >/tmp/first.log 2>&1 & job=$!; \
             {}; \
             xl save -c {name} {two}; second=$?; wait $job; first=$?; \
             cat /tmp/first.log; rm -f {one} {two}; echo first=$first second=$second",
            await_suspended(&name, "/tmp/first.log"),
            one = image(&format!("{name}-one")),
            two = image(&format!("{name}-two")),
        );
        let output = guest.command_ok(&script, guest.limits().transfer * 2)?;
        ensure!(output.contains("first=0 second=0"), "not both checkpoints were made:\n{output}");
        let mut told = Vec::new();
        guest
            .wait_for("two checkpoints, one after the other", guest.limits().word, |said| {
                match said.event {
                    Event::SuspendRequest { .. } => told.push("request"),
                    Event::SuspendAbort { .. } => told.push("abort"),
                    Event::Continued { .. } => told.push("continued"),
                    Event::Resumed { .. } => told.push("resumed"),
                    _ => {}
                }
                (told.len() == 4).then_some(())
            })
            .with_context(|| output.clone())?;
        ensure!(told == ["request", "continued", "request", "continued"], "{told:?}:\n{output}");
        undisturbed(guest)?;
        still_well(guest)
    })
}
