//! vCPUs that never leave user mode by themselves, over every kind of suspend (`workload=user`).

use anyhow::{Context, Result, ensure};
use xtask::drive::cycles::{Expect, Kind, suspend};
use xtask::drive::guest::Guest;

use crate::place::Place;

const VCPUS: u32 = 4;

/// Every process goes on with its registers, its memory and its root. All but vCPU 0's, which a task has to answer the request, are in user
/// mode when the suspend is asked for; in a migration both domains are there at once, so every root moves.
pub(crate) fn over(place: &mut Place, words: &str) -> Result<()> {
    place.with_guest_of(&format!("workload=user {words}"), VCPUS, 32, |guest| {
        let look = |guest: &mut Guest<'_>, in_user: u32| -> Result<u32> {
            let line = guest.wait_for("`stasis: check name=user`", guest.limits().word, |said| {
                (said.line.event == "check" && said.line.get("name") == Some("user")).then(|| said.line.clone())
            })?;
            let number = |key: &str| -> Result<u32> {
                line.get(key).and_then(|value| value.parse().ok()).with_context(|| format!("no {key}= in `{line}`"))
            };
            ensure!(number("vcpus")? == VCPUS && number("in_user")? == in_user, "`{line}`");
            number("moved")
        };
        look(guest, 0).context("at first")?;
        for kind in [Kind::Checkpoint, Kind::Checkpoint, Kind::SaveRestore, Kind::Checkpoint, Kind::Migrate] {
            suspend(guest, kind, Expect { heartbeat: false })?;
            let moved = look(guest, VCPUS - 1).with_context(|| format!("after {}", kind.name()))?;
            match kind {
                Kind::Checkpoint => ensure!(moved == 0, "{moved} roots moved in a checkpoint"),
                Kind::Migrate => ensure!(moved == VCPUS, "{moved} roots moved in a migration"),
                Kind::SaveRestore => {}
            }
        }
        guest.power_off()
    })
}
