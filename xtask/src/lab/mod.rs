//! The lab: real Xen with a Debian dom0 and the real `xl`, in QEMU, on any Debian machine.
//!
//! Owns the boot of that machine and, as a [`Host`], the way to its dom0. Below: `prepare` fills the cache
//! from Debian's packages (`apt`, `cache`, `dom0`, `xen`, `agent_build`), `qemu` runs the machine, `link` and
//! `agent` are the two ends of the line to dom0, and `direct` starts a kernel without any dom0. All of it runs
//! on the host, blocking, with a limit on everything. No hardware virtualisation is needed.
//!
//! Turned down: a full Debian in a disk image with ssh, which takes ten times as long to make and to boot,
//! and a dom0 driven through its console, where answers drown in messages.

/// Runs in dom0, compiled by `agent_build`; here only its tests are.
#[cfg(all(test, not(miri)))]
mod agent;
mod agent_build;
mod apt;
mod bzimage;
mod cache;
mod command;
mod cpio;
mod direct;
mod dom0;
mod elf;
mod frame;
mod link;
mod peer;
mod prepare;
mod qemu;
mod size;
mod tail;
mod terminal;
mod xen;

pub use agent_build::Program;
pub use apt::require;
pub use direct::{DirectConfig, DirectEnd, direct};
pub use peer::{BenchPeer, Peer, bench_peer, peer};
pub use prepare::{Prepared, packages, prepare, program};
pub use qemu::Processor;
pub use size::{Memory, memory_for};

pub(crate) use link::Splitter;
pub(crate) use tail::Follower;
pub(crate) use terminal::Terminal;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::ending::{AtEnd, Temporary};
use crate::host::{ConsoleLine, Exit, Host, Progress, info_value};
use link::Link;
use qemu::{Accelerator, Machine, Qemu, Wiring};

/// From QEMU's start to the agent's greeting. Up to 45 s were seen, on a machine that was busy otherwise.
const BOOT_LIMIT: Duration = Duration::from_secs(240);

/// From the greeting to a working `xl list`.
const UP_LIMIT: Duration = Duration::from_secs(90);

/// Processors of the lab's machine where nobody asks for another number.
pub const USUAL_CPUS: u32 = 2;

/// What kind of lab to boot.
#[derive(Debug, Clone)]
pub struct LabConfig {
    /// Processors of the machine that Xen runs on, 1 to 255. dom0 has as many, but at most 4.
    pub host_cpus: u32,
    /// The machine's and dom0's memory; see [`memory_for`].
    pub memory: Memory,
    /// Whether Xen is the one rebuilt with shadow paging, which `xl migrate` of PV guests needs.
    pub shadow_xen: bool,
    /// More words for Xen's command line, such as `sched=credit`.
    pub xen_args: Vec<String>,
    /// Time is instructions executed, not the machine's: slower, one processor at a time, and figures that repeat.
    pub deterministic: bool,
    /// Directory for `console.log` (Xen and dom0's kernel) and `qemu.log`; made if missing.
    pub logs: PathBuf,
}

/// A booted lab. Dropping it ends QEMU at once; guests in it are lost.
pub struct Lab {
    qemu: Qemu,
    link: Link,
    logs: PathBuf,
    description: String,
}

impl Lab {
    /// Prepares what is needed, boots Xen and dom0, and returns when `xl list` works there.
    /// # Errors
    /// When something cannot be prepared, or the boot fails or takes too long; with the end of the logs.
    pub fn boot(config: &LabConfig, progress: &dyn Progress) -> Result<Self> {
        Self::boot_on(Processor::Usual, config, progress)
    }

