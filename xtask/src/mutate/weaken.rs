//! What an ordering is weakened to, and the edit that does it.
//!
//! Pure. The replacement is a full path, as a file need not import what it is weakened to.

#![forbid(unsafe_code)]

use std::ops::Range;

/// An ordering that promises something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// `Acquire`.
    Acquire,
    /// `Release`.
    Release,
    /// `AcqRel`.
    AcqRel,
    /// `SeqCst`.
    SeqCst,
}

impl Strength {
    /// By the name that Rust gives it; `None` for `Relaxed` and for what is no ordering.
    pub fn by_name(name: &str) -> Option<Strength> {
        [Strength::Acquire, Strength::Release, Strength::AcqRel, Strength::SeqCst]
            .into_iter()
            .find(|s| s.name() == name)
    }

    /// As Rust spells it.
    pub fn name(self) -> &'static str {
        match self {
            Strength::Acquire => "Acquire",
            Strength::Release => "Release",
            Strength::AcqRel => "AcqRel",
            Strength::SeqCst => "SeqCst",
        }
    }
}

/// What the ordering is of. A load knows no `Release` and a store no `Acquire`: both would panic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Also what an exchange does that fails.
    Load,
    /// A store.
    Store,
    /// An exchange, or what is not known here.
    Change,
    /// A fence, which stands at these bytes. There is no `Relaxed` one.
    Fence(Range<usize>),
}

/// One way to weaken a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weakening {
    /// In words: what it becomes.
    pub to: &'static str,
    /// What is given up.
    pub loses: Strength,
    /// The bytes to be replaced.
    pub bytes: Range<usize>,
    /// What comes there.
    pub with: String,
}

impl Weakening {
    /// The text with the edit made.
    pub fn apply(&self, text: &str) -> String {
        format!("{}{}{}", &text[..self.bytes.start], self.with, &text[self.bytes.end..])
    }
}

/// All ways to weaken an ordering that stands at `bytes` by one step.
pub fn ways(strength: Strength, operation: &Operation, bytes: &Range<usize>) -> Vec<Weakening> {
    let to = |to: &'static str, loses| Weakening {
        to,
        loses,
        bytes: bytes.clone(),
        with: format!("::core::sync::atomic::Ordering::{to}"),
    };
    match (strength, operation) {
        (Strength::Acquire | Strength::Release, Operation::Fence(call)) => {
            vec![Weakening { to: "nothing", loses: strength, bytes: call.clone(), with: "()".to_owned() }]
        }
        (Strength::Acquire | Strength::Release, _) => vec![to("Relaxed", strength)],
        (Strength::AcqRel, _) => vec![to("Acquire", Strength::Release), to("Release", Strength::Acquire)],
        (Strength::SeqCst, Operation::Load) => vec![to("Acquire", strength)],
        (Strength::SeqCst, Operation::Store) => vec![to("Release", strength)],
        (Strength::SeqCst, Operation::Change | Operation::Fence(_)) => vec![to("AcqRel", strength)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_is_weakened_to_what_it_may_have() {
        let names = |strength, operation: Operation| -> Vec<&str> {
            ways(strength, &operation, &(0..1)).iter().map(|way| way.to).collect()
        };
        assert_eq!(names(Strength::AcqRel, Operation::Change), ["Acquire", "Release"]);
        assert_eq!(names(Strength::Acquire, Operation::Load), ["Relaxed"]);
        assert_eq!(names(Strength::Release, Operation::Store), ["Relaxed"]);
        assert_eq!(names(Strength::SeqCst, Operation::Load), ["Acquire"]);
        assert_eq!(names(Strength::SeqCst, Operation::Store), ["Release"]);
        assert_eq!(names(Strength::SeqCst, Operation::Change), ["AcqRel"]);
        assert_eq!(names(Strength::SeqCst, Operation::Fence(0..9)), ["AcqRel"]);
        assert_eq!(names(Strength::Acquire, Operation::Fence(0..9)), ["nothing"]);
    }

    #[test]
    fn an_edit_touches_its_bytes_only() {
        let text = "ä; a.swap(0, AcqRel); // AcqRel";
        let at = text.find("AcqRel").expect("it is there");
        let way = &ways(Strength::AcqRel, &Operation::Change, &(at..at + 6))[0];
        assert_eq!(way.apply(text), "ä; a.swap(0, ::core::sync::atomic::Ordering::Acquire); // AcqRel");
    }
}
