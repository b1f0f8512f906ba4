//! [`Entry`]: one entry of a page table, as Xen takes and returns it.
//!
//! Entries are made whole, from an mfn and an [`Access`], never by setting bits in one that was read: Xen sets US and
//! A by itself and bit 52 on entries that were written without US, so reading back says less than it seems to. What `Access`
//! cannot spell, a page that is writable and executable, does not exist.
//!
//! US is clear in leaf entries of the kernel's: Xen makes one that has US and lacks bit 52 a user page with a global TLB entry
//! (`pv/mm.h: adjust_guest_l1e`). It is set in those of user mode's own roots alone ([`Entry::user_page`]). Never PSE, PAT, PCD, PWT: EINVAL. A non-present entry is 0: on machines with
//! L1TF, any address bits in one make Xen switch the whole domain to shadow paging.
//!
//! Context: any; plain values.

use core::fmt;
use core::marker::PhantomData;

use bitflags::bitflags;

use crate::addr::Mfn;

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

bitflags! {
    /// Bits of an entry.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Flags: u64 {
        /// P: maps something.
        const PRESENT = 1 << 0;
        /// RW: may be written through.
        const WRITABLE = 1 << 1;
        /// US. Xen sets it on whatever is present.
        const USER = 1 << 2;
        /// PWT. Xen refuses it.
        const WRITE_THROUGH = 1 << 3;
        /// PCD. Xen refuses it.
        const UNCACHED = 1 << 4;
        /// A.
        const ACCESSED = 1 << 5;
        /// D.
        const DIRTY = 1 << 6;
        /// PSE in upper levels, PAT in L1. Xen refuses it from guests; its own builder of an initial domain sets it in the p2m's L2.
        const HUGE = 1 << 7;
        /// G. Xen sets it on user pages.
        const GLOBAL = 1 << 8;
        /// Xen's mark of a kernel page (`_PAGE_GUEST_KERNEL`).
        const XEN_KERNEL = 1 << 52;
        /// NX.
        const NO_EXECUTE = 1 << 63;
    }
}

/// What may be done with a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read.
    R,
    /// Read and write.
    Rw,
    /// Read and execute.
    Rx,
}

impl Access {
    const fn flags(self) -> Flags {
        match self {
            Access::R => Flags::NO_EXECUTE,
            Access::Rw => Flags::NO_EXECUTE.union(Flags::WRITABLE),
            Access::Rx => Flags::empty(),
        }
    }
}

/// One entry of a page table. Holds an mfn, and goes stale with it: see [`Mfn`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    raw: u64,
    not_send: PhantomData<*const ()>,
}

impl Entry {
    /// Maps nothing.
    pub const EMPTY: Entry = Entry::from_raw(0);

    /// The entry that `raw` is.
    pub const fn from_raw(raw: u64) -> Entry {
        Entry { raw, not_send: PhantomData }
    }

    /// A leaf: maps the page `mfn`.
    pub const fn page(mfn: Mfn, access: Access) -> Entry {
        let flags = Flags::PRESENT.union(Flags::ACCESSED).union(access.flags());
        Entry::from_raw(mfn.maddr() | flags.bits())
    }

    /// A leaf of user mode's: as [`Entry::page`], and user mode may use it.
    pub const fn user_page(mfn: Mfn, access: Access) -> Entry {
        Entry::from_raw(Entry::page(mfn, access).raw | Flags::USER.bits())
    }

    /// Points to the table `mfn` of the next level down.
    pub const fn table(mfn: Mfn) -> Entry {
        let flags = Flags::PRESENT.union(Flags::WRITABLE).union(Flags::USER).union(Flags::ACCESSED);
        Entry::from_raw(mfn.maddr() | flags.bits())
    }

    /// The same, nothing below it executable.
    #[must_use]
    pub const fn no_execute(self) -> Entry {
        Entry::from_raw(self.raw | Flags::NO_EXECUTE.bits())
    }

    /// As written in the table.
    pub const fn raw(self) -> u64 {
        self.raw
    }

    /// Its bits, without the address.
    pub const fn flags(self) -> Flags {
        Flags::from_bits_truncate(self.raw)
    }

    /// Whether it maps something.
    pub const fn is_present(self) -> bool {
        self.flags().contains(Flags::PRESENT)
    }

    /// The page or table that it leads to; `None` if it maps nothing.
    pub const fn mfn(self) -> Option<Mfn> {
        if self.is_present() { Some(Mfn::of_maddr(self.raw & ADDRESS)) } else { None }
    }

    /// Whether `self`, as read from a leaf, does what `wanted` asks for: the same page and the same rights. What Xen and the
    /// processor set by themselves doesn't count.
    pub fn does(self, wanted: Entry) -> bool {
        let rights = Flags::PRESENT | Flags::WRITABLE | Flags::NO_EXECUTE;
        match (self.mfn(), wanted.mfn()) {
            (None, None) => true,
            (Some(mine), Some(wants)) => mine == wants && self.flags() & rights == wanted.flags() & rights,
            _ => false,
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} ({:?})", self.raw & ADDRESS, self.flags())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_access_is_writable_and_executable() {
        for access in [Access::R, Access::Rw, Access::Rx] {
            let flags = Entry::page(Mfn::new(5), access).flags();
            assert!(!flags.contains(Flags::WRITABLE) || flags.contains(Flags::NO_EXECUTE), "{access:?}");
            assert!(!flags.contains(Flags::USER), "US would make it a user page");
        }
    }

    #[test]
    fn entries_keep_their_page() {
        let mfn = Mfn::new(0xf_ffff_ffff);
        assert_eq!(Entry::page(mfn, Access::Rw).mfn(), Some(mfn));
        assert_eq!(Entry::table(mfn).no_execute().mfn(), Some(mfn));
        assert_eq!(Entry::EMPTY.mfn(), None);
        assert_eq!(Entry::from_raw(0x5000).mfn(), None, "not present, whatever the address says");
    }

    #[test]
    fn what_xen_adds_does_not_count() {
        let wanted = Entry::page(Mfn::new(5), Access::Rx);
        let read = Entry::from_raw(wanted.raw() | (Flags::USER | Flags::XEN_KERNEL | Flags::DIRTY).bits());
        assert!(read.does(wanted));
        assert!(!read.does(Entry::page(Mfn::new(5), Access::Rw)));
        assert!(!read.does(Entry::page(Mfn::new(6), Access::Rx)));
        assert!(!read.does(Entry::EMPTY));
        assert!(Entry::EMPTY.does(Entry::EMPTY));
    }
}
