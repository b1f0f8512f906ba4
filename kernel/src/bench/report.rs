//! [`Report`]: takes samples, and says what they came to.
//!
//! ```text
//! stasis: bench name=self-event unit=cycles abi=2l where=cpu0 n=2000 min= p50= p90= p99= p999= max=
//! stasis: bench-hist name=self-event part=1 of=2 buckets=LOW:COUNT,LOW:COUNT,…
//! ```
//!
//! What tells two lines of one bench apart (`k=8`, `other=idle`) stands behind `where=`.

use core::fmt;

use super::histogram::Histogram;
use crate::logfmt::{Line, MAX_LINE};
use crate::{console, events};

/// Buckets in a line.
const PER_LINE: usize = 40;
/// Two numbers of 20 and 10 digits, a colon and a comma for each; and what stands before them.
const _: () = assert!(PER_LINE * 32 + 256 <= MAX_LINE);

/// One field of a line.
pub(super) type Field<'a> = (&'a str, &'a dyn fmt::Display);

/// See the head of this file.
pub(super) struct Report {
    name: &'static str,
    histogram: Histogram,
    lines: usize,
}

impl Report {
    /// One with nothing said yet. Allocates all that it will need.
    pub(super) fn new() -> Report {
        Report { name: "", histogram: Histogram::new(), lines: 0 }
    }

    /// What comes now belongs to the bench `name`.
    pub(super) fn name(&mut self, name: &'static str) {
        self.name = name;
    }

    /// How many figures have been told.
    pub(super) fn lines(&self) -> usize {
        self.lines
    }

    /// Takes `n` samples, after a tenth as many that are thrown away, and tells what they came to. Context: task on the CPU
    /// that measures; allocates nothing.
    pub(super) fn measure(&mut self, variant: &[Field<'_>], n: u32, mut sample: impl FnMut() -> u64) {
        // A turn of the executor for each sample, so that no port fires too often in one.
        let mut sample = || {
            events::get().end_turn(percpu::vcpu_info());
            sample()
        };
        for _ in 0..n.div_ceil(10) {
            sample();
        }
        self.histogram.clear();
        for _ in 0..n {
            let ticks = sample();
            self.histogram.add(ticks);
        }
        self.tell(variant);
    }

    /// Tells why there are no figures.
    pub(super) fn skip(&self, variant: &[Field<'_>], why: &dyn fmt::Display) {
        let mut line = Line::new("bench-skip");
        line.field("name", &self.name);
        variant.iter().for_each(|(key, value)| line.field(key, value));
        line.field("why", why);
        console::print(&line);
    }

    fn tell(&mut self, variant: &[Field<'_>]) {
        let all = &self.histogram;
        let mut line = Line::new("bench");
        line.field("name", &self.name);
        line.field("unit", &"cycles");
        line.field("abi", &events::get().abi());
        line.field("where", &format_args!("cpu{}", percpu::current()));
        variant.iter().for_each(|(key, value)| line.field(key, value));
        line.field("n", &all.n());
        line.field("min", &all.min());
        for (key, per_mille) in [("p50", 500), ("p90", 900), ("p99", 990), ("p999", 999)] {
            line.field(key, &all.per_mille(per_mille));
        }
        line.field("max", &all.max());
        console::print(&line);
        self.lines += 1;

        let parts = all.filled().count().div_ceil(PER_LINE);
        for part in 0..parts {
            let mut line = Line::new("bench-hist");
            line.field("name", &self.name);
            line.field("part", &(part + 1));
            line.field("of", &parts);
            line.field("buckets", &Buckets(all.filled().skip(part * PER_LINE).take(PER_LINE)));
            console::print(&line);
        }
    }
}

/// Buckets as a line has them.
struct Buckets<I>(I);

impl<I: Iterator<Item = (u64, u32)> + Clone> fmt::Display for Buckets<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nr, (low, count)) in self.0.clone().enumerate() {
            let separator = if nr == 0 { "" } else { "," };
            write!(f, "{separator}{low}:{count}")?;
        }
        Ok(())
    }
}
