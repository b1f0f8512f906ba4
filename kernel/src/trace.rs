//! The kernel's trace of its last suspends: when each vcpu reached what. Kept by `smp::trace` in a ring for each CPU; here is
//! where it stands, how it is asked for, and what the guest tells of it.
//!
//! | told | when |
//! |---|---|
//! | the last suspend, on the console | `phases` is typed |
//! | every suspend, on the console | with `trace=suspend`, once all vcpus are back and have had a little time |
//! | the longest of each stage, and the vcpu, in `data/stasis/stage_NAME_ns` and `stage_NAME_vcpu` | after each suspend |
//!
//! On the console: a line `phases`, one `phase-stage` for each stage, one `phase` for each vcpu with all that it reached, and
//! `phases-end`. All times of marks are ns since the request was seen. With `trace=off` there are no rings and no marks.
//!
//! Cost, by the disassembled image: a mark is a call of 25 instructions, of 4 with `trace=off`. One is RDTSC, which takes 26 cycles, or
//! about 8700 where Xen traps it; a suspend is 32 marks on vcpu 0 and 11 on any other. A mark writes two words, both of
//! this CPU's ring: a kilobyte for each vcpu, of which a suspend dirties a page or two.

#[cfg(target_os = "none")]
mod live;
mod table;

#[cfg(target_os = "none")]
pub(crate) use live::*;
