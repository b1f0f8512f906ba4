//! Draws a [`Timeline`]: vCPUs down, time across, one colour for each phase.
//!
//! Time runs on scales of its own in each part (`scale.rs`). Every stretch has its exact times as a tooltip, in any viewer
//! that knows them. Turned down: plotters, whose charts have one scale and no tooltips.

#![forbid(unsafe_code)]

use smp::trace::{Mark, Stage};
use svg::Document;
use svg::node::element::{Group, Style, Title};

use super::legend::Legend;
use super::scale::{Panel, Parts};
use super::shapes::{hatching, line, px, px_len, rectangle, short, text};
use super::style::{AWAY, RUNNING, look};
use super::{Lane, Timeline};
use crate::report::duration;

const WIDTH: f64 = 1560.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 28.0;
/// Above the lanes: title, subtitle, the parts' names, two rows of milestones.
const TOP: f64 = 140.0;
/// Below the lanes: the scales.
const AXIS: f64 = 34.0;
/// All lanes are about as high as this together, between what can be seen and what is needed.
const LANES: f64 = 720.0;
const LANE: (f64, f64) = (1.5, 26.0);
/// The first lane has at least this, among however many: it is vCPU 0's, which does what all others wait for.
const FIRST_LANE: f64 = 18.0;
/// The least from one name of a vCPU to the next.
const NAMES_APART: f64 = 13.0;
const TICKS_APART: f64 = 86.0;
/// The least that a stretch takes across, so that one is seen.
const SEEN: f64 = 0.7;

const CSS: &str = "text { font-family: 'DejaVu Sans', 'Liberation Sans', Helvetica, Arial, sans-serif; fill: #1f2933; \
                   font-size: 12px; } .title { font-size: 20px; font-weight: bold; } .sub { font-size: 13px; \
                   fill: #52606d; } .part { font-size: 13px; font-weight: bold; } .small { font-size: 11px; \
                   fill: #52606d; } .end { text-anchor: end; } .mid { text-anchor: middle; }";

/// What happened on vCPU 0 for all.
const MILESTONES: [(Mark, &str); 4] = [
    (Mark::AllArrived, "all arrived"),
    (Mark::AllStopped, "all stopped"),
    (Mark::AllReleased, "all released"),
    (Mark::AllAlive, "all alive"),
];

/// The picture, as SVG. `None`: the timeline has nothing in it. `how` is what was done to the guest.
pub fn draw(timeline: &Timeline, how: &str) -> Option<String> {
    let parts = Parts::of(timeline, LEFT, WIDTH - LEFT - RIGHT)?;
    let picture = Picture { timeline, rows: Rows::of(timeline.lanes.len()), parts };
    Some(picture.document(how).to_string())
}

/// Where the lanes are.
struct Rows {
    nr: usize,
    /// Of the first one, and of each other.
    heights: (f64, f64),
}

impl Rows {
    #[expect(clippy::cast_precision_loss, reason = "at most 1024 lanes")]
    fn of(nr: usize) -> Rows {
        let height = (LANES / nr as f64).clamp(LANE.0, LANE.1);
        Rows { nr, heights: (height.max(FIRST_LANE), height) }
    }

    #[expect(clippy::cast_precision_loss, reason = "as above")]
    fn y(&self, row: usize) -> f64 {
        let (first, other) = self.heights;
        if row == 0 { TOP } else { TOP + first + (row - 1) as f64 * other }
    }

    fn bottom(&self) -> f64 {
        self.y(self.nr)
    }

    fn height(&self, row: usize) -> f64 {
        if row == 0 { self.heights.0 } else { self.heights.1 }
    }

    /// What of a lane is painted; the rest keeps it apart from the next, where there is room for that.
    fn painted(&self, row: usize) -> f64 {
        match self.height(row) {
            height if height >= 8.0 => height - 3.0,
            height if height >= 3.0 => height - 0.6,
            height => height,
        }
    }

    /// Every so many lanes one has its name beside it.
    fn named_every(&self) -> usize {
        let mut every = 1;
        while self.y(2 * every) - self.y(every) < NAMES_APART {
            every *= 2;
        }
        every
    }
}

struct Picture<'t> {
    timeline: &'t Timeline,
    rows: Rows,
    parts: Parts,
}

