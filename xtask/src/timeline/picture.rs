//! Draws a [`Timeline`]: vCPUs down, time across, one colour for each phase.
//!
//! Time runs on scales of its own in each part (`scale.rs`). Every stretch has its exact times as a tooltip, in any viewer
//! that knows them. Turned down: plotters, whose charts have one scale and no tooltips.

#![forbid(unsafe_code)]

use smp::trace::{Mark, Span, Stage};
use svg::Document;
use svg::node::element::{Definitions, Group, Line, Path, Pattern, Rectangle, Style, Text, Title};

use super::scale::{Panel, Parts};
use super::style::{AWAY, Look, RUNNING, look};
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
const LEGEND_ROW: f64 = 19.0;
const LEGEND_COLUMNS: usize = 4;

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
        let legend = self.legend();
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

    /// What each colour means, and the longest that any vCPU was at it.
    fn legend(&self) -> Legend {
        let mut entries: Vec<Entry> = Vec::new();
        for lane in &self.timeline.lanes {
            for span in self.timeline.spans(lane) {
                let (look, order) = (look(&span), order(&span));
                match entries.iter_mut().find(|entry| entry.look == look) {
                    Some(entry) if entry.most_ns >= span.ns() => {}
                    Some(entry) => (entry.most_ns, entry.vcpu) = (span.ns(), lane.vcpu),
                    None => entries.push(Entry { look, order, most_ns: span.ns(), vcpu: lane.vcpu }),
                }
            }
        }
        entries.sort_by_key(|entry| entry.order);
        let running = Look { words: "running", colour: RUNNING };
        let rows = (entries.len() + 1).div_ceil(LEGEND_COLUMNS);
        let top = self.rows.bottom() + AXIS + 26.0;
        let caption = "Phases, and the longest that any vCPU was at it, and which:";
        let mut group = Group::new().add(text(LEFT, top - 8.0, caption).set("class", "sub"));
        let notes = entries.iter().map(|entry| {
            let on = if self.rows.nr > 1 { format!(" on {}", entry.vcpu) } else { String::new() };
            (entry.look, format!("{}{on}", duration(entry.most_ns)))
        });
        for (n, (look, note)) in notes.chain([(running, String::new())]).enumerate() {
            let (x, y) = legend_place(n, rows, top);
            group = group
                .add(rectangle(x, y, 16.0, 12.0).set("fill", look.colour).set("stroke", "#9aa5b1"))
                .add(text(x + 23.0, y + 10.5, look.words))
                .add(text(x + 330.0, y + 10.5, &note).set("class", "small end"));
        }
        Legend { group, height: legend_place(rows, rows + 1, 0.0).1 + 26.0 }
    }
}

struct Legend {
    group: Group,
    height: f64,
}

struct Entry {
    look: Look,
    order: usize,
    most_ns: u64,
    vcpu: u32,
}

/// Where in the legend a span's phase stands: by stage, then by phase.
fn order(span: &Span) -> usize {
    span.stage as usize * Mark::COUNT + span.mark.index()
}

/// Top left corner of the `n`th entry of a legend with so many rows.
#[expect(clippy::cast_precision_loss, reason = "a handful of entries")]
fn legend_place(n: usize, rows: usize, top: f64) -> (f64, f64) {
    let column = (WIDTH - LEFT - RIGHT) / LEGEND_COLUMNS as f64;
    (LEFT + (n / rows) as f64 * column, top + 4.0 + (n % rows) as f64 * LEGEND_ROW)
}

fn hatching() -> Definitions {
    let stroke = Path::new().set("d", "M-2,2 l4,-4 M0,10 l10,-10 M8,12 l4,-4").set("stroke", "#b8c2cf");
    let ground = rectangle(0.0, 0.0, 10.0, 10.0).set("fill", "#eef1f5");
    let pattern = Pattern::new().set("id", "hatching").set("width", 10).set("height", 10);
    Definitions::new().add(pattern.set("patternUnits", "userSpaceOnUse").add(ground).add(stroke))
}

fn rectangle(x: f64, y: f64, width: f64, height: f64) -> Rectangle {
    Rectangle::new().set("x", px(x)).set("y", px(y)).set("width", px(width)).set("height", px(height))
}

fn line(x1: f64, y1: f64, x2: f64, y2: f64) -> Line {
    Line::new().set("x1", px(x1)).set("y1", px(y1)).set("x2", px(x2)).set("y2", px(y2))
}

fn text(x: f64, y: f64, words: &str) -> Text {
    Text::new(words).set("x", px(x)).set("y", px(y))
}

/// Two digits behind the point are enough for any eye, and keep the file small.
fn px(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[expect(clippy::cast_precision_loss, reason = "a few words")]
fn px_len(words: &str) -> f64 {
    words.len() as f64
}

/// A round time, without the digits that say nothing.
fn short(ns: u64) -> String {
    for (unit, scale) in [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)] {
        if ns >= scale {
            let (whole, tenth) = (ns / scale, ns % scale / (scale / 10));
            return if tenth == 0 { format!("{whole} {unit}") } else { format!("{whole}.{tenth} {unit}") };
        }
    }
    if ns == 0 { "0".to_owned() } else { format!("{ns} ns") }
}

#[cfg(test)]
mod tests {
    use svg::node::element::tag::Type;
    use svg::parser::Event;

