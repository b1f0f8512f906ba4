//! Vector registers of every vCPU over every kind of suspend (`workload=vectors`).

use anyhow::{Context, Result, bail, ensure};
use xtask::drive::cycles::{Expect, Kind, suspend};
use xtask::drive::guest::Guest;
use xtask::lab::Processor;

use crate::place::Place;

const VCPUS: u32 = 4;

/// On processors with AVX, in a lab of its own: all 256 bits of each register, vCPU 0's too, which the toolstack cuts to 128 in a checkpoint.
pub(crate) fn ymm() -> Result<()> {
    let mut place = Place::set_up_on("xl-avx", Processor::Wide)?;
    use Kind::{Checkpoint, Migrate, SaveRestore};
    over(&mut place, "ymm", &[Checkpoint, Checkpoint, SaveRestore, Checkpoint, Migrate])
}

/// Where there is no AVX, as on the lab's usual processors, the guest says so, and looks at what there is.
pub(crate) fn xmm(place: &mut Place) -> Result<()> {
    over(place, "xmm", &[Kind::Checkpoint, Kind::SaveRestore])
}

fn over(place: &mut Place, registers: &str, kinds: &[Kind]) -> Result<()> {
    place.with_guest_of("workload=vectors", VCPUS, 32, |guest| {
        checked(guest, registers).context("at first")?;
        for kind in kinds {
            suspend(guest, *kind, Expect { heartbeat: false })?;
            checked(guest, registers).with_context(|| format!("after {}", kind.name()))?;
        }
        guest.power_off()
    })
}

/// Waits for the guest's verdict. One that fails ends the wait by itself.
fn checked(guest: &mut Guest<'_>, registers: &str) -> Result<()> {
    let line = guest.wait_for("`stasis: check name=vectors`", guest.limits().word, |said| {
        (said.line.event == "check" && said.line.get("name") == Some("vectors")).then(|| said.line.clone())
    })?;
    ensure!(line.get("vcpus") == Some(&VCPUS.to_string()), "`{line}`");
    match line.get("registers") {
        Some(found) if found == registers => Ok(()),
        found => bail!("the guest has looked at {found:?}, not at {registers}"),
    }
}
