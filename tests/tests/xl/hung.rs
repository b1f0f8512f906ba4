//! A vCPU that hangs while a suspend is asked for: named when it is overdue, with the last that is known of it, the suspend aborted, the
//! guest as before; and the next suspend works once the vCPU is back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::contract::{Event, Said};
use xtask::drive::cycles::{Kind, NextSuspend};
use xtask::drive::domain::image;

use crate::place::Place;

/// The toolstack gives a guest that has acknowledged 60 s to suspend, and only then says that it did not.
const TOOLSTACKS_WAIT: Duration = Duration::from_secs(60);

/// `test` hangs the last vCPU until a rendezvous has been given up, and ends after one that was held.
pub(crate) fn in_a_suspend(place: &mut Place, test: &str, seen_as: &str) -> Result<()> {
    const VCPUS: u32 = 3;
    place.with_guest_of(&format!("test={test}"), VCPUS, 32, |guest| {
        let (hung, name) = ((VCPUS - 1).to_string(), guest.name().to_owned());
        guest.wait_for("the vCPU to hang", guest.limits().word, |said| (said.line.event == "hanging").then_some(()))?;
        let save = format!("xl save -c {name} {file}; code=$?; rm -f {file}; exit $code", file = image(&name));
        let exit = guest.command(&save, guest.limits().transfer + TOOLSTACKS_WAIT)?;
        ensure!(!exit.ok(), "a guest with a vCPU that hangs was saved:\n{}", exit.output);

        let field = |said: &Said, key: &str| {
            said.line.pairs.iter().find(|(known, _)| known == key).map(|(_, value)| value.clone()).unwrap_or_default()
        };
        let mut named = None;
        let (missing, states) = guest
            .wait_for("the suspend to be aborted", guest.limits().word, |said| {
                if said.line.event == "rendezvous-overdue" {
                    named = Some((field(said, "missing"), field(said, "states")));
                }
                let reason = field(said, "reason");
                (said.line.event == "suspend-abort" && reason == "rendezvous")
                    .then(|| (field(said, "missing"), field(said, "states")))
            })
            .with_context(|| exit.output.clone())?;
        let overdue = named.context("it was aborted before anybody was named as overdue")?;
        // By the end it has been asked, if it takes events. When it is named it may not have had a processor since.
        ensure!(states.contains(seen_as), "states={states} does not say `{seen_as}`");
        for (missing, states) in [overdue, (missing, states)] {
            ensure!(missing == hung, "missing={missing}, hung is {hung}");
            for part in [&format!("vcpu {hung}: task "), " ms at 0x"] {
                ensure!(states.contains(part), "states={states} does not say `{part}`");
            }
            // It spins: it has a processor, or waits for one.
            let scheduled = ["task running for ", "task runnable for "];
            ensure!(
                scheduled.iter().any(|how| states.contains(how)),
                "states={states} does not say how it is scheduled"
            );
        }
        guest
            .wait_for("the vCPU to come back", guest.limits().word, |said| (said.line.event == "back").then_some(()))?;

        // It powers itself off after it.
        guest.watch().expect_shutdown();
        let next = NextSuspend::of(guest)?;
        guest.command(&save, guest.limits().transfer)?.expect_ok("the checkpoint after it")?;
        next.came_back(guest, Kind::Checkpoint, Duration::ZERO)?;
        guest.wait_for("the verdict", guest.limits().word, |said| match &said.event {
            Event::Check { .. } => Some(()),
            _ => None,
        })
    })
}
