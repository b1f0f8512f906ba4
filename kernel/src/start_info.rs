//! `start_info`: the page by which the toolstack and we know each other, at boot, at every save and after every restore.
//!
//! What `boot` copied from it at boot is the boot's. What changes with every restore is read here, when it is wanted: machine
//! frames and ports. Of the rings our own page numbers are kept, which never change, so that nothing that the toolstack wrote
//! has to be believed in the middle of a suspend.
//!
//! Context: vcpu 0; the ports also a CPU that dies.

use core::mem::offset_of;

use mm::{Mfn, Pfn};
use spin::Once;
use xen_sys::abi::xen::StartInfo;

use crate::memory;

/// Where it is, and where the rings are. Written once, at boot.
static PLACES: Once<(Pfn, Option<Rings>)> = Once::new();

/// Pages of the rings. The initial domain has none, and is never suspended.
#[derive(Clone, Copy)]
pub(crate) struct Rings {
    pub(crate) store: Pfn,
    pub(crate) console: Pfn,
}

/// The toolstack's ports, in this life of the domain.
#[derive(Clone, Copy)]
pub(crate) struct DevicePorts {
    pub(crate) store: u32,
    pub(crate) console: u32,
}

/// Remembers the pages. Boot, once, as soon as there is a direct map.
pub(crate) fn init(page: Pfn, rings: Option<Rings>) {
    PLACES.call_once(|| (page, rings));
}

/// The page, through the direct map.
pub(crate) fn page() -> Page {
    let (page, rings) = PLACES.get().expect("init() comes before the console is connected");
    Page { pfn: *page, rings: *rings }
}

/// `start_info`. Xen and the toolstack write to it while we are suspended, so every field is read when it is wanted, and no
/// reference to it is made. Field by field: volatile reads and writes of the whole, most of it the command line, are six thousand
/// instructions, which a guest that has just been restored runs for the first time.
///
/// - SI1: `pfn` is the page that Xen passed at entry, in the direct map; only vcpu 0 writes to it, in this file.
/// - SI2: [`Page::get`] and [`Page::set`] are called with the offset of a field and with its type. Outside of the initial domain,
///   which has no ring and is never suspended, the console is `domU`.
#[derive(Clone, Copy)]
pub(crate) struct Page {
    pfn: Pfn,
    rings: Option<Rings>,
}

impl Page {
    fn at<T>(self, offset: usize) -> *mut T {
        memory::direct::<StartInfo>(self.pfn).wrapping_byte_add(offset).cast()
    }

    /// The field at `offset`, as it is now.
    fn get<T: Copy>(self, offset: usize) -> T {
        // SAFETY: mapped and ours (SI1), a field of this type (SI2), of plain integers, for which any bits are good.
        unsafe { self.at::<T>(offset).read_volatile() }
    }

    fn set<T: Copy>(self, offset: usize, value: T) {
        // SAFETY: mapped and ours (SI1), a field of this type (SI2).
        unsafe { self.at::<T>(offset).write_volatile(value) };
    }

    fn set_rings(self, store: u64, console: u64) {
        self.set::<u64>(offset_of!(StartInfo, store_mfn), store);
        self.set::<u64>(offset_of!(StartInfo, console.domU.mfn), console);
    }

    /// Puts the rings' page numbers where their machine frames are: as the toolstack wants to find them in a suspended domain.
    pub(crate) fn rings_to_pfns(self) {
        if let Some(Rings { store, console }) = self.rings {
            self.set_rings(store.get(), console.get());
        }
    }

    /// Puts their machine frames there again.
    pub(crate) fn rings_to_mfns(self) {
        if let Some(Rings { store, console }) = self.rings {
            self.set_rings(memory::mfn_in_use(store).get(), memory::mfn_in_use(console).get());
        }
    }

    /// The ports of console and xenstore, in this life of the domain.
    pub(crate) fn ports(self) -> DevicePorts {
        DevicePorts {
            store: self.get(offset_of!(StartInfo, store_evtchn)),
            console: self.get(offset_of!(StartInfo, console.domU.evtchn)),
        }
    }

    /// Machine address of `shared_info`, in this life of the domain.
    pub(crate) fn shared_info_maddr(self) -> u64 {
        self.get(offset_of!(StartInfo, shared_info))
    }

    /// Its own machine frame, now.
    pub(crate) fn mfn(self) -> Mfn {
        memory::mfn_in_use(self.pfn)
    }
}
