//! What is measured in a guest, and what comes of it: the benches' lines, the comparison, the record.
//!
//! Owns the names of the benches. Pure, all of it: text and figures in, text out; booting is `commands::bench`'s. Turned
//! down: judging raw samples here; a guest tells a histogram, since a console is slow and samples are many.

pub mod downtime;
pub mod record;
pub mod said;
pub mod table;

/// Whose figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Ours.
    Stasis,
    /// The Linux peer's.
    Linux,
}

/// A bench that guests know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its name, as `bench=` takes it.
    pub name: &'static str,
    /// The keys that tell its variants apart.
    pub variant: &'static [&'static str],
    /// Whether the peer has it too.
    pub peer: bool,
}

const fn known(name: &'static str, variant: &'static [&'static str]) -> Known {
    Known { name, variant, peer: true }
}

/// All of them, in the order in which they are run.
pub const BENCHES: [Known; 12] = [
    known("null-hypercall", &[]),
    known("self-event", &[]),
    known("self-event-return", &[]),
    known("drain", &["k"]),
    known("ipi-call", &["other"]),
    known("ipi-broadcast", &["vcpus", "other"]),
    Known { name: "rendezvous", variant: &["vcpus", "other", "until"], peer: false },
    known("event-other", &["other"]),
    known("timer-busy", &[]),
    known("storm", &["other"]),
    Known { name: "bare-ipi", variant: &["other"], peer: false },
    Known { name: "bind", variant: &["ports", "bound"], peer: false },
];

/// The bench of this name.
pub fn find(name: &str) -> Option<&'static Known> {
    BENCHES.iter().find(|known| known.name == name)
}

impl Side {
    /// What a line of this side starts with.
    pub fn prefix(self) -> &'static str {
        match self {
            Side::Stasis => "stasis: ",
            Side::Linux => "peer: ",
        }
    }

    /// For headings.
    pub fn name(self) -> &'static str {
        match self {
            Side::Stasis => "stasis",
            Side::Linux => "linux",
        }
    }
}

/// One boot of one side, with all that it measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// From 1.
    pub round: u32,
    /// Whose.
    pub side: Side,
    /// In the order measured.
    pub figures: Vec<said::Figures>,
}
