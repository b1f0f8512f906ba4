//! `cargo xtask soak`: guests that are suspended and changed at random while all in them goes on, for as long as one likes.
//!
//! Owns the options and the report; the run is `drive::soak`.

#![forbid(unsafe_code)]

use std::fs;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Args;

use super::suspend::require_log_dirty;
use super::{Needs, Session, domain_name, open, put_file};
use crate::drive::soak::{Ears, MEMORY_MIB, Soak};
use crate::host::Progress;
use crate::image;
use crate::options::{LogOptions, PlaceOptions};

/// Options of the command.
#[derive(Clone, Debug, Args)]
pub struct SoakOptions {
    #[command(flatten)]
    place: PlaceOptions,
    #[command(flatten)]
    logs: LogOptions,
    /// How long. The step that is under way then is the last.
    #[arg(long, default_value_t = 30, value_name = "M", value_parser = clap::value_parser!(u32).range(1..))]
    minutes: u32,
    /// What every decision follows from; from the clock where not given.
    ///
    /// It is said at the start and in an error, which names the seed that begins with the guest that failed.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// No guest has more vCPUs. With another number, a seed leads elsewhere.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    most_vcpus: u32,
}

/// Runs the command.
///
/// # Errors
/// With all that is known about the failure.
pub fn run(options: &SoakOptions) -> Result<()> {
    let session = Session::start("soak", options.logs)?;
    let outcome = all_of_it(&session, options);
    session.end(outcome)
}

fn all_of_it(session: &Session, options: &SoakOptions) -> Result<String> {
    let image = image::build(&session.terminal, &session.logs)?;
    let needs = Needs { vcpus: options.most_vcpus, memory_mib: MEMORY_MIB, copies: 2, log_dirty: true };
    let mut host = open(options.place, needs, session)?;
    session.terminal.say(&format!("on:     {}", host.describe()));
    require_log_dirty(host.as_mut())?;
    let soak = Soak {
        seed: options.seed.unwrap_or_else(seed_of_now),
        most_vcpus: options.most_vcpus,
        duration: Duration::from_secs(u64::from(options.minutes) * 60),
        name: domain_name(options.place),
        kernel: put_file(host.as_mut(), "stasis.elf", &image.path)?,
        image: image.path,
    };
    let path = session.logs.join("guests.log");
    let mut transcript = fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    session.terminal.stage("soaking");
    // For reading after a failure; too many to watch.
    let mut show = |line: &str| drop(writeln!(transcript, "{line}"));
    let mut tell = |line: &str| session.terminal.say(line);
    let done = soak.run(host.as_mut(), Ears { show: &mut show, tell: &mut tell })?;
    session.terminal.finished();
    Ok(format!("\n{done}\nseed: {}", soak.seed))
}

/// One that nobody has had before.
pub fn seed_of_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
