//! Time across: each part of a suspend on a scale of its own, and where on it a moment is.
//!
//! One scale for all would show nothing: the domain is away for a second, xenstore is quieted in milliseconds, and vCPUs
//! stop and come back in microseconds. So there are up to three linear scales beside each other, and a band between the
//! last two, as wide as any, for the time that the domain was away.

#![forbid(unsafe_code)]

use super::Timeline;
use smp::trace::Mark;

/// A part with a scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Panel {
    /// What happens in it.
    pub(super) title: &'static str,
    /// The time at its left edge.
    pub(super) from_ns: u64,
    /// The time at its right edge.
    pub(super) to_ns: u64,
    /// Where its left edge is.
    pub(super) x: f64,
    /// How wide it is.
    pub(super) width: f64,
}

impl Panel {
    /// How long it is; never 0.
    pub(super) fn ns(&self) -> u64 {
        self.to_ns.saturating_sub(self.from_ns).max(1)
    }

    /// Where `ns` is, which may be outside.
    #[expect(clippy::cast_precision_loss, reason = "a pixel is much wider than what is lost")]
    pub(super) fn x_of(&self, ns: u64) -> f64 {
        self.x + (ns as f64 - self.from_ns as f64) / self.ns() as f64 * self.width
    }

    /// A stretch of time as far as it lies inside: left edge and width.
    pub(super) fn clip(&self, from_ns: u64, to_ns: u64) -> Option<(f64, f64)> {
        let (from_ns, to_ns) = (from_ns.max(self.from_ns), to_ns.min(self.to_ns));
        (from_ns < to_ns).then(|| (self.x_of(from_ns), self.x_of(to_ns) - self.x_of(from_ns)))
    }

    /// Round times from its left edge on, at least `apart` pixels from each other, 0 among them.
    #[expect(clippy::cast_precision_loss, reason = "as in `x_of`")]
    pub(super) fn ticks(&self, apart: f64) -> Vec<u64> {
        let least = apart / self.width * self.ns() as f64;
        let mut decade = 1_u64;
        let step = loop {
            let step = [1, 2, 5].map(|digit| digit * decade).into_iter().find(|step| *step as f64 >= least);
            match step {
                Some(step) => break step,
                None => decade = decade.saturating_mul(10),
            }
        };
        (0..).map(|n| n * step).take_while(|ns| *ns <= self.ns()).collect()
    }
}

/// All parts of a suspend, from left to right.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parts {
    /// Those with a scale.
    pub(super) panels: Vec<Panel>,
    /// The band for the time that the domain was away: left edge and width.
    pub(super) away: Option<(f64, f64)>,
}

const AWAY: f64 = 96.0;
const GAP: f64 = 14.0;
const REQUEST: f64 = 0.16;
const NARROWEST: f64 = 0.3;

