//! Our end of the line to the agent: requests out, answers and console lines in.
//!
//! Owns request numbers, who waits for which answer, and the splitting of console bytes into lines. One
//! thread reads the line and hands each frame to whoever waits for it; when the line ends, every waiter is
//! woken with an error. Another thread writes, so that a dom0 that takes nothing any more cannot hold a
//! caller. Callers wait for answers only, always with a limit.
//!
//! Turned down: an async runtime. There are three kinds of waiter and two threads; channels say all of it.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::frame::{self, Frame, Kind};
use crate::host::{ConsoleLine, Exit};

/// How long the agent may take over what it does at once, such as storing a file. Generous: under TCG on a
/// busy machine dom0 can stand still for seconds.
const SMALL: Duration = Duration::from_secs(60);

/// How long a killed script may take to be gone.
const KILLED: Duration = Duration::from_secs(30);

/// Requests that wait for an answer, by channel; `None` once the line has ended.
type Waiting = Arc<Mutex<Option<HashMap<u32, Sender<Frame>>>>>;

/// The line to the agent.
pub(super) struct Link {
    out: Sender<Frame>,
    waiting: Waiting,
    hello: Receiver<Frame>,
    lines: Receiver<ConsoleLine>,
    next_channel: u32,
}

/// How [`Link::attach`] hears from the terminal's side.
pub(super) enum FromTerminal {
    /// Typed bytes.
    Bytes(Vec<u8>),
    /// The user wants to leave.
    Detach,
}

impl Link {
    /// Starts reading `input` and writing `output`. The threads end with the line.
    pub(super) fn new(input: impl Read + Send + 'static, mut output: impl Write + Send + 'static) -> Self {
        let (out, queue) = channel::<Frame>();
        std::thread::spawn(move || {
            for Frame { kind, channel, payload } in queue {
                // The line has ended. `receive` notices the same and tells the waiters.
                if frame::write(&mut output, kind, channel, &payload).is_err() {
                    return;
                }
            }
        });
        let (hello_to, hello) = channel();
        let (lines_to, lines) = channel();
        // Channel 0 is the agent's greeting.
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::from([(0, hello_to)]))));
        let shared = Arc::clone(&waiting);
        std::thread::spawn(move || receive(input, &shared, &lines_to));
        Self { out, waiting, hello, lines, next_channel: 1 }
    }

    /// Where the lines of followed consoles arrive.
    pub(super) fn lines(&self) -> &Receiver<ConsoleLine> {
        &self.lines
    }

    /// Waits a little for the agent's greeting; `false` when it has not come yet.
    pub(super) fn hello(&self, limit: Duration) -> Result<bool> {
        match self.hello.recv_timeout(limit) {
            Ok(frame) if frame.payload == frame::VERSION => Ok(true),
            Ok(frame) => bail!(
                "the lab's agent speaks {:?}, not {:?}",
                String::from_utf8_lossy(&frame.payload),
                String::from_utf8_lossy(frame::VERSION)
            ),
            Err(RecvTimeoutError::Timeout) => Ok(false),
            Err(RecvTimeoutError::Disconnected) => Err(gone()),
        }
    }

    /// Runs a script in dom0. See [`crate::host::Host::sh`].
    pub(super) fn run(&mut self, script: &str, limit: Duration) -> Result<Exit> {
        let (id, answers) = self.request()?;
        if script.len() > frame::MAX_PAYLOAD {
            bail!("a script of {} bytes is too long for one frame; put it as a file", script.len());
        }
        self.send(Kind::Run, id, script.as_bytes())?;
        let mut output = Vec::new();
        if let Some(code) = collect(&answers, limit, &mut output)? {
            return Ok(Exit { code, output: text(&output) });
        }
        self.send(Kind::Kill, id, b"")?;
        collect(&answers, KILLED, &mut output)?;
        bail!(
            "still running in dom0 after {} s, so killed: {}\n{}",
            limit.as_secs(),
            script.lines().find(|line| !line.trim().is_empty()).unwrap_or("").trim(),
            text(&output).trim_end()
        )
    }

    /// Puts a file into dom0's inbox.
    pub(super) fn put(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let (id, answers) = self.request()?;
        self.send(Kind::PutBegin, id, name.as_bytes())?;
        for chunk in bytes.chunks(frame::MAX_PAYLOAD) {
            self.send(Kind::PutData, id, chunk)?;
        }
        self.send(Kind::PutEnd, id, b"")?;
        // 10 MiB a second and more were seen on a machine with three times as much work as processors.
        let limit = SMALL + Duration::from_secs(bytes.len() as u64 >> 20);
        settle(&answers, limit, &format!("storing {name} ({} bytes) in dom0", bytes.len()))
    }

    /// Starts streaming a domain's console.
    pub(super) fn follow(&mut self, domain: &str) -> Result<()> {
        let (id, answers) = self.request()?;
        self.send(Kind::Follow, id, domain.as_bytes())?;
        settle(&answers, SMALL, &format!("following the console of {domain}"))
    }

    /// Runs a script whose input is `terminal` and whose output goes to `out`, until it ends or we detach.
    pub(super) fn attach(
        &mut self,
        script: &str,
        terminal: &Receiver<FromTerminal>,
        out: &mut dyn Write,
    ) -> Result<()> {
        /// Between two looks at the keyboard: short enough to feel immediate.
        const LOOK: Duration = Duration::from_millis(10);
        let (id, answers) = self.request()?;
        self.send(Kind::Attach, id, script.as_bytes())?;
        loop {
            match answers.recv_timeout(LOOK) {
                Ok(Frame { kind: Kind::Output, payload, .. }) => {
                    out.write_all(&payload).and_then(|()| out.flush()).context("writing to the terminal")?;
                }
                Ok(Frame { kind: Kind::Failed, payload, .. }) => bail!("{}", text(&payload)),
                Ok(_) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(gone()),
            }
            while let Ok(event) = terminal.try_recv() {
                match event {
                    FromTerminal::Bytes(bytes) => self.send(Kind::Input, id, &bytes)?,
                    FromTerminal::Detach => return self.send(Kind::Kill, id, b""),
                }
            }
        }
    }

    fn request(&mut self) -> Result<(u32, Receiver<Frame>)> {
        let id = self.next_channel;
        // Ids are unique for four thousand million requests; a lab does not live that long.
        self.next_channel = self.next_channel.wrapping_add(1).max(1);
        let (sender, receiver) = channel();
        lock(&self.waiting).as_mut().ok_or_else(gone)?.insert(id, sender);
        Ok((id, receiver))
    }

    fn send(&self, kind: Kind, channel: u32, payload: &[u8]) -> Result<()> {
        self.out.send(Frame { kind, channel, payload: payload.to_owned() }).map_err(|_| gone())
    }
}

