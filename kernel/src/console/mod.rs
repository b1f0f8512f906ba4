//! The console: `output` is what the kernel uses; `queue` and `ring` are the parts that the host can test.

#[cfg(target_os = "none")]
mod output;
mod queue;
mod ring;

#[cfg(target_os = "none")]
pub(crate) use output::*;