    use super::*;

    /// A suspend of `nr` vCPUs that takes a second, its ends a few hundred microseconds.
    fn sample(nr: u32) -> Timeline {
        let zero = [
            (Mark::Asked, 0),
            (Mark::Quiet, 900_000),
            (Mark::Begun, 910_000),
            (Mark::AllArrived, 1_150_000),
            (Mark::AllStopped, 1_200_000),
            (Mark::Suspending, 1_210_000),
            (Mark::Back, 1_001_210_000),
            (Mark::EventsAttached, 1_001_230_000),
            (Mark::AllReleased, 1_001_231_000),
            (Mark::Bound, 1_001_260_000),
            (Mark::AllAlive, 1_001_600_000),
        ];
        let lane = |vcpu: u32| {
            let late = u64::from(vcpu) * 100_000 / u64::from(nr);
            let marks = [
                (Mark::Kicked, 920_000 + late),
                (Mark::Parked, 925_000 + late),
                (Mark::Arrived, 930_000 + late),
                (Mark::Released, 1_001_240_000 + late),
                (Mark::Bound, 1_001_280_000 + late),
                (Mark::FirstTask, 1_001_290_000 + late),
            ];
            Lane { vcpu, marks: marks.to_vec() }
        };
        let lanes = std::iter::once(Lane { vcpu: 0, marks: zero.to_vec() }).chain((1..nr).map(lane)).collect();
        Timeline { suspend: 3, outcome: "resumed".into(), lanes }
    }

    struct Box {
        fill: String,
        x: f64,
        y: f64,
        width: f64,
        height: f64,
    }

    /// Every rectangle, and every text.
    fn read(picture: &str) -> (Vec<Box>, Vec<String>) {
        let (mut boxes, mut words) = (Vec::new(), Vec::new());
        for event in svg::read(picture).expect("it is SVG") {
            match event {
                Event::Error(error) => panic!("{error}"),
                Event::Tag("rect", Type::Start | Type::Empty, attributes) => {
                    let number = |key: &str| attributes[key].parse::<f64>().expect("a number");
                    let fill = attributes.get("fill").map(ToString::to_string).unwrap_or_default();
                    let [x, y, width, height] = ["x", "y", "width", "height"].map(number);
                    boxes.push(Box { fill, x, y, width, height });
                }
                Event::Text(text) => words.push(text.to_owned()),
                _ => {}
            }
        }
        (boxes, words)
    }

    #[test]
    fn every_size_is_drawn_inside_its_picture() {
        for nr in [1, 2, 8, 33, 128, 512, 1024] {
            let timeline = sample(nr);
            let picture = draw(&timeline, "migrate").expect("there is something");
            assert!(!picture.contains("NaN") && !picture.contains("\"inf"));
            let (boxes, words) = read(&picture);
            let ground = &boxes.iter().find(|shape| shape.fill == "#ffffff").expect("the ground");
            for shape in &boxes {
                let inside = shape.x >= 0.0 && shape.x + shape.width <= ground.width + 0.01;
                assert!(inside && shape.width > 0.0 && shape.height > 0.0, "{nr} vCPUs: {}", shape.fill);
                assert!(shape.y + shape.height <= ground.height, "{nr} vCPUs: {}", shape.fill);
            }
            assert!(picture.contains(&format!("id=\"vcpu-{}\"", nr - 1)));
            assert!(ground.height < 2200.0, "{nr} vCPUs: {} high", ground.height);
            let stopped = boxes.iter().filter(|shape| shape.fill == super::super::style::STAND.colour).count();
            // Before and after the suspend; and the legend.
            assert_eq!(stopped, if nr > 1 { 2 * (nr as usize - 1) + 1 } else { 0 }, "{nr} vCPUs");
            assert!(words.iter().any(|text| text.contains("1.00 s")), "{nr} vCPUs: how long it was suspended");
        }
    }

    #[test]
    fn names_and_legend_tell_what_is_to_be_seen() {
        let picture = draw(&sample(512), "save + restore").expect("there is something");
        let (_, words) = read(&picture);
        let has = |text: &str| words.iter().any(|word| word.trim() == text);
        for text in ["Suspend 3: save + restore, 512 vCPUs, resumed", "all stopped", "released, not yet aware"] {
            assert!(has(text), "{text}");
        }
        assert!(has("0") && has("496") && !has("497"), "names are thinned out");
        assert!(!has("p2m published"), "what did not happen is not explained");
        assert!(has("109 us on 511"), "the longest from the release until it was seen");
    }

    #[test]
    fn one_that_was_given_up_is_drawn_too() {
        let mut timeline = sample(4);
        for lane in &mut timeline.lanes {
            lane.marks.retain(|(_, ns)| *ns < 1_000_000);
        }
        timeline.outcome = "aborted".into();
        let (_, words) = read(&draw(&timeline, "migrate").expect("there is something"));
        assert!(words.iter().any(|text| text.contains("in vain")));
        timeline.lanes.clear();
        assert_eq!(draw(&timeline, "migrate"), None);
    }

    #[test]
    fn ticks_are_short() {
        for (ns, want) in [(0, "0"), (20, "20 ns"), (500_000, "500 us"), (1_500_000, "1.5 ms"), (2_000_000_000, "2 s")]
        {
            assert_eq!(short(ns), want);
        }
    }
}
