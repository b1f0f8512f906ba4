//! One guest under xl, from `xl create` to its end: commands in dom0 and its console in one place.
//!
//! Owns the pairing of what we do (scripts in dom0) with what the guest says about it, limits
//! included. Blocking, one thread. Lines that arrive while a command runs are judged right after it,
//! so a guest that died explains the command's failure and not the other way round. Turned down: a
//! thread that judges at once; it would have to end the command that it finds in the way.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow};

use crate::contract::{Event, Said};
use crate::drive::domain::{Domain, has_shut_down};
use crate::drive::watch::{Failure, Watch};
use crate::host::{Exit, Host};
use crate::symbolise::Symbols;
use crate::xlcfg::GuestConfig;

/// How long each kind of thing may take. Generous: the lab emulates every processor.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From `xl create` to `online`.
    pub boot: Duration,
    /// One `xl` command that moves the guest's memory.
    pub transfer: Duration,
    /// From the end of that command to what the guest says about it, and to the next heartbeat.
    pub word: Duration,
    /// Any other command.
    pub command: Duration,
    /// The rest of a dying guest's words.
    pub dying: Duration,
}

impl Limits {
    /// For a guest of this size in the lab, on a machine that does other things too: ten times what a quiet
    /// one needs.
    pub fn for_guest(vcpus: u32, memory_mib: u32) -> Limits {
        let seconds = |n: u32| Duration::from_secs(n.into());
        Limits {
            boot: seconds(120 + 2 * vcpus),
            transfer: seconds(240 + 4 * vcpus + memory_mib / 2),
            word: seconds(120 + 2 * vcpus),
            command: seconds(180),
            dying: seconds(5),
        }
    }
}

/// A running guest. Dropping it destroys its domain, unless that was seen to be gone.
pub struct Guest<'h> {
    domain: Domain<'h>,
    config: GuestConfig,
    limits: Limits,
    watch: Watch,
    /// Judged, not yet waited for.
    heard: VecDeque<Said>,
    image: Option<PathBuf>,
    show: &'h mut dyn FnMut(&str),
}

