//! The agent in the lab's dom0: runs scripts, takes files, streams guests' consoles, all at once.
//!
//! Owns the dom0 end of the line. One thread reads requests; each script, each attached terminal and the
//! console follower has its own thread; all write whole frames under one lock. A script's output goes through
//! a file, not a pipe: `xl create` leaves a daemon behind that may hold the pipe open for ever.
//!
//! Only `std` is used: this file is compiled into xtask, where it is tested, and by itself into a static
//! program for dom0. Turned down: a shell script as agent (no binary-safe framing, one thing at a time), and
//! running xtask itself in dom0 (the ladders are other programs, and dom0's C library may be older).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::frame::{self, Frame, Kind};
use super::tail::Follower;

/// How often the console logs are looked at.
const POLL: Duration = Duration::from_millis(25);

/// Output of one script that is passed on; what comes after is cut, and said to be.
const MAX_OUTPUT: u64 = 8 << 20;

/// Where the agent finds and puts things.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// xenconsoled's log directory.
    pub(crate) console_logs: PathBuf,
    /// Where files from xtask are put.
    pub(crate) inbox: PathBuf,
}

/// What the threads share.
struct Shared<W> {
    line: Mutex<W>,
    /// Process groups of scripts that run, by channel.
    running: Mutex<HashMap<u32, u32>>,
    follower: Mutex<Follower>,
    places: Places,
}

/// Serves requests from `input` until it ends. Answers go to `output`.
/// # Errors
/// The line's.
pub(crate) fn serve<W: Write + Send + 'static>(input: &mut impl Read, output: W, places: Places) -> io::Result<()> {
    std::fs::create_dir_all(&places.inbox)?;
    let shared = Arc::new(Shared {
        line: Mutex::new(output),
        running: Mutex::new(HashMap::new()),
        follower: Mutex::new(Follower::new(&places.console_logs)),
        places,
    });
    shared.send(Kind::Hello, 0, frame::VERSION)?;
    let (stop_following, stopped) = channel::<()>();
    let consoles = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            // Nothing is ever sent: the wait ends early only when `serve` returns and drops its end.
            while stopped.recv_timeout(POLL) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                if shared.pass_on_consoles().is_err() {
                    return;
                }
            }
        })
    };
    let mut uploads = HashMap::new();
    let mut inputs = HashMap::new();
    while let Some(request) = frame::read(input)? {
        shared.handle(request, &mut uploads, &mut inputs)?;
    }
    drop(stop_following);
    // The thread only ever returns; a panic in it has been printed and leaves nothing to do.
    let _ = consoles.join();
    Ok(())
}