impl Picture<'_> {
    fn document(&self, how: &str) -> Document {
        let legend = Legend::of(self.timeline, (LEFT, self.rows.bottom() + AXIS + 26.0), WIDTH - LEFT - RIGHT);
        let height = self.rows.bottom() + AXIS + legend.height + 22.0;
        Document::new()
            .set("viewBox", (0, 0, px(WIDTH), px(height)))
            .set("width", px(WIDTH))
            .set("height", px(height))
            .add(Style::new(CSS))
            .add(hatching())
            .add(rectangle(0.0, 0.0, WIDTH, height).set("fill", "#ffffff"))
            .add(self.head(how))
            .add(self.grid())
            .add(self.lanes())
            .add(self.away())
            .add(self.milestones())
            .add(self.names())
            .add(legend.group)
    }

    fn head(&self, how: &str) -> Group {
        let nr = self.timeline.lanes.len();
        let Timeline { suspend, outcome, .. } = self.timeline;
        let vcpus = if nr == 1 { "1 vCPU" } else { &format!("{nr} vCPUs") };
        let title = format!("Suspend {suspend}: {how}, {vcpus}, {outcome}");
        let at = |mark| self.timeline.at(mark);
        let between = |from: Option<u64>, to: Option<u64>| Some(to?.saturating_sub(from?));
        let before = between(at(Mark::Asked), at(Mark::Suspending));
        let after = between(at(Mark::Back), at(Mark::AllAlive));
        let facts = [
            ("request to hypercall", before),
            ("suspended", between(at(Mark::Suspending), at(Mark::Back))),
            ("return until all are alive", after),
            ("the guest's own part", before.zip(after).map(|(before, after)| before + after)),
        ];
        let facts: Vec<String> =
            facts.into_iter().filter_map(|(what, ns)| Some(format!("{what} {}", duration(ns?)))).collect();
        let mut head = Group::new()
            .add(text(LEFT, 34.0, &title).set("class", "title"))
            .add(text(LEFT, 57.0, &facts.join("  ·  ")).set("class", "sub"));
        for panel in &self.parts.panels {
            let y = TOP - 44.0;
            let words = format!("{}  {}", panel.title, duration(panel.ns()));
            head = head
                .add(line(panel.x, y + 5.0, panel.x + panel.width, y + 5.0).set("stroke", "#9aa5b1"))
                .add(text(panel.x, y, &words).set("class", "part"));
        }
        head
    }

    /// The scales, and lines down from each tick.
    fn grid(&self) -> Group {
        let (top, bottom) = (self.rows.y(0), self.rows.bottom());
        let mut grid = Group::new();
        for panel in &self.parts.panels {
            grid = grid.add(
                rectangle(panel.x, top, panel.width, bottom - top).set("fill", "#fbfcfe").set("stroke", "#d5dbe3"),
            );
            for ns in panel.ticks(TICKS_APART) {
                let x = panel.x_of(panel.from_ns + ns);
                grid = grid
                    .add(line(x, top, x, bottom + 5.0).set("stroke", "#d5dbe3"))
                    .add(text(x, bottom + 18.0, &short(ns)).set("class", "small mid"));
            }
        }
        grid
    }

    fn lanes(&self) -> Group {
        let mut lanes =
            Group::new().set("shape-rendering", if self.rows.height(1) < 3.0 { "auto" } else { "crispEdges" });
        for (row, lane) in self.timeline.lanes.iter().enumerate() {
            lanes = lanes.add(self.lane(row, lane));
        }
        lanes
    }

    fn lane(&self, row: usize, lane: &Lane) -> Group {
        let (y, height) = (self.rows.y(row), self.rows.painted(row));
        let mut group = Group::new().set("id", format!("vcpu-{}", lane.vcpu));
        let (Some((_, first)), Some((_, last))) = (lane.marks.first(), lane.marks.last()) else { return group };
        let spans = self.timeline.spans(lane);
        for panel in &self.parts.panels {
            for (from, to) in [(panel.from_ns, *first), (*last, panel.to_ns)] {
                if let Some((x, width)) = panel.clip(from, to) {
                    group = group.add(rectangle(x, y, width, height).set("fill", RUNNING));
                }
            }
            for span in spans.iter().filter(|span| span.stage != Stage::Suspended) {
                let Some((x, width)) = panel.clip(span.from_ns, span.to_ns) else { continue };
                let look = look(span);
                let tip = format!("vCPU {}: {}, {}", lane.vcpu, look.words, duration(span.ns()));
                let seen = rectangle(x, y, width.max(SEEN), height).set("fill", look.colour);
                group = group.add(seen.add(Title::new(tip)));
            }
        }
        group
    }

    /// The band for the time that the domain was away.
    fn away(&self) -> Group {
        let Some((x, width)) = self.parts.away else { return Group::new() };
        let (top, bottom) = (self.rows.y(0), self.rows.bottom());
        let at = |mark| self.timeline.at(mark).unwrap_or(0);
        let ns = at(Mark::Back).saturating_sub(at(Mark::Suspending));
        let (middle, y) = (x + width / 2.0, TOP - 44.0);
        Group::new()
            .add(rectangle(x, top, width, bottom - top).set("fill", AWAY).set("stroke", "#9aa5b1"))
            .add(line(x, y + 5.0, x + width, y + 5.0).set("stroke", "#9aa5b1"))
            .add(text(middle, y - 16.0, "suspended").set("class", "part mid"))
            .add(text(middle, y, &duration(ns)).set("class", "part mid"))
    }

    fn milestones(&self) -> Group {
        let (top, bottom) = (self.rows.y(0), self.rows.bottom());
        let mut group = Group::new();
        // Where the last name ended, in each of the two rows.
        let mut taken = [f64::MIN; 2];
        for (mark, words) in MILESTONES {
            let Some(ns) = self.timeline.at(mark) else { continue };
            let inside = |panel: &&Panel| panel.from_ns <= ns && ns <= panel.to_ns;
            let Some(panel) = self.parts.panels.iter().rev().find(inside) else { continue };
            let x = panel.x_of(ns);
            let room = 6.6 * px_len(words);
            let from = (x - room / 2.0).clamp(LEFT, WIDTH - RIGHT - room);
            let row = usize::from(taken[0] > from);
            taken[row] = from + room + 6.0;
            let y = if row == 0 { top - 8.0 } else { top - 21.0 };
            group = group
                .add(line(x, y + 3.0, x, bottom).set("stroke", "#1f2933").set("stroke-dasharray", "2,3"))
                .add(text(from, y, words).set("class", "small"));
        }
        group
    }

    fn names(&self) -> Group {
        let every = self.rows.named_every();
        let mut names = Group::new().add(text(LEFT - 10.0, TOP - 8.0, "vCPU").set("class", "small end"));
        for (row, lane) in self.timeline.lanes.iter().enumerate().step_by(every) {
            let middle = self.rows.y(row) + self.rows.painted(row) / 2.0 + 4.0;
            let name = text(LEFT - 10.0, middle, &lane.vcpu.to_string());
            names = names.add(name.set("class", "small end"));
        }
        names
    }
}

#[cfg(test)]
#[path = "picture_tests.rs"]
mod tests;
