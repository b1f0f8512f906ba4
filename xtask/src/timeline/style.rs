//! How each phase looks, and what it is called for people. A family of colours for each stage, a shade for each phase.

#![forbid(unsafe_code)]

use smp::trace::{Mark, Span, Stage};

/// A vCPU that runs, before the rendezvous and after it has come back.
pub(super) const RUNNING: &str = "#e6edf5";

/// What is drawn in one colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// In a few words.
    pub(super) words: &'static str,
    /// As SVG has it.
    pub(super) colour: &'static str,
}

/// How a span looks.
pub(super) fn look(span: &Span) -> Look {
    if span.stage == Stage::Stand { STAND } else { of(span.mark) }
}

/// The domain is away.
pub(super) const AWAY: &str = "url(#hatching)";

/// A vCPU that has stopped; vCPU 0 works, or the domain is away.
pub(super) const STAND: Look = Look { words: "stopped", colour: "#ccd2da" };

fn of(mark: Mark) -> Look {
    let (words, colour) = match mark {
        Mark::Asked | Mark::Answered => ("request read and answered", "#a9b4c4"),
        Mark::Quiet => ("xenstore quieted", "#7688a1"),
        Mark::Begun => ("all out of the last rendezvous", "#f6d365"),
        Mark::Rung => ("others rung", "#e8a33d"),
        Mark::Kicked => ("IPI came", "#f9e2ae"),
        Mark::Parked => ("task ran to its await", "#f2b84b"),
        Mark::Arrived => ("inbox served, arrived", "#d98324"),
        Mark::AllArrived => ("waiting for all to arrive", "#f8dcae"),
        Mark::AllStopped => ("waiting for all to stop", "#cf7f3a"),
        Mark::LegacyMasked => ("legacy slots masked", "#cdbcf0"),
        Mark::EventsDetached => ("events detached", "#b39be6"),
        Mark::SharedInfoUnmapped => ("shared_info unmapped", "#8e6fd6"),
        Mark::RingsToPfns => ("rings' mfns to pfns", "#6f4fc0"),
        Mark::OthersDown => ("others taken down", "#614fb5"),
        Mark::Suspending => ("into the hypercall", "#53389a"),
        Mark::Back => ("suspended", AWAY),
        Mark::OthersUpAgain => ("others up again", "#d9f2c9"),
        Mark::RingsToMfns => ("rings' pfns to mfns", "#b7e3c0"),
        Mark::SharedInfoRemapped => ("shared_info mapped again", "#5fb878"),
        Mark::EventsReattached => ("events attached again", "#2f8f52"),
        Mark::LegacyLeft => ("legacy slots left masked", "#1f6f3d"),
        Mark::SharedInfoMapped => ("new shared_info mapped", "#5fb878"),
        Mark::NewLegacyMasked => ("its legacy slots masked", "#b7e3c0"),
        Mark::VcpuInfoPlaced => ("vCPU 0's vcpu_info placed", "#2f8f52"),
        Mark::ClockRebased => ("clock rebased", "#8fd3a0"),
        Mark::P2mPublished => ("p2m published", "#1f6f3d"),
        Mark::EventsAttached => ("events attached", "#a3d977"),
        Mark::OthersBound => ("others' ports bound", "#c9e8ad"),
        Mark::OthersInitialised => ("others initialised", "#7fbf6a"),
        Mark::AllReleased => ("others released", "#0f4f2b"),
        Mark::OthersUp => ("others brought up", "#3f7f52"),
        Mark::Released => ("released, not yet aware", "#e5484d"),
        Mark::Bound => ("own ports bound", "#1d5fd1"),
        Mark::InboxServed => ("inbox served", "#5a96f2"),
        Mark::Joined => ("roll call joined", "#8fbcf9"),
        Mark::Connected => ("console and xenstore bound", "#0b7285"),
        Mark::Thawed => ("xenstore goes on", "#3bb3c3"),
        Mark::Timer => ("until the first timer event", "#b5179e"),
        Mark::Ipi => ("until the first IPI", "#e07ad2"),
        Mark::AllAlive => ("until all are alive", "#f3c6ec"),
        Mark::FirstTask => ("until its first task", "#c3dc8d"),
    };
    Look { words, colour }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_has_words_and_a_colour() {
        for look in Mark::all().map(of).chain([STAND]) {
            assert!(!look.words.is_empty() && !look.words.contains(['<', '&', '"']));
            let Some(digits) = look.colour.strip_prefix('#') else {
                assert_eq!(look.colour, AWAY);
                continue;
            };
            assert!(digits.len() == 6 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()), "{look:?}");
        }
    }
}