/// Locks whatever a panicking thread may have left: each holder only moves whole values in and out.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<W: Write + Send + 'static> Shared<W> {
    fn send(&self, kind: Kind, channel: u32, payload: &[u8]) -> io::Result<()> {
        frame::write(&mut *lock(&self.line), kind, channel, payload)
    }

    fn done(&self, channel: u32, code: i32) -> io::Result<()> {
        self.send(Kind::Done, channel, code.to_string().as_bytes())
    }

    fn failed(&self, channel: u32, what: &str, error: &io::Error) -> io::Result<()> {
        self.send(Kind::Failed, channel, format!("{what}: {error}").as_bytes())
    }

    fn handle(
        self: &Arc<Self>,
        request: Frame,
        uploads: &mut HashMap<u32, (PathBuf, Vec<u8>)>,
        inputs: &mut HashMap<u32, Sender<Vec<u8>>>,
    ) -> io::Result<()> {
        let Frame { kind, channel, payload } = request;
        match kind {
            Kind::Run => {
                let shared = Arc::clone(self);
                thread::spawn(move || {
                    let script = String::from_utf8_lossy(&payload);
                    // A line that is gone has ended `serve` too; there is nobody left to tell.
                    let _ = shared.run(channel, &script);
                });
            }
            Kind::Attach => {
                let (sender, receiver) = std::sync::mpsc::channel::<Vec<u8>>();
                inputs.insert(channel, sender);
                let shared = Arc::clone(self);
                thread::spawn(move || {
                    let script = String::from_utf8_lossy(&payload);
                    // As above.
                    let _ = shared.attach(channel, &script, receiver);
                });
            }
            Kind::Input => {
                // An attached script that has ended takes no more input, which is no error.
                let open = inputs.get(&channel).is_some_and(|input| input.send(payload).is_ok());
                if !open {
                    inputs.remove(&channel);
                }
            }
            Kind::Kill => {
                let group = lock(&self.running).get(&channel).copied();
                if let Some(group) = group {
                    kill_group(group);
                }
            }
            Kind::PutBegin => {
                let name = String::from_utf8_lossy(&payload);
                uploads.insert(channel, (self.places.inbox.join(&*name), Vec::new()));
            }
            Kind::PutData => {
                if let Some((_, bytes)) = uploads.get_mut(&channel) {
                    bytes.extend_from_slice(&payload);
                }
            }
            Kind::PutEnd => match uploads.remove(&channel) {
                Some((path, bytes)) => match replace(&path, &bytes) {
                    Ok(()) => self.done(channel, 0)?,
                    Err(error) => self.failed(channel, &path.display().to_string(), &error)?,
                },
                None => self.failed(channel, "put", &io::ErrorKind::NotFound.into())?,
            },
            Kind::Follow => {
                lock(&self.follower).follow(&String::from_utf8_lossy(&payload));
                self.done(channel, 0)?;
            }
            Kind::Hello | Kind::Output | Kind::Done | Kind::Failed | Kind::Console => {
                let error = io::Error::new(io::ErrorKind::InvalidData, format!("{kind:?} is the agent's to send"));
                self.failed(channel, "request", &error)?;
            }
        }
        Ok(())
    }

    fn pass_on_consoles(&self) -> io::Result<()> {
        lock(&self.follower).poll(&mut |domain, file, bytes| {
            let mut payload = Vec::with_capacity(domain.len() + file.len() + 2 + bytes.len());
            payload.extend_from_slice(domain.as_bytes());
            payload.push(0);
            payload.extend_from_slice(file.as_bytes());
            payload.push(0);
            payload.extend_from_slice(bytes);
            self.send(Kind::Console, 0, &payload)
        })
    }

    fn run(&self, channel: u32, script: &str) -> io::Result<()> {
        let path = self.places.inbox.join(format!(".output-{channel}"));
        let ended = self.run_into(channel, script, &path);
        let sent = match ended {
            Ok(status) => self.send_output(channel, &path).and_then(|()| self.done(channel, exit_code(status))),
            Err(error) => self.failed(channel, "cannot run a script", &error),
        };
        // Without the file there is nothing to remove; a left-over one costs only room.
        let _ = std::fs::remove_file(path);
        sent
    }

    fn run_into(&self, channel: u32, script: &str, path: &Path) -> io::Result<ExitStatus> {
        // Append: stdout and stderr share the file, and each write must go to its end.
        let file = File::options().create(true).append(true).open(path)?;
        let mut child = shell(script).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn()?;
        self.wait(channel, &mut child)
    }

    fn send_output(&self, channel: u32, path: &Path) -> io::Result<()> {
        let mut file = File::open(path)?.take(MAX_OUTPUT);
        let mut buffer = vec![0; frame::MAX_PAYLOAD];
        loop {
            match file.read(&mut buffer)? {
                0 if file.limit() == 0 => return self.send(Kind::Output, channel, b"\n[output cut]\n"),
                0 => return Ok(()),
                count => self.send(Kind::Output, channel, &buffer[..count])?,
            }
        }
    }

    fn attach(
        self: Arc<Self>,
        channel: u32,
        script: &str,
        input: std::sync::mpsc::Receiver<Vec<u8>>,
    ) -> io::Result<()> {
        let spawned = shell(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => return self.failed(channel, "cannot attach", &error),
        };
        if let Some(mut stdin) = child.stdin.take() {
            thread::spawn(move || {
                for bytes in input {
                    if stdin.write_all(&bytes).and_then(|()| stdin.flush()).is_err() {
                        return;
                    }
                }
            });
        }
        let copied = child.stdout.take().map(|mut stdout| {
            let shared = Arc::clone(&self);
            thread::spawn(move || {
                let mut buffer = vec![0; frame::MAX_PAYLOAD];
                while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                    if shared.send(Kind::Output, channel, &buffer[..count]).is_err() {
                        return;
                    }
                }
            })
        });
        let status = self.wait(channel, &mut child)?;
        if let Some(copied) = copied {
            // All of the output goes before `Done`; a panic there was printed and only cuts the output.
            let _ = copied.join();
        }
        self.done(channel, exit_code(status))
    }

    /// Waits for a script while `Kill` can reach it by its channel.
    fn wait(&self, channel: u32, child: &mut Child) -> io::Result<ExitStatus> {
        lock(&self.running).insert(channel, child.id());
        let status = child.wait();
        lock(&self.running).remove(&channel);
        status
    }
}

/// A shell for `script`, in a process group of its own so that it can be killed with its children.
fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).process_group(0);
    command
}

fn kill_group(group: u32) {
    // `std` can send no signals to groups; every shell can, in this spelling (dash and busybox take no `--`).
    // The group may have ended by itself just now.
    let _ = Command::new("sh").arg("-c").arg(format!("kill -KILL -{group}")).stderr(Stdio::null()).status();
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Writes a file so that a reader sees the old or the new one, never half of it.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, bytes)?;
    std::fs::rename(partial, path)
}
