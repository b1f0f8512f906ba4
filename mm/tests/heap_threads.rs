//! Several CPUs at the heap at once: nothing is handed out twice, and all comes back.
#![cfg(not(loom))]

use std::alloc::Layout;
use std::thread;

use mm::Heap;
use percpu::{CpuId, hosted};

const CPUS: usize = 4;
const ROUNDS: usize = if cfg!(miri) { 20 } else { 2000 };

#[test]
fn allocations_are_apart_and_come_back() {
    let mut memory = vec![0_u64; 128 * 1024];
    let heap = Heap::new();
    let _on = hosted::enter(CpuId::BOOT);
    // SAFETY: ours until the end of this function, which the heap doesn't survive.
    // Half of it: `talc` steps over the end, if only to compare.
    assert!(unsafe { heap.give(memory.as_mut_ptr().cast(), memory.len() * 4) });
    let before = heap.stats();
    thread::scope(|scope| {
        for cpu in CpuId::first(CPUS) {
            let heap = &heap;
            scope.spawn(move || {
                let _on = hosted::enter(cpu);
                work(heap, u8::try_from(cpu.index()).expect("below CPUS"));
            });
        }
    });
    assert_eq!(heap.stats(), before);
}

/// Allocates all sorts of sizes, marks each as this CPU's, and looks whether it stays so.
fn work(heap: &Heap, mark: u8) {
    let mut held: Vec<(*mut u8, Layout)> = Vec::new();
    for round in 0..ROUNDS {
        let (size, align) = [(16, 8), (100, 16), (4096, 4096), (700, 64)][(round + usize::from(mark)) % 4];
        let layout = Layout::from_size_align(size, align).expect("valid");
        let memory = heap.allocate(layout);
        assert!(!memory.is_null(), "{CPUS} CPUs hold 8 pages at most, each");
        // SAFETY: allocated just now.
        unsafe { memory.write_bytes(mark, size) };
        held.push((memory, layout));
        if held.len() == 8 {
            for (memory, layout) in held.drain(..) {
                // SAFETY: allocated and written above.
                let bytes = unsafe { std::slice::from_raw_parts(memory, layout.size()) };
                assert!(bytes.iter().all(|byte| *byte == mark), "somebody else has it too");
                // SAFETY: from this heap with this layout, and not used any more.
                unsafe { heap.release(memory, layout) };
            }
        }
    }
    for (memory, layout) in held {
        // SAFETY: as above.
        unsafe { heap.release(memory, layout) };
    }
}
