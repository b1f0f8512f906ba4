//! The kernel's memory: `mm`, fed with what the builder and the linker say, and what is asked of it afterwards.
//!
//! Context: [`init`] on the boot CPU before all else; the rest as said. Suspend: the tables are *kept* (the toolstack translates
//! them), `shared_info`'s mapping is *rebuilt*, and no mfn is remembered anywhere: each is looked up when it is wanted.

use core::ptr::NonNull;

use boot::{BootInfo, image};
use mm::fixmap::{self, Slot};
use mm::{Access, BootMemory, Image, Memory, MmError, Pfn, PfnRange, XenMmu};
use percpu::{CpuId, Quiesced};
use spin::Once;
use spin::mutex::SpinMutex;
use xen_sys::abi::arch::ArchSharedInfo;
use xen_sys::abi::xen::SharedInfo;

use crate::heap;
use crate::relax::GiveUp;

static MEMORY: Once<Kernel> = Once::new();

struct Kernel {
    p2m: mm::P2m,
    root: mm::Root,
    /// Taken when a vcpu is brought up.
    area: SpinMutex<mm::AreaMap, GiveUp>,
}

fn kernel() -> &'static Kernel {
    MEMORY.get().expect("init() runs before anything else")
}

/// From the builder's address space to ours; gives all free memory to the heap.
///
/// # Errors
/// Too little memory, or a builder that did what no builder does.
///
/// # Safety
/// Called once, on the boot stack of the image, before anything but the image has been used.
pub(crate) unsafe fn init(info: &BootInfo, builder_stack_top: u64) -> Result<(), MmError> {
    let boot = boot_memory(info, builder_stack_top);
    let mut mmu = XenMmu;
    // SAFETY: `boot` is what builder and linker say; the caller's word for the rest.
    let memory = unsafe { mm::init(&mut mmu, &boot)? };
    // SAFETY: we run on the image's boot stack; start_info and the rings are reached through the direct map from here on.
    unsafe { mm::protect_image(&mut mmu, &memory)? };
    // SAFETY: the pages are free and mapped, and given once.
    memory.for_each_free(&mmu, |run| unsafe {
        heap::get().give_pages(run);
    });
    let Memory { p2m, root, area, .. } = memory;
    MEMORY.call_once(|| Kernel { p2m, root, area: SpinMutex::new(area) });
    Ok(())
}

fn boot_memory(info: &BootInfo, builder_stack_top: u64) -> BootMemory {
    let pages = |section: image::Section| PfnRange::new(pfn(section.start)..pfn(section.end));
    let tables = pfn(info.pt_base);
    BootMemory {
        nr_pages: info.nr_pages,
        image: Image {
            text: pages(image::text()),
            rodata: pages(image::rodata()),
            data: pages(image::data()),
            window: Pfn::new(pfn(image::window())),
            guard: Pfn::new(pfn(image::boot_stack_guard())),
        },
        tables: PfnRange::new(tables..tables + info.nr_pt_frames),
        first_free: Pfn::new(pfn(builder_stack_top)),
        p2m: PfnRange::new(info.first_p2m_pfn..info.first_p2m_pfn + info.nr_p2m_frames),
    }
}

/// The page behind an address of the builder's mapping.
fn pfn(va: u64) -> u64 {
    (va - mm::layout::IMAGE_BASE) / mm::layout::PAGE_SIZE
}

/// The page that `va`, in the image or the direct map, is in.
fn pfn_of(va: u64) -> Pfn {
    if va >= mm::layout::IMAGE_BASE {
        Pfn::new(pfn(va))
    } else {
        Pfn::new((va - mm::layout::DIRECT_BASE) / mm::layout::PAGE_SIZE)
    }
}

/// The machine frame that `place` is in, now: it is another one after a restore. `place` is in the image or on the heap.
///
/// # Panics
/// If it is elsewhere.
pub(crate) fn mfn_of<T>(place: *const T) -> u64 {
    let pfn = pfn_of(place.addr() as u64);
    kernel().p2m.mfn(&XenMmu, pfn).expect("memory in use has a machine page").get()
}

/// How many pages the domain has.
pub(crate) fn nr_pages() -> u64 {
    kernel().p2m.nr_pages()
}

/// Follows the p2m's tables to its end, as the toolstack does.
///
/// # Errors
/// The first hole.
pub(crate) fn check_p2m() -> Result<(), MmError> {
    kernel().p2m.check(&XenMmu, kernel().root.pfn())
}

/// The machine frame of our page `pfn`, now.
pub(crate) fn mfn_of_pfn(pfn: u64) -> Option<u64> {
    kernel().p2m.mfn(&XenMmu, Pfn::new(pfn)).map(|mfn| mfn.get())
}

/// The page of ours that is machine frame `mfn`, if it is one.
pub(crate) fn pfn_of_mfn(mfn: u64) -> Option<u64> {
    kernel().p2m.pfn(&XenMmu, mm::Mfn::new(mfn)).map(|pfn| pfn.get())
}

/// Our page `pfn` in the direct map.
pub(crate) fn direct<T>(pfn: u64) -> *mut T {
    Pfn::new(pfn).direct().cast()
}

/// The page of the kernel's L4.
pub(crate) fn root_pfn() -> u64 {
    kernel().root.pfn().get()
}

/// The machine frame of the kernel's L4, now.
pub(crate) fn root_mfn() -> u64 {
    kernel().p2m.mfn(&XenMmu, kernel().root.pfn()).expect("the root has a machine page").get()
}

/// Maps a stack for `cpu`; returns its top. Context: task or boot, once for each CPU but the first.
///
/// # Errors
/// No memory, or Xen's.
pub(crate) fn map_stack(cpu: CpuId) -> Result<u64, MmError> {
    let index = u64::from(cpu.vcpu());
    kernel().area.lock().map_stack(&mut XenMmu, &kernel().p2m, &mut heap::get(), index)
}

/// Maps `shared_info` at its place for life.
///
/// # Errors
/// Xen's.
pub(crate) fn map_shared_info(maddr: u64) -> Result<NonNull<SharedInfo>, MmError> {
    // SAFETY: the slot is clear: at boot, and after `unmap_shared_info`. The page is Xen's, made to be shared.
    unsafe { fixmap::set(&mut XenMmu, Slot::SHARED_INFO, maddr, Access::Rw)? };
    Ok(shared_info_place())
}

/// Where `shared_info` is mapped, while it is.
pub(crate) fn shared_info_place() -> NonNull<SharedInfo> {
    NonNull::new(Slot::SHARED_INFO.as_ptr()).expect("the fixmap is not at 0")
}

/// Unmaps it, from every root: they share the fixmap's table.
///
/// # Errors
/// Xen's.
pub(crate) fn unmap_shared_info(_quiesced: &Quiesced) -> Result<(), MmError> {
    // SAFETY: all others are parked, and this CPU has detached it.
    unsafe { fixmap::clear(&mut XenMmu, Slot::SHARED_INFO) }
}

/// Tells the toolstack where the p2m is.
///
/// # Errors
/// A p2m that the toolstack could not follow, or Xen's.
pub(crate) fn publish_p2m(arch: &ArchSharedInfo) -> Result<(), MmError> {
    kernel().p2m.publish(&mut XenMmu, kernel().root.pfn(), arch)
}
