//! `cargo xtask direct`: the kernel as Xen's initial domain, up in two seconds.
//!
//! Also used, as a function, by the self-tests in `tests/`.

#![forbid(unsafe_code)]

use std::path::Path;
use std::time::Duration;

use anyhow::{Error, Result, anyhow, bail, ensure};
use clap::Args;

use super::Session;
use crate::drive::direct::{Goal, Judge, Told};
use crate::drive::guest::explained;
use crate::drive::watch::Failure;
use crate::host::Progress;
use crate::lab::{self, DirectConfig, DirectEnd, Prepared};
use crate::options::{GuestOptions, LogOptions, On};
use crate::{image, report, xlcfg};

/// Options of the command.
#[derive(Clone, Debug, Args)]
pub struct DirectOptions {
    #[command(flatten)]
    guest: GuestOptions,
    /// Only the lab has a machine whose initial domain can be ours.
    #[arg(long, value_enum, default_value_t = On::Lab)]
    on: On,
    /// Processors of the emulated machine.
    #[arg(long, default_value_t = lab::USUAL_CPUS, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    host_cpus: u32,
    /// Time is instructions executed: two boots give the same lines, times included, whatever else the machine does.
    #[arg(long)]
    deterministic: bool,
    /// Heartbeats to see under workload=heartbeat, one a second, before the run is good.
    #[arg(long, default_value_t = 5, value_name = "N")]
    beats: u32,
    /// The longest that it may run.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    limit: u64,
    #[command(flatten)]
    logs: LogOptions,
}

/// Runs the command.
///
/// # Errors
/// When the guest fails or does not reach what its command line asks for.
pub fn run(options: &DirectOptions) -> Result<()> {
    if options.on == On::Host {
        bail!("this machine's initial domain is its dom0; the kernel can take that place in the lab only");
    }
    let session = Session::start("direct", options.logs)?;
    let outcome = all_of_it(&session, options);
    session.end(outcome)
}

fn all_of_it(session: &Session, options: &DirectOptions) -> Result<String> {
    let image = image::build(&session.terminal, &session.logs)?;
    let prepared = lab::prepare(&session.terminal, false)?;
    let GuestOptions { vcpus, maxvcpus, memory, extra } = &options.guest;
    ensure!(maxvcpus.is_none(), "--maxvcpus is for guests under xl: here all vCPUs are online");
    let cmdline = xlcfg::cmdline("heartbeat", extra);
    let goal = Goal::from_cmdline(&cmdline, options.beats);
    let config = DirectConfig {
        kernel: image.path,
        cmdline,
        vcpus: *vcpus,
        memory_mib: *memory,
        host_cpus: options.host_cpus,
        xen_args: Vec::new(),
        deterministic: options.deterministic,
        logs: session.logs.clone(),
        limit: Duration::from_secs(options.limit),
    };
    session.terminal.stage("running the kernel as Xen's initial domain");
    let told = boot(&prepared, &config, goal, &mut |line| {
        if !line.starts_with("(XEN)") {
            session.terminal.say(&format!("  | {line}"));
        }
    })?;
    session.terminal.finished();
    let online = told
        .online_ns
        .map_or(String::new(), |ns| format!(" All {vcpus} vCPUs online {} after entry.", report::duration(ns)));
    let checks = match told.checks_passed {
        0 => String::new(),
        n => format!(" {n} self-checks passed."),
    };
    Ok(format!("The guest did what its command line asks for.{online}{checks}"))
}

/// Boots a kernel directly and waits until `goal` is reached.
///
/// # Errors
/// The guest's failure with its backtrace and last words, or what was waited for in vain. The typed
/// [`Failure`] can be had by `downcast_ref`.
pub fn boot(prepared: &Prepared, config: &DirectConfig, goal: Goal, show: &mut dyn FnMut(&str)) -> Result<Told> {
    let wanted = format!("{goal:?}");
    let mut judge = Judge::new(goal, config.vcpus);
    let end = lab::direct(prepared, config, &mut |line| {
        show(line);
        judge.take(line)
    })?;
    match judge.verdict() {
        Ok(true) => Ok(judge.told),
        Ok(false) => {
            let how = match end {
                DirectEnd::LimitReached => format!("within {} s", config.limit.as_secs()),
                DirectEnd::MachineEnded => "before the machine ended".to_owned(),
                DirectEnd::Stopped => "before it was stopped".to_owned(),
            };
            Err(anyhow!("the goal {wanted} was not reached {how}; last words:\n{}", judge.last_words()))
        }
        Err(failure) => Err(explain(failure, &config.kernel, &judge)),
    }
}

fn explain(failure: Failure, image: &Path, judge: &Judge) -> Error {
    explained(failure, Some(image), &format!("last words:\n{}", judge.last_words()))
}
