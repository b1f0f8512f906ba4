//! [`SharedPage`]: where the domain's `shared_info` is mapped, if it is.
//!
//! The page is unmapped before a suspend (the toolstack drops the page table that maps it, in silence) and mapped
//! again afterwards, the same frame or another. Suspend: *cleared* by detach, *rebuilt* by attach, both on vCPU 0 with
//! all others parked. Read in every upcall: one load of a line that is written only then.
//!
//! - SP1: the pointer is null, or a `shared_info` is mapped there.
//! - SP2: it is unmapped only after [`SharedPage::detach`], under [`Quiesced`]: no other CPU is in this crate then
//!   (a parked CPU's upcall does not come here), and this one is not, since the borrow that [`SharedPage::get`] lends
//!   stays inside functions of this crate, and none of them detaches, or calls what could, while it holds one: handlers
//!   run in an upcall, and `detach` is not for upcalls.

use core::ptr::{self, NonNull};

use percpu::Quiesced;
use xen_sys::abi::xen::SharedInfo;
use xen_sys::primitive::sync::atomic::{AtomicPtr, Ordering};

pub(crate) struct SharedPage {
    page: AtomicPtr<SharedInfo>,
}

impl SharedPage {
    pub(crate) fn new() -> SharedPage {
        SharedPage { page: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Lends the page out from now on.
    ///
    /// # Safety
    /// A `shared_info` is mapped at `page`, and stays so until [`SharedPage::detach`].
    pub(crate) unsafe fn attach(&self, _quiesced: &Quiesced, page: NonNull<SharedInfo>) {
        // ORDERING: Relaxed. Every other CPU is parked, or not started; its release, or its start, shows it this and
        // all that was written before.
        self.page.store(page.as_ptr(), Ordering::Relaxed);
    }

    /// Lends nothing from now on.
    pub(crate) fn detach(&self, _quiesced: &Quiesced) {
        // ORDERING: Relaxed, as in `attach`.
        self.page.store(ptr::null_mut(), Ordering::Relaxed);
    }

    /// The page, if it is mapped.
    pub(crate) fn get(&self) -> Option<&SharedInfo> {
        // ORDERING: Relaxed, as in `attach`.
        let page = NonNull::new(self.page.load(Ordering::Relaxed))?;
        // SAFETY: mapped by SP1, and for as long as the borrow lives by SP2. Xen writes to it at any time, and
        // `SharedInfo` is made of atomics.
        Some(unsafe { page.as_ref() })
    }
}
