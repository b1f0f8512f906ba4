//! `cargo xtask run`: a guest under xl with its console on this terminal.

#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::{Needs, Session, open, the_guest};
use crate::drive::domain::Domain;
use crate::host::Progress;
use crate::image;
use crate::options::{GuestOptions, LogOptions, PlaceOptions};

/// Options of the command.
#[derive(Clone, Debug, Args)]
pub struct RunOptions {
    #[command(flatten)]
    guest: GuestOptions,
    #[command(flatten)]
    place: PlaceOptions,
    #[command(flatten)]
    logs: LogOptions,
}

/// Runs the command; returns when the guest has ended or Ctrl-] was typed.
///
/// # Errors
/// When the guest cannot be started.
pub fn run(options: &RunOptions) -> Result<()> {
    let session = Session::start("run", options.logs)?;
    let outcome = all_of_it(&session, options);
    session.end(outcome)
}

fn all_of_it(session: &Session, options: &RunOptions) -> Result<String> {
    let image = image::build(&session.terminal, &session.logs)?;
    let GuestOptions { memory, extra, .. } = &options.guest;
    let needs = Needs { vcpus: options.guest.most_vcpus()?, memory_mib: *memory, copies: 1, log_dirty: false };
    let mut host = open(options.place, needs, session)?;
    let config = the_guest(host.as_mut(), &image, options.place, &options.guest, ("heartbeat", extra))?;
    let path = host.put("stasis.cfg", config.render().as_bytes())?;
    session.terminal.stage("starting the guest");
    let mut domain = Domain::new(host.as_mut(), &config.name);
    // Paused: nothing that it says may be missed before the console is joined.
    domain.host().sh(&format!("xl create -p {path}"), Duration::from_secs(120))?.expect_ok("xl create")?;
    session.terminal.finished();
    session.terminal.say(&format!("on {}; Ctrl-] leaves the console and ends the guest", domain.host().describe()));
    let name = &config.name;
    let wake = format!("(sleep 1; xl unpause {name}) >/dev/null 2>&1 &");
    domain.host().sh(&wake, Duration::from_secs(30))?.expect_ok("xl unpause")?;
    domain.host().interactive(name)?;
    Ok("The console was left.".to_owned())
}
