//! The address space: what is where, as constants.
//!
//! ```text
//! L4 slot  address                what                                                      rights
//!     256  ffff_8000_0000_0000    M2P: Xen's, 8 bytes for each mfn                          r
//!     272  ffff_8800_0000_0000    direct map of all our pages, VA = base + pfn * 4096       rw, or r: see below
//!     288  ffff_9000_0000_0000    p2m: 8 bytes for each pfn, put there by the builder       rw
//!     320  ffff_a000_0000_0000    area: fixmap, then kernel stacks with guards              rw
//!     511  ffff_ffff_8000_0000    image, VA = base + pfn * 4096, built by the builder       rx, r, rw
//!
//! In roots of user mode's, and nothing else is there (`user.rs`):
//!       0  0000_0000_0040_0000    code, then data, up to 512 pages                          rx, rw
//!
//! area + 0        fixmap: pages that are not ours, or not always the same; an L1 table of its own (2 MiB)
//! area + 2 MiB    stack 0:  | 32 KiB guard, nothing mapped | 32 KiB stack |
//!                 stack 1:  …  up to stack 1023
//! ```
//!
//! Slots 272, 288 and 320 are not executable, by their L4 entries. In the direct map these are read-only: page tables, the
//! p2m and the tables that map it, text and constants of the image. Nothing is writable and executable at once, under
//! no alias.
//!
//! The p2m's address is a multiple of 1 GiB: the toolstack compares a relative with an absolute index when the p2m has more
//! than 262144 entries, and cuts it short otherwise (`xg_sr_save_x86_pv.c: map_p2m_list`). The stride of stacks is a power of two
//! although a single guard page would do: a frame of more than 4 KiB cannot step over it, and which stack an
//! address belongs to is a shift.
//!
//! Context: constants and pure functions.

/// Bytes of a page.
pub const PAGE_SIZE: u64 = 4096;
/// Entries of a page table.
pub const ENTRIES: u64 = 512;

/// Where Xen shows its table from mfns to pfns. L4 slot 256.
pub const M2P_BASE: u64 = 0xffff_8000_0000_0000;
/// First byte behind all that the M2P can have.
pub const M2P_END: u64 = 0xffff_8040_0000_0000;
/// Start of the direct map. L4 slot 272.
pub const DIRECT_BASE: u64 = 0xffff_8800_0000_0000;
/// Where the builder maps the p2m, because the ELF note INIT_P2M says so. L4 slot 288.
pub const P2M_BASE: u64 = 0xffff_9000_0000_0000;
/// Start of fixmap and stacks. L4 slot 320.
pub const AREA_BASE: u64 = 0xffff_a000_0000_0000;
/// Where pfn 0 is mapped at entry. L4 slot 511.
pub const IMAGE_BASE: u64 = 0xffff_ffff_8000_0000;

/// Where user mode's code begins, in roots of its own. Not 0, so that a null pointer faults. L4 slot 0.
pub const USER_BASE: u64 = 0x40_0000;

/// Most pages that the direct map's one L4 slot has room for (512 GiB).
pub const MAX_PAGES: u64 = ENTRIES * ENTRIES * ENTRIES;

/// The fixmap: one L1 table's worth of pages.
pub const FIXMAP_BASE: u64 = AREA_BASE;
/// Pages that the fixmap has room for.
pub const FIXMAP_PAGES: u64 = ENTRIES;

/// Start of the first stack's guard.
pub const STACKS_BASE: u64 = AREA_BASE + FIXMAP_PAGES * PAGE_SIZE;
/// Bytes of a stack.
pub const STACK_SIZE: u64 = 32 * 1024;
/// Distance between stacks: the stack, and a guard as large below it.
pub const STACK_STRIDE: u64 = 2 * STACK_SIZE;
/// How many stacks there can be.
pub const MAX_STACKS: u64 = 1024;
/// First byte behind the area.
pub const AREA_END: u64 = STACKS_BASE + MAX_STACKS * STACK_STRIDE;

const _: () = assert!(P2M_BASE.is_multiple_of(1 << 30), "the toolstack's arithmetic");
const _: () = assert!(USER_BASE.is_multiple_of(ENTRIES * PAGE_SIZE), "a whole L1 table is user mode's");
const _: () = assert!(AREA_END - AREA_BASE <= 1 << 30, "one L2 table maps the whole area");
const _: () = assert!((ENTRIES * PAGE_SIZE).is_multiple_of(STACK_STRIDE), "no stack lies under two L1 tables");

const _: () = assert!(size_of::<usize>() == size_of::<u64>());

/// `value` as the language counts: addresses and sizes are 64 bits here, as asserted above.
#[expect(clippy::cast_possible_truncation, reason = "asserted just above")]
pub(crate) const fn native(value: u64) -> usize {
    value as usize
}

/// Index into the table of `level` (1 to 4) that leads to `va`.
pub const fn index(level: u32, va: u64) -> u64 {
    (va >> (12 + 9 * (level - 1))) % ENTRIES
}

/// Bytes that one entry of a table of `level` covers.
pub const fn span(level: u32) -> u64 {
    1 << (12 + 9 * (level - 1))
}

/// What part of the stacks an address is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StackPart {
    /// In the stack with this index.
    Stack(u64),
    /// In the guard below the stack with this index: that stack has overflowed.
    Guard(u64),
}

/// Lowest byte of the stack with `index`.
pub const fn stack_bottom(index: u64) -> u64 {
    STACKS_BASE + index * STACK_STRIDE + (STACK_STRIDE - STACK_SIZE)
}

/// First byte above the stack with `index`: where its stack pointer starts.
pub const fn stack_top(index: u64) -> u64 {
    stack_bottom(index) + STACK_SIZE
}

/// Which stack, or guard, `va` lies in; for whoever explains a fault.
pub const fn stack_of(va: u64) -> Option<StackPart> {
    if va < STACKS_BASE || va >= AREA_END {
        return None;
    }
    let index = (va - STACKS_BASE) / STACK_STRIDE;
    Some(if va < stack_bottom(index) { StackPart::Guard(index) } else { StackPart::Stack(index) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_where_the_drawing_has_them() {
        let slots = [M2P_BASE, DIRECT_BASE, P2M_BASE, AREA_BASE, IMAGE_BASE].map(|va| index(4, va));
        assert_eq!(slots, [256, 272, 288, 320, 511]);
        assert_eq!(index(3, IMAGE_BASE), 510);
        assert_eq!(index(1, IMAGE_BASE + 0x10_3000), 0x103);
    }

    #[test]
    fn stacks_are_told_from_guards() {
        assert_eq!(stack_of(stack_bottom(0)), Some(StackPart::Stack(0)));
        assert_eq!(stack_of(stack_bottom(0) - 1), Some(StackPart::Guard(0)));
        assert_eq!(stack_of(stack_top(7) - 1), Some(StackPart::Stack(7)));
        assert_eq!(stack_of(stack_top(7)), Some(StackPart::Guard(8)));
        assert_eq!(stack_of(stack_top(1023)), None);
        assert_eq!(stack_of(STACKS_BASE - 1), None);
    }
}