impl<'h> Guest<'h> {
    /// Creates the domain; returns when `xl create` has, before the guest has said anything.
    /// `show` gets every console line; `image` is where backtraces are looked up.
    ///
    /// # Errors
    /// When xl refuses, with its words, and when the guest has failed already; nothing of it is left then.
    pub fn create(
        host: &'h mut dyn Host,
        config: GuestConfig,
        limits: Limits,
        image: Option<PathBuf>,
        show: &'h mut dyn FnMut(&str),
    ) -> Result<Guest<'h>> {
        let path = host.put(&format!("{}.cfg", config.name), config.render().as_bytes())?;
        host.follow(&config.name)?;
        let mut watch = Watch::new(config.max_vcpus);
        watch.expect_up(config.vcpus..=config.vcpus);
        let domain = Domain::new(host, &config.name);
        let mut guest = Guest { domain, config, limits, watch, heard: VecDeque::new(), image, show };
        guest.command_ok(&format!("xl create {path}"), guest.limits.boot)?;
        Ok(guest)
    }

    /// The domain's name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// What the guest has said so far, judged.
    pub fn watch(&mut self) -> &mut Watch {
        &mut self.watch
    }

    /// Runs a script in dom0, then judges what the guest said meanwhile.
    ///
    /// # Errors
    /// The guest's failure if there is one, else the host's.
    pub fn command(&mut self, script: &str, limit: Duration) -> Result<Exit> {
        let ended = self.domain.host().sh(script, limit);
        let what = brief(script);
        if let Err(failure) = self.drain() {
            let output = match &ended {
                Ok(exit) => format!("exit code {}\n{}", exit.code, exit.output.trim_end()),
                Err(error) => format!("{error:#}"),
            };
            return Err(failure.context(format!("while `{what}` ran ({output})")));
        }
        ended.map_err(|error| anyhow!(self.with_last_words(&format!("`{what}` did not come to an end: {error:#}"))))
    }

    /// Like [`Guest::command`], where exit codes other than 0 are errors.
    ///
    /// # Errors
    /// As there, and the script's failure with its output and the guest's last words.
    pub fn command_ok(&mut self, script: &str, limit: Duration) -> Result<String> {
        let exit = self.command(script, limit)?;
        if exit.ok() {
            return Ok(exit.output);
        }
        let text = format!("`{}` failed with exit code {}:\n{}", brief(script), exit.code, exit.output.trim_end());
        Err(anyhow!(self.with_last_words(&text)))
    }

    /// Waits until `pick` takes an event; earlier ones are passed over. `what` is for the error.
    ///
    /// # Errors
    /// When the guest fails, the limit ends or the console is gone.
    pub fn wait_for<T>(&mut self, what: &str, limit: Duration, mut pick: impl FnMut(&Said) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            while let Some(said) = self.heard.pop_front() {
                if let Some(found) = pick(&said) {
                    return Ok(found);
                }
            }
            if !self.listen(deadline)? {
                let text = format!("waited {:.0} s for {what}, in vain", limit.as_secs_f64());
                return Err(anyhow!(self.with_last_words(&text)));
            }
        }
    }

    /// Passes over all that the guest has said so far. Judged it has been.
    ///
    /// # Errors
    /// The guest's failure if there is one.
    pub fn pass_over(&mut self) -> Result<()> {
        self.drain()?;
        self.heard.clear();
        Ok(())
    }

    /// Waits until every vCPU is online; the time from entry that the guest tells, in ns.
    ///
    /// # Errors
    /// As [`Guest::wait_for`].
    pub fn wait_online(&mut self) -> Result<u64> {
        let limit = self.limits.boot;
        self.wait_for("`stasis: boot`", limit, |said| matches!(said.event, Event::Boot { .. }).then_some(()))?;
        self.wait_for("`stasis: online`", limit, |said| match said.event {
            Event::Online { ns, .. } => Some(ns),
            _ => None,
        })
    }

    /// Waits for `count` more heartbeats in which every vCPU beat that is up.
    ///
    /// # Errors
    /// As [`Guest::wait_for`]; a heartbeat with lost events is a failure of the guest.
    pub fn wait_heartbeats(&mut self, count: u32) -> Result<()> {
        let given = self.watch.up();
        for _ in 0..count {
            let what = format!("a heartbeat of all {given} vCPUs");
            self.wait_for(&what, self.limits.word, |said| match said.event {
                Event::Heartbeat { vcpus, beats_min, .. } => (vcpus == given && beats_min > 0).then_some(()),
                _ => None,
            })?;
        }
        Ok(())
    }

    /// Powers the guest off through xl and waits until the domain is gone, from xenstore too.
    ///
    /// # Errors
    /// When the guest does not say so, does not go, or leaves something behind.
    pub fn power_off(&mut self) -> Result<()> {
        let name = self.config.name.clone();
        let domid = self.command_ok(&format!("xl domid {name}"), self.limits.command)?.trim().to_owned();
        self.watch.expect_shutdown();
        self.command_ok(&format!("xl shutdown {name}"), self.limits.command)?;
        self.wait_for("`stasis: shutdown reason=poweroff`", self.limits.word, |said| match &said.event {
            Event::Shutdown { reason } if reason == "poweroff" => Some(()),
            _ => None,
        })?;
        if self.watch.continued() {
            self.destroy_shut_down(&domid)?;
        }
        self.wait_gone(&domid)
    }

    /// Destroys a domain that has shut down and that nobody looks after: the xl that waits for a domain's end takes
    /// a suspend for it and is gone after the first checkpoint (tools/xl/xl_vmcontrol.c, handle_domain_death). Where it
    /// has missed that suspend it destroys the domain too, and ours may fail for that: what counts is that it is gone.
    fn destroy_shut_down(&mut self, domid: &str) -> Result<()> {
        let script = format!(
            "# wait until domain {domid} has shut down, and destroy it\n\
             i=0; while xl list {domid} >/dev/null 2>&1; do \
             if {}; then xl destroy {domid}; fi; \
             i=$((i+1)); if [ $i -ge 150 ]; then xl list; exit 1; fi; sleep 0.2; done",
            has_shut_down(domid)
        );
        self.command_ok(&script, self.limits.transfer).context("the domain does not shut down").map(drop)
    }

    /// Waits until neither Xen nor xenstore know the domain any more.
    ///
    /// # Errors
    /// When the limit ends first, with what is left.
    pub fn wait_gone(&mut self, domid: &str) -> Result<()> {
        let script = format!(
            "# wait until domain {domid} is gone\n\
             i=0; while xenstore-exists /local/domain/{domid} || xl list {domid} >/dev/null 2>&1; do \
             i=$((i+1)); if [ $i -ge 150 ]; then xl list; xenstore-ls -f /local/domain/{domid}; exit 1; fi; \
             sleep 0.2; done"
        );
        self.command_ok(&script, self.limits.transfer).context("the domain does not go away")?;
        self.domain.is_gone();
        Ok(())
    }

    /// Takes in one line, waiting for it until the deadline. `false`: none came.
    fn listen(&mut self, deadline: Instant) -> Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        // Nobody waits minutes for the rest of a dying guest's words.
        let patience = if self.watch.dying().is_some() { left.min(self.limits.dying) } else { left };
        match self.domain.host().lines().recv_timeout(patience) {
            Ok(line) => {
                self.take(&line.domain, &line.text)?;
                Ok(true)
            }
            Err(_) if self.watch.dying().is_some() => Err(self.last_gasp()),
            Err(RecvTimeoutError::Timeout) => Ok(false),
            Err(RecvTimeoutError::Disconnected) => {
                Err(anyhow!(self.with_last_words("the guest's console is gone: the place where it ran has ended")))
            }
        }
    }

    fn drain(&mut self) -> Result<()> {
        while let Ok(line) = self.domain.host().lines().try_recv() {
            self.take(&line.domain, &line.text)?;
        }
        while self.watch.dying().is_some() {
            self.listen(Instant::now() + self.limits.dying)?;
        }
        Ok(())
    }

    fn take(&mut self, domain: &str, text: &str) -> Result<()> {
        if domain != self.config.name {
            return Ok(());
        }
        (self.show)(text);
        match self.watch.take(text) {
            Ok(said) => {
                self.heard.extend(said);
                Ok(())
            }
            Err(failure) => Err(self.explain(failure)),
        }
    }

    fn last_gasp(&self) -> Error {
        match self.watch.dying() {
            Some(panic) => self.explain(Failure::Panic(panic.clone())),
            None => anyhow!("the guest is not dying"),
        }
    }

    fn explain(&self, failure: Failure) -> Error {
        explained(failure, self.image.as_deref(), &self.last_words())
    }

    fn with_last_words(&self, text: &str) -> String {
        format!("{text}\n{}", self.last_words())
    }

    fn last_words(&self) -> String {
        let words: Vec<&str> = self.watch.last_words().collect();
        if words.is_empty() {
            return "The guest has said nothing at all.".to_owned();
        }
        format!("The guest's last words:\n  | {}", words.join("\n  | "))
    }
}

