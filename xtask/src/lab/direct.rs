//! Direct boot: a kernel as Xen's initial domain, without dom0.
//!
//! Owns that machine. There is no xenstore and no suspend, but everything else of a PV guest, within two
//! seconds. Xen's and the guest's output share the serial port and arrive as lines, in order.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::prepare::Prepared;
use super::qemu::{Accelerator, Machine, Processor, Qemu, Wiring};
use super::{save, xen_args};

/// What to boot directly.
#[derive(Debug, Clone)]
pub struct DirectConfig {
    /// The kernel's ELF file.
    pub kernel: PathBuf,
    /// Its command line.
    pub cmdline: String,
    /// Its vCPUs.
    pub vcpus: u32,
    /// Its memory. The machine has 160 MiB more for Xen.
    pub memory_mib: u32,
    /// Processors of the machine that Xen runs on.
    pub host_cpus: u32,
    /// More words for Xen's command line.
    pub xen_args: Vec<String>,
    /// Time is instructions executed: see [`super::LabConfig::deterministic`].
    pub deterministic: bool,
    /// Directory for `console.log` and `qemu.log`; made if missing.
    pub logs: PathBuf,
    /// The longest that it may run.
    pub limit: Duration,
}

/// Why a direct boot ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectEnd {
    /// `on_line` asked for it.
    Stopped,
    /// The machine ended by itself: the guest shut down or crashed, or Xen panicked.
    MachineEnded,
    /// The limit ended first.
    LimitReached,
}

/// Boots a kernel as Xen's initial domain and passes each line of serial output to `on_line`, which says
/// when to stop.
/// # Errors
/// When QEMU cannot be started or the logs cannot be written.
pub fn direct(
    prepared: &Prepared,
    config: &DirectConfig,
    on_line: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<DirectEnd> {
    std::fs::create_dir_all(&config.logs).with_context(|| format!("creating {}", config.logs.display()))?;
    let machine = Machine {
        accelerator: Accelerator::choose(&prepared.xen, config.deterministic)?,
        processor: Processor::Usual,
        cpus: config.host_cpus,
        memory_mib: config.memory_mib + 160,
        xen: prepared.xen.clone(),
        xen_args: xen_args(Processor::Usual, config.memory_mib, config.vcpus, &config.xen_args),
        modules: vec![(config.kernel.clone(), config.cmdline.clone())],
    };
    let path = config.logs.join("console.log");
    let mut log = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    let (qemu, streams) = Qemu::start(&machine, &Wiring::Serial)?;
    save(streams.stderr, &config.logs.join("qemu.log"))?;
    let (heard, lines) = channel();
    let stdout = streams.stdout;
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            if heard.send(line).is_err() {
                return;
            }
        }
    });
    let end = Instant::now() + config.limit;
    let ended = loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                log.write_all(&line).and_then(|()| log.write_all(b"\n")).context("writing console.log")?;
                let text = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(&line)).into_owned();
                if on_line(&text).is_break() {
                    break DirectEnd::Stopped;
                }
            }
            Err(RecvTimeoutError::Timeout) => break DirectEnd::LimitReached,
            Err(RecvTimeoutError::Disconnected) => break DirectEnd::MachineEnded,
        }
    };
    drop(qemu);
    Ok(ended)
}
