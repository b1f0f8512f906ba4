//! Which CPU is this, what belongs to it alone, and what may run on it right now.
//!
//! - [`CpuId`], [`CpuSet`]: our numbering of vcpus, and sets of them of any size up to [`CpuId::MAX`].
//! - [`Area`]: the block that a vcpu's gs base points to. It holds what must be reached in one
//!   instruction: the CPU's number, its registered `vcpu_info`, its runstate.
//! - [`PerCpu`], [`Local`]: one slot for each CPU; shared slots, and slots that only their own CPU reaches.
//! - [`Masked`], [`Quiesced`]: tokens that prove a context.
//!
//! Two backends stand behind [`current`] and [`mask_upcalls`]: gs-relative instructions in the image
//! (`gs.rs`), and thread-locals on the host (`hosted.rs`), under loom and under Miri, so that everything above
//! this crate runs there unchanged.
//!
//! A token for "does not move to another CPU" was planned and left out: kernel tasks are bound to their CPU for
//! life and are not preempted between await points, so [`current`] cannot go stale in synchronous code.
#![cfg_attr(not(test), no_std)]

extern crate alloc;
#[cfg(all(not(test), not(target_os = "none")))]
extern crate std;

#[cfg(not(any(loom, shuttle)))]
mod area;
mod id;
mod set;
mod slots;
mod token;

#[cfg(target_os = "none")]
mod gs;
#[cfg(not(target_os = "none"))]
pub mod hosted;

#[cfg(target_os = "none")]
use gs as backend;
#[cfg(target_os = "none")]
pub use gs::start_upcalls;
#[cfg(not(target_os = "none"))]
use hosted as backend;

#[cfg(not(any(loom, shuttle)))]
pub use area::Area;
#[cfg(not(any(loom, shuttle)))]
pub use backend::{area, vcpu_info};
pub use backend::{current, mask_upcalls};
pub use id::CpuId;
pub use set::CpuSet;
pub use slots::{Local, PerCpu};
pub use token::{MaskGuard, Masked, Quiesced};
