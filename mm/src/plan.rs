//! [`BootMemory`] and [`Plan`]: what the domain builder left, and what we make of it.
//!
//! The plan is pure: which pages become tables, which pages the direct map has read-only, which are free, and whether there are
//! enough. It is made before anything is touched, so a domain that is too small can still say so.
//!
//! Tables are taken from the first pages behind the builder's mapping, not from the padding inside it as its end would
//! allow: padding is mapped writable, and Xen refuses a page as a table until that mapping is gone.
//!
//! Context: boot; pure functions.
#![forbid(unsafe_code)]

use crate::addr::{Pfn, PfnRange};
use crate::error::MmError;
use crate::layout::{ENTRIES, IMAGE_BASE, MAX_PAGES, PAGE_SIZE, native};
use crate::pte::Access;

/// Where the linker put what, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Image {
    /// Code.
    pub text: PfnRange,
    /// Constants; starts where the code ends.
    pub rodata: PfnRange,
    /// Data, bss, boot stack and its guard; starts where the constants end.
    pub data: PfnRange,
    /// Page in `data` that nothing uses: while tables are made, it is mapped to each of them in turn.
    pub window: Pfn,
    /// Page in `data` below the boot stack, to be unmapped.
    pub guard: Pfn,
}

/// What the domain builder left, as plain values from `start_info` and the linker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BootMemory {
    /// Pages of the domain: pfns `0..nr_pages`.
    pub nr_pages: u64,
    /// The image.
    pub image: Image,
    /// The builder's page tables that `start_info` counts (`pt_base`, `nr_pt_frames`). The first is the L4.
    pub tables: PfnRange,
    /// First page behind the builder's boot stack; from the image's end to here is `start_info`, rings and tables.
    pub first_free: Pfn,
    /// The p2m and the tables that map it (`first_p2m_pfn`, `nr_p2m_frames`).
    pub p2m: PfnRange,
}

/// Free pages that must be left over for the heap: 1 MiB.
pub const MIN_FREE_PAGES: u64 = 256;

/// How many tables the plan takes pages for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tables {
    /// L1 tables of the direct map.
    pub l1: u64,
    /// L2 tables of the direct map.
    pub l2: u64,
    /// The direct map's L3.
    pub l3: u64,
    /// L3 and L2 of the area, and the fixmap's L1.
    pub area: u64,
}

impl Tables {
    /// For a direct map of `nr_pages`.
    pub const fn of(nr_pages: u64) -> Tables {
        let l1 = nr_pages.div_ceil(ENTRIES);
        Tables { l1, l2: l1.div_ceil(ENTRIES), l3: 1, area: 3 }
    }

    /// All of them. Also, but for a handful, the number of hypercalls that making them costs.
    pub const fn total(self) -> u64 {
        self.l1 + self.l2 + self.l3 + self.area
    }
}

/// Which pages are what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// What the builder left.
    pub boot: BootMemory,
    /// First page that the builder's mapping of the image does not have.
    pub mapped_end: Pfn,
    /// The pages that become tables, and whatever lies between them: none of it writable in the direct map.
    pub pool: PfnRange,
    /// How many of which.
    pub tables: Tables,
}

impl Plan {
    /// Makes the plan. `mapped_end` is the first page that the builder's mapping doesn't have; `exists` tells whether a
    /// page has a machine page.
    ///
    /// # Errors
    /// [`MmError::TooSmall`], [`MmError::TooLarge`], [`MmError::Builder`].
    pub fn new(boot: &BootMemory, mapped_end: Pfn, exists: impl Fn(Pfn) -> bool) -> Result<Plan, MmError> {
        let have_pages = boot.nr_pages;
        if have_pages > MAX_PAGES {
            return Err(MmError::TooLarge { have_pages, max_pages: MAX_PAGES });
        }
        check_order(boot, mapped_end)?;
        let tables = Tables::of(have_pages);
        let mut plan = Plan { boot: *boot, mapped_end, pool: PfnRange { start: mapped_end, end: mapped_end }, tables };

        let mut missing = tables.total();
        while missing > 0 && plan.pool.end.get() < have_pages {
            let pfn = plan.pool.end;
            plan.pool.end = pfn.plus(1);
            if plan.may_be_table(pfn) && exists(pfn) {
                missing -= 1;
            }
        }
        // Counted, where an estimate would err: there may be holes, and the p2m may be the last thing in memory.
        let free = (0..have_pages).map(Pfn::new).filter(|pfn| plan.is_free(*pfn) && exists(*pfn));
        missing += MIN_FREE_PAGES.saturating_sub(free.take(native(MIN_FREE_PAGES)).count() as u64);
        if missing > 0 {
            return Err(MmError::TooSmall { have_pages, need_pages: have_pages + missing });
        }
        Ok(plan)
    }

