//! The shapes that the picture is made of, and how its numbers are written.

#![forbid(unsafe_code)]

use svg::node::element::{Definitions, Line, Path, Pattern, Rectangle, Text};

/// The ground of the time that the domain was away.
pub(super) fn hatching() -> Definitions {
    let stroke = Path::new().set("d", "M-2,2 l4,-4 M0,10 l10,-10 M8,12 l4,-4").set("stroke", "#b8c2cf");
    let ground = rectangle(0.0, 0.0, 10.0, 10.0).set("fill", "#eef1f5");
    let pattern = Pattern::new().set("id", "hatching").set("width", 10).set("height", 10);
    Definitions::new().add(pattern.set("patternUnits", "userSpaceOnUse").add(ground).add(stroke))
}

pub(super) fn rectangle(x: f64, y: f64, width: f64, height: f64) -> Rectangle {
    Rectangle::new().set("x", px(x)).set("y", px(y)).set("width", px(width)).set("height", px(height))
}

pub(super) fn line(x1: f64, y1: f64, x2: f64, y2: f64) -> Line {
    Line::new().set("x1", px(x1)).set("y1", px(y1)).set("x2", px(x2)).set("y2", px(y2))
}

pub(super) fn text(x: f64, y: f64, words: &str) -> Text {
    Text::new(words).set("x", px(x)).set("y", px(y))
}

/// Two digits behind the point are enough for any eye, and keep the file small.
pub(super) fn px(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[expect(clippy::cast_precision_loss, reason = "a few words")]
pub(super) fn px_len(words: &str) -> f64 {
    words.len() as f64
}

/// A round time, without the digits that say nothing.
pub(super) fn short(ns: u64) -> String {
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
    use super::*;

    #[test]
    fn ticks_are_short() {
        for (ns, want) in [(0, "0"), (20, "20 ns"), (500_000, "500 us"), (1_500_000, "1.5 ms"), (2_000_000_000, "2 s")]
        {
            assert_eq!(short(ns), want);
        }
    }
}
