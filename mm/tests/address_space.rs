//! From the builder's address space to ours, against the model of Xen: several sizes and shapes of domains, every hypercall
//! failing once, and what the toolstack is told.
//!
//! ORDERING: Relaxed throughout: one thread plays all sides.

#![cfg(not(loom))]

mod model;

use mm::layout::{DIRECT_BASE, IMAGE_BASE, P2M_BASE, PAGE_SIZE, STACK_SIZE, span, stack_bottom, stack_top};
use mm::{Access, BootMemory, Entry, Flags, Memory, MmError, Mmu, Pfn, Tables, fixmap, init, protect_image};
use model::builder::{SMALL, Shape, TOO_SMALL, build, build_shape};
use model::{Pages, Xen, audit};
use xen_sys::Errno;
use xen_sys::abi::arch::ArchSharedInfo;
use xen_sys::primitive::sync::atomic::Ordering::Relaxed;

fn boot(xen: &mut Xen, boot: &BootMemory) -> Result<Memory, MmError> {
    // SAFETY: the model's memory is nobody's; the model checks all the rest.
    let memory = unsafe { init(xen, boot)? };
    // As the kernel would, before it changes to the direct map for good: all of these are in the TLB now.
    for va in [IMAGE_BASE, boot.image.text.start.image_va(), boot.image.guard.image_va(), boot.first_free.image_va()] {
        // SAFETY: the model checks it.
        unsafe { xen.load(va) };
    }
    // SAFETY: as above.
    unsafe { protect_image(xen, &memory)? };
    Ok(memory)
}

fn check_shape(shape: &Shape) -> (Xen, Memory) {
    let (mut xen, boot_memory) = build_shape(shape);
    let memory = boot(&mut xen, &boot_memory).expect("a good domain");
    audit::check(&xen, &memory, &[], &[]);
    (xen, memory)
}

#[test]
#[cfg_attr(miri, ignore = "boots once more, through no other unsafe code")]
fn small_domain() {
    let (xen, memory) = check_shape(&Shape::of(SMALL));
    let free = Pages::of(&xen, &memory);
    assert_eq!(free.runs().first().map(|run| run.start), Some(Pfn::new(0)), "memory below the image is used");
    let boot_memory = memory.plan.boot;
    let taken = boot_memory.first_free.get() - boot_memory.image.text.start.get()
        + memory.plan.boot.p2m.nr()
        + memory.plan.tables.total();
    assert_eq!(free.nr() + taken, SMALL, "no page is lost");
}

#[test]
#[cfg_attr(miri, ignore = "too large for the interpreter")]
fn domains_of_16_64_and_300_mib() {
    for mib in [16, 64, 300] {
        check_shape(&Shape::of(mib * 256));
    }
}

#[test]
#[cfg_attr(miri, ignore = "too large for the interpreter")]
fn domain_of_2_gib() {
    // More than 2^18 pages: the p2m goes over a boundary that the toolstack has trouble with, and the direct map over an L2 table.
    let (xen, memory) = check_shape(&Shape::of(1 << 19));
    assert_eq!(memory.plan.tables, Tables { l1: 1024, l2: 2, l3: 1, area: 3 });
    // A window for each table and once more at its end.
    assert_eq!(xen.calls.update_va_mapping, 1030 + 1);
}

#[test]
#[cfg_attr(any(miri, debug_assertions), ignore = "takes 20 seconds without optimisation; run it with --release")]
fn domain_of_8_gib() {
    let (xen, memory) = check_shape(&Shape::of(1 << 21));
    assert_eq!(memory.plan.tables, Tables { l1: 4096, l2: 8, l3: 1, area: 3 });
    // A window for each table and once more at its end.
    assert_eq!(xen.calls.update_va_mapping, 4108 + 1);
}

#[test]
#[cfg_attr(miri, ignore = "too large for the interpreter")]
fn odd_shapes() {
    // Neither a multiple of an L1 table's pages nor of a p2m page's entries.
    check_shape(&Shape::of(4096 + 17));
    // An image over several L2 entries.
    check_shape(&Shape { image: [700, 300, 500], ..Shape::of(8192) });
    // One that ends where an L1 table does.
    check_shape(&Shape { image: [100, 56, 100], ..Shape::of(4096) });
    // The p2m in the pool's way, and away from it.
    for p2m_gap in [1, 5, 100] {
        check_shape(&Shape { p2m_gap, ..Shape::of(4096) });
    }
    // Holes among free pages and in the pool.
    check_shape(&Shape { holes: vec![1100, 2000, 2001, 4095], p2m_gap: 5, ..Shape::of(4096) });
    check_shape(&Shape { holes: (1025..1030).collect(), p2m_gap: 20, ..Shape::of(4096) });
}

