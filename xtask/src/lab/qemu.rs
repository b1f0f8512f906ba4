//! One QEMU process: how it is started, and that it never outlives us.
//!
//! Owns the process. It ends when the [`Qemu`] is dropped, and also when we are killed: `setpriv` asks the
//! kernel to send it SIGKILL with its parent, and a shell looks whether that parent was still there by then. The
//! parent is the *thread* that started it, so a thread is kept for as long as QEMU lives. QEMU has a process group of its own: a Ctrl-C in the terminal is for xtask.
//!
//! Turned down: `prctl` in a `pre_exec` hook, which is unsafe code for what a program of Debian's essential
//! set does; and QEMU's `-daemonize`, with a pid file to go stale.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

/// The program, in Debian's qemu-system-x86.
const PROGRAM: &str = "qemu-system-x86_64";

/// An instruction takes 2 ns (`shift=1`), which is two ticks of the TSC that Xen finds. The clock of the day starts the same
/// each time and goes with the instructions.
const COUNTING: [&str; 8] = [
    "-accel",
    "tcg,thread=single",
    "-cpu",
    "qemu64",
    "-icount",
    "shift=1,sleep=off",
    "-rtc",
    "base=2026-01-01T00:00:00,clock=vm",
];

/// How QEMU executes the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accelerator {
    /// Hardware virtualisation.
    Kvm,
    /// Translation in software, one thread per processor.
    Tcg,
    /// The same on one thread, where time is the number of instructions executed and idle time passes at once. What is
    /// measured then does not depend on what else the machine does.
    Counting,
}

/// The processors of an emulated machine. With hardware virtualisation they are the machine's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Processor {
    /// What figures are comparable with, and works everywhere. It has no AVX.
    #[default]
    Usual,
    /// With all that QEMU can emulate, AVX among it; without SMAP and SMEP, which break Linux PV guests under TCG.
    Wide,
}

/// The machine that Xen runs on.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) accelerator: Accelerator,
    pub(super) processor: Processor,
    pub(super) cpus: u32,
    pub(super) memory_mib: u32,
    pub(super) xen: PathBuf,
    pub(super) xen_args: String,
    /// Xen's multiboot modules and their command lines: dom0's kernel, then its initramfs.
    pub(super) modules: Vec<(PathBuf, String)>,
}

/// What QEMU's stdin and stdout are joined to; the first serial port is Xen's console.
#[derive(Debug)]
pub(super) enum Wiring {
    /// Stdout is the serial port.
    Serial,
    /// Both are a virtio port, `/dev/vport0p1` in dom0; the serial port goes to this file.
    VirtioPort { serial_log: PathBuf },
}

/// A running QEMU.
pub(super) struct Qemu {
    /// Dropped to end QEMU; taken then.
    stop: Option<Sender<()>>,
    ended: Receiver<std::io::Result<ExitStatus>>,
    /// What was once taken out of `ended`.
    how: OnceLock<String>,
    keeper: Option<JoinHandle<()>>,
}

/// QEMU's standard streams.
pub(super) struct Streams {
    pub(super) stdin: ChildStdin,
    pub(super) stdout: ChildStdout,
    pub(super) stderr: ChildStderr,
}

impl Accelerator {
    /// As QEMU's documentation calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG",
            Self::Counting => "TCG, time is instructions",
        }
    }

    /// The one that `$STASIS_ACCEL` names (`kvm` or `tcg`), otherwise KVM where it works, otherwise TCG. Only TCG can be
    /// `deterministic`.
    /// # Errors
    /// When the variable has another value, or the wrong one.
    pub(super) fn choose(xen: &Path, deterministic: bool) -> Result<Self> {
        match std::env::var("STASIS_ACCEL").as_deref() {
            Ok("kvm") if deterministic => {
                bail!(
                    "STASIS_ACCEL is kvm, but only TCG can count instructions; unset it or do without --deterministic"
                )
            }
            Ok("tcg" | "") | Err(_) if deterministic => Ok(Self::Counting),
            Ok("kvm") => Ok(Self::Kvm),
            Ok("tcg") => Ok(Self::Tcg),
            Ok("") | Err(_) => Ok(Self::try_kvm(xen)),
            Ok(other) => bail!("STASIS_ACCEL is {other:?}; it can be kvm or tcg, or unset"),
        }
    }

    /// Finds out by trying. A `/dev/kvm` may be there and be of no use: in a nested machine, or when it fails
    /// on instructions that Xen executes early. So Xen itself is started until it has counted its processors.
    fn try_kvm(xen: &Path) -> Self {
        /// Hardware needs a tenth of this.
        const LIMIT: Duration = Duration::from_secs(5);
        if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
            return Self::Tcg;
        }
        let machine = Machine {
            accelerator: Self::Kvm,
            processor: Processor::Usual,
            cpus: 2,
            memory_mib: 512,
            xen: xen.to_owned(),
            xen_args: "console=com1 com1=115200,8n1".into(),
            modules: Vec::new(),
        };
        let Ok((qemu, streams)) = Qemu::start(&machine, &Wiring::Serial) else { return Self::Tcg };
        let (heard, lines) = channel();
        for stream in [Box::new(streams.stdout) as Box<dyn Read + Send>, Box::new(streams.stderr)] {
            let heard = heard.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                    if heard.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                        return;
                    }
                }
            });
        }
        drop(heard);
        let end = Instant::now() + LIMIT;
        let mut found = Self::Tcg;
        while let Ok(line) = lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            if line.contains("Brought up 2 CPUs") {
                found = Self::Kvm;
                break;
            }
            if line.contains("KVM internal error") {
                break;
            }
        }
        drop(qemu);
        found
    }
}

