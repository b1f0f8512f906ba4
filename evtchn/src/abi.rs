//! [`Abi`]: which of Xen's two event channel ABIs is in use. Chosen once at boot, the same on every CPU.
//!
//! The only place that knows there could be two. An enum and not a trait object, so that the compiler sees through
//! it in the upcall; not a type parameter of [`Events`](crate::Events), because the choice is made at boot.
//! With FIFO come a variant here, its event array in the variant, its control blocks and heads beside
//! [`OwnPorts`], and an answer from `unmask_own` that only Xen can link a pending port again.

use core::fmt;
use core::ptr::NonNull;

use percpu::{Masked, Quiesced};
use xen_sys::abi::xen::{SharedInfo, VcpuInfo};

use crate::port::PortNr;
use crate::shared_page::SharedPage;
use crate::two_level::{self, OwnPorts, Taken, TwoLevel};

/// The event channel ABIs that this kernel speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AbiKind {
    /// Pending and mask bits in `shared_info`; 4096 ports.
    TwoLevel,
}

impl fmt::Display for AbiKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AbiKind::TwoLevel => f.write_str("2l"),
        }
    }
}

/// The ABI in use, with what it needs for the whole domain.
pub(crate) enum Abi {
    TwoLevel { page: SharedPage },
}

impl Abi {
    pub(crate) fn new(kind: AbiKind) -> Abi {
        match kind {
            AbiKind::TwoLevel => Abi::TwoLevel { page: SharedPage::new() },
        }
    }

    pub(crate) fn kind(&self) -> AbiKind {
        match self {
            Abi::TwoLevel { .. } => AbiKind::TwoLevel,
        }
    }

    /// Port numbers are below this.
    pub(crate) fn capacity(&self) -> usize {
        match self {
            Abi::TwoLevel { .. } => two_level::CAPACITY,
        }
    }

    /// Uses `page` from now on.
    ///
    /// # Safety
    /// As [`SharedPage::attach`].
    pub(crate) unsafe fn attach(&self, quiesced: &Quiesced, page: NonNull<SharedInfo>) {
        match self {
            // SAFETY: the same clause.
            Abi::TwoLevel { page: slot } => unsafe { slot.attach(quiesced, page) },
        }
    }

    pub(crate) fn detach(&self, quiesced: &Quiesced) {
        match self {
            Abi::TwoLevel { page } => page.detach(quiesced),
        }
    }

    pub(crate) fn is_attached(&self) -> bool {
        self.two_level().is_some()
    }

    /// Masks all ports. As all that follows, it does nothing while no page is attached.
    pub(crate) fn mask_all(&self, quiesced: &Quiesced) {
        if let Some(abi) = self.two_level() {
            abi.mask_all(quiesced);
        }
    }

    pub(crate) fn mask_port(&self, nr: PortNr) {
        if let Some(abi) = self.two_level() {
            abi.mask_port(nr);
        }
    }

    pub(crate) fn unmask_own(&self, masked: &Masked, flags: &VcpuInfo, nr: PortNr) {
        if let Some(abi) = self.two_level() {
            abi.unmask_own(masked, flags, nr);
        }
    }

    pub(crate) fn is_pending_racy(&self, nr: PortNr) -> bool {
        self.two_level().is_some_and(|abi| abi.is_pending_racy(nr))
    }

    pub(crate) fn is_masked_racy(&self, nr: PortNr) -> bool {
        self.two_level().is_some_and(|abi| abi.is_masked_racy(nr))
    }

    /// Clears what `flags` say is pending, and looks at no port.
    pub(crate) fn drop_pending(&self, masked: &Masked, flags: &VcpuInfo) {
        match self {
            Abi::TwoLevel { .. } => {
                TwoLevel::take_selector(masked, flags);
            }
        }
    }

    /// `None` if no page is attached; `flags` are left alone then.
    pub(crate) fn take_pending(
        &self,
        masked: &Masked,
        flags: &VcpuInfo,
        own: &OwnPorts,
        handle: impl FnMut(PortNr),
    ) -> Option<Taken> {
        Some(self.two_level()?.take_pending(masked, flags, own, handle))
    }

    fn two_level(&self) -> Option<TwoLevel<'_>> {
        match self {
            Abi::TwoLevel { page } => page.get().map(TwoLevel::new),
        }
    }
}
