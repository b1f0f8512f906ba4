//! `cargo xtask migrate` and `cargo xtask save-restore`: start a guest, suspend it, see it come back.
//!
//! Owns the order of such a run and its report. Turned down: two commands that each do it their way;
//! they differ in one value, the kind of suspend.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::timeline::write;
use super::{Needs, Session, open, relative, the_guest};
use crate::drive::cycles::{Expect, Kind, Suspend, suspend, timeline};
use crate::drive::guest::{Guest, Limits};
use crate::host::{Host, Progress};
use crate::options::{GuestOptions, LogOptions, PlaceOptions};
use crate::{image, report};

/// Options of both commands.
#[derive(Clone, Debug, Args)]
pub struct SuspendOptions {
    #[command(flatten)]
    guest: GuestOptions,
    #[command(flatten)]
    place: PlaceOptions,
    #[command(flatten)]
    logs: LogOptions,
    /// How many times.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    cycles: u32,
    /// Draw what each vCPU did when: suspend-N.svg in the logs directory, one for each suspend.
    ///
    /// The guest gets trace=suspend on its command line, and with that tsc_mode="native": where Xen traps the reading of the
    /// TSC, as it does in the lab by default, phases of microseconds would be longer, or vanish.
    #[arg(long)]
    timeline: bool,
}

/// Runs `migrate` or `save-restore`.
///
/// # Errors
/// With all that is known about the failure.
pub fn run(kind: Kind, options: &SuspendOptions) -> Result<()> {
    let name = if kind == Kind::Migrate { "migrate" } else { "save-restore" };
    let session = Session::start(name, options.logs)?;
    let outcome = all_of_it(&session, kind, options);
    session.end(outcome)
}

fn all_of_it(session: &Session, kind: Kind, options: &SuspendOptions) -> Result<String> {
    let image = image::build(&session.terminal, &session.logs)?;
    session.terminal.say(&format!("kernel: {}", image.describe()));
    let GuestOptions { vcpus, memory, extra, .. } = &options.guest;
    let needs =
        Needs { vcpus: options.guest.most_vcpus()?, memory_mib: *memory, copies: 2, log_dirty: kind == Kind::Migrate };
    let mut host = open(options.place, needs, session)?;
    session.terminal.say(&format!("on:     {}", host.describe()));
    if kind == Kind::Migrate {
        require_log_dirty(host.as_mut())?;
    }
    let config = the_guest(
        host.as_mut(),
        &image,
        options.place,
        &options.guest,
        ("heartbeat", &traced(extra, options.timeline)),
    )?;
    let expect = Expect::from_cmdline(&config.cmdline);
    session.terminal.stage("starting the guest");
    let mut show = |line: &str| session.terminal.say(&format!("  | {line}"));
    let limits = Limits::for_guest(*vcpus, *memory);
    let mut guest = Guest::create(host.as_mut(), config, limits, Some(image.path), &mut show)?;
    lead(&mut guest, session, kind, expect, options).map(|run| run.describe(kind, *vcpus, expect))
}

/// The user's words, and that the guest tells of each suspend where that is drawn.
fn traced(extra: &str, timeline: bool) -> String {
    if timeline { format!("{extra} trace=suspend") } else { extra.to_owned() }
}

struct Run {
    online_ns: u64,
    suspends: Vec<Suspend>,
    checks: u64,
    pictures: Vec<PathBuf>,
}

/// Takes a created guest through its life.
fn lead(guest: &mut Guest<'_>, session: &Session, kind: Kind, expect: Expect, options: &SuspendOptions) -> Result<Run> {
    let cycles = options.cycles;
    let online_ns = guest.wait_online()?;
    if expect.heartbeat {
        session.terminal.stage("letting it beat");
        guest.wait_heartbeats(3)?;
    }
    let (mut suspends, mut pictures) = (Vec::new(), Vec::new());
    for cycle in 1..=cycles {
        session.terminal.stage(&format!("{} {cycle} of {cycles}", kind.name()));
        let done = suspend(guest, kind, expect).with_context(|| format!("{} {cycle} of {cycles}", kind.name()))?;
        suspends.push(done);
        if options.timeline {
            let told = timeline(guest, pictures.len())?;
            pictures.push(write(&told, kind.name(), &session.logs)?);
        }
    }
    session.terminal.stage("powering it off");
    guest.power_off()?;
    session.terminal.finished();
    Ok(Run { online_ns, suspends, checks: guest.watch().checks_passed(), pictures })
}

impl Run {
    fn describe(&self, kind: Kind, vcpus: u32, expect: Expect) -> String {
        let times = self.suspends.len();
        let proof = if expect.heartbeat {
            format!(", no event lost, self-checks passed: {}", self.checks)
        } else {
            String::new()
        };
        format!(
            "\n{}\nAll {vcpus} vCPUs came back from {} {}{proof}. Online {} after entry.{}",
            report::suspends(&self.suspends),
            if times == 1 { "one".to_owned() } else { format!("each of {times}") },
            match (kind, times) {
                (Kind::Migrate, 1) => "live migration",
                (Kind::Migrate, _) => "live migrations",
                (Kind::SaveRestore, _) => "save and restore",
                (Kind::Checkpoint, 1) => "checkpoint",
                (Kind::Checkpoint, _) => "checkpoints",
            },
            report::duration(self.online_ns),
            self.pictures.iter().map(|path| format!("\ntimeline: {}", relative(path))).collect::<String>(),
        )
    }
}

/// # Errors
/// Where this Xen cannot log dirty pages of a PV guest: what is missing, and the ways out.
pub fn require_log_dirty(host: &mut dyn Host) -> Result<()> {
    if host.has_log_dirty()? {
        return Ok(());
    }
    bail!(
        "this Xen cannot live-migrate PV guests: that needs log-dirty mode, which for PV runs on shadow paging, and \
         this Xen was built without it (`xl info` does not list `shadow` under virt_caps; Debian builds it so).\n\
         - In the lab: leave out --stock-xen, and xtask builds Debian's Xen with CONFIG_SHADOW_PAGING=y.\n\
         - On a host: install a Xen built with CONFIG_SHADOW_PAGING=y (it has no security support any more, XSA-495).\n\
         - `cargo xtask save-restore` shows suspend and resume without it."
    )
}