impl Machine {
    fn arguments(&self, wiring: &Wiring) -> Vec<OsString> {
        let accelerator: &[&str] = match self.accelerator {
            Accelerator::Kvm => &["-accel", "kvm", "-cpu", "host"],
            // `-cpu max` as it is breaks Linux PV guests under TCG.
            Accelerator::Tcg if self.processor == Processor::Usual => &["-accel", "tcg,thread=multi", "-cpu", "qemu64"],
            Accelerator::Tcg => &["-accel", "tcg,thread=multi", "-cpu", "max,-smap,-smep"],
            Accelerator::Counting => &COUNTING,
        };
        let mut arguments: Vec<OsString> = vec!["-machine".into(), "q35".into()];
        arguments.extend(accelerator.iter().map(OsString::from));
        arguments.extend(["-smp".into(), self.cpus.to_string().into()]);
        arguments.extend(["-m".into(), self.memory_mib.to_string().into()]);
        arguments.extend(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"].map(OsString::from));
        match wiring {
            Wiring::Serial => arguments.extend(["-serial", "stdio"].map(OsString::from)),
            Wiring::VirtioPort { serial_log } => {
                let mut log = OsString::from("file,id=serial,path=");
                log.push(escaped(serial_log));
                arguments.extend(["-chardev".into(), log]);
                arguments.extend(["-serial", "chardev:serial"].map(OsString::from));
                arguments.extend(["-device", "virtio-serial-pci"].map(OsString::from));
                arguments.extend(["-chardev", "stdio,id=line,signal=off"].map(OsString::from));
                arguments.extend(["-device", "virtserialport,chardev=line,name=stasis"].map(OsString::from));
            }
        }
        arguments.extend(["-kernel".into(), self.xen.clone().into_os_string()]);
        arguments.extend(["-append".into(), self.xen_args.clone().into()]);
        if !self.modules.is_empty() {
            let mut modules = OsString::new();
            for (index, (path, line)) in self.modules.iter().enumerate() {
                modules.push(if index == 0 { "" } else { "," });
                modules.push(escaped(path));
                if !line.is_empty() {
                    modules.push(" ");
                    modules.push(line.replace(',', ",,"));
                }
            }
            arguments.extend(["-initrd".into(), modules]);
        }
        arguments
    }
}

impl Qemu {
    /// Starts QEMU.
    pub(super) fn start(machine: &Machine, wiring: &Wiring) -> Result<(Self, Streams)> {
        let mut command = child_of(std::process::id(), PROGRAM);
        command.args(machine.arguments(wiring));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let (stop, stopped) = channel();
        let (started_to, started) = channel();
        let (ended_to, ended) = channel();
        let keeper = std::thread::spawn(move || keep(command, &stopped, &started_to, &ended_to));
        let streams = started.recv().context("the thread that keeps QEMU has ended")??;
        Ok((Self { stop: Some(stop), ended, how: OnceLock::new(), keeper: Some(keeper) }, streams))
    }

    /// How it ended, or `None` while it runs.
    pub(super) fn ended(&self) -> Option<String> {
        if self.how.get().is_none() {
            let how = match self.ended.try_recv() {
                Ok(Ok(status)) => status.to_string(),
                Ok(Err(error)) => error.to_string(),
                Err(TryRecvError::Disconnected) => "the thread that kept it has ended".to_owned(),
                Err(TryRecvError::Empty) => return None,
            };
            return Some(self.how.get_or_init(|| how).clone());
        }
        self.how.get().cloned()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(keeper) = self.keeper.take() {
            // It only waits and kills; a panic in it was printed and must not become a second one.
            let _ = keeper.join();
        }
    }
}

/// A command for `program` as a child of process `parent` that the kernel kills with the thread that started it. It does
/// not start at all when `parent` has ended before the kernel was told.
fn child_of(parent: u32, program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "sh", "-c", "[ $PPID = $0 ] && exec \"$@\""]);
    command.arg(parent.to_string()).arg(program);
    command
}