/// The failure, then all that helps to understand it: backtrace, last words. It can be had back typed, by
/// `error.downcast_ref::<Failure>()`.
pub fn explained(failure: Failure, image: Option<&Path>, last_words: &str) -> Error {
    let frames = match &failure {
        Failure::Panic(panic) => backtrace(&panic.pcs, image),
        _ => Vec::new(),
    };
    let frames: String = frames.iter().map(|frame| format!("\n    {frame}")).collect();
    let more = if frames.is_empty() { last_words.to_owned() } else { format!("called from{frames}\n{last_words}") };
    Error::msg(more).context(failure)
}

/// A script as it is named in errors: its first line, a comment's text where it starts with one.
fn brief(script: &str) -> &str {
    let line = script.lines().next().unwrap_or(script).trim_start_matches("# ");
    line.char_indices().nth(100).map_or(line, |(end, _)| &line[..end])
}

/// A backtrace in words, one line per frame; the bare addresses where there is no image.
pub fn backtrace(pcs: &[u64], image: Option<&Path>) -> Vec<String> {
    let symbols = image.and_then(|path| Symbols::open(path).ok());
    pcs.iter()
        .flat_map(|&pc| match &symbols {
            Some(symbols) => {
                let frames = symbols.describe(pc);
                frames.into_iter().map(|frame| format!("{pc:#018x} {frame}")).collect()
            }
            None => vec![format!("{pc:#018x}")],
        })
        .collect()
}
