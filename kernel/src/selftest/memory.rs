//! Memory, as real Xen has it mapped.

use alloc::format;
use alloc::vec::Vec;

use mm::layout::{self, PAGE_SIZE, STACK_SIZE, StackPart};
use mm::{Entry, Flags, Mfn, Pfn};

use super::Verdict;
use crate::{cpus, memory, wait};

/// Every present page of the address space, and every page of memory under all its names together: none is writable and
/// executable, no page table is writable, the stacks' guard pages are not there, the stacks are.
pub(super) async fn wx() -> Verdict {
    let mut audit = Audit::new();
    audit.walk(memory::root_pfn(), 4, 0, true);
    // vcpu 0's is the boot stack, in the image.
    let stack_pages = (cpus::nr() as u64 - 1) * (STACK_SIZE / PAGE_SIZE);
    if let Some((va, what)) = audit.wrong {
        return Err(format!("{va:#x} is {what}"));
    }
    if audit.stack_pages != stack_pages {
        return Err(format!("{} pages of stacks and not {stack_pages}", audit.stack_pages));
    }
    let uses = |wanted: u8| audit.uses.iter().filter(move |used| **used & wanted == wanted).count();
    match (uses(WRITABLE | EXECUTABLE), uses(WRITABLE | TABLE)) {
        // Text is executable, tables are tables, and nearly all else is writable: otherwise nothing was looked at.
        (0, 0) if uses(EXECUTABLE) != 0 && uses(TABLE) != 0 && uses(WRITABLE) != 0 => Ok(format!(
            "addresses={} writable={} executable={} tables={}",
            audit.addresses,
            uses(WRITABLE),
            uses(EXECUTABLE),
            uses(TABLE)
        )),
        (executable, tables) => Err(format!(
            "of the pages that are writable by some name {executable} are executable by another, {tables} are tables"
        )),
    }
}

/// What a page of memory is, under all its names together.
const WRITABLE: u8 = 1;
const EXECUTABLE: u8 = 2;
const TABLE: u8 = 4;

/// A walk over the whole address space but for Xen's part of it.
struct Audit {
    /// By pfn.
    uses: Vec<u8>,
    addresses: u64,
    stack_pages: u64,
    wrong: Option<(u64, &'static str)>,
}

impl Audit {
    fn new() -> Audit {
        let pages = usize::try_from(memory::nr_pages()).expect("pages of memory can be counted");
        Audit { uses: alloc::vec![0; pages], addresses: 0, stack_pages: 0, wrong: None }
    }

    /// Everything below the table in page `pfn`, which covers addresses from `base` on.
    fn walk(&mut self, pfn: Pfn, level: u32, base: u64, executable: bool) {
        self.note(pfn, TABLE);
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
            if level == 1 || entry.flags().contains(Flags::HUGE) {
                let writable = entry.flags().contains(Flags::WRITABLE);
                for n in 0..layout::span(level) / PAGE_SIZE {
                    // shared_info is Xen's, and not in the p2m.
                    let page = memory::pfn_of_mfn(Mfn::new(mfn.get() + n));
                    self.page(va + n * PAGE_SIZE, page, executable, writable);
                }
                continue;
            }
            match memory::pfn_of_mfn(mfn) {
                Some(below) => self.walk(below, level - 1, va, executable),
                None => self.wrong = Some((va, "mapped by a table that is not ours")),
            }
        }
    }

    fn page(&mut self, va: u64, pfn: Option<Pfn>, executable: bool, writable: bool) {
        self.addresses += 1;
        if executable && writable {
            self.wrong = Some((va, "writable and executable"));
        }
        if va == boot::image::boot_stack_guard() {
            self.wrong = Some((va, "the boot stack's guard, and mapped"));
        }
        match layout::stack_of(va) {
            Some(StackPart::Guard(_)) => self.wrong = Some((va, "a stack's guard, and mapped")),
            Some(StackPart::Stack(_)) => self.stack_pages += 1,
            None => {}
        }
        if let Some(pfn) = pfn {
            self.note(pfn, if writable { WRITABLE } else { 0 } | if executable { EXECUTABLE } else { 0 });
        }
    }

    fn note(&mut self, pfn: Pfn, what: u8) {
        if let Some(uses) = usize::try_from(pfn.get()).ok().and_then(|pfn| self.uses.get_mut(pfn)) {
            *uses |= what;
        }
    }
}

/// The p2m and the M2P agree for every page, and the toolstack could follow the list.
pub(super) async fn p2m() -> Verdict {
    let mut wrong = 0_u64;
    let nr_pages = memory::nr_pages();
    for pfn in (0..nr_pages).map(Pfn::new) {
        let there_and_back = memory::mfn_of_pfn(pfn).map(memory::pfn_of_mfn);
        wrong += u64::from(there_and_back != Some(Some(pfn)));
        if pfn.get() % 4096 == 0 {
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
