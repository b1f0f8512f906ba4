//! `rogue STOP`: a peer that rings without end, for tests of guests. Compiled by `agent_build.rs`, run in dom0.
//!
//! Rings every port of dom0 whose other end is another domain's: console and xenstore of each guest, whatever dom0's daemons have to
//! say there, and also of a guest that begins while it runs. Ends when the file STOP is there, and says `sends=N ports=N`: how often
//! it rang, and how many ports there were at most. Its own events are not its concern: the ports stay the daemons', which find nothing
//! new and go on. It says `ringing` when the first ports have been rung.
//!
//! The hypercall goes through privcmd: Xen lets a domain send on any of its ports, whereas the evtchn device lets a process do so
//! on its own only. Turned down: a port that the guest offers for the purpose, as no guest has such ports but for tests.
//!
//! Source: xen/include/public/event_channel.h.

mod privcmd;

use std::ffi::c_int;
use std::io::{Result, Write};
use std::path::Path;
use std::process::ExitCode;

use privcmd::{Privcmd, pages};

const HYPERVISOR_EVENT_CHANNEL_OP: u64 = 32;
const OP_SEND: u64 = 4;
const OP_STATUS: u64 = 5;
const DOMID_SELF: u16 = 0x7ff0;
const STATUS_INTERDOMAIN: u32 = 2;

/// Ports of dom0 that are looked at. Xen gives out the lowest that are free, and the lab's dom0 has some dozens.
const PORTS: u32 = 512;

/// Rounds of rings between two looks at which ports there are, and at whether it is to end.
const ROUNDS: u32 = 2000;

/// `struct evtchn_status`, and `struct evtchn_send`, which is a port alone.
#[repr(C)]
#[derive(Clone, Copy)]
union Argument {
    status: Status,
    send: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Status {
    domain: u16,
    port: u32,
    status: u32,
    vcpu: u32,
    other_domain: u16,
    other_port: u32,
}

const _: () = assert!(size_of::<Status>() == 24);

unsafe extern "C" {
    safe fn nice(increment: c_int) -> c_int;
}

/// The way to Xen.
///
/// - XE1: `argument` points to a page that the kernel neither moves nor takes away, ours alone but for Xen during a hypercall.
struct Xen {
    privcmd: Privcmd,
    argument: *mut Argument,
}

impl Xen {
    fn open() -> Result<Xen> {
        Ok(Xen { privcmd: Privcmd::open()?, argument: pages(1)?.cast() })
    }

    /// One operation on event channels. `None` where Xen refuses it: ports come and go.
    fn event_channel_op(&self, operation: u64, argument: Argument) -> Option<Argument> {
        // SAFETY: aligned and long enough (XE1).
        unsafe { self.argument.write(argument) };
        let arguments = [operation, self.argument.addr() as u64, 0, 0, 0];
        // SAFETY: Xen reads and writes the argument (XE1).
        unsafe { self.privcmd.call(HYPERVISOR_EVENT_CHANNEL_OP, arguments) }.ok()?;
        // SAFETY: as it was written, and Xen has written numbers into it.
        Some(unsafe { self.argument.read() })
    }

    /// Our ports whose other end is another domain's.
    fn ports(&self) -> Vec<u32> {
        let is_foreign = |port: &u32| {
            let asked = Argument { status: Status { domain: DOMID_SELF, port: *port, ..Status::default() } };
            let Some(answer) = self.event_channel_op(OP_STATUS, asked) else { return false };
            // SAFETY: the operation answers with a `Status`, which is made of numbers.
            let status = unsafe { answer.status };
            status.status == STATUS_INTERDOMAIN && status.other_domain != 0
        };
        (1..PORTS).filter(is_foreign).collect()
    }
}

fn run(stop: &Path) -> Result<()> {
    // dom0's daemons come first: they are the ones that have something to say. busybox has no nice.
    let _ = nice(19);
    let xen = Xen::open()?;
    let (mut sends, mut most): (u64, usize) = (0, 0);
    while !stop.exists() {
        let ports = xen.ports();
        for _ in 0..ROUNDS {
            for port in &ports {
                sends += u64::from(xen.event_channel_op(OP_SEND, Argument { send: *port }).is_some());
            }
        }
        if most == 0 && !ports.is_empty() {
            println!("ringing");
            std::io::stdout().flush()?;
        }
        most = most.max(ports.len());
    }
    println!("sends={sends} ports={most}");
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [stop] = arguments.as_slice() else {
        eprintln!("rogue STOP");
        return ExitCode::from(2);
    };
    match run(Path::new(stop)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rogue: {error}");
            ExitCode::FAILURE
        }
    }
}
