//! Continuous checkpointing by `xl remus` to a null sink: one checkpoint after the other, and a way to stop that leaves the guest running.
//!
//! Owns the command, what it prints of pages, and its end. `xl remus -b` sends to /dev/null, needs neither a second host nor buffered
//! devices, and never ends by itself. Killed at any moment it leaves a guest suspended that was suspended just then; so it is
//! stopped first, and killed once the guest is seen to run. Turned down: killing its helper, upon which xl resumes the
//! guest; with the suspend event channel it does not (`kernel/src/suspend_port.rs`). A sink that hangs up has the same fault.

#![forbid(unsafe_code)]

use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::contract::{Event, Phases};
use crate::drive::domain::has_shut_down;
use crate::drive::guest::Guest;

/// A run of `xl remus`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// The guest's own figures, one for each round.
    pub rounds: Vec<Phases>,
    /// Pages that were sent in each round but the first, which sends all memory: what the guest has written to since the round
    /// before.
    pub pages: Vec<u64>,
    /// How long it took, from the start of the command to the last round.
    pub took_ns: u64,
    /// How each request came, `evtchn` or `xenstore`; empty if not all came the same way.
    pub via: String,
}

/// Has `xl remus` checkpoint the guest every `interval_ms`, until it has gone on from `rounds` of them, and stops it. `progress` is told
/// the number of each.
///
/// # Errors
/// When the guest fails or a checkpoint takes too long, with what xl has said.
pub fn run(guest: &mut Guest<'_>, interval_ms: u32, rounds: u32, mut progress: impl FnMut(u32)) -> Result<Run> {
    let log = format!("/tmp/{}.remus.log", guest.name());
    let started = Instant::now();
    // The host is not used, but asked for.
    let script =
        format!("xl remus -F -n -d -b -i {interval_ms} {} /dev/null >{log} 2>&1 & echo $! >{log}.pid", guest.name());
    guest.command_ok(&script, guest.limits().command)?;
    let outcome = all_rounds(guest, rounds, &mut progress);
    let took_ns = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let stopped = stop(guest, &log);
    let said = guest.command_ok(&format!("cat {log}; rm -f {log} {log}.pid"), guest.limits().command)?;
    let last_words = || format!("xl remus said last:\n{}", tail(&said));
    let (rounds, via) = outcome.with_context(last_words)?;
    stopped.with_context(last_words)?;
    // Of rounds that nobody has waited for. The last is seconds ago.
    guest.pass_over()?;
    Ok(Run { rounds, pages: pages_sent(&said), took_ns, via })
}

fn all_rounds(guest: &mut Guest<'_>, rounds: u32, progress: &mut impl FnMut(u32)) -> Result<(Vec<Phases>, String)> {
    let (mut figures, mut ways) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let what = format!("round {round}");
        // Between two rounds there may be as much to send as for a checkpoint by `xl save -c`.
        let limit = guest.limits().transfer + guest.limits().word;
        let phases = guest.wait_for(&what, limit, |said| match &said.event {
            Event::SuspendRequest { via } => {
                if !ways.contains(via) {
                    ways.push(via.clone());
                }
                None
            }
            Event::Continued { phases, .. } => Some(Ok(*phases)),
            Event::SuspendAbort { .. } | Event::Resumed { .. } => Some(Err(said.line.to_string())),
            _ => None,
        })?;
        match phases {
            Ok(phases) => figures.push(phases),
            Err(line) => bail!("round {round}: the guest says `{line}`"),
        }
        progress(round);
    }
    let via = if ways.len() == 1 { ways.remove(0) } else { String::new() };
    Ok((figures, via))
}

/// Ends `xl remus` and its helper while the guest runs and has not been asked to suspend: xl is stopped, and given time for a request
/// that may be under way to show.
fn stop(guest: &mut Guest<'_>, log: &str) -> Result<()> {
    let script = format!(
        "# end xl remus while the guest runs\n\
         xl=$(cat {log}.pid)\n\
         helper=$(ps -o pid,ppid | while read pid parent; do [ \"$parent\" = $xl ] && echo $pid; done)\n\
         t=0; while :; do\n\
           kill -STOP $xl || exit 1\n\
           i=0; while ! {suspended}; do\n\
             i=$((i+1)); if [ $i -gt 5 ]; then kill -KILL $xl $helper; exit; fi; sleep 1\n\
           done\n\
           kill -CONT $xl; t=$((t+1)); if [ $t -gt 100 ]; then kill -KILL $xl $helper; echo 'always suspended'; exit 1; fi\n\
           sleep 0.$((t%7+1))\n\
         done",
        suspended = has_shut_down(guest.name())
    );
    guest.command_ok(&script, guest.limits().transfer).map(drop)
}

/// Reads xl's `Checkpointed save: N/N`, of which larger rounds have more than one, the last with all.
fn pages_sent(said: &str) -> Vec<u64> {
    let of_round = |line: &str| {
        let (_, rest) = line.split_once("Checkpointed save: ")?;
        let (done, all) = rest.split_whitespace().next()?.split_once('/')?;
        (done == all).then(|| all.parse().ok()).flatten()
    };
    said.lines().filter_map(of_round).collect()
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_counts_its_pages_once() {
        let said = "xc: progress: Frames iteration 1: 26/26  100%\n\
                    xc: progress: Domain now suspended: 0/0    0%\n\
                    xc: progress: Checkpointed save: 23/23  100%\n\
                    xc: progress: Checkpointed save: 1024/4192   24%\n\
                    xc: progress: Checkpointed save: 4192/4192  100%\n\
                    xc: progress: Checkpointed save: torn";
        assert_eq!(pages_sent(said), [23, 4192]);
    }

    #[test]
    fn last_words_are_few() {
        assert_eq!(tail("a\nb"), "a\nb");
        assert_eq!(tail(&"x\n".repeat(100)).lines().count(), 8);
    }
}
