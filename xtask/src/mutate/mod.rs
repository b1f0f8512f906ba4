//! Is every ordering needed? Weakens the atomic orderings of the lock-free crates one at a time, and expects their loom
//! tests to fail.
//!
//! A model that stays green without an ordering does not show why it is there: either the test is missing, or the
//! ordering is. What is mutated is what is both in the image and in the models ([`sources`]); the edit is made in a
//! copy of the tree ([`copy`]), never in the user's files. `commands/mutate.rs` puts the parts together.
//!
//! Turned down: cargo-mutants, which knows no orderings; regular expressions over the sources, for which `Release` in a
//! comment, a name like `Released` and an ordering are much the same.

pub mod cfg;
pub mod comment;
pub mod copy;
pub mod sites;
pub mod sources;
pub mod trial;
pub mod weaken;
