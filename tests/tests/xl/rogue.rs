//! A peer in another domain that rings the guest's console and xenstore without end (XSA-332, XSA-391).
//!
//! dom0's own program does it (`xtask/src/lab/rogue_main.rs`), on the ports of the real daemons, while these do their work. Each event
//! is for nothing but where a daemon has written something, and each is ended late: so the guest takes few of them, however many are
//! sent. Counts are compared with the number of heartbeats that the guest has told meanwhile, one for each of its seconds: when it
//! does not run it tells none and takes none.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use xtask::contract::Event;
use xtask::drive::cycles::{Kind, suspend};
use xtask::drive::guest::Guest;
use xtask::host::Host;
use xtask::lab;

use crate::place::Place;
use crate::ports;
use crate::steps::{WELL, domid};

const VCPUS: u32 = 2;

/// Heartbeats under the storm between the two looks at how many events there were.
const BEATS: u32 = 6;

/// Events for nothing until the next is put off by a second, which is as long as it gets: two at once, then after 1, 2, 4 ms and so on
/// (`evtchn/src/storm.rs`). What a daemon writes begins it anew.
const UNTIL_A_SECOND: u64 = 13;

/// Under the storm everybody beats, the console is heard and answers, and the two ports have so many events as their ends let in, of all
/// that are sent. The guest is checkpointed, saved and restored meanwhile, the storm going on in the new domain. When it is over
/// nothing is missing.
pub(crate) fn rings_without_end(place: &mut Place, abi: &str) -> Result<()> {
    let program = lab::program(lab::Program::Rogue, place.terminal())?;
    let path = place.host().put(lab::Program::Rogue.name(), &program)?;
    place.with_guest_of(&format!("evtchn={abi}"), VCPUS, 32, |guest| {
        start(guest, &path)?;
        let outcome = under_the_storm(guest);
        let ended = end(guest, &path);
        let (events, (sends, rung)) = outcome.and_then(|events| Ok((events, ended?)))?;
        ensure!(rung == 2, "{rung} ports were rung at most: console and xenstore are two");
        ensure!(sends > 100 * events, "of {sends} events {events} were taken: that was no storm");

        // What was put off by a second at most comes, and from then on all is as before.
        guest.wait_heartbeats(2).context("after the storm")?;
        let before = counts(guest).context("after the storm")?;
        asked_through_xenstore(guest).context("after the storm")?;
        let after = counts(guest).context("after the storm")?;
        ensure!(after["device1"] > before["device1"], "a request was answered without an event: {before:?}, {after:?}");
        suspend(guest, Kind::SaveRestore, WELL).context("after the storm")?;
        guest.power_off()
    })
}

/// What the guest does under the storm; how many events of the two ports it took, as far as they were counted.
fn under_the_storm(guest: &mut Guest<'_>) -> Result<u64> {
    let before = counts(guest)?;
    let mut beats: u64 = 0;
    while beats < BEATS.into() {
        let word = guest.limits().word;
        // A heartbeat that has lost something fails the guest.
        let least = guest.wait_for("a heartbeat under the storm", word, |said| match said.event {
            Event::Heartbeat { beats_min, .. } => Some(beats_min),
            _ => None,
        })?;
        ensure!(least > 0, "a vCPU has not beaten for a second");
        beats += 1;
    }
    let (after, more) = counts_and_heartbeats(guest)?;
    // The first may have been half over, and the last is not told yet. Heartbeats are late where the machine is busy, as ends are: twice
    // as many are granted.
    let seconds = 2 * (beats + more + 2);
    let taken = |kind: &str| after[kind] - before[kind];
    let (console, store) = (taken("device0"), taken("device1"));
    // xenstored has nothing to say. xenconsoled reads each line that the guest writes: a heartbeat, and the answer to each question.
    ensure!(store <= UNTIL_A_SECOND + seconds, "xenstore's port had {store} events in {seconds} s");
    let said = seconds + after.len() as u64 * 2;
    ensure!(console <= UNTIL_A_SECOND * said, "the console's port had {console} events for some {said} lines");
    ensure!(console > 0 && store > 0, "no events under the storm: {before:?}, {after:?}");

    asked_through_xenstore(guest)?;
    for kind in [Kind::Checkpoint, Kind::SaveRestore, Kind::Checkpoint] {
        suspend(guest, kind, WELL).with_context(|| format!("{} under the storm", kind.name()))?;
    }
    Ok(console + store)
}

/// `xl sysrq` is answered: a watch fires, and a transaction goes both ways.
fn asked_through_xenstore(guest: &mut Guest<'_>) -> Result<()> {
    guest.command_ok(&format!("xl sysrq {} h", guest.name()), guest.limits().command)?;
    guest.wait_for("the letters", guest.limits().word, |said| (said.line.event == "sysrq").then_some(()))
}

/// How many events each kind of port had, all vCPUs together. Asked for on the console.
fn counts(guest: &mut Guest<'_>) -> Result<BTreeMap<String, u64>> {
    counts_and_heartbeats(guest).map(|(counts, _)| counts)
}

/// The same, and how many heartbeats were passed over.
fn counts_and_heartbeats(guest: &mut Guest<'_>) -> Result<(BTreeMap<String, u64>, u64)> {
    let script = format!("echo evtchn >$(xenstore-read {})", ports::tty(&domid(guest)?));
    guest.command_ok(&script, guest.limits().command)?;
    let (lines, heartbeats) = ports::list(guest)?;
    let mut counts = BTreeMap::new();
    for line in lines {
        let kind = line.get("kind").with_context(|| format!("no kind= in `{line}`"))?;
        let count: u64 = line.get("count").and_then(|count| count.parse().ok()).context("no count=")?;
        *counts.entry(kind.to_owned()).or_default() += count;
    }
    for kind in ["device0", "device1"] {
        ensure!(counts.contains_key(kind), "no {kind} in the list: {counts:?}");
    }
    Ok((counts, heartbeats))
}

fn stop_file(path: &str) -> String {
    format!("{path}.stop")
}

/// Starts the rogue in dom0; returns once it rings.
fn start(guest: &mut Guest<'_>, path: &str) -> Result<()> {
    let stop = stop_file(path);
    let script = format!(
        "# start the rogue\n\
         chmod 755 {path} && rm -f {stop} || exit 1; {path} {stop} >{path}.log 2>&1 & rogue=$!\n\
         until grep -q ringing {path}.log; do \
         kill -0 $rogue || {{ cat {path}.log; exit 1; }}; sleep 0.2; done"
    );
    guest.command_ok(&script, guest.limits().command).map(drop)
}

/// Ends it: how often it rang, and how many ports.
fn end(guest: &mut Guest<'_>, path: &str) -> Result<(u64, u64)> {
    let script = format!(
        "# end the rogue\n\
         touch {}; until grep sends= {path}.log; do \
         grep rogue: {path}.log && exit 1; sleep 0.2; done",
        stop_file(path)
    );
    let told = guest.command_ok(&script, guest.limits().command)?;
    let number = |key: &str| told.split_whitespace().find_map(|word| word.strip_prefix(key)?.parse().ok());
    Ok((number("sends=").context("no sends=")?, number("ports=").context("no ports=")?))
}
