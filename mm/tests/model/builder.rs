//! The domain builder: lays out a domain as `tools/libs/guest/xg_dom_x86.c` does, and hands it over.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use mm::layout::{P2M_BASE, PAGE_SIZE, index};
use mm::{BootMemory, Entry, Flags, Image, Mfn, Pfn, PfnRange};

use super::{Calls, Frame, Kind, Owner, Xen};

/// Machine frames below ours, so that no mfn is its pfn.
const OTHERS: u64 = 10;

/// First page of the image, and what the end of the mapping is rounded up to. Miri gets a smaller domain than a real builder
/// would make.
const FIRST: u64 = if cfg!(miri) { 8 } else { 256 };
const ROUND: u64 = if cfg!(miri) { 32 } else { 1024 };
/// Least padding behind the last thing mapped.
const PADDING: u64 = if cfg!(miri) { 4 } else { 128 };

/// The smallest domain that is enough for all tests.
pub(crate) const SMALL: u64 = if cfg!(miri) { 600 } else { 1500 };
/// One that is too small for [`mm::init`], but not for the builder.
pub(crate) const TOO_SMALL: u64 = if cfg!(miri) { 250 } else { 1033 };

/// What may differ from domain to domain.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) nr_pages: u64,
    /// Pages of text, constants and data.
    pub(crate) image: [u64; 3],
    /// Pages between the builder's mapping and the p2m.
    pub p2m_gap: u64,
    /// Pages without a machine page.
    /// They are behind the builder's mapping and not of the p2m.
    pub(crate) holes: Vec<u64>,
}

impl Shape {
    pub(crate) fn of(nr_pages: u64) -> Shape {
        Shape { nr_pages, image: if cfg!(miri) { [4, 2, 8] } else { [40, 10, 30] }, p2m_gap: 0, holes: Vec::new() }
    }
}

/// The domain of `nr_pages` as usual.
pub(crate) fn build(nr_pages: u64) -> (Xen, BootMemory) {
    build_shape(&Shape::of(nr_pages))
}

/// The machine page of `pfn`: from the top down, as no guest should rely on any order.
fn mfn(nr_pages: u64, pfn: u64) -> Mfn {
    Mfn::new(OTHERS + nr_pages - 1 - pfn)
}

/// Tables in the making.
struct Tables<'a> {
    frames: &'a mut Vec<Frame>,
    nr_pages: u64,
    root: Pfn,
    next: Pfn,
    known: BTreeMap<(u32, u64), Pfn>,
}

impl Tables<'_> {
    fn new(frames: &mut Vec<Frame>, nr_pages: u64, first: Pfn) -> Tables<'_> {
        frames[super::native(mfn(nr_pages, first.get()).get())].zero();
        Tables { frames, nr_pages, root: first, next: first.plus(1), known: BTreeMap::new() }
    }

    fn map(&mut self, va: u64, pfn: Pfn, writable: bool) {
        let mut table = self.root;
        for level in (2..=4).rev() {
            // All bits of the address that this table's entry stands for.
            let key = (level, va >> (12 + 9 * (level - 1)));
            table = match self.known.get(&key) {
                Some(below) => *below,
                None => {
                    let below = self.next;
                    self.next = below.plus(1);
                    self.known.insert(key, below);
                    self.frames[super::native(mfn(self.nr_pages, below.get()).get())].zero();
                    let flags = Flags::PRESENT | Flags::WRITABLE | Flags::ACCESSED | Flags::DIRTY | Flags::USER;
                    self.write(table, index(level, va), below, flags);
                    below
                }
            };
        }
        let mut flags = Flags::PRESENT | Flags::ACCESSED;
        flags.set(Flags::WRITABLE, writable);
        self.write(table, index(1, va), pfn, flags);
    }

    fn write(&mut self, table: Pfn, index: u64, to: Pfn, flags: Flags) {
        let raw = mfn(self.nr_pages, to.get()).maddr() | flags.bits();
        let at = mfn(self.nr_pages, table.get());
        self.frames[super::native(at.get())].write(index, raw);
    }
}

