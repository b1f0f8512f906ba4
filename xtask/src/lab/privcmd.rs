//! One hypercall from dom0's user space, by privcmd, and memory for its arguments. A module of the programs that `agent_build.rs` compiles.
//!
//! Turned down: libxenctrl, whose headers and libraries would have to be there when this is compiled.
//!
//! Source: linux/include/uapi/xen/privcmd.h.

use std::ffi::{c_int, c_long, c_ulong, c_void};
use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;

/// `_IOC(_IOC_NONE, 'P', 0, sizeof(struct privcmd_hypercall))`
const IOCTL_PRIVCMD_HYPERCALL: c_ulong = 0x0030_5000;

pub const PAGE: usize = 4096;

/// `struct privcmd_hypercall`
#[repr(C)]
struct Hypercall {
    op: u64,
    arguments: [u64; 5],
}

const _: () = assert!(size_of::<Hypercall>() == 48);

unsafe extern "C" {
    fn ioctl(file: c_int, request: c_ulong, argument: *mut c_void) -> c_int;
    fn mmap(
        address: *mut c_void,
        length: usize,
        protection: c_int,
        flags: c_int,
        file: c_int,
        offset: c_long,
    ) -> *mut c_void;
}

/// The way to Xen.
pub struct Privcmd(File);

impl Privcmd {
    pub fn open() -> Result<Privcmd> {
        File::options().read(true).write(true).open("/dev/xen/privcmd").map(Privcmd)
    }

    /// # Safety
    /// Xen may do what this hypercall does, also to the memory that its arguments name.
    pub unsafe fn call(&self, op: u64, arguments: [u64; 5]) -> Result<()> {
        let mut call = Hypercall { op, arguments };
        // SAFETY: the request takes a `Hypercall`; the rest is the caller's.
        let done = unsafe { ioctl(self.0.as_raw_fd(), IOCTL_PRIVCMD_HYPERCALL, (&raw mut call).cast()) };
        if done == 0 { Ok(()) } else { Err(Error::last_os_error()) }
    }
}

/// Pages that Xen can write to: the kernel neither moves them nor takes them away, they come zeroed, and are ours alone but for Xen
/// during a hypercall. Mapped until the program ends.
pub fn pages(number: usize) -> Result<*mut u8> {
    const READ_WRITE: c_int = 3;
    const SHARED: c_int = 1;
    let file = File::options().read(true).write(true).open("/dev/xen/hypercall")?;
    // SAFETY: a new mapping, where the kernel finds room.
    let start = unsafe { mmap(std::ptr::null_mut(), number * PAGE, READ_WRITE, SHARED, file.as_raw_fd(), 0) };
    if start.addr() == usize::MAX { Err(Error::last_os_error()) } else { Ok(start.cast()) }
}