    /// The same on processors of choice.
    /// # Errors
    /// As [`Lab::boot`].
    pub fn boot_on(processor: Processor, config: &LabConfig, progress: &dyn Progress) -> Result<Self> {
        if !(1..=255).contains(&config.host_cpus) {
            bail!("a machine of {} processors cannot be emulated; 1 to 255 can", config.host_cpus);
        }
        let prepared = prepare(progress, config.shadow_xen)?;
        std::fs::create_dir_all(&config.logs).with_context(|| format!("creating {}", config.logs.display()))?;
        // QEMU is given full paths: where it runs is nobody's business.
        let logs = config.logs.canonicalize().with_context(|| format!("resolving {}", config.logs.display()))?;

        progress.stage("booting Xen and dom0");
        let initramfs_file = Temporary::new(logs.join("initramfs.cpio"));
        let archives = initramfs_file.path();
        let agent = std::fs::read(&prepared.agent).context("reading the agent")?;
        // The kernel takes one initramfs from Xen: base and overlay behind each other.
        let mut initramfs = std::fs::read(&prepared.base).context("reading dom0's base archive")?;
        initramfs.extend(dom0::overlay(&agent));
        std::fs::write(archives, initramfs).with_context(|| format!("writing {}", archives.display()))?;

        let accelerator = Accelerator::choose(&prepared.xen, config.deterministic)?;
        progress.note(&format!("QEMU with {}", accelerator.name()));
        let machine = Machine {
            accelerator,
            processor,
            cpus: config.host_cpus,
            memory_mib: config.memory.machine_mib,
            xen: prepared.xen.clone(),
            xen_args: xen_args(processor, config.memory.dom0_mib, config.host_cpus.min(4), &config.xen_args),
            modules: vec![(prepared.kernel.clone(), dom0_args()), (archives.to_owned(), String::new())],
        };
        let wiring = Wiring::VirtioPort { serial_log: logs.join("console.log") };
        let (qemu, streams) = Qemu::start(&machine, &wiring)?;
        save(streams.stderr, &logs.join("qemu.log"))?;
        let link = Link::new(streams.stdout, streams.stdin);
        let mut lab = Self { qemu, link, logs, description: String::new() };
        lab.await_agent().map_err(|error| lab.explain(error))?;
        drop(initramfs_file);

        progress.note("starting xenstored and xenconsoled");
        lab.sh(&format!("/lab/up {}", dom0::CONSOLE_LOGS), UP_LIMIT)?.expect_ok("starting the toolstack in dom0")?;
        lab.description = lab.described(config, &prepared, accelerator)?;
        progress.finished();
        Ok(lab)
    }

