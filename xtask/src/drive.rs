//! Drives guests under xl and judges them: the middle between the commands and the places.
//!
//! `watch` judges lines, `domain` is what xl made and its end, `guest` pairs commands with lines, `cycles` suspends, `remus`
//! checkpoints without a pause, `dirty` counts pages written to, `vcpu_set` changes how many vCPUs are up, `soak` does all that can be done at random, `direct`
//! judges a guest without xl. All of it works on any [`crate::host::Host`], a scripted one included, which is how its failures are tested.

pub mod cycles;
pub mod direct;
pub mod dirty;
pub mod domain;
pub mod guest;
pub mod remus;
pub mod soak;
pub mod vcpu_set;
pub mod watch;

#[cfg(test)]
mod fake;
