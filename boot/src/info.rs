//! [`BootInfo`]: what `start_info` says, checked and copied.
//!
//! The page itself lives on: the toolstack reads it at every save and writes it at every restore, which `kernel` deals with
//! (`start_info.rs`). What a restore changes is not copied here, but for the frames of the rings, which the kernel turns into
//! its own page numbers before anything else.

use core::fmt;

use xen_sys::abi::xen::{MAX_GUEST_CMDLINE, StartInfo};

/// Machine frames of the ring pages, as the toolstack wrote them: claims, until they are found in the p2m.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFrames {
    /// xenstore's.
    pub store_mfn: u64,
    /// The console's.
    pub console_mfn: u64,
}

/// `start_info`, copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootInfo {
    /// Pages of memory that the domain has, PFNs `0..nr_pages`.
    pub nr_pages: u64,
    /// The rings. `None` in Xen's initial domain: no toolstack, no xenstore, nobody who could suspend us; its console is
    /// Xen's own, by hypercall.
    pub rings: Option<RingFrames>,
    /// Virtual address of the L4 that the builder made.
    pub pt_base: u64,
    /// Frames of page tables, from `pt_base` on.
    pub nr_pt_frames: u64,
    /// First PFN of the p2m and the tables that map it.
    pub first_p2m_pfn: u64,
    /// How many frames those take.
    pub nr_p2m_frames: u64,
    /// The command line.
    pub cmdline: CmdlineText,
}

/// The command line as it was passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CmdlineText {
    bytes: [u8; MAX_GUEST_CMDLINE],
    len: usize,
}

/// Why `start_info` cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartInfoError {
    /// The magic does not start with `xen-3.` or lacks the 64-bit marker.
    BadMagic([u8; 32]),
    /// The p2m is not where the note INIT_P2M asked for it.
    P2mElsewhere {
        /// Where it is, virtual address.
        found: u64,
        /// Where the note wants it.
        wanted: u64,
    },
}

impl fmt::Display for StartInfoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartInfoError::BadMagic(magic) => {
                f.write_str("start_info magic is not xen-3.x-x86_64 but \"")?;
                for byte in magic.iter().take_while(|byte| **byte != 0) {
                    write!(f, "{}", byte.escape_ascii())?;
                }
                f.write_str("\": is this image booted as a 64-bit PV guest?")
            }
            StartInfoError::P2mElsewhere { found, wanted } => write!(
                f,
                "the p2m is at {found:#x} and not at {wanted:#x}: the domain builder ignored the ELF note INIT_P2M"
            ),
        }
    }
}

impl BootInfo {
    /// Checks and copies `start_info`. `p2m_base` is where the note INIT_P2M asked for the p2m.
    ///
    /// # Errors
    /// [`StartInfoError`], before anything of the page but its magic is believed.
    pub fn read(start_info: &StartInfo, p2m_base: u64) -> Result<BootInfo, StartInfoError> {
        let magic = start_info.magic;
        if !magic.starts_with(b"xen-3.") || !contains(&magic, b"x86_64") {
            return Err(StartInfoError::BadMagic(magic));
        }
        if start_info.mfn_list != p2m_base {
            return Err(StartInfoError::P2mElsewhere { found: start_info.mfn_list, wanted: p2m_base });
        }
        let rings = (!start_info.is_initial_domain()).then(|| {
            // SAFETY: both arms of the union are plain integers of the same layout up to here; outside
            // of the initial domain the toolstack fills this one (`start_info_x86_64`).
            let console = unsafe { start_info.console.domU };
            RingFrames { store_mfn: start_info.store_mfn, console_mfn: console.mfn }
        });
        let bytes = start_info.cmd_line;
        let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        Ok(BootInfo {
            nr_pages: start_info.nr_pages,
            rings,
            pt_base: start_info.pt_base,
            nr_pt_frames: start_info.nr_pt_frames,
            first_p2m_pfn: start_info.first_p2m_pfn,
            nr_p2m_frames: start_info.nr_p2m_frames,
            cmdline: CmdlineText { bytes, len },
        })
    }
}

impl CmdlineText {
    /// Up to its NUL. At most 1023 bytes: the builder cuts longer ones in silence. Bytes that are not UTF-8 end it.
    pub fn as_str(&self) -> &str {
        let bytes = &self.bytes[..self.len];
        match core::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
        }
    }

    /// Whether it may have been cut: it fills all the room that `start_info` has.
    pub fn may_be_cut(&self) -> bool {
        self.len >= MAX_GUEST_CMDLINE - 1
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use xen_sys::abi::xen::{SIF_INITDOMAIN, StartInfoConsoleDomU};

    use super::*;

    const P2M: u64 = 0xffff_9000_0000_0000;

    fn start_info(magic: &[u8], cmdline: &[u8]) -> StartInfo {
        let mut info = StartInfo { mfn_list: P2M, nr_pages: 4096, ..StartInfo::zeroed() };
        for (to, from) in info.magic.iter_mut().zip(magic) {
            *to = *from;
        }
        for (to, from) in info.cmd_line.iter_mut().zip(cmdline) {
            *to = *from;
        }
        info
    }

    #[test]
    fn takes_what_the_toolstack_writes() {
        let mut raw = start_info(b"xen-3.0-x86_64", b"evtchn=2l log=info");
        raw.store_mfn = 0x1234;
        raw.console.domU = StartInfoConsoleDomU { mfn: 0x1235, evtchn: 2 };
        let info = BootInfo::read(&raw, P2M).expect("well formed");
        assert_eq!(info.cmdline.as_str(), "evtchn=2l log=info");
        assert_eq!(info.rings, Some(RingFrames { store_mfn: 0x1234, console_mfn: 0x1235 }));
    }

    #[test]
    fn the_initial_domain_has_no_rings() {
        let mut raw = start_info(b"xen-3.0-x86_64", b"");
        raw.flags = SIF_INITDOMAIN;
        let info = BootInfo::read(&raw, P2M).expect("well formed");
        assert_eq!(info.rings, None);
    }

    #[test]
    fn a_wrong_magic_is_named() {
        let error = BootInfo::read(&start_info(b"xen-3.0-x86_32p", b""), P2M).expect_err("32 bit");
        assert!(matches!(error, StartInfoError::BadMagic(_)));
        assert!(error.to_string().contains("xen-3.0-x86_32p"), "{error}");
        assert!(BootInfo::read(&start_info(b"", b""), P2M).is_err());
    }

    #[test]
    fn a_p2m_elsewhere_is_named() {
        let error = BootInfo::read(&start_info(b"xen-3.0-x86_64", b""), P2M + 4096).expect_err("elsewhere");
        assert_eq!(error, StartInfoError::P2mElsewhere { found: P2M, wanted: P2M + 4096 });
    }

    #[test]
    fn a_full_or_garbled_command_line_is_survived() {
        let full = [b'a'; MAX_GUEST_CMDLINE];
        let info = BootInfo::read(&start_info(b"xen-3.0-x86_64", &full), P2M).expect("well formed");
        assert_eq!(info.cmdline.as_str().len(), MAX_GUEST_CMDLINE);
        assert!(info.cmdline.may_be_cut());
        let info = BootInfo::read(&start_info(b"xen-3.0-x86_64", b"log=info \xff\xfe x"), P2M).expect("well formed");
        assert_eq!(info.cmdline.as_str(), "log=info ");
    }
}
