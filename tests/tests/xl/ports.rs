//! The guest's list of its ports beside Xen's own, and the ways to ask for it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use xtask::drive::cycles::{Kind, suspend};
use xtask::drive::guest::Guest;
use xtask::logfmt::Line;

use crate::place::Place;
use crate::steps::{WELL, domid};

const VCPUS: u32 = 4;
/// Timer and ipi for each vCPU; debug; store and console.
const PORTS: usize = 2 * VCPUS as usize + 3;

/// What both lists say of a port.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Row {
    /// `unbound`, `interdomain`, `pirq`, `virq` or `ipi`.
    state: &'static str,
    vcpu: u32,
    /// The virq, or the other domain and its port.
    rest: Vec<u32>,
}

type Rows = BTreeMap<u32, Row>;

/// `ECS_*` of xen/include/xen/sched.h, as far as a port of a guest's comes to it.
const STATES: [(u32, &str); 5] = [(2, "unbound"), (3, "interdomain"), (4, "pirq"), (5, "virq"), (6, "ipi")];

/// Asked by `xl sysrq`, at first and after a restore, with which the gate of the rendezvous is there too, the guest lists the ports that Xen lists for it: the same ports, vCPUs
/// and kinds, and all of them for something.
pub(crate) fn as_xen_has_them(place: &mut Place, words: &str) -> Result<()> {
    place.with_guest_of(words, VCPUS, 32, |guest| {
        for (when, gates) in [("at first", 0), ("after a restore", 1)] {
            let (name, domid) = (guest.name().to_owned(), domid(guest)?);
            let wait = guest.limits().command;
            guest.command_ok(&format!("xl sysrq {name} e"), wait)?;
            let (ours, _) = list(guest).with_context(|| when.to_owned())?;
            let log = guest.command_ok("xl debug-keys e && xl dmesg", wait)?;
            let xens = rows_of_xen(&log, &domid)?;
            ensure!(xens.len() == PORTS + gates, "{when}: Xen lists {} ports: {xens:#?}", xens.len());
            let polled = ours.iter().filter(|line| line.get("kind") == Some("polled")).count();
            ensure!(polled == gates, "{when}: {polled} ports are polled");
            let ours = rows_of_guest(&ours)?;
            ensure!(ours == xens, "{when}: the guest lists {ours:#?}, Xen {xens:#?}");
            if when == "at first" {
                suspend(guest, Kind::SaveRestore, WELL)?;
            }
        }
        guest.wait_heartbeats(1)?;
        guest.power_off()
    })
}

/// Letters, words and the debug key: each is answered and changes nothing, known or not, and the node is empty afterwards.
pub(crate) fn ways_to_ask(place: &mut Place) -> Result<()> {
    place.with_guest(VCPUS, 32, |guest| {
        let (name, domid) = (guest.name().to_owned(), domid(guest)?);
        let (wait, word) = (guest.limits().command, guest.limits().word);
        let node = format!("/local/domain/{domid}/control/sysrq");
        let there = guest.command_ok(&format!("xenstore-read {node}"), wait).context("xl has made no node")?;
        ensure!(there.trim().is_empty(), "{node} is {there:?} before anybody has asked");
        for letter in ["w", "t"] {
            guest.command_ok(&format!("xl sysrq {name} {letter}"), wait)?;
            let mut silent: BTreeSet<String> = (0..VCPUS).map(|cpu| cpu.to_string()).collect();
            guest.wait_for(&format!("`{letter}`: every vCPU's dump"), word, |said| {
                if said.line.event == "debug-end" {
                    said.line.get("cpu").map(|cpu| silent.remove(cpu));
                }
                silent.is_empty().then_some(())
            })?;
        }
        guest.command_ok(&format!("xl sysrq {name} h"), wait)?;
        guest.wait_for("`h`: the letters that there are", word, |said| {
            (said.line.event == "sysrq" && said.line.get("keys").is_some_and(|keys| keys.contains("e=evtchn")))
                .then_some(())
        })?;
        for odd in ["z", "B", "ew", " "] {
            guest.command_ok(&format!("xenstore-write {node} '{odd}'"), wait)?;
            guest.wait_for(&format!("`{odd}` to be named"), word, |said| {
                (said.line.event == "control-unknown" && said.line.get("value") == Some(odd)).then_some(())
            })?;
        }
        let left = guest.command_ok(&format!("xenstore-read {node}"), wait)?;
        ensure!(left.trim().is_empty(), "{node} is {left:?}");
        for script in ["xl debug-keys q".to_owned(), format!("echo evtchn >$(xenstore-read {})", tty(&domid))] {
            guest.command_ok(&script, wait)?;
            let (lines, _) = list(guest).with_context(|| script.clone())?;
            ensure!(lines.len() == PORTS, "`{script}`: {} ports are listed", lines.len());
        }
        guest.wait_heartbeats(1)?;
        guest.power_off()
    })
}