#[test]
fn too_small_is_told_before_anything_is_touched() {
    let (mut xen, boot_memory) = build(TOO_SMALL);
    let error = boot(&mut xen, &boot_memory).map(|_| ()).expect_err("not enough");
    let MmError::TooSmall { have_pages: TOO_SMALL, need_pages } = error else { panic!("{error}") };
    assert_eq!(xen.calls.total(), 0);
    // And what it asks for does.
    let (mut xen, boot_memory) = build(need_pages);
    boot(&mut xen, &boot_memory).expect("as was said");
}

#[test]
#[cfg_attr(miri, ignore = "boots once more, through no other unsafe code")]
fn every_failing_hypercall_is_reported() {
    let (mut xen, boot_memory) = build(SMALL);
    boot(&mut xen, &boot_memory).expect("nothing fails");
    let calls = xen.calls.total();
    // Every table, the window's end, the L4, the pin's three; the image; the flush.
    assert!(calls > Tables::of(SMALL).total() + 6, "{calls}");
    for nr in 0..calls {
        let (mut xen, boot_memory) = build(SMALL);
        xen.fail_call = Some(nr);
        let errno = match boot(&mut xen, &boot_memory).map(|_| ()).expect_err("one call fails") {
            MmError::Map { errno, va } => {
                assert_eq!(va, boot_memory.image.window.image_va());
                errno
            }
            MmError::Update { errno, .. } | MmError::Flush { errno } => errno,
            MmError::Pin { root, errno } => {
                assert_eq!(root, boot_memory.tables.start);
                errno
            }
            other => panic!("call {nr}: {other}"),
        };
        assert_eq!(errno, Errno::ENOMEM);
    }
}

#[test]
#[cfg_attr(miri, ignore = "boots once more, through no other unsafe code")]
fn a_root_that_is_not_pinned_gets_pinned() {
    let (mut xen, boot_memory) = build(SMALL);
    let root = xen.root();
    // SAFETY: loaded.
    unsafe { xen.unpin(root) }.expect("the builder pins it");
    boot(&mut xen, &boot_memory).expect("pins it");
    assert_eq!(xen.pin_l4(root), Err(Errno::EINVAL), "it is pinned");
}

#[test]
fn contradictions_of_the_builder_are_named() {
    let (mut xen, mut boot_memory) = build(SMALL);
    boot_memory.tables.end = boot_memory.tables.start.plus(2);
    let error = boot(&mut xen, &boot_memory).map(|_| ()).expect_err("tables outside of the counted ones");
    assert!(matches!(error, MmError::Builder { .. }), "{error}");
    assert_eq!(xen.calls.total(), 0);
}

#[test]
#[cfg_attr(miri, ignore = "boots once more, through no other unsafe code")]
fn the_toolstack_is_told() {
    let (mut xen, boot_memory) = build(SMALL);
    let memory = boot(&mut xen, &boot_memory).expect("a good domain");
    let arch = ArchSharedInfo::new();
    memory.p2m.publish(&mut xen, memory.root.pfn(), &arch).expect("whole");
    assert_eq!(arch.max_pfn.load(Relaxed), SMALL);
    assert_eq!(arch.p2m_vaddr.load(Relaxed), P2M_BASE);
    assert_eq!(arch.p2m_cr3.load(Relaxed), xen.root().maddr());
    // As after a restore: only the root's number is stale.
    arch.p2m_cr3.store(0x1000, Relaxed);
    arch.p2m_generation.store(4, Relaxed);
    memory.p2m.publish(&mut xen, memory.root.pfn(), &arch).expect("whole");
    assert_eq!(arch.p2m_cr3.load(Relaxed), xen.root().maddr());
    assert_eq!(arch.p2m_generation.load(Relaxed), 4, "a change would abort a live save");
}

#[test]
#[cfg_attr(miri, ignore = "boots once more, through no other unsafe code")]
fn a_p2m_with_a_hole_is_not_published() {
    // Where the p2m tells nothing of the tables that are followed, or the processor would fault first.
    let cases = [(SMALL, 1, P2M_BASE + PAGE_SIZE), (1 << 19, 2, P2M_BASE + span(2))];
    for (nr_pages, level, va) in cases {
        let (mut xen, boot_memory) = build(nr_pages);
        let memory = boot(&mut xen, &boot_memory).expect("a good domain");
        xen.damage(level, va, Entry::EMPTY);
        let arch = ArchSharedInfo::new();
        let error = MmError::P2mHole { va, level };
        assert_eq!(memory.p2m.publish(&mut xen, memory.root.pfn(), &arch), Err(error));
        assert_eq!(arch.p2m_cr3.load(Relaxed), 0, "the toolstack would believe it");
    }
}

#[test]
#[cfg_attr(miri, ignore = "boots once more, through no other unsafe code")]
fn the_p2m_of_an_initial_domain_may_have_large_pages() {
    let (mut xen, boot_memory) = build(SMALL);
    let memory = boot(&mut xen, &boot_memory).expect("a good domain");
    let l2 = xen.walk(2, P2M_BASE).expect("mapped");
    xen.damage(2, P2M_BASE, Entry::from_raw(l2.raw() | Flags::HUGE.bits()));
    assert_eq!(memory.p2m.check(&xen, memory.root.pfn()), Ok(()));
}