impl Parts {
    /// Divides `width` pixels from `x` on. `None`: nothing of a suspend is there to be drawn.
    #[expect(clippy::cast_precision_loss, reason = "proportions for the eye")]
    pub(super) fn of(timeline: &Timeline, x: f64, width: f64) -> Option<Parts> {
        let times = || timeline.lanes.iter().flat_map(|lane| &lane.marks);
        let last = times().map(|(_, ns)| *ns).max()?;
        let begun = timeline.at(Mark::Begun).unwrap_or(last);
        let away = timeline.at(Mark::Suspending).zip(timeline.at(Mark::Back));
        // A CPU that finds nothing to do for long is not waited for.
        let end = times().filter(|(mark, _)| *mark != Mark::FirstTask).map(|(_, ns)| *ns).max()?;
        let mut parts = vec![("answering", 0, begun)];
        match away {
            Some((gone, back)) => {
                parts.extend([("stopping", begun, gone), ("coming back", back, with_margin(back, end))])
            }
            None if begun < last => parts.push(("stopping, in vain", begun, with_margin(begun, end))),
            None => {}
        }
        let gaps = (parts.len() - 1) as f64 * GAP + if away.is_some() { AWAY + GAP } else { 0.0 };
        let room = width - gaps;
        let lengths: Vec<f64> = parts.iter().map(|(_, from, to)| to.saturating_sub(*from).max(1) as f64).collect();
        let shares: Vec<f64> = match lengths[..] {
            [_, stop, back] => {
                let share = (stop / (stop + back)).clamp(NARROWEST, 1.0 - NARROWEST);
                vec![REQUEST, (1.0 - REQUEST) * share, (1.0 - REQUEST) * (1.0 - share)]
            }
            [_, _] => vec![REQUEST, 1.0 - REQUEST],
            _ => vec![1.0],
        };
        let (mut x, mut panels, mut band) = (x, Vec::new(), None);
        for (n, ((title, from_ns, to_ns), share)) in parts.into_iter().zip(shares).enumerate() {
            if n == 2 {
                band = Some((x, AWAY));
                x += AWAY + GAP;
            }
            panels.push(Panel { title, from_ns, to_ns, x, width: room * share });
            x += room * share + GAP;
        }
        Some(Parts { panels, away: band })
    }
}

/// A little later than the last thing to be seen.
fn with_margin(from_ns: u64, to_ns: u64) -> u64 {
    to_ns + (to_ns.saturating_sub(from_ns) / 40).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::Lane;

    fn panel(from_ns: u64, to_ns: u64) -> Panel {
        Panel { title: "", from_ns, to_ns, x: 100.0, width: 200.0 }
    }

    #[test]
    fn a_panel_is_linear_and_cuts() {
        let panel = panel(1000, 2000);
        assert!((panel.x_of(1500) - 200.0).abs() < 1e-9);
        assert_eq!(panel.clip(0, 1000), None);
        assert_eq!(panel.clip(2000, 9000), None);
        let (x, width) = panel.clip(0, 1500).expect("half of it");
        assert!((x - 100.0).abs() < 1e-9 && (width - 100.0).abs() < 1e-9);
    }

    #[test]
    fn ticks_are_round_and_apart() {
        assert_eq!(panel(1000, 2000).ticks(50.0), [0, 500, 1000]);
        assert_eq!(panel(7, 7 + 123_456).ticks(40.0), [0, 50_000, 100_000]);
        assert_eq!(panel(5, 5).ticks(40.0), [0, 1], "nothing takes at least a nanosecond");
        assert!(panel(0, u64::MAX / 2).ticks(40.0).len() > 1);
    }

    #[test]
    fn parts_fill_the_width_and_leave_the_suspend_out() {
        let marks = [
            (Mark::Asked, 0),
            (Mark::Begun, 5_000_000),
            (Mark::Suspending, 5_400_000),
            (Mark::Back, 1_900_000_000),
            (Mark::AllAlive, 1_903_000_000),
            (Mark::FirstTask, 1_990_000_000),
        ];
        let mut timeline =
            Timeline { suspend: 1, outcome: "resumed".into(), lanes: vec![Lane { vcpu: 0, marks: marks.to_vec() }] };
        let parts = Parts::of(&timeline, 10.0, 1000.0).expect("there is something");
        assert_eq!(parts.panels.len(), 3);
        let (last, away) = (parts.panels[2], parts.away.expect("it was away"));
        assert!((last.x + last.width - 1010.0).abs() < 1e-6);
        assert!(last.to_ns < 1_904_000_000, "the first task is not waited for");
        assert!(parts.panels[1].x + parts.panels[1].width < away.0 && away.0 + away.1 < last.x);
        timeline.lanes[0].marks.truncate(2);
        assert_eq!(Parts::of(&timeline, 0.0, 100.0).map(|parts| (parts.panels.len(), parts.away)), Some((1, None)));
        timeline.lanes.clear();
        assert_eq!(Parts::of(&timeline, 0.0, 100.0), None);
    }
}