    /// The builder's L4: the kernel's only root.
    pub fn root(&self) -> Pfn {
        self.boot.tables.start
    }

    /// Whether `pfn` of the pool becomes a table if it exists.
    pub fn may_be_table(&self, pfn: Pfn) -> bool {
        self.pool.contains(pfn) && !self.boot.p2m.contains(pfn)
    }

    /// What the direct map allows to do with `pfn`.
    pub fn direct_access(&self, pfn: Pfn) -> Access {
        let Image { text, rodata, .. } = self.boot.image;
        let read_only = [text, rodata, self.boot.tables, self.boot.p2m, self.pool];
        if read_only.iter().any(|range| range.contains(pfn)) { Access::R } else { Access::Rw }
    }

    /// What is left of the builder's mapping of `pfn`; `None` if nothing is.
    pub fn image_access(&self, pfn: Pfn) -> Option<Access> {
        let Image { text, rodata, data, guard, .. } = self.boot.image;
        if text.contains(pfn) {
            Some(Access::Rx)
        } else if rodata.contains(pfn) {
            Some(Access::R)
        } else if data.contains(pfn) && pfn != guard {
            Some(Access::Rw)
        } else {
            None
        }
    }

    /// Whether nobody has a use for `pfn`: it goes to the heap, if it exists.
    pub fn is_free(&self, pfn: Pfn) -> bool {
        let taken = PfnRange { start: self.boot.image.text.start, end: self.boot.first_free };
        ![taken, self.boot.p2m, self.pool].iter().any(|range| range.contains(pfn)) && pfn.get() < self.boot.nr_pages
    }
}

