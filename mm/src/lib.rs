//! Memory: which page is which machine page, what is mapped where with which rights, and the heap.
//!
//! - [`layout`]: the address space, drawn.
//! - [`init`], [`protect_image`]: at boot, from the builder's address space to ours: a direct map of all memory, nothing
//!   writable and executable at once, no page table writable. [`Plan`] is the pure part of it.
//! - [`P2m`]: page numbers to machine page numbers and back; what the toolstack is told.
//! - [`AreaMap`], [`fixmap`]: mappings made later: stacks with guards; pages that are not ours.
//! - [`AddressSpace`]: what user mode sees, under a root of its own.
//! - [`Heap`]: all free pages.
//! - [`Mmu`]: what of this needs Xen or the processor. [`XenMmu`] is the real one; the tests have a model of Xen.
//!
//! Suspend: page tables, p2m and heap are *kept*; Xen and the toolstack put the new machine's numbers into all of them. The kernel
//! [clears](fixmap::clear) the fixmap before, and [sets](fixmap::set) it and [publishes](P2m::publish) the p2m anew
//! after. No [`Mfn`] may be kept across it.
#![cfg_attr(not(test), no_std)]

pub mod fixmap;
pub mod layout;

mod addr;
mod error;
mod frames;
mod heap;
mod init;
mod lock;
mod map;
mod mmu;
mod p2m;
mod plan;
mod protect;
mod pte;
mod root;
mod user;
mod xen;

pub use addr::{Mfn, Pfn, PfnRange};
pub use error::MmError;
pub use frames::FrameSource;
pub use heap::{Heap, HeapStats};
pub use init::{Memory, init};
pub use lock::MaskedLock;
pub use map::AreaMap;
pub use mmu::{Flush, Mmu};
pub use p2m::P2m;
pub use plan::{BootMemory, Image, MIN_FREE_PAGES, Plan, Tables};
pub use protect::protect_image;
pub use pte::{Access, Entry, Flags};
pub use root::Root;
pub use user::AddressSpace;
pub use xen::XenMmu;