#[test]
fn numbers_are_checked_both_ways() {
    let (mut xen, boot_memory) = build_shape(&Shape { holes: vec![SMALL - 1], ..Shape::of(SMALL) });
    let memory = boot(&mut xen, &boot_memory).expect("a good domain");
    let p2m = &memory.p2m;
    let mfn = p2m.mfn(&xen, Pfn::new(5)).expect("exists");
    assert_eq!(p2m.pfn(&xen, mfn), Some(Pfn::new(5)));
    assert_eq!(p2m.mfn(&xen, Pfn::new(SMALL - 1)), None);
    assert_eq!(p2m.mfn(&xen, Pfn::new(SMALL)), None);
    let shared_info = mm::Mfn::of_maddr(xen.shared_info_maddr());
    assert_eq!(p2m.pfn(&xen, shared_info), None, "it has no pfn");
    assert_eq!(p2m.pfn(&xen, mm::Mfn::new(xen.nr_frames())), None, "beyond the machine");
}

#[test]
fn stacks_have_guards_and_come_once() {
    let (mut xen, boot_memory) = build(SMALL);
    let mut memory = boot(&mut xen, &boot_memory).expect("a good domain");
    let mut pages = Pages::of(&xen, &memory);
    let mut expected = Vec::new();
    // The first three in one table, then the first of the next, and the last of all.
    for stack in [0, 1, 31, 32, 1023] {
        let before = xen.calls.total();
        let top = memory.area.map_stack(&mut xen, &memory.p2m, &mut pages, stack).expect("room");
        assert_eq!(top, stack_top(stack));
        let made_table = [0, 32, 1023].contains(&stack);
        assert_eq!(xen.calls.total() - before, if made_table { 3 } else { 1 }, "stack {stack}");
        for va in (stack_bottom(stack)..top).step_by(4096) {
            let pfn = memory.area.translate(&xen, &memory.p2m, va).expect("mapped");
            expected.push((va, pfn, Access::Rw));
        }
        assert!(xen.effective(stack_bottom(stack) - 1).is_none() && xen.effective(top).is_none(), "guards");
        // SAFETY: the model checks it.
        unsafe { xen.store(top - 8, 1) };
    }
    audit::check(&xen, &memory, &expected, &[]);
    let again = memory.area.map_stack(&mut xen, &memory.p2m, &mut pages, 1);
    assert_eq!(again, Err(MmError::Occupied { va: stack_bottom(1) }));
    let beyond = memory.area.map_stack(&mut xen, &memory.p2m, &mut pages, 1024);
    assert!(matches!(beyond, Err(MmError::OutsideArea { .. })));
    let none_left = memory.area.map_stack(&mut xen, &memory.p2m, &mut Pages::none(), 2);
    assert_eq!(none_left, Err(MmError::NoFrames { va: stack_bottom(2), nr: STACK_SIZE / PAGE_SIZE }));
}

#[test]
fn shared_info_comes_and_goes_without_memory() {
    let (mut xen, boot_memory) = build(SMALL);
    let memory = boot(&mut xen, &boot_memory).expect("a good domain");
    let slot = fixmap::Slot::SHARED_INFO;
    for _ in 0..2 {
        let before = xen.calls.total();
        let maddr = xen.shared_info_maddr();
        // SAFETY: the model's shared_info is nobody's.
        unsafe { fixmap::set(&mut xen, slot, maddr, Access::Rw) }.expect("the table is there");
        // SAFETY: the model checks it.
        unsafe { xen.store(slot.va(), 7) };
        // SAFETY: the model checks it.
        assert_eq!(unsafe { xen.load(slot.va()) }, 7);
        audit::check(&xen, &memory, &[], &[slot.va()]);
        // SAFETY: nobody uses it any more.
        unsafe { fixmap::clear(&mut xen, slot) }.expect("the table is there");
        assert_eq!(xen.calls.total() - before, 2);
        audit::check(&xen, &memory, &[], &[]);
    }
}

#[test]
#[cfg_attr(miri, ignore = "boots once more, through no other unsafe code")]
fn the_area_is_bounded() {
    let (mut xen, boot_memory) = build(SMALL);
    let mut memory = boot(&mut xen, &boot_memory).expect("a good domain");
    let mut pages = Pages::of(&xen, &memory);
    let pfn = pages.take();
    for va in [DIRECT_BASE, fixmap::Slot::SHARED_INFO.va(), stack_bottom(0) + 8, stack_bottom(1024), 0] {
        // SAFETY: the page is ours alone.
        let result = unsafe { memory.area.map_page(&mut xen, &memory.p2m, &mut pages, va, (pfn, Access::Rw)) };
        assert_eq!(result, Err(MmError::OutsideArea { va }));
        // SAFETY: nobody uses it.
        let result = unsafe { memory.area.unmap_page(&mut xen, &memory.p2m, va) };
        assert_eq!(result, Err(MmError::OutsideArea { va }));
    }
}