/// The thread that QEMU depends on: starts it, and waits until it ends or is no longer wanted.
fn keep(
    mut command: Command,
    stopped: &Receiver<()>,
    started: &Sender<Result<Streams>>,
    ended: &Sender<std::io::Result<ExitStatus>>,
) {
    const LOOK: Duration = Duration::from_millis(50);
    let mut child = match command.spawn().with_context(|| format!("starting {command:?}")) {
        Ok(child) => child,
        Err(error) => {
            // `start` is waiting for exactly this.
            let _ = started.send(Err(error));
            return;
        }
    };
    let streams = match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
        (Some(stdin), Some(stdout), Some(stderr)) => Ok(Streams { stdin, stdout, stderr }),
        _ => Err(anyhow!("QEMU was started without its pipes")),
    };
    // As above.
    let _ = started.send(streams);
    // Nothing is ever sent to `stopped`: the wait ends early only when the `Qemu` is dropped.
    while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        match child.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => {
                // Whoever held the `Qemu` may be gone just now.
                let _ = ended.send(Ok(status));
                return;
            }
            Err(error) => {
                let _ = ended.send(Err(error));
                break;
            }
        }
    }
    // It may have ended by itself in between, which is just as well.
    let _ = child.kill();
    let _ = child.wait();
}

/// QEMU takes a comma in a value for the value's end, unless doubled.
fn escaped(path: &Path) -> OsString {
    match path.to_str() {
        Some(text) => text.replace(',', ",,").into(),
        None => path.as_os_str().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            accelerator: Accelerator::Tcg,
            processor: Processor::Usual,
            cpus: 2,
            memory_mib: 512,
            xen: "xen".into(),
            xen_args: "dom0_mem=1M,max:1M".into(),
            modules: vec![("a,b/kernel".into(), "console=hvc0 x=1,2".into()), ("initramfs".into(), String::new())],
        }
    }

    #[test]
    fn commas_are_doubled_where_qemu_would_split() {
        let arguments = machine().arguments(&Wiring::VirtioPort { serial_log: "logs,1/xen.log".into() });
        let after = |name: &str| {
            let at = arguments.iter().position(|argument| argument == name).expect("given");
            arguments[at + 1].to_string_lossy().into_owned()
        };
        assert_eq!(after("-initrd"), "a,,b/kernel console=hvc0 x=1,,2,initramfs");
        assert_eq!(after("-append"), "dom0_mem=1M,max:1M");
        assert_eq!(after("-chardev"), "file,id=serial,path=logs,,1/xen.log");
    }

    #[test]
    fn only_where_time_is_instructions_are_they_counted() {
        let given = |accelerator: Accelerator| Machine { accelerator, ..machine() }.arguments(&Wiring::Serial);
        assert!(COUNTING.iter().all(|word| given(Accelerator::Counting).contains(&OsString::from(word))));
        for other in [Accelerator::Kvm, Accelerator::Tcg] {
            assert!(!given(other).contains(&OsString::from("-icount")), "{other:?}");
        }
    }

    #[test]
    #[cfg(not(miri))]
    fn a_child_starts_only_for_the_parent_that_asked() {
        let said = |parent: u32| {
            let output = child_of(parent, "echo").arg("$0 'a b'").output().expect("setpriv is essential in Debian");
            String::from_utf8(output.stdout).expect("our own words")
        };
        assert_eq!(said(std::process::id()), "$0 'a b'\n");
        assert_eq!(said(1), "", "its parent has ended, and the first process took it over");
    }

    #[test]
    #[cfg(not(miri))]
    fn a_dropped_keeper_ends_its_process() {
        let mut command = Command::new("sleep");
        command.arg("600").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (stop, stopped) = channel();
        let (started_to, started) = channel();
        let (ended_to, ended) = channel();
        let keeper = std::thread::spawn(move || keep(command, &stopped, &started_to, &ended_to));
        let mut streams = started.recv().expect("it answers").expect("sleep is there");
        let qemu = Qemu { stop: Some(stop), ended, how: OnceLock::new(), keeper: Some(keeper) };
        assert_eq!(qemu.ended(), None);
        drop(qemu);
        let mut rest = Vec::new();
        streams.stdout.read_to_end(&mut rest).expect("the pipe's other end is closed");
    }

    #[test]
    #[cfg(not(miri))]
    fn an_end_by_itself_is_told_more_than_once() {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 3"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (stop, stopped) = channel();
        let (started_to, started) = channel();
        let (ended_to, ended) = channel();
        let keeper = std::thread::spawn(move || keep(command, &stopped, &started_to, &ended_to));
        assert!(started.recv().expect("it answers").is_ok());
        keeper.join().expect("no panic");
        let qemu = Qemu { stop: Some(stop), ended, how: OnceLock::new(), keeper: None };
        assert_eq!(qemu.ended().as_deref(), Some("exit status: 3"));
        assert_eq!(qemu.ended().as_deref(), Some("exit status: 3"));
    }
}
