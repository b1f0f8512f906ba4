//! [`MmError`]: what failed, on what, and with which of Xen's numbers.

use core::fmt;

use xen_sys::Errno;

use crate::addr::Pfn;

/// Failure of an operation on memory. Numbers of machine frames are left out: they mean nothing to a reader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MmError {
    /// The domain has too little memory. Nothing has been touched.
    TooSmall {
        /// Pages that there are.
        have_pages: u64,
        /// Pages that would do.
        need_pages: u64,
    },
    /// The domain has more memory than the direct map has room for. Nothing has been touched.
    TooLarge {
        /// Pages that there are.
        have_pages: u64,
        /// Pages that can be used.
        max_pages: u64,
    },
    /// The boot information or the builder's tables contradict each other at `va`.
    Builder {
        /// An address that should be mapped, or should lie elsewhere.
        va: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The tables that map the p2m have a hole, at which the toolstack would stop.
    P2mHole {
        /// The address in the p2m that nothing leads to.
        va: u64,
        /// Level of the table whose entry is 0.
        level: u32,
    },
    /// A page of ours has no machine page.
    NoMachinePage {
        /// The page.
        pfn: Pfn,
    },
    /// `update_va_mapping` of one page failed.
    Map {
        /// Its address.
        va: u64,
        /// Xen's answer.
        errno: Errno,
    },
    /// `mmu_update` of an entry failed.
    Update {
        /// An address that the entry covers.
        va: u64,
        /// Xen's answer.
        errno: Errno,
    },
    /// The root could not be pinned.
    Pin {
        /// The L4 table.
        root: Pfn,
        /// Xen's answer.
        errno: Errno,
    },
    /// The root could not be unpinned.
    Unpin {
        /// The L4 table.
        root: Pfn,
        /// Xen's answer; EINVAL if it is not pinned.
        errno: Errno,
    },
    /// The TLBs could not be flushed.
    Flush {
        /// Xen's answer.
        errno: Errno,
    },
    /// The end of the machine's memory could not be had.
    MachineEnd {
        /// Xen's answer.
        errno: Errno,
    },
    /// No page frames left to map `va` with.
    NoFrames {
        /// The address.
        va: u64,
        /// How many in a row were asked for.
        nr: u64,
    },
    /// `va` is not a page of the area's.
    OutsideArea {
        /// The address.
        va: u64,
    },
    /// `va` maps something already.
    Occupied {
        /// The address.
        va: u64,
    },
    /// `va` maps nothing.
    NotMapped {
        /// The address.
        va: u64,
    },
}

impl fmt::Display for MmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            MmError::TooSmall { have_pages, need_pages } => write!(
                f,
                "too little memory: {have_pages} pages ({} MiB), needed are {need_pages} ({} MiB)",
                have_pages / 256,
                need_pages.div_ceil(256),
            ),
            MmError::TooLarge { have_pages, max_pages } => {
                write!(f, "too much memory: {have_pages} pages, at most {max_pages} can be mapped")
            }
            MmError::Builder { va, what } => {
                write!(f, "the domain builder's memory map is unusable at {va:#x}: {what}")
            }
            MmError::P2mHole { va, level } => write!(f, "the p2m is not mapped at {va:#x}: no entry at level {level}"),
            MmError::NoMachinePage { pfn } => write!(f, "{pfn} has no machine page"),
            MmError::Map { va, errno } => write!(f, "update_va_mapping of {va:#x} failed: {errno}"),
            MmError::Update { va, errno } => write!(f, "mmu_update of an entry that maps {va:#x} failed: {errno}"),
            MmError::Pin { root, errno } => write!(f, "pinning the root ({root}) failed: {errno}"),
            MmError::Unpin { root, errno } => write!(f, "unpinning the root ({root}) failed: {errno}"),
            MmError::Flush { errno } => write!(f, "flushing the TLBs failed: {errno}"),
            MmError::MachineEnd { errno } => write!(f, "XENMEM_maximum_ram_page failed: {errno}"),
            MmError::NoFrames { va, nr } => {
                write!(f, "out of memory: no {nr} page frames left to map {va:#x} with; raise memory=")
            }
            MmError::OutsideArea { va } => write!(f, "{va:#x} is not a page of the mapping area"),
            MmError::Occupied { va } => write!(f, "{va:#x} is mapped already"),
            MmError::NotMapped { va } => write!(f, "{va:#x} is not mapped"),
        }
    }
}

impl core::error::Error for MmError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_also_given_in_mib() {
        let text = MmError::TooSmall { have_pages: 1024, need_pages: 1300 }.to_string();
        assert!(text.contains("4 MiB") && text.contains("6 MiB"), "{text}");
    }

    #[test]
    fn errors_name_object_and_errno() {
        let text = MmError::Map { va: 0xffff_a000_0000_1000, errno: Errno::EINVAL }.to_string();
        assert!(text.contains("0xffffa00000001000") && text.contains("EINVAL"), "{text}");
    }
}