/// Waits for a request that has no output to be done.
fn settle(answers: &Receiver<Frame>, limit: Duration, what: &str) -> Result<()> {
    match collect(answers, limit, &mut Vec::new()).with_context(|| what.to_owned())? {
        Some(_) => Ok(()),
        None => bail!("{what}: no answer from dom0 within {} s", limit.as_secs()),
    }
}

fn gone() -> anyhow::Error {
    anyhow!("the line to the lab's dom0 has ended")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole values move in and out under this lock, so a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Gathers a script's output until it is done; `None` when `limit` ends first.
fn collect(answers: &Receiver<Frame>, limit: Duration, output: &mut Vec<u8>) -> Result<Option<i32>> {
    let end = Instant::now() + limit;
    loop {
        match answers.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(Frame { kind: Kind::Output, payload, .. }) => output.extend_from_slice(&payload),
            Ok(Frame { kind: Kind::Done, payload, .. }) => {
                return text(&payload).parse().map(Some).context("the agent sent an exit code that is no number");
            }
            Ok(Frame { kind: Kind::Failed, payload, .. }) => bail!("in dom0: {}", text(&payload)),
            Ok(Frame { kind, .. }) => bail!("the agent answered with {kind:?}"),
            Err(RecvTimeoutError::Timeout) => return Ok(None),
            Err(RecvTimeoutError::Disconnected) => return Err(gone()),
        }
    }
}

/// Reads the line until it ends or breaks, then lets every waiter know.
fn receive(mut input: impl Read, waiting: &Waiting, lines: &Sender<ConsoleLine>) {
    let mut splitter = Splitter::default();
    // A broken line is the end of it for us; QEMU's end, which is the usual cause, is reported by its owner.
    while let Ok(Some(frame)) = frame::read(&mut input) {
        if frame.kind == Kind::Console {
            for line in splitter.feed(&frame.payload) {
                // Nobody listens any more: the lab is being dropped.
                let _ = lines.send(line);
            }
            continue;
        }
        let mut waiting = lock(waiting);
        let Some(waiting) = waiting.as_mut() else { continue };
        let last = matches!(frame.kind, Kind::Done | Kind::Failed | Kind::Hello);
        let channel = frame.channel;
        if let Some(waiter) = waiting.get(&channel) {
            // A waiter that gave up is removed below, at the latest with the request's last frame.
            let _ = waiter.send(frame);
        }
        if last {
            waiting.remove(&channel);
        }
    }
    *lock(waiting) = None;
}

/// Joins console bytes to lines, for each log file by itself.
#[derive(Default)]
pub(crate) struct Splitter {
    /// The unfinished last line of each file.
    partial: HashMap<Vec<u8>, Vec<u8>>,
}

impl Splitter {
    /// The lines that a `Console` payload (domain, 0, file, 0, bytes) completes.
    fn feed(&mut self, payload: &[u8]) -> Vec<ConsoleLine> {
        let mut fields = payload.splitn(3, |byte| *byte == 0);
        let (Some(domain), Some(file), Some(bytes)) = (fields.next(), fields.next(), fields.next()) else {
            return Vec::new();
        };
        self.split(&text(domain), file, bytes)
    }

    /// The lines that `bytes`, the next of log `file`, complete.
    pub(crate) fn split(&mut self, domain: &str, file: &[u8], bytes: &[u8]) -> Vec<ConsoleLine> {
        let at = Instant::now();
        let partial = self.partial.entry(file.to_owned()).or_default();
        let mut lines = Vec::new();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            partial.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            // Consoles end their lines with CR LF.
            let line = partial.strip_suffix(b"\r").unwrap_or(partial);
            lines.push(ConsoleLine { domain: domain.to_owned(), text: text(line), at });
            partial.clear();
        }
        partial.extend_from_slice(rest);
        lines
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests;
