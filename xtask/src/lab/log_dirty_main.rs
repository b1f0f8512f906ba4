//! `log-dirty DOMID on|take|off`: which pages a domain writes to, as Xen's log-dirty mode has it. Compiled by `agent_build.rs`, run in dom0.
//!
//! Owns the way from dom0's user space to one hypercall, XEN_DOMCTL_shadow_op. `on` switches the mode on, with nothing dirty; `take`
//! tells what has been written since then or the last `take`, and cleans it: `dirty=N pages=N pfns=1,7-9`. It is what the saver of a
//! migration asks for, page for page. What Xen and backends write through mappings of their own is not in it.
//!
//! Turned down: to count what `xl -v migrate` prints, which says how many pages were sent, for a time that is not known.
//!
//! Source: xen/include/public/domctl.h.

mod privcmd;

use std::io::{Error, Result};
use std::process::ExitCode;

use privcmd::{PAGE, Privcmd, pages};

const HYPERVISOR_DOMCTL: u64 = 36;
/// Xen 4.17's. Another one is refused by Xen with EACCES.
const INTERFACE_VERSION: u32 = 0x15;
const DOMCTL_SHADOW_OP: u32 = 10;
const OP_OFF: u32 = 0;
const OP_ENABLE_LOGDIRTY: u32 = 2;
const OP_CLEAN: u32 = 11;

/// For a domain of 16 GiB: 512 KiB.
const BITMAP_PAGES: usize = 128;

/// `struct xen_domctl` with its member for XEN_DOMCTL_shadow_op; the union is 128 bytes long.
#[repr(C)]
struct ShadowOp {
    command: u32,
    interface_version: u32,
    domain: u16,
    pad: [u16; 3],
    op: u32,
    mode: u32,
    mb: u32,
    hole: u32,
    bitmap: u64,
    pages: u64,
    faults: u32,
    dirty: u32,
    rest: [u64; 11],
}

const _: () = assert!(size_of::<ShadowOp>() == 16 + 128);

/// Memory for the operation and its bitmap.
///
/// - BU1: `start` is page-aligned and `1 + BITMAP_PAGES` pages long, ours alone but for Xen during a hypercall.
struct Buffer {
    start: *mut u8,
}

impl Buffer {
    fn new() -> Result<Buffer> {
        pages(1 + BITMAP_PAGES).map(|start| Buffer { start })
    }

    fn call(&self) -> *mut ShadowOp {
        self.start.cast()
    }

    fn bitmap(&self) -> *mut u8 {
        self.start.wrapping_add(PAGE)
    }

    /// One operation on `domain`; the answer, and the bitmap for as many pages as it says.
    fn shadow_op(&self, domain: u16, op: u32) -> Result<(ShadowOp, Vec<u8>)> {
        let call = ShadowOp {
            command: DOMCTL_SHADOW_OP,
            interface_version: INTERFACE_VERSION,
            domain,
            pad: [0; 3],
            op,
            mode: 0,
            mb: 0,
            hole: 0,
            bitmap: if op == OP_CLEAN { self.bitmap().addr() as u64 } else { 0 },
            pages: if op == OP_CLEAN { (BITMAP_PAGES * PAGE * 8) as u64 } else { 0 },
            faults: 0,
            dirty: 0,
            rest: [0; 11],
        };
        // SAFETY: aligned and long enough (BU1).
        unsafe { self.call().write(call) };
        let arguments = [self.call().addr() as u64, 0, 0, 0, 0];
        // SAFETY: Xen reads and writes the `ShadowOp` and, for OP_CLEAN, the bitmap (BU1).
        unsafe { Privcmd::open()?.call(HYPERVISOR_DOMCTL, arguments) }?;
        // SAFETY: as it was written, and Xen has written numbers into it.
        let answer = unsafe { self.call().read() };
        let bytes = usize::try_from(answer.pages.div_ceil(8)).unwrap_or(usize::MAX).min(BITMAP_PAGES * PAGE);
        let bytes = if op == OP_CLEAN { bytes } else { 0 };
        // SAFETY: within the mapping (BU1), which is all written: it came zeroed.
        let bitmap = unsafe { std::slice::from_raw_parts(self.bitmap(), bytes) };
        Ok((answer, bitmap.to_vec()))
    }
}

/// The set bits below `pages`, as `1,7-9`; and how many.
fn ranges(bitmap: &[u8], pages: u64) -> (u64, String) {
    let is_set = |pfn: u64| bitmap.get((pfn / 8) as usize).is_some_and(|byte| byte >> (pfn % 8) & 1 != 0);
    let (mut count, mut text, mut pfn) = (0, String::new(), 0);
    while pfn < pages {
        if !is_set(pfn) {
            pfn += 1;
            continue;
        }
        let first = pfn;
        while pfn < pages && is_set(pfn) {
            pfn += 1;
        }
        count += pfn - first;
        let separator = if text.is_empty() { "" } else { "," };
        text +=
            &if pfn - first == 1 { format!("{separator}{first}") } else { format!("{separator}{first}-{}", pfn - 1) };
    }
    (count, text)
}

fn run(domain: &str, what: &str) -> Result<()> {
    let domain = domain.parse().map_err(|_| Error::other(format!("{domain} is no domain's number")))?;
    let buffer = Buffer::new()?;
    match what {
        "on" => {
            // As libxenguest does: whoever was here before may have left it on.
            if buffer.shadow_op(domain, OP_ENABLE_LOGDIRTY).is_err() {
                buffer.shadow_op(domain, OP_OFF)?;
                buffer.shadow_op(domain, OP_ENABLE_LOGDIRTY)?;
            }
            buffer.shadow_op(domain, OP_CLEAN)?;
        }
        "take" => {
            let (answer, bitmap) = buffer.shadow_op(domain, OP_CLEAN)?;
            // Xen does not say whether the mode is on, and refuses only to switch it on twice.
            if buffer.shadow_op(domain, OP_ENABLE_LOGDIRTY).is_ok() {
                buffer.shadow_op(domain, OP_OFF)?;
                return Err(Error::other("log-dirty mode is not on; the end of a save switches it off"));
            }
            let (dirty, pfns) = ranges(&bitmap, answer.pages);
            println!("dirty={dirty} pages={} pfns={pfns}", answer.pages);
        }
        "off" => drop(buffer.shadow_op(domain, OP_OFF)?),
        other => return Err(Error::other(format!("{other} is none of on, take, off"))),
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [domain, what] = arguments.as_slice() else {
        eprintln!("log-dirty DOMID on|take|off");
        return ExitCode::from(2);
    };
    match run(domain, what) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("log-dirty: domain {domain}: {what}: {error}");
            ExitCode::FAILURE
        }
    }
}