/// Checks that the parts follow each other as the builder and the linker place them.
fn check_order(boot: &BootMemory, mapped_end: Pfn) -> Result<(), MmError> {
    let Image { text, rodata, data, window, guard } = boot.image;
    let in_order = [
        text.start,
        text.end,
        rodata.start,
        rodata.end,
        data.start,
        data.end,
        boot.tables.start,
        boot.tables.end,
        boot.first_free,
        mapped_end,
    ];
    if let Some(pair) = in_order.windows(2).find(|pair| pair[0] > pair[1]) {
        return Err(MmError::Builder { va: pair[1].image_va(), what: "parts overlap or are out of order" });
    }
    for page in [window, guard] {
        if !data.contains(page) {
            return Err(MmError::Builder { va: page.image_va(), what: "window and guard must be pages of the data" });
        }
    }
    if boot.tables.is_empty() || mapped_end.get() > boot.nr_pages {
        return Err(MmError::Builder { va: mapped_end.image_va(), what: "more is mapped than there is" });
    }
    let p2m_end = boot.p2m.start.plus(boot.p2m.nr());
    if boot.p2m.is_empty() || boot.p2m.start < boot.first_free || p2m_end.get() > boot.nr_pages {
        return Err(MmError::Builder {
            va: IMAGE_BASE + boot.p2m.start.get() * PAGE_SIZE,
            what: "the p2m is not behind the image",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 MiB, 64 pages text, 32 rodata, 64 data, 3 of start_info and rings, tables, stack, then padding up to 4 MiB, the p2m.
    fn boot(nr_pages: u64) -> BootMemory {
        let p2m_frames = nr_pages.div_ceil(512) + 3;
        BootMemory {
            nr_pages,
            image: Image {
                text: PfnRange::new(256..320),
                rodata: PfnRange::new(320..352),
                data: PfnRange::new(352..416),
                window: Pfn::new(400),
                guard: Pfn::new(401),
            },
            tables: PfnRange::new(419..425),
            first_free: Pfn::new(426),
            p2m: PfnRange::new(1024..1024 + p2m_frames),
        }
    }

    fn plan(nr_pages: u64) -> Result<Plan, MmError> {
        Plan::new(&boot(nr_pages), Pfn::new(1024), |_| true)
    }

    #[test]
    fn sixteen_mib_take_13_tables() {
        let plan = plan(4096).expect("enough");
        assert_eq!(plan.tables, Tables { l1: 8, l2: 1, l3: 1, area: 3 });
        // Behind the p2m's 8 + 3 pages.
        assert_eq!(plan.pool, PfnRange::new(1024..1024 + 11 + 13));
        assert_eq!(plan.pool.iter().filter(|pfn| plan.may_be_table(*pfn)).count(), 13);
    }

    #[test]
    fn eight_gib_and_more_can_be_planned() {
        let tables = plan(1 << 21).expect("enough").tables;
        assert_eq!(tables, Tables { l1: 4096, l2: 8, l3: 1, area: 3 });
        let one_more = Tables::of((1 << 21) + 1);
        assert_eq!((one_more.l1, one_more.l2), (4097, 9));
        assert_eq!(Tables::of(MAX_PAGES).l2, ENTRIES, "one L3 is enough for all that is allowed");
    }

    #[test]
    fn too_small_says_what_would_do() {
        // Room for p2m (3 + 3) and 3 of the tables only.
        let Err(MmError::TooSmall { have_pages, need_pages }) = plan(1033) else { panic!("no room for the tables") };
        assert_eq!(have_pages, 1033);
        assert!(plan(need_pages).is_ok(), "{need_pages} pages were said to do");
        assert!(plan(need_pages - 1).is_err(), "fewer than {need_pages} pages do as well");
    }

    #[test]
    fn too_large_is_refused() {
        let error = plan(MAX_PAGES + 1).expect_err("one page too many");
        assert_eq!(error, MmError::TooLarge { have_pages: MAX_PAGES + 1, max_pages: MAX_PAGES });
    }

    #[test]
    fn every_page_has_one_use() {
        let plan = plan(4096).expect("enough");
        for pfn in (0..4096).map(Pfn::new) {
            let kept = plan.image_access(pfn).is_some() || plan.boot.tables.contains(pfn) || plan.pool.contains(pfn);
            assert!(!(kept && plan.is_free(pfn)), "{pfn}");
            if plan.is_free(pfn) {
                assert_eq!(plan.direct_access(pfn), Access::Rw, "{pfn} goes to the heap");
            }
            if plan.image_access(pfn) == Some(Access::Rx) {
                assert_eq!(plan.direct_access(pfn), Access::R, "{pfn} is executable by its other name");
            }
        }
        assert!(plan.is_free(Pfn::new(0)) && plan.is_free(Pfn::new(255)), "below the image");
        assert!(plan.is_free(Pfn::new(426)), "padding");
        assert!(!plan.is_free(Pfn::new(4096)), "there is no such page");
        assert_eq!(plan.image_access(plan.boot.image.guard), None);
    }

    #[test]
    fn pages_that_do_not_exist_are_stepped_over() {
        let all = plan(4096).expect("enough");
        let hole = Pfn::new(1024 + 11 + 2);
        let holed = Plan::new(&boot(4096), Pfn::new(1024), |pfn| pfn != hole).expect("enough");
        assert_eq!(holed.pool.end, all.pool.end.plus(1));
    }

    #[test]
    fn contradictions_are_named() {
        let mut overlapping = boot(4096);
        overlapping.image.rodata = PfnRange::new(300..352);
        let mut p2m_inside = boot(4096);
        p2m_inside.p2m = PfnRange::new(300..311);
        let mut stray_window = boot(4096);
        stray_window.image.window = Pfn::new(10);
        for wrong in [overlapping, p2m_inside, stray_window] {
            let error = Plan::new(&wrong, Pfn::new(1024), |_| true).expect_err("contradiction");
            assert!(matches!(error, MmError::Builder { .. }), "{error}");
        }
    }
}