    fn await_agent(&self) -> Result<()> {
        let end = Instant::now() + BOOT_LIMIT;
        loop {
            if let Some(how) = self.qemu.ended() {
                bail!("QEMU ended ({how}) while Xen and dom0 were booting");
            }
            match self.link.hello(Duration::from_millis(200)) {
                Ok(true) => return Ok(()),
                Ok(false) if Instant::now() < end => {}
                Ok(false) => bail!("dom0 has not come up within {} s", BOOT_LIMIT.as_secs()),
                // The line ends a moment before QEMU's end is seen.
                Err(_) if Instant::now() < end && self.qemu.ended().is_none() => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The error, then how QEMU ended if it has, then what the logs say: the reason stays in the first line.
    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let ended = self.qemu.ended().map_or(String::new(), |how| format!("  QEMU has ended: {how}\n"));
        anyhow!("{error:#}\n{ended}{}", ends_of_logs(&self.logs))
    }

    fn described(&mut self, config: &LabConfig, prepared: &Prepared, accelerator: Accelerator) -> Result<String> {
        let info = self.sh("xl info", UP_LIMIT)?.expect_ok("xl info")?;
        let value = |key: &str| info_value(&info, key);
        Ok(format!(
            "lab: Xen {} ({}, {}) in QEMU {}, {} CPUs, {} MiB; dom0 Linux {}, {} MiB",
            value("xen_version"),
            if config.shadow_xen { "rebuilt with shadow paging" } else { "Debian's" },
            value("xen_scheduler"),
            accelerator.name(),
            config.host_cpus,
            config.memory.machine_mib,
            prepared.dom0_release,
            config.memory.dom0_mib,
        ))
    }
}

impl Host for Lab {
    fn describe(&self) -> String {
        self.description.clone()
    }

    fn sh(&mut self, script: &str, limit: Duration) -> Result<Exit> {
        self.link.run(script, limit).map_err(|error| self.explain(error))
    }

    fn at_end(&self, _script: &str) -> Option<AtEnd> {
        None
    }

    fn put(&mut self, name: &str, bytes: &[u8]) -> Result<String> {
        if name.is_empty() || name.contains('/') {
            bail!("{name:?} is no plain file name");
        }
        self.link.put(name, bytes).map_err(|error| self.explain(error))?;
        Ok(format!("{}/{name}", dom0::INBOX))
    }

    fn follow(&mut self, domain: &str) -> Result<()> {
        self.link.follow(domain).map_err(|error| self.explain(error))
    }

    fn lines(&mut self) -> &Receiver<ConsoleLine> {
        self.link.lines()
    }

    fn interactive(&mut self, domain: &str) -> Result<()> {
        let domain = crate::host::quoted(domain);
        let script = format!("exec xl console {domain}");
        terminal::joined(|typed| self.link.attach(&script, typed, &mut std::io::stdout().lock()))
            .map_err(|error| self.explain(error))
    }
}

/// Words for Xen's command line that every boot has.
const XEN_ARGS: [&str; 5] = [
    "console=com1",
    "com1=115200,8n1",
    // What Xen says about a guest is often the only trace of why it died.
    "loglvl=info",
    "guest_loglvl=all/all",
    // QEMU's memory is zero already; writing it all costs seconds under TCG. Freed memory is scrubbed as ever.
    "bootscrub=off",
];

/// Xen gives a vcpu its registers at its first use of them, by #NM, unless told to do so at every switch. QEMU emulates AVX, and not its
/// #NM: who uses it first has the registers of another vcpu. In dom0 the shell then does not find programs that are there.
const WIDE_XEN_ARGS: [&str; 1] = ["spec-ctrl=eager-fpu"];

/// Xen's command line, for a first domain of this size.
fn xen_args(processor: Processor, memory_mib: u32, vcpus: u32, more: &[String]) -> String {
    let first = [format!("dom0_mem={memory_mib}M,max:{memory_mib}M"), format!("dom0_max_vcpus={vcpus}")];
    let wide: &[&str] = if processor == Processor::Wide { &WIDE_XEN_ARGS } else { &[] };
    let usual = XEN_ARGS.iter().chain(wide).copied();
    let words: Vec<&str> = usual.chain(first.iter().chain(more).map(String::as_str)).collect();
    words.join(" ")
}

/// Linux passes what follows `--` to `/init`.
fn dom0_args() -> String {
    format!("console=hvc0 quiet panic=-1 -- {} {} {}", dom0::LINE, dom0::CONSOLE_LOGS, dom0::INBOX)
}

/// Copies a stream into a file until it ends, on a thread of its own.
fn save(mut stream: impl Read + Send + 'static, path: &Path) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    std::thread::spawn(move || {
        // A log that cannot be written (disk full) must not stop the lab.
        let _ = std::io::copy(&mut stream, &mut file);
    });
    Ok(())
}

/// The end of each log in `directory`, named, for errors.
fn ends_of_logs(directory: &Path) -> String {
    let mut shown = String::new();
    for name in ["console.log", "qemu.log"] {
        let path = directory.join(name);
        let Ok(bytes) = std::fs::read(&path) else { continue };
        if !bytes.is_empty() {
            let end = command::tail(&String::from_utf8_lossy(&bytes), 12);
            shown.push_str(&format!("  the end of {}:\n{end}", path.display()));
        }
    }
    shown
}

/// The repository that this program was built from.
fn repository() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_owned()
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests;
