//! Random mappings and unmappings in the area agree with a naive map, and leave an address space that passes the audit.

#![cfg(not(loom))]

mod model;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use mm::layout::{PAGE_SIZE, STACK_SIZE, STACKS_BASE, stack_bottom};
use mm::{Access, Memory, MmError, Mmu, Pfn, fixmap, init, protect_image};
use model::builder::{SMALL, build};
use model::{Pages, Xen, audit};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Op {
    Map(u64, Access),
    Unmap(u64),
    Stack(u64),
    SetShared,
    ClearShared,
}

/// Few pages, so that operations meet; under three tables.
fn page() -> impl Strategy<Value = u64> {
    (prop::sample::select(vec![0_u64, 500, 510, 1020, 16_000]), 0..14_u64)
        .prop_map(|(base, offset)| STACKS_BASE + (base + offset) * PAGE_SIZE)
}

fn op() -> impl Strategy<Value = Op> {
    let access = prop::sample::select(vec![Access::R, Access::Rw]);
    prop_oneof![
        4 => (page(), access).prop_map(|(va, access)| Op::Map(va, access)),
        4 => page().prop_map(Op::Unmap),
        1 => prop::sample::select(vec![0_u64, 1, 31, 32, 1000]).prop_map(Op::Stack),
        1 => Just(Op::SetShared),
        1 => Just(Op::ClearShared),
    ]
}

struct Tested {
    xen: Xen,
    memory: Memory,
    pages: Pages,
    naive: BTreeMap<u64, (Pfn, Access)>,
    shared: bool,
}

impl Tested {
    fn new() -> Tested {
        let (mut xen, boot) = build(SMALL);
        // SAFETY: the model's memory is nobody's; the model checks all the rest.
        let memory = unsafe { init(&mut xen, &boot) }.expect("a good domain");
        // SAFETY: as above.
        unsafe { protect_image(&mut xen, &memory) }.expect("a good domain");
        let pages = Pages::of(&xen, &memory);
        Tested { xen, memory, pages, naive: BTreeMap::new(), shared: false }
    }

    fn apply(&mut self, op: Op) {
        let Tested { xen, memory, pages, naive, shared } = self;
        let slot = fixmap::Slot::SHARED_INFO;
        match op {
            Op::Map(va, access) => {
                let pfn = pages.take();
                // SAFETY: the page is ours alone.
                let result = unsafe { memory.area.map_page(xen, &memory.p2m, pages, va, (pfn, access)) };
                if let Entry::Vacant(place) = naive.entry(va) {
                    assert_eq!(result, Ok(()));
                    place.insert((pfn, access));
                    // SAFETY: the model checks it. It is in the TLB from here on.
                    unsafe { xen.load(va) };
                } else {
                    assert_eq!(result, Err(MmError::Occupied { va }));
                }
            }
            Op::Unmap(va) => {
                // SAFETY: nobody uses it.
                let result = unsafe { memory.area.unmap_page(xen, &memory.p2m, va) };
                let expected = naive.remove(&va).map(|(pfn, _)| pfn).ok_or(MmError::NotMapped { va });
                assert_eq!(result, expected);
            }
            Op::Stack(stack) => {
                let vas = (stack_bottom(stack)..stack_bottom(stack) + STACK_SIZE).step_by(4096);
                // A page that was mapped there by hand is in the way; the stack's first alone is looked at.
                if vas.clone().skip(1).any(|va| naive.contains_key(&va)) && !naive.contains_key(&stack_bottom(stack)) {
                    return;
                }
                let result = memory.area.map_stack(xen, &memory.p2m, pages, stack);
                if naive.contains_key(&stack_bottom(stack)) {
                    assert_eq!(result, Err(MmError::Occupied { va: stack_bottom(stack) }));
                } else {
                    assert!(result.is_ok(), "{result:?}");
                    for va in vas {
                        let pfn = memory.area.translate(xen, &memory.p2m, va).expect("mapped just now");
                        naive.insert(va, (pfn, Access::Rw));
                    }
                }
            }
            Op::SetShared if !*shared => {
                let maddr = xen.shared_info_maddr();
                // SAFETY: the model's shared_info is nobody's.
                unsafe { fixmap::set(xen, slot, maddr, Access::Rw) }.expect("the table is there");
                *shared = true;
            }
            Op::SetShared => {}
            Op::ClearShared => {
                // SAFETY: nobody uses it.
                unsafe { fixmap::clear(xen, slot) }.expect("the table is there");
                *shared = false;
            }
        }
    }

    fn check(&self) {
        let expected: Vec<_> = self.naive.iter().map(|(va, (pfn, access))| (*va, *pfn, *access)).collect();
        let foreign = self.shared.then_some(fixmap::Slot::SHARED_INFO.va());
        audit::check(&self.xen, &self.memory, &expected, foreign.as_slice());
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 1 } else { 200 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn area_agrees_with_a_naive_map(ops in prop::collection::vec(op(), 1..if cfg!(miri) { 12 } else { 80 })) {
        let mut tested = Tested::new();
        for op in ops {
            tested.apply(op);
        }
        tested.check();
    }
}
