//! [`spans`]: from the marks of a CPU to what it spent its time on.
//!
//! Pure; for whoever adds up or draws, so that the guest and its tools mean the same by a stage.
#![forbid(unsafe_code)]

use super::mark::{Mark, Stage};

/// A stretch of one CPU's time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// What was reached at its end.
    pub mark: Mark,
    /// What it was spent on.
    pub stage: Stage,
    /// When it began.
    pub from_ns: u64,
    /// When it ended.
    pub to_ns: u64,
}

impl Span {
    /// How long it was.
    pub fn ns(&self) -> u64 {
        self.to_ns.saturating_sub(self.from_ns)
    }
}

/// The stretches between the `marks` of one CPU. What a CPU stood still for is cut in two where vCPU 0 released it, at
/// `released_ns`: all before that is the suspend's, all after it is its own.
pub fn spans(marks: impl Iterator<Item = (Mark, u64)> + Clone, released_ns: Option<u64>) -> impl Iterator<Item = Span> {
    let ends = marks.clone().skip(1);
    marks.zip(ends).flat_map(move |((_, from_ns), (mark, to_ns))| {
        let released_ns = released_ns.filter(|_| mark == Mark::Released);
        let cut_ns = released_ns.unwrap_or(from_ns).clamp(from_ns, to_ns.max(from_ns));
        let stood = Span { mark, stage: Stage::Stand, from_ns, to_ns: cut_ns };
        let own = Span { mark, stage: mark.stage(), from_ns: cut_ns, to_ns };
        [released_ns.map(|_| stood), Some(own)].into_iter().flatten()
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_time_before_a_mark_is_spent_on_reaching_it() {
        let marks = [(Mark::Kicked, 10), (Mark::Parked, 15), (Mark::Arrived, 17)];
        let got: Vec<Span> = spans(marks.into_iter(), None).collect();
        assert_eq!(
            got,
            [
                Span { mark: Mark::Parked, stage: Stage::Gather, from_ns: 10, to_ns: 15 },
                Span { mark: Mark::Arrived, stage: Stage::Gather, from_ns: 15, to_ns: 17 },
            ]
        );
        assert_eq!(spans([(Mark::Asked, 1)].into_iter(), None).count(), 0);
        assert_eq!(spans([].into_iter(), Some(4)).count(), 0);
    }

    #[test]
    fn standing_still_ends_with_the_release() {
        let marks = [(Mark::Arrived, 20), (Mark::Released, 100)];
        for (released_ns, cut_ns) in [(90, 90), (10, 20), (200, 100)] {
            let got: Vec<Span> = spans(marks.into_iter(), Some(released_ns)).collect();
            let times: Vec<_> = got.iter().map(|span| (span.stage, span.from_ns, span.to_ns)).collect();
            assert_eq!(times, [(Stage::Stand, 20, cut_ns), (Stage::Notice, cut_ns, 100)]);
        }
        let uncut: Vec<Span> = spans(marks.into_iter(), None).collect();
        assert_eq!(uncut.len(), 1, "without a word of vCPU 0 all of it is the CPU's own");
    }
}
