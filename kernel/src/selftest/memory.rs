//! Memory, as real Xen has it mapped.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::vec::Vec;

use mm::{Entry, Flags};

use super::Verdict;
use crate::{memory, wait};

/// Every present page of the address space, under every alias: none is writable and executable, no page table is writable,
/// the guard pages are not there.
pub(super) async fn wx() -> Verdict {
    let mut audit = Audit::default();
    audit.walk(memory::root_pfn(), 4, 0, true);
    // Read again, knowing all tables: none of them may be writable by any name.
    audit.walk(memory::root_pfn(), 4, 0, true);
    let guard = boot::image::boot_stack_guard();
    match audit.wrong {
        _ if audit.pages.contains(&guard) => Err(format!("the guard page {guard:#x} is mapped")),
        None => Ok(format!("pages={} tables={}", audit.pages.len() / 2, audit.tables.len())),
        Some((va, what)) => Err(format!("{va:#x} is {what}")),
    }
}

/// A walk over the whole address space but for Xen's part of it.
#[derive(Default)]
struct Audit {
    tables: BTreeSet<u64>,
    pages: Vec<u64>,
    wrong: Option<(u64, &'static str)>,
}

impl Audit {
    /// Everything below the table in page `pfn`, which covers addresses from `base` on.
    fn walk(&mut self, pfn: u64, level: u32, base: u64, executable: bool) {
        self.tables.insert(pfn);
        let table = memory::direct::<u64>(pfn);
        for (index, place) in (0_u64..512).zip(0_usize..) {
            if level == 4 && (256..272).contains(&index) {
                continue;
            }
            let va = base | index << (12 + 9 * (level - 1));
            let va = if level == 4 && index >= 256 { va | 0xffff << 48 } else { va };
            // SAFETY: within a table of ours, which the direct map has for reading. Not copied whole: four levels of that
            //   would not fit on the stack.
            let entry = Entry::from_raw(unsafe { table.wrapping_add(place).read_volatile() });
            let Some(mfn) = entry.mfn() else { continue };
            let executable = executable && !entry.flags().contains(Flags::NO_EXECUTE);
            // shared_info is Xen's, and not in the p2m.
            let below = memory::pfn_of_mfn(mfn.get());
            match (level, below) {
                (1, below) => self.page(va, below, executable, entry.flags().contains(Flags::WRITABLE)),
                (_, Some(below)) => self.walk(below, level - 1, va, executable),
                (_, None) => self.wrong = Some((va, "mapped by a table that is not ours")),
            }
        }
    }

    fn page(&mut self, va: u64, pfn: Option<u64>, executable: bool, writable: bool) {
        self.pages.push(va);
        if executable && writable {
            self.wrong = Some((va, "writable and executable"));
        }
        if writable && pfn.is_some_and(|pfn| self.tables.contains(&pfn)) {
            self.wrong = Some((va, "a writable mapping of a page table"));
        }
    }
}

/// The p2m and the M2P agree for every page, and the toolstack could follow the list.
pub(super) async fn p2m() -> Verdict {
    let mut wrong = 0_u64;
    let nr_pages = memory::nr_pages();
    for pfn in 0..nr_pages {
        let there_and_back = memory::mfn_of_pfn(pfn).map(memory::pfn_of_mfn);
        wrong += u64::from(there_and_back != Some(Some(pfn)));
        if pfn % 4096 == 0 {
            wait::yield_now().await;
        }
    }
    memory::check_p2m().map_err(|error| format!("{error}"))?;
    if wrong == 0 {
        Ok(format!("pages={nr_pages}"))
    } else {
        Err(format!("{wrong} of {nr_pages} pages do not map back"))
    }
}

/// Takes nearly all memory, is refused the rest without harm, and gets it again after it has given it back.
pub(super) async fn heap() -> Verdict {
    const BLOCK: usize = 64 * 1024;
    let before = crate::heap::get().stats().free;
    let mut rounds = Vec::new();
    for _ in 0..3 {
        let mut blocks: Vec<Vec<u8>> = Vec::new();
        blocks.try_reserve(before / BLOCK).map_err(|error| format!("{error}"))?;
        loop {
            let mut block = Vec::new();
            if block.try_reserve_exact(BLOCK).is_err() || blocks.len() == blocks.capacity() {
                break;
            }
            block.resize(BLOCK, 0xa5_u8);
            blocks.push(block);
            wait::yield_now().await;
        }
        rounds.push(blocks.len());
    }
    let left = crate::heap::get().stats().free;
    let most = rounds.iter().max().copied().unwrap_or(0);
    let least = rounds.iter().min().copied().unwrap_or(0);
    if least * BLOCK < before / 10 * 8 {
        return Err(format!("only {least} blocks of 64 KiB out of {before} bytes"));
    }
    if most != least || before.abs_diff(left) > BLOCK {
        return Err(format!(
            "it leaks: {rounds:?} blocks in three rounds, {before} bytes free before and {left} after"
        ));
    }
    Ok(format!("blocks={least} free_bytes={left}"))
}
