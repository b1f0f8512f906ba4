//! Address spaces of user mode, against the model of Xen: what user mode has, what is given back, and every hypercall failing once.

#![cfg(not(loom))]

mod model;

use mm::layout::{PAGE_SIZE, USER_BASE, index};
use mm::{AddressSpace, Entry, Flags, FrameSource, Memory, Mfn, MmError, Mmu, Pfn, PfnRange, init, protect_image};
use model::builder::{SMALL, build};
use model::{Kind, Xen, audit};
use xen_sys::Errno;

/// The last free pages, whole, and how many of them are out.
struct Source {
    free: PfnRange,
    out: u64,
}

// SAFETY: the run is the domain's, free, and handed out once at a time.
unsafe impl FrameSource for Source {
    fn alloc_frames(&mut self, nr: u64) -> Option<PfnRange> {
        let run = PfnRange { start: self.free.start, end: self.free.start.plus(nr) };
        (self.out == 0 && nr <= self.free.nr()).then(|| {
            self.out = nr;
            run
        })
    }

    unsafe fn free_frames(&mut self, run: PfnRange) {
        assert_eq!((run.start, run.nr()), (self.free.start, self.out), "another run, or not the whole of it");
        self.out = 0;
    }
}

fn boot() -> (Xen, Memory, Source) {
    let (mut xen, boot) = build(SMALL);
    // SAFETY: the model's memory is nobody's; the model checks all the rest.
    let memory = unsafe { init(&mut xen, &boot) }.expect("a good domain");
    // SAFETY: as above.
    unsafe { protect_image(&mut xen, &memory) }.expect("a good domain");
    let mut runs = Vec::new();
    memory.for_each_free(&xen, |run| runs.push(run));
    let free = runs.into_iter().max_by_key(|run| run.nr()).expect("some memory is free");
    (xen, memory, Source { free, out: 0 })
}

/// Two pages of code, of which the second has three bytes.
fn code() -> Vec<u8> {
    (0..PAGE_SIZE + 3).map(|n| u8::try_from(n % 251).expect("below 256")).collect()
}

fn build_one(xen: &mut Xen, memory: &Memory, source: &mut Source) -> Result<AddressSpace, MmError> {
    AddressSpace::build(xen, &memory.p2m, source, &code(), 3)
}

/// What user mode has under this root: address, page, writable, executable.
fn user_pages(xen: &Xen, root: Mfn) -> Vec<(u64, Mfn, bool, bool)> {
    let mut found = Vec::new();
    let present = |table: Mfn| {
        (0..512).filter_map(move |i| Some((i, Entry::from_raw(xen.frame(table).read(i)))).filter(|e| e.1.is_present()))
    };
    let below = |entry: Entry| entry.mfn().expect("present");
    for (i4, e4) in present(root) {
        for (i3, e3) in present(below(e4)) {
            for (i2, e2) in present(below(e3)) {
                for (i1, e1) in present(below(e2)) {
                    let va = i4 << 39 | i3 << 30 | i2 << 21 | i1 << 12;
                    let flags = e1.flags();
                    let user = flags.contains(Flags::USER) && !flags.contains(Flags::XEN_KERNEL);
                    assert!(user, "{va:#x} is the kernel's");
                    let executable = !flags.contains(Flags::NO_EXECUTE);
                    found.push((va, below(e1), flags.contains(Flags::WRITABLE), executable));
                }
            }
        }
    }
    found
}