pub(crate) fn tty(domid: &str) -> String {
    format!("/local/domain/{domid}/console/tty")
}

/// The lines of the next list of all ports, of which none is lost, and how many heartbeats came before its end. Lines of single vCPUs
/// do not say what Xen has.
pub(crate) fn list(guest: &mut Guest<'_>) -> Result<(Vec<Line>, u64)> {
    let (mut lines, mut heartbeats) = (Vec::new(), 0);
    let word = guest.limits().word;
    let end = guest.wait_for("a list of all ports", word, |said| {
        let line = &said.line;
        match line.event.as_str() {
            "debug-evtchn" => lines.clear(),
            "heartbeat" => heartbeats += 1,
            "debug-port" if line.get("state").is_some() => lines.push(line.clone()),
            "debug-end" if line.get("cpu").is_none() => return Some(line.clone()),
            _ => {}
        }
        None
    })?;
    let all = end.get("ports") == Some(&lines.len().to_string());
    ensure!(
        all && end.get("lost_lines") == Some("0") && end.get("whole") == Some("1"),
        "{end} after {} lines",
        lines.len()
    );
    Ok((lines, heartbeats))
}

fn rows_of_guest(lines: &[Line]) -> Result<Rows> {
    lines
        .iter()
        .map(|line| {
            let number = |key: &str| -> Result<u32> {
                let value = line.get(key).with_context(|| format!("no {key}= in `{line}`"))?;
                value.parse().with_context(|| format!("{key}= in `{line}`"))
            };
            let kind = line.get("kind").with_context(|| format!("no kind= in `{line}`"))?;
            let (state, rest, kinds): (_, Vec<u32>, &[&str]) = match line.get("state") {
                Some("virq") => ("virq", vec![number("virq")?], &[["timer", "debug"][number("virq")? as usize % 2]]),
                Some("ipi") => ("ipi", vec![], &["ipi-call", "polled"]),
                Some("interdomain") => ("interdomain", vec![number("dom")?, number("peer")?], &["device0", "device1"]),
                state => bail!("a guest of ours has no port that is {state:?}: `{line}`"),
            };
            ensure!(kinds.contains(&kind), "this is for another kind: `{line}`");
            ensure!(line.get("awaited_by").is_none(), "events go astray: `{line}`");
            Ok((number("port")?, Row { state, vcpu: number("cpu")?, rest }))
        })
        .collect()
}

/// Reads what Xen's debug key `e` has printed last of domain `domid`.
fn rows_of_xen(log: &str, domid: &str) -> Result<Rows> {
    let head = format!("Event channel information for domain {domid}:");
    let (_, section) = log.rsplit_once(&head).with_context(|| format!("Xen has not said `{head}`:\n{log}"))?;
    let mut rows = Rows::new();
    // Two lines of headings, then ports, then the next domain or whatever Xen says next.
    for line in section.lines().skip(1) {
        let text = line.trim_start_matches("(XEN)").trim_start();
        let Some((port, rest)) = text.split_once(" [") else {
            if rows.is_empty() {
                continue;
            }
            break;
        };
        let Some((_, words)) = rest.split_once("]: ") else { continue };
        let port = port.trim().parse().with_context(|| format!("`{line}`"))?;
        let value = |letter: &str| -> Option<u32> {
            words.split(' ').find_map(|word| word.strip_prefix(letter)?.strip_prefix('=')?.trim().parse().ok())
        };
        let number = value("s").with_context(|| format!("no s= in `{line}`"))?;
        let (_, state) = *STATES.iter().find(|(of, _)| *of == number).with_context(|| format!("`{line}`"))?;
        let rest = ["v", "d", "p"].iter().filter_map(|letter| value(letter)).collect();
        let vcpu = value("n").with_context(|| format!("no n= in `{line}`"))?;
        ensure!(rows.insert(port, Row { state, vcpu, rest }).is_none(), "port {port} stands there twice:\n{section}");
    }
    Ok(rows)
}
