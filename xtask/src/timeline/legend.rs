//! Below the picture: what each colour means, and the longest that any vCPU was at it.

#![forbid(unsafe_code)]

use smp::trace::{Mark, Span};
use svg::node::element::Group;

use super::Timeline;
use super::shapes::{rectangle, text};
use super::style::{Look, RUNNING, look};
use crate::report::duration;

const ROW: f64 = 19.0;
const COLUMNS: usize = 4;

/// It, and how high it is.
pub(super) struct Legend {
    pub(super) group: Group,
    pub(super) height: f64,
}

struct Entry {
    look: Look,
    order: usize,
    most_ns: u64,
    vcpu: u32,
}

impl Legend {
    /// Of all that happens in the timeline, with its top left corner at `place`.
    pub(super) fn of(timeline: &Timeline, place: (f64, f64), width: f64) -> Legend {
        let mut entries: Vec<Entry> = Vec::new();
        for lane in &timeline.lanes {
            for span in timeline.spans(lane) {
                let (look, order) = (look(&span), order(&span));
                match entries.iter_mut().find(|entry| entry.look == look) {
                    Some(entry) if entry.most_ns >= span.ns() => {}
                    Some(entry) => (entry.most_ns, entry.vcpu) = (span.ns(), lane.vcpu),
                    None => entries.push(Entry { look, order, most_ns: span.ns(), vcpu: lane.vcpu }),
                }
            }
        }
        entries.sort_by_key(|entry| entry.order);
        let rows = (entries.len() + 1).div_ceil(COLUMNS);
        let caption = "Phases, and the longest that any vCPU was at it, and which:";
        let mut group = Group::new().add(text(place.0, place.1 - 8.0, caption).set("class", "sub"));
        let notes = entries.iter().map(|entry| {
            let on = if timeline.lanes.len() > 1 { format!(" on {}", entry.vcpu) } else { String::new() };
            (entry.look, format!("{}{on}", duration(entry.most_ns)))
        });
        let running = Look { words: "running", colour: RUNNING };
        for (n, (look, note)) in notes.chain([(running, String::new())]).enumerate() {
            let (x, y) = corner(n, rows, place, width);
            group = group
                .add(rectangle(x, y, 16.0, 12.0).set("fill", look.colour).set("stroke", "#9aa5b1"))
                .add(text(x + 23.0, y + 10.5, look.words))
                .add(text(x + 330.0, y + 10.5, &note).set("class", "small end"));
        }
        Legend { group, height: corner(rows, rows + 1, (0.0, 0.0), width).1 + 26.0 }
    }
}

/// Where a span's phase stands: by stage, then by phase.
fn order(span: &Span) -> usize {
    span.stage as usize * Mark::COUNT + span.mark.index()
}

/// Top left corner of the `n`th entry of a legend with so many rows.
#[expect(clippy::cast_precision_loss, reason = "a handful of entries")]
fn corner(n: usize, rows: usize, place: (f64, f64), width: f64) -> (f64, f64) {
    (place.0 + (n / rows) as f64 * width / COLUMNS as f64, place.1 + 4.0 + (n % rows) as f64 * ROW)
}
