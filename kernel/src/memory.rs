//! The kernel's memory: `mm`, fed with what the builder and the linker say, and what is asked of it afterwards.
//!
//! Context: [`init`] on the boot CPU before all else; the rest as said. Suspend: the tables are *kept* (the toolstack translates
//! them), `shared_info`'s mapping is *rebuilt*. Whoever wants a machine frame gets an [`Mfn`], which no static and no task can
//! keep; it becomes a number where Xen's ABI wants one, and not before.

use core::ptr::NonNull;

use boot::{BootInfo, image};
use mm::fixmap::{self, Slot};
use mm::{Access, AddressSpace, BootMemory, Image, MaskedLock, Memory, Mfn, MmError, Pfn, PfnRange, XenMmu};
use percpu::{CpuId, Quiesced};
use spin::Once;
use xen_sys::abi::arch::ArchSharedInfo;
use xen_sys::abi::xen::SharedInfo;
use xen_sys::primitive::sync::atomic::{AtomicUsize, Ordering};

use crate::heap;

const _: () = assert!(boot::VIRT_BASE == mm::layout::IMAGE_BASE && boot::P2M_BASE == mm::layout::P2M_BASE);

static MEMORY: Once<Kernel> = Once::new();

struct Kernel {
    p2m: mm::P2m,
    root: mm::Root,
    /// Taken when a vcpu is brought up.
    area: MaskedLock<mm::AreaMap>,
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
    MEMORY.call_once(|| Kernel { p2m, root, area: MaskedLock::new(area) });
    Ok(())
}

fn boot_memory(info: &BootInfo, builder_stack_top: u64) -> BootMemory {
    let ours = "the builder and the linker tell addresses in the image's mapping";
    let pfn = |va: u64| Pfn::of_image(va).expect(ours);
    let pages = |section: image::Section| PfnRange::of_image(section.start, section.end).expect(ours);
    let tables = pfn(info.pt_base);
    BootMemory {
        nr_pages: info.nr_pages,
        image: Image {
            text: pages(image::text()),
            rodata: pages(image::rodata()),
            data: pages(image::data()),
            window: pfn(image::window()),
            guard: pfn(image::boot_stack_guard()),
        },
        tables: PfnRange { start: tables, end: tables.plus(info.nr_pt_frames) },
        first_free: pfn(builder_stack_top),
        p2m: PfnRange::new(info.first_p2m_pfn..info.first_p2m_pfn + info.nr_p2m_frames),
    }
}

/// The machine frame that `place` is in, now: it is another one after a restore. `place` is in the image or on the heap.
///
/// # Panics
/// If it is elsewhere.
pub(crate) fn mfn_of<T>(place: *const T) -> Mfn {
    let va = place.addr() as u64;
    let pfn = Pfn::of_image(va).or_else(|| Pfn::of_direct(va));
    mfn_in_use(pfn.expect("the place is in the image or on the heap"))
}

/// The machine frame that `place` is in, now, and where in it, in bytes. As [`mfn_of`].
///
/// # Panics
/// As [`mfn_of`].
pub(crate) fn frame_and_offset<T>(place: *const T) -> (Mfn, u32) {
    let offset = u32::try_from(place.addr() % 4096).expect("below the size of a page");
    (mfn_of(place), offset)
}

/// The machine frame of a page that we use, now.
///
/// # Panics
/// If it is none of ours.
pub(crate) fn mfn_in_use(pfn: Pfn) -> Mfn {
    mfn_of_pfn(pfn).expect("memory in use has a machine page")
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
pub(crate) fn mfn_of_pfn(pfn: Pfn) -> Option<Mfn> {
    kernel().p2m.mfn(&XenMmu, pfn)
}

/// The page of ours that is machine frame `mfn`, if it is one.
pub(crate) fn pfn_of_mfn(mfn: Mfn) -> Option<Pfn> {
    kernel().p2m.pfn(&XenMmu, mfn)
}

/// Our page `pfn` in the direct map.
pub(crate) fn direct<T>(pfn: Pfn) -> *mut T {
    pfn.direct().cast()
}

/// The page of the kernel's L4.
pub(crate) fn root_pfn() -> Pfn {
    kernel().root.pfn()
}

/// The machine frame of the kernel's L4, now.
pub(crate) fn root_mfn() -> Mfn {
    mfn_in_use(root_pfn())
}

/// Maps a stack for `cpu`; returns its top. Context: task or boot, once for each CPU but the first.
///
/// # Errors
/// No memory, or Xen's.
pub(crate) fn map_stack(cpu: CpuId) -> Result<u64, MmError> {
    let index = u64::from(cpu.vcpu());
    kernel().area.with(|area| area.map_stack(&mut XenMmu, &kernel().p2m, &mut heap::get(), index))
}

/// Address spaces of user mode that are being made or destroyed.
static UNPINNED: AtomicUsize = AtomicUsize::new(0);

/// Does `work` on an address space that is not pinned meanwhile.
fn unpinned<T>(work: impl FnOnce() -> T) -> T {
    // ORDERING: Relaxed twice: read where this CPU is parked or is the one that reads.
    UNPINNED.fetch_add(1, Ordering::Relaxed);
    let result = work();
    UNPINNED.fetch_sub(1, Ordering::Relaxed);
    result
}

/// Makes an address space of user mode. Cost: see [`AddressSpace::build`]. Context: task.
///
/// # Errors
/// No memory, or Xen's.
pub(crate) fn make_user_space(code: &[u8], data_pages: u64) -> Result<AddressSpace, MmError> {
    unpinned(|| AddressSpace::build(&mut XenMmu, &kernel().p2m, &mut heap::get(), code, data_pages))
}

/// Destroys one, which no vcpu has loaded. Cost: see [`AddressSpace::destroy`]. Context: task.
///
/// # Errors
/// Xen's.
pub(crate) fn destroy_user_space(space: AddressSpace) -> Result<(), MmError> {
    unpinned(|| space.destroy(&mut XenMmu, &kernel().p2m, &mut heap::get()))
}

/// Sees whether one is as it was made, and pinned. Context: task, on the vcpu that has it loaded.
///
/// # Errors
/// What is not so.
pub(crate) fn verify_user_space(space: &AddressSpace) -> Result<(), MmError> {
    unpinned(|| space.verify(&mut XenMmu, &kernel().p2m))
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

/// Unmaps it. The kernel's is the only root that ever had it.
///
/// # Errors
/// Xen's.
/// # Panics
/// If a root of user mode is not pinned: it would be saved as plain data. Whoever makes or destroys one awaits nothing meanwhile.
pub(crate) fn unmap_shared_info(_quiesced: &Quiesced) -> Result<(), MmError> {
    // ORDERING: Relaxed, all others are parked.
    assert!(UNPINNED.load(Ordering::Relaxed) == 0, "a root of user mode is not pinned in a suspend");
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
