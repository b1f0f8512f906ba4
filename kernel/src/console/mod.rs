//! The console: `output` is what the kernel uses; `lines`, `queue` and `ring` are the parts that the host can test.

mod lines;
#[cfg(target_os = "none")]
mod output;
mod queue;
mod ring;

#[cfg(target_os = "none")]
pub(crate) use output::*;