/// The domain of that shape.
pub(crate) fn build_shape(shape: &Shape) -> (Xen, BootMemory) {
    let nr_pages = shape.nr_pages;
    let mut frames: Vec<Frame> = (0..OTHERS).map(|_| Frame::new(Owner::Nobody)).collect();
    frames.extend((0..nr_pages).map(|_| Frame::new(Owner::Guest)));
    // One for shared_info.
    frames.push(Frame::new(Owner::Shared));

    let [text, rodata, data] = shape.image;
    let text = PfnRange::new(FIRST..FIRST + text);
    let rodata = PfnRange::new(text.end.get()..text.end.get() + rodata);
    let data = PfnRange::new(rodata.end.get()..rodata.end.get() + data);
    let image = Image { text, rodata, data, window: data.start.plus(2), guard: data.start.plus(5) };

    // start_info and two rings, then tables, whose number depends on how much they map, then the stack.
    let first_table = data.end.plus(3);
    let (mut nr_tables, mut mapped_end) = (0, 0);
    loop {
        let end = (first_table.get() + nr_tables + 1 + PADDING).next_multiple_of(ROUND);
        let needs = 3 + end.div_ceil(512);
        if needs == nr_tables && end == mapped_end {
            break;
        }
        (nr_tables, mapped_end) = (needs, end);
    }
    let tables_range = PfnRange::new(first_table.get()..first_table.get() + nr_tables);
    let first_free = tables_range.end.plus(1);

    let mut tables = Tables::new(&mut frames, nr_pages, first_table);
    for pfn in (0..mapped_end).map(Pfn::new) {
        tables.map(pfn.image_va(), pfn, !tables_range.contains(pfn));
    }
    assert_eq!(tables.next, tables_range.end, "the builder counts its tables");

    let p2m_start = Pfn::new(mapped_end + shape.p2m_gap);
    let p2m_pages = (nr_pages * 8).div_ceil(PAGE_SIZE);
    tables.next = p2m_start.plus(p2m_pages);
    for page in 0..p2m_pages {
        tables.map(P2M_BASE + page * PAGE_SIZE, p2m_start.plus(page), true);
    }
    let p2m = PfnRange { start: p2m_start, end: tables.next };
    assert!(p2m.end.get() <= nr_pages, "the builder would have run out of memory");

    for pfn in 0..nr_pages {
        let mfn = mfn(nr_pages, pfn);
        let exists = !shape.holes.contains(&pfn);
        let list = super::native(OTHERS + nr_pages - 1 - p2m_start.plus(pfn / 512).get());
        frames[list].write(pfn % 512, if exists { mfn.get() } else { u64::MAX });
        let frame = &mut frames[super::native(mfn.get())];
        if exists {
            frame.m2p = pfn;
        } else {
            frame.owner = Owner::Nobody;
        }
    }

    let root = mfn(nr_pages, first_table.get());
    let mut xen = Xen {
        frames,
        root,
        tlb: RefCell::new(BTreeMap::new()),
        last: Cell::new(None),
        calls: Calls::default(),
        fail_call: None,
    };
    xen.get_type(root, Kind::Table(4)).expect("vcpu 0 runs on it");
    xen.get_type(root, Kind::Table(4)).expect("pinned");
    xen.frame_mut(root).pinned = true;

    let boot = BootMemory { nr_pages, image, tables: tables_range, first_free, p2m };
    (xen, boot)
}

impl Xen {
    /// Machine address of `shared_info`.
    pub(crate) fn shared_info_maddr(&self) -> u64 {
        (self.nr_frames() - 1) * PAGE_SIZE
    }

    /// Damages a table: what maps `va` at `level` becomes `entry`, unchecked.
    pub(crate) fn damage(&mut self, level: u32, va: u64, entry: Entry) {
        let table = if level == 4 { self.root } else { self.walk(level + 1, va).and_then(Entry::mfn).expect("mapped") };
        self.frame_mut(table).write(index(level, va), entry.raw());
    }
}
