//! xen.h: `start_info`, what the builder tells the guest, and what the restorer rewrites while no vcpu runs.
//!
//! Plain data: nobody writes it while the guest runs. But a suspend changes it between two instructions of vcpu 0, so
//! no `&StartInfo` may live across one: read the fields that you need through the raw pointer, each time anew.
//! Contexts: boot, and the suspend path on vcpu 0.
#![forbid(unsafe_code)]

use super::xen_pfn_t;

/// How `StartInfo::magic` begins in a 64-bit domain.
pub const START_INFO_MAGIC: &[u8] = b"xen-3.0-x86_64";
/// Size of `StartInfo::cmd_line`, with the terminating zero.
pub const MAX_GUEST_CMDLINE: usize = 1024;

/// In `StartInfo::flags`: a privileged domain.
pub const SIF_PRIVILEGED: u32 = 1 << 0;
/// In `StartInfo::flags`: the initial domain.
pub const SIF_INITDOMAIN: u32 = 1 << 1;
/// In `StartInfo::flags`: `mod_start` is a multiboot module.
pub const SIF_MULTIBOOT_MOD: u32 = 1 << 2;
/// In `StartInfo::flags`: `mod_start` is a pfn, not an address.
pub const SIF_MOD_START_PFN: u32 = 1 << 3;
/// In `StartInfo::flags`: the toolstack follows a linear p2m.
pub const SIF_VIRT_P2M_4TOOLS: u32 = 1 << 4;
/// In `StartInfo::flags`: power management options.
pub const SIF_PM_MASK: u32 = 0xff << 8;

/// What the builder passes in rsi at entry. At restore only the fields up to `console` are written anew.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct StartInfo {
    /// Begins with [`START_INFO_MAGIC`], zero-terminated.
    pub magic: [u8; 32],
    /// Pages of the domain; after a restore, its highest pfn plus one.
    pub nr_pages: u64,
    /// *Machine address* of the shared_info page.
    pub shared_info: u64,
    /// `SIF_*`.
    pub flags: u32,
    /// mfn of the xenstore ring.
    pub store_mfn: xen_pfn_t,
    /// Port of xenstore.
    pub store_evtchn: u32,
    /// The console: ring and port in a domU, screen information in the initial domain.
    pub console: StartInfoConsole,
    /// Virtual address of the L4.
    pub pt_base: u64,
    /// Number of page-table pages built.
    pub nr_pt_frames: u64,
    /// Virtual address of the p2m list.
    pub mfn_list: u64,
    /// Virtual address, or pfn ([`SIF_MOD_START_PFN`]), of the ramdisk.
    pub mod_start: u64,
    /// Bytes of the ramdisk.
    pub mod_len: u64,
    /// Command line, zero-terminated.
    pub cmd_line: [u8; MAX_GUEST_CMDLINE],
    /// First pfn of the p2m list, if it lies outside of the initial mapping.
    pub first_p2m_pfn: u64,
    /// Number of frames of that list.
    pub nr_p2m_frames: u64,
}

impl StartInfo {
    /// All zero; for tests, which fill what they need.
    pub const fn zeroed() -> Self {
        Self {
            magic: [0; 32],
            nr_pages: 0,
            shared_info: 0,
            flags: 0,
            store_mfn: 0,
            store_evtchn: 0,
            console: StartInfoConsole { domU: StartInfoConsoleDomU { mfn: 0, evtchn: 0 } },
            pt_base: 0,
            nr_pt_frames: 0,
            mfn_list: 0,
            mod_start: 0,
            mod_len: 0,
            cmd_line: [0; MAX_GUEST_CMDLINE],
            first_p2m_pfn: 0,
            nr_p2m_frames: 0,
        }
    }

    /// Whether the domain is the initial one, and `console` therefore holds the `dom0` variant.
    pub const fn is_initial_domain(&self) -> bool {
        self.flags & SIF_INITDOMAIN != 0
    }
}

/// `StartInfo::console`. [`StartInfo::is_initial_domain`] says which variant holds.
#[repr(C)]
#[derive(Clone, Copy)]
#[expect(non_snake_case, reason = "spelled as Xen spells it")]
pub union StartInfoConsole {
    /// Of an ordinary domain.
    pub domU: StartInfoConsoleDomU,
    /// Of the initial domain.
    pub dom0: StartInfoConsoleDom0,
}

impl core::fmt::Debug for StartInfoConsole {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("StartInfoConsole").finish_non_exhaustive()
    }
}

/// The PV console of an ordinary domain.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct StartInfoConsoleDomU {
    /// mfn of the ring.
    pub mfn: xen_pfn_t,
    /// Its port.
    pub evtchn: u32,
}

/// Where the initial domain finds what Xen knows about the screen.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct StartInfoConsoleDom0 {
    /// Offset of the console information from `start_info`, in bytes.
    pub info_off: u32,
    /// Its size in bytes.
    pub info_size: u32,
}
