//! [`Abi`]: which of Xen's two event channel ABIs is in use. Chosen once at boot, the same on every CPU.
//!
//! The only place that knows there are two. An enum and not a trait object, so that the compiler sees through it in
//! the upcall; not a type parameter of [`Events`](crate::Events), because the choice is made at boot. Each has a part
//! for the domain, here, and a part for each CPU, [`Own`].

use core::fmt;
use core::ptr::NonNull;

use percpu::{CpuId, Masked, Quiesced};
use xen_sys::Errno;
use xen_sys::abi::event_channel::EvtchnFifoControlBlock;
use xen_sys::abi::xen::VcpuInfo;

use crate::counters::Counter;
use crate::error::AttachError;
use crate::fifo::array::{self, EventArray};
use crate::fifo::queues::Queues;
use crate::fifo::word::{EventWord, Unmasked};
use crate::hypervisor::Hypervisor;
use crate::port::{Incarnation, PortNr};
use crate::shared_page::SharedPage;
use crate::two_level::{self, OwnPorts, TwoLevel};

/// The event channel ABIs that this kernel speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AbiKind {
    /// Pending and mask bits in `shared_info`; 4096 ports.
    TwoLevel,
    /// A word for each port and queues for each vcpu; 131072 ports.
    Fifo,
}

impl fmt::Display for AbiKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AbiKind::TwoLevel => "2l",
            AbiKind::Fifo => "fifo",
        })
    }
}

/// The ABI in use, with what it needs for the whole domain.
#[cfg_attr(not(loom), expect(clippy::large_enum_variant, reason = "one for the domain, and looked at for each event"))]
pub(crate) enum Abi {
    TwoLevel(SharedPage),
    Fifo(EventArray),
}

/// What the ABI in use needs for one CPU. Made by [`Abi::own`], so it is of the same kind as the [`Abi`] that it is
/// given to.
#[expect(clippy::large_enum_variant, reason = "one for each CPU, and looked at in every upcall")]
pub(crate) enum Own {
    TwoLevel(OwnPorts),
    Fifo(Queues),
}

impl Abi {
    pub(crate) fn new(kind: AbiKind) -> Abi {
        match kind {
            AbiKind::TwoLevel => Abi::TwoLevel(SharedPage::new()),
            AbiKind::Fifo => Abi::Fifo(EventArray::new()),
        }
    }

    /// A CPU's part.
    pub(crate) fn own(&self) -> Own {
        match self {
            Abi::TwoLevel(_) => Own::TwoLevel(OwnPorts::new()),
            Abi::Fifo(_) => Own::Fifo(Queues::new()),
        }
    }

    pub(crate) fn kind(&self) -> AbiKind {
        match self {
            Abi::TwoLevel(_) => AbiKind::TwoLevel,
            Abi::Fifo(_) => AbiKind::Fifo,
        }
    }

    /// Port numbers are below this.
    pub(crate) fn capacity(&self) -> usize {
        match self {
            Abi::TwoLevel(_) => two_level::CAPACITY,
            Abi::Fifo(_) => array::CAPACITY,
        }
    }

    /// Where `shared_info` is, to be attached and detached; only the 2-level ABI has events in it.
    pub(crate) fn shared_page(&self) -> Option<&SharedPage> {
        match self {
            Abi::TwoLevel(page) => Some(page),
            Abi::Fifo(_) => None,
        }
    }

    /// Whether what events stand in can be reached.
    pub(crate) fn is_attached(&self) -> bool {
        match self {
            Abi::TwoLevel(page) => page.get().is_some(),
            Abi::Fifo(_) => true,
        }
    }

    /// A life of the domain begins, in which Xen speaks the 2-level ABI and knows nothing of ours: all ports are masked,
    /// and the domain is switched over. `boot` is vCPU 0's.
    ///
    /// # Errors
    /// Which operation Xen refused, and why.
    pub(crate) fn begin<H: Hypervisor>(
        &self,
        quiesced: &Quiesced,
        xen: &H,
        boot: &Own,
        life: Incarnation,
    ) -> Result<(), AttachError> {
        match self {
            Abi::TwoLevel(page) => {
                if let Some(abi) = two_level(page) {
                    abi.mask_all(quiesced);
                }
            }
            Abi::Fifo(array) => {
                array.reset(quiesced);
                if let Some(block) = boot.introduce(life) {
                    // SAFETY: empty, and the block lives as long as the kernel's `Events`.
                    let told = unsafe { xen.init_control(CpuId::BOOT, xen.place_of(block)) };
                    told.map_err(|errno| AttachError { what: "init_control", errno })?;
                }
                array.tell_all(quiesced, xen).map_err(|errno| AttachError { what: "expand_array", errno })?;
            }
        }
        Ok(())
    }

    /// Makes sure that Xen can raise events on `nr`.
    ///
    /// # Errors
    /// Xen's; `ENOSPC` beyond the ABI.
    pub(crate) fn reach(&self, xen: &impl Hypervisor, nr: PortNr) -> Result<(), Errno> {
        match self {
            Abi::TwoLevel(_) if nr.index() < two_level::CAPACITY => Ok(()),
            Abi::TwoLevel(_) => Err(Errno::ENOSPC),
            Abi::Fifo(array) => array.reach(xen, nr),
        }
    }

