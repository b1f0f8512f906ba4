//! A short soak: guests suspended and changed at random under storms of events, timers and IPIs. `cargo xtask soak` is the long one.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::Transcript;
use xtask::commands::soak::seed_of_now;
use xtask::drive::soak::{Ears, Soak};

use crate::place::Place;

/// Another seed each time; the error names it, and the transcript has each decision.
pub(crate) fn three_minutes(place: &mut Place) -> Result<()> {
    let (kernel, image, logs) = place.kernel();
    let soak = Soak {
        seed: seed_of_now(),
        most_vcpus: 8,
        duration: Duration::from_secs(180),
        name: "soak".to_owned(),
        kernel,
        image,
    };
    let mut guests = Transcript::open(&logs, "soak-guests")?;
    let mut decisions = Transcript::open(&logs, "soak-decisions")?;
    let ears = Ears { show: &mut |line| guests.line(line), tell: &mut |line| decisions.line(line) };
    let done = soak.run(place.host(), ears)?;
    ensure!(done.guests > 0 && !done.suspends.is_empty(), "nothing was done: {done}");
    Ok(())
}
