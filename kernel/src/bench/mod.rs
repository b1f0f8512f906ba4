//! Benches: `bench=NAME[,NAME]` or `bench=all` measures in a guest of its own and ends the domain; `bench=list` names them all.
//!
//! A figure is a count of TSC ticks. Each bench says its figures in one line, with the raw histogram in lines behind it
//! (`report.rs`), and `stasis: bench-end benches=` ends the run. Names, meanings and lines are the same as those of the module
//! that measures Linux as a guest of the same Xen, so that the two can be laid side by side.
//!
//! All run from one task on vcpu 0, started when every vcpu is online, and measure without an await in between: no executor,
//! no other task and no line of the console stands between two samples. What the other vcpus do meanwhile is in `others.rs`.
//!
//! Where the TSC is not native Xen traps every RDTSC: that is most of what is measured then, and differences between vcpus are made
//! up. `bench-begin` says which it is.
//!
//! A domain that is suspended meanwhile loses the ports that are measured, and panics.

#[cfg(target_os = "none")]
mod across;
#[cfg(target_os = "none")]
mod bare;
#[cfg(target_os = "none")]
mod bare_stubs;
#[cfg(target_os = "none")]
mod bind;
#[cfg(target_os = "none")]
mod calls;
#[cfg(target_os = "none")]
mod here;
mod histogram;
#[cfg(target_os = "none")]
mod loopback;
#[cfg(target_os = "none")]
mod others;
#[cfg(target_os = "none")]
mod rendezvous;
#[cfg(target_os = "none")]
mod report;
#[cfg(target_os = "none")]
mod runner;
#[cfg(target_os = "none")]
mod timer;

#[cfg(target_os = "none")]
pub(crate) use runner::{Chosen, start};
#[cfg(target_os = "none")]
pub(crate) use timer::on_timer;