    pub(crate) fn mask_port(&self, nr: PortNr) {
        match self {
            Abi::TwoLevel(page) => {
                if let Some(abi) = two_level(page) {
                    abi.mask_port(nr);
                }
            }
            Abi::Fifo(array) => {
                if let Some(word) = array.word(nr) {
                    word.mask();
                }
            }
        }
    }

    /// Makes an event of `nr` wait behind its mask. Where none of this CPU's work is to be seen by who takes it.
    pub(crate) fn make_pending_masked(&self, nr: PortNr) {
        match self {
            Abi::TwoLevel(page) => {
                if let Some(abi) = two_level(page) {
                    abi.make_pending_masked(nr);
                }
            }
            Abi::Fifo(array) => {
                if let Some(word) = array.word(nr) {
                    word.make_pending_masked();
                }
            }
        }
    }

    /// An event that waits on `nr` is forgotten. Whether there is such a port.
    pub(crate) fn forget_pending(&self, nr: PortNr) -> bool {
        match self {
            Abi::TwoLevel(page) => two_level(page).is_some_and(|abi| abi.forget_pending(nr)),
            Abi::Fifo(array) => array.word(nr).map(EventWord::forget_pending).is_some(),
        }
    }

    /// Unmasks a port of this CPU's.
    pub(crate) fn unmask_own(&self, masked: &Masked, flags: &VcpuInfo, nr: PortNr) -> Unmasked {
        match self {
            Abi::TwoLevel(page) => {
                if let Some(abi) = two_level(page) {
                    abi.unmask_own(masked, flags, nr);
                }
                Unmasked::Done
            }
            Abi::Fifo(array) => array.word(nr).map_or(Unmasked::Done, |word| word.unmask()),
        }
    }

    pub(crate) fn is_pending_racy(&self, nr: PortNr) -> bool {
        match self {
            Abi::TwoLevel(page) => two_level(page).is_some_and(|abi| abi.is_pending_racy(nr)),
            Abi::Fifo(array) => array.word(nr).is_some_and(|word| word.is_pending_racy()),
        }
    }

    pub(crate) fn is_masked_racy(&self, nr: PortNr) -> bool {
        match self {
            Abi::TwoLevel(page) => two_level(page).is_some_and(|abi| abi.is_masked_racy(nr)),
            Abi::Fifo(array) => array.word(nr).is_some_and(|word| word.is_masked_racy()),
        }
    }

    /// Whether `nr` stands in a queue of some vcpu's; never with the 2-level ABI.
    pub(crate) fn is_linked_racy(&self, nr: PortNr) -> bool {
        match self {
            Abi::TwoLevel(_) => false,
            Abi::Fifo(array) => array.word(nr).is_some_and(|word| word.is_linked_racy()),
        }
    }

    /// Clears what `flags` say is pending, and looks at no port: this CPU has none that is not masked.
    pub(crate) fn drop_pending(&self, masked: &Masked, flags: &VcpuInfo) {
        match self {
            Abi::TwoLevel(_) => {
                TwoLevel::take_selector(masked, flags);
            }
            Abi::Fifo(_) => Queues::drop_pending(masked, flags),
        }
    }

    /// Takes all that is pending for this CPU, and counts in `passes` how often the vcpu's flags were taken. `None` if nothing is
    /// attached; `flags` are left alone then.
    ///
    /// There are two of `handle`, the same one twice: each is put where it is called, and costs no call.
    #[inline(always)]
    pub(crate) fn take_pending(
        &self,
        masked: &Masked,
        flags: &VcpuInfo,
        own: &Own,
        passes: &Counter,
        handle: (impl FnMut(PortNr), impl FnMut(PortNr)),
    ) -> Option<()> {
        match (self, own) {
            (Abi::TwoLevel(page), Own::TwoLevel(own)) => {
                two_level(page)?.take_pending(masked, flags, own, passes, handle.0);
            }
            (Abi::Fifo(array), Own::Fifo(queues)) => queues.take_pending(masked, flags, array, passes, handle.1),
            _ => return None,
        }
        Some(())
    }
}

impl Own {
    /// Takes `nr` for one of this CPU's own.
    pub(crate) fn add(&self, nr: PortNr) {
        if let Own::TwoLevel(own) = self {
            own.add(nr);
        }
    }

    /// No longer.
    pub(crate) fn remove(&self, nr: PortNr) {
        if let Own::TwoLevel(own) = self {
            own.remove(nr);
        }
    }

    /// What Xen must be told of before it raises events on this CPU, in its own batch; nothing if it was told already in
    /// `life`, or with the 2-level ABI.
    pub(crate) fn introduce(&self, life: Incarnation) -> Option<NonNull<EvtchnFifoControlBlock>> {
        match self {
            Own::TwoLevel(_) => None,
            Own::Fifo(queues) => queues.introduce(life),
        }
    }

    /// Xen refused what [`Own::introduce`] gave.
    pub(crate) fn forget(&self) {
        if let Own::Fifo(queues) = self {
            queues.forget();
        }
    }

    /// Forgets all: this CPU's ports are those of an earlier life.
    pub(crate) fn clear(&self, masked: &Masked) {
        if let Own::TwoLevel(own) = self {
            own.clear(masked);
        }
    }
}

fn two_level(page: &SharedPage) -> Option<TwoLevel<'_>> {
    page.get().map(TwoLevel::new)
}
