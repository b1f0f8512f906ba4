//! Looks at a whole address space, as a debugger would, and checks what must hold of it.

use std::collections::HashMap;

use mm::layout::{AREA_BASE, AREA_END, IMAGE_BASE, P2M_BASE, PAGE_SIZE, span};
use mm::{Access, Entry, Flags, Memory, Mfn, Mmu, Pfn};

use super::{Kind, Owner, Xen, native};

/// One page that is mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
    pub(crate) va: u64,
    pub(crate) mfn: Mfn,
    pub(crate) writable: bool,
    pub(crate) executable: bool,
}

/// All pages that are mapped, upwards.
struct Mappings(Vec<Mapping>);

impl Mappings {
    fn of(xen: &Xen) -> Mappings {
        let mut found = Vec::new();
        descend(xen, xen.root(), 4, 0, (true, true), &mut found);
        Mappings(found)
    }

    fn at(&self, va: u64) -> Option<Mapping> {
        self.0.binary_search_by_key(&va, |mapping| mapping.va).ok().map(|i| self.0[i])
    }
}

fn descend(xen: &Xen, table: Mfn, level: u32, base: u64, above: (bool, bool), found: &mut Vec<Mapping>) {
    for i in 0..512 {
        let raw = xen.frame(table).read(i);
        if raw == 0 {
            continue;
        }
        let entry = Entry::from_raw(raw);
        let Some(mfn) = entry.mfn() else {
            panic!("a non-present entry keeps something: {raw:#x}");
        };
        let mut va = base + i * span(level);
        if level == 4 && i >= 256 {
            va |= 0xffff << 48;
        }
        let writable = above.0 && entry.flags().contains(Flags::WRITABLE);
        let executable = above.1 && !entry.flags().contains(Flags::NO_EXECUTE);
        if level == 1 {
            assert!(!entry.flags().contains(Flags::GLOBAL), "{va:#x} is a user page");
            found.push(Mapping { va, mfn, writable, executable });
        } else {
            descend(xen, mfn, level - 1, va, (writable, executable), found);
        }
    }
}

/// What a leaf with this access looks like.
fn rights(access: Access) -> (bool, bool) {
    match access {
        Access::R => (false, false),
        Access::Rw => (true, false),
        Access::Rx => (false, true),
    }
}

/// Checks the address space after `init` and `protect_image`. `area` is what should be mapped in the area; `foreign` what
/// of that is not ours.
pub(crate) fn check(xen: &Xen, memory: &Memory, area: &[(u64, Pfn, Access)], foreign: &[u64]) {
    let mappings = Mappings::of(xen);

    // Nothing is writable and executable, under one name or two; no table is writable; all is ours.
    let mut uses = vec![(false, false); native(xen.nr_frames())];
    for Mapping { va, mfn, writable, executable } in &mappings.0 {
        assert!(!(*writable && *executable), "{va:#x} is writable and executable");
        let all = &mut uses[native(mfn.get())];
        *all = (all.0 || *writable, all.1 || *executable);
        assert!(*all != (true, true), "{va:#x} is writable by one name and executable by another");
        let frame = xen.frame(*mfn);
        assert!(!*writable || !matches!(frame.kind(), Some(Kind::Table(_))), "{va:#x}: a table is writable");
        let ours = frame.owner == Owner::Guest && memory.p2m.pfn(xen, *mfn).is_some();
        assert!(ours != foreign.contains(va), "{va:#x} would make the toolstack drop its table: {mfn:?}");
    }

    check_direct_map(xen, memory, &mappings);
    check_image(xen, memory, &mappings);

    // The p2m is there, whole, and nothing there is executable.
    for pfn in (0..memory.plan.boot.nr_pages).map(Pfn::new) {
        // SAFETY: the model checks it.
        let listed = unsafe { xen.load(P2M_BASE + pfn.get() * 8) };
        assert_eq!(memory.p2m.mfn(xen, pfn).map_or(u64::MAX, Mfn::get), listed);
    }
    assert!(
        mappings.0.iter().all(|mapping| !mapping.executable || mapping.va >= IMAGE_BASE),
        "executable outside the image"
    );

    // The area is as it should be.
    let expected: HashMap<u64, (Pfn, Access)> = area.iter().map(|(va, pfn, access)| (*va, (*pfn, *access))).collect();
    for mapping in mappings.0.iter().filter(|mapping| (AREA_BASE..AREA_END).contains(&mapping.va)) {
        if foreign.contains(&mapping.va) {
            continue;
        }
        let Some((pfn, access)) = expected.get(&mapping.va) else { panic!("{:#x} is mapped", mapping.va) };
        assert_eq!(memory.p2m.pfn(xen, mapping.mfn), Some(*pfn));
        assert_eq!((mapping.writable, mapping.executable), rights(*access));
    }
    for va in expected.keys() {
        assert!(mappings.at(*va).is_some(), "{va:#x} is not mapped");
    }
    xen.assert_no_stale_tlb();
}

/// All pages, and nothing else, with the rights of the plan. Tables made since boot are read-only.
fn check_direct_map(xen: &Xen, memory: &Memory, mappings: &Mappings) {
    for pfn in (0..memory.plan.boot.nr_pages).map(Pfn::new) {
        let found = mappings.at(pfn.direct_va());
        let Some(mfn) = memory.p2m.mfn(xen, pfn) else {
            assert!(found.is_none(), "{pfn} is mapped and does not exist");
            continue;
        };
        let Some(found) = found else { panic!("{pfn} is not in the direct map") };
        let table = matches!(xen.frame(mfn).kind(), Some(Kind::Table(_)));
        let access = if table { Access::R } else { memory.plan.direct_access(pfn) };
        assert_eq!((found.mfn, found.writable, found.executable), (mfn, rights(access).0, false), "{pfn}");
    }
    let past = Pfn::new(memory.plan.boot.nr_pages).direct_va();
    assert!(mappings.at(past).is_none());
}

/// Of the builder's mapping, the image alone, with its rights.
fn check_image(xen: &Xen, memory: &Memory, mappings: &Mappings) {
    let image = memory.plan.boot.image;
    let left = mappings.0.iter().filter(|mapping| mapping.va >= IMAGE_BASE).count() as u64;
    assert_eq!(left, image.text.nr() + image.rodata.nr() + image.data.nr() - 1, "all but the guard page");
    assert!(mappings.at(image.guard.image_va()).is_none());
    for (range, access) in [(image.text, Access::Rx), (image.rodata, Access::R), (image.data, Access::Rw)] {
        for pfn in range.iter().filter(|pfn| *pfn != image.guard) {
            let Some(found) = mappings.at(pfn.image_va()) else { panic!("{pfn} of the image is gone") };
            // The window too: it has its own page back.
            assert_eq!(Some(found.mfn), memory.p2m.mfn(xen, pfn));
            assert_eq!((found.writable, found.executable), rights(access), "{pfn}");
        }
    }
    assert!(mappings.0.iter().all(|mapping| mapping.va.is_multiple_of(PAGE_SIZE)));
}