#[test]
fn user_mode_has_its_code_and_its_data_and_nothing_else() {
    let (mut xen, memory, mut source) = boot();
    let before = xen.calls.total();
    let space = build_one(&mut xen, &memory, &mut source).expect("there is memory");
    assert_eq!(xen.calls.total() - before, 4 + 2 + 1, "tables, code, the pin");
    assert_eq!(source.out, 4 + 2 + 3);
    assert_eq!(space.data_va(), USER_BASE + 2 * PAGE_SIZE);

    let root = space.root_mfn(&xen, &memory.p2m).expect("it has one");
    assert_eq!(xen.frame(root).kind(), Some(Kind::Table(4)));
    let pages = user_pages(&xen, root);
    let rights: Vec<_> = pages.iter().map(|(va, _, writable, executable)| (*va, *writable, *executable)).collect();
    let expected: Vec<_> = (0..5).map(|n| (USER_BASE + n * PAGE_SIZE, n >= 2, n < 2)).collect();
    assert_eq!(rights, expected);
    let text: Vec<u8> =
        pages[..2].iter().flat_map(|page| (0..512).flat_map(|n| xen.frame(page.1).read(n).to_le_bytes())).collect();
    assert_eq!(text[..code().len()], code());
    assert!(text[code().len()..].iter().all(|byte| *byte == 0), "what was in the frame before");
    for (page, pfn) in pages[2..].iter().zip(space.data().iter()) {
        assert_eq!(memory.p2m.mfn(&xen, pfn), Some(page.1));
        assert!((0..512).all(|n| xen.frame(page.1).read(n) == 0), "what was in the frame before");
    }
    // No page that is executable there, and no table, is writable here.
    for pfn in (0..4 + 2).map(|n| space.root().plus(n)) {
        let entry = xen.walk(1, pfn.direct_va()).expect("in the direct map");
        assert!(!entry.flags().contains(Flags::WRITABLE), "{pfn}");
    }
    space.verify(&mut xen, &memory.p2m).expect("as it was built");
    space.destroy(&mut xen, &memory.p2m, &mut source).expect("nobody uses it");
    assert_eq!(source.out, 0);
    audit::check(&xen, &memory, &[], &[]);
}

#[test]
fn what_is_gone_is_found() {
    let (mut xen, memory, mut source) = boot();
    let space = build_one(&mut xen, &memory, &mut source).expect("there is memory");
    let root = space.root_mfn(&xen, &memory.p2m).expect("it has one");
    let l1 = memory.p2m.mfn(&xen, space.root().plus(3)).expect("it has one");
    let at = l1.maddr() + (index(1, USER_BASE) + 4) * 8;
    let gone = xen_sys::abi::xen::MmuUpdate { ptr: at, val: 0 };
    // SAFETY: nobody uses it.
    unsafe { xen.mmu_update(&[gone]) }.expect("a table of ours");
    let missing = MmError::NotMapped { va: USER_BASE + 4 * PAGE_SIZE };
    assert_eq!(space.verify(&mut xen, &memory.p2m), Err(missing));

    let (mut xen2, memory2, mut source2) = boot();
    let other = build_one(&mut xen2, &memory2, &mut source2).expect("there is memory");
    // SAFETY: nobody uses it.
    unsafe { xen2.unpin(root) }.expect("the same place in the same domain");
    let unpinned = MmError::Unpin { root: other.root(), errno: Errno::EINVAL };
    assert_eq!(other.verify(&mut xen2, &memory2.p2m), Err(unpinned));
    assert_eq!(other.destroy(&mut xen2, &memory2.p2m, &mut source2), Err(unpinned));
}

#[test]
#[cfg_attr(miri, ignore = "boots many times more, through no other unsafe code")]
fn nothing_leaks_whichever_call_fails() {
    let (mut xen, memory, mut source) = boot();
    let before = xen.calls.total();
    let space = build_one(&mut xen, &memory, &mut source).expect("there is memory");
    let built = xen.calls.total();
    space.destroy(&mut xen, &memory.p2m, &mut source).expect("nobody uses it");
    let destroyed = xen.calls.total();
    for nr in before..built {
        let (mut xen, memory, mut source) = boot();
        xen.fail_call = Some(nr);
        let error = build_one(&mut xen, &memory, &mut source).map(|_| ()).expect_err("one call fails");
        assert!(matches!(error, MmError::Map { errno: Errno::ENOMEM, .. } | MmError::Pin { .. }), "{error}");
        assert_eq!(source.out, 0, "{error}");
        audit::check(&xen, &memory, &[], &[]);
    }
    // Pages of which nobody knows what they are must not come back.
    for nr in built..destroyed {
        let (mut xen, memory, mut source) = boot();
        let space = build_one(&mut xen, &memory, &mut source).expect("nothing fails yet");
        xen.fail_call = Some(nr);
        let error = space.destroy(&mut xen, &memory.p2m, &mut source).expect_err("one call fails");
        let told = matches!(error, MmError::Map { .. } | MmError::Unpin { .. } | MmError::Flush { .. });
        assert!(told && source.out != 0, "{error}");
    }
}

#[test]
fn without_memory_nothing_is_touched() {
    let (mut xen, memory, mut source) = boot();
    source.free = PfnRange { start: Pfn::new(0), end: Pfn::new(8) };
    let before = xen.calls.total();
    let error = build_one(&mut xen, &memory, &mut source).map(|_| ()).expect_err("one page too few");
    assert_eq!(error, MmError::NoFrames { va: USER_BASE, nr: 9 });
    assert_eq!(xen.calls.total(), before);
}
