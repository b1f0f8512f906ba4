//! `start_info`: the page by which the toolstack and we know each other, at boot, at every save and after every restore.
//!
//! What `boot` copied from it at boot is the boot's. What changes with every restore is read here, when it is wanted: machine
//! frames and ports. Of the rings our own page numbers are kept, which never change, so that nothing that the toolstack wrote
//! has to be believed in the middle of a suspend.
//!
//! Context: vcpu 0; the ports also a CPU that dies.

use mm::{Mfn, Pfn};
use spin::Once;
use xen_sys::abi::xen::{StartInfo, StartInfoConsoleDomU};

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
/// reference to it is made.
///
/// - SI1: `pfn` is the page that Xen passed at entry, in the direct map; only vcpu 0 writes to it, in this file.
#[derive(Clone, Copy)]
pub(crate) struct Page {
    pfn: Pfn,
    rings: Option<Rings>,
}

impl Page {
    /// A copy of it, as it is now.
    fn read(self) -> StartInfo {
        // SAFETY: mapped and ours (SI1).
        unsafe { memory::direct::<StartInfo>(self.pfn).read_volatile() }
    }

    /// Its console, which outside of the initial domain is this arm of the union.
    fn console(info: &StartInfo) -> StartInfoConsoleDomU {
        // SAFETY: both arms are plain integers, and the initial domain, whose is the other one, has no ring and is never suspended.
        unsafe { info.console.domU }
    }

    fn set_rings(self, store: u64, console: u64) {
        let mut info = self.read();
        info.store_mfn = store;
        info.console.domU = StartInfoConsoleDomU { mfn: console, ..Page::console(&info) };
        // SAFETY: mapped and ours (SI1).
        unsafe { memory::direct::<StartInfo>(self.pfn).write_volatile(info) };
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
        let info = self.read();
        DevicePorts { store: info.store_evtchn, console: Page::console(&info).evtchn }
    }

    /// Machine address of `shared_info`, in this life of the domain.
    pub(crate) fn shared_info_maddr(self) -> u64 {
        self.read().shared_info
    }

    /// Its own machine frame, now.
    pub(crate) fn mfn(self) -> Mfn {
        memory::mfn_in_use(self.pfn)
    }
}
