//! Hears a guest's benches: one line with the figures, then the histogram in parts.
//!
//! Owns what these lines must hold. Pure. Both sides speak the same, save the first word. A console can lose bytes and a
//! guest can be wrong, so all that can be checked is: parts complete and in order, counts that add up, percentiles that rise.
//! Turned down: taking what is there; a figure from half a histogram looks like any other.

#![forbid(unsafe_code)]

use std::fmt;

use super::{Side, find};
use crate::logfmt::{self, Line};

/// What one bench measured, in ticks of the TSC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// The bench's name.
    pub name: String,
    /// `key=value` of what tells variants apart; empty where there are none.
    pub variant: String,
    /// `2l` or `fifo`.
    pub abi: String,
    /// Samples.
    pub n: u64,
    /// The least sample.
    pub min: u64,
    /// The lower bound of the bucket that holds the median; so are the next three.
    pub p50: u64,
    /// As above.
    pub p90: u64,
    /// As above.
    pub p99: u64,
    /// As above.
    pub p999: u64,
    /// The greatest sample.
    pub max: u64,
    /// Each bucket's lower bound and its samples, ascending.
    pub buckets: Vec<(u64, u64)>,
}

/// A line that breaks the contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The line.
    pub line: String,
    /// What is wrong.
    pub why: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.why, self.line)
    }
}

impl std::error::Error for Broken {}

/// What a line told.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard<'a> {
    /// Nothing about benches, or not yet all of one.
    Nothing,
    /// The last part of a bench.
    Figures(&'a Figures),
    /// A bench was left out or went wrong in the guest, or all of them will: the line.
    Remark(String),
    /// The run is over, and all of it was heard.
    End,
}

/// Hears one run.
#[derive(Debug)]
pub struct Listener {
    side: Side,
    figures: Vec<Figures>,
    /// Parts of the newest bench that have come, and how many there are once one has.
    parts: (u64, Option<u64>),
    whole: bool,
    ended: bool,
}

impl Listener {
    /// For a run of this side.
    pub fn new(side: Side) -> Listener {
        Listener { side, figures: Vec::new(), parts: (0, None), whole: true, ended: false }
    }

    /// Whether the run is over.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// All that was heard.
    pub fn into_figures(self) -> Vec<Figures> {
        self.figures
    }

    /// Takes one console line.
    ///
    /// # Errors
    /// Where a line of this side about benches is not what it must be.
    pub fn take(&mut self, text: &str) -> Result<Heard<'_>, Broken> {
        let broken = |why: String| Broken { line: text.trim_end().to_owned(), why };
        let Some(line) = parse(self.side, text) else { return Ok(Heard::Nothing) };
        let line = match line {
            Ok(line) => line,
            // Other lines are others' to judge.
            Err(_) if !text.contains(": bench") => return Ok(Heard::Nothing),
            Err(error) => return Err(broken(error.to_string())),
        };
        match line.event.as_str() {
            "bench" => {
                self.is_whole().map_err(broken)?;
                self.figures.push(figures(&line).map_err(broken)?);
                self.parts = (0, None);
                self.whole = false;
                Ok(Heard::Nothing)
            }
            "bench-hist" => {
                self.add_part(&line).map_err(broken)?;
                match self.figures.last() {
                    Some(figures) if self.whole => Ok(Heard::Figures(figures)),
                    _ => Ok(Heard::Nothing),
                }
            }
            "bench-end" => {
                self.is_whole().map_err(broken)?;
                let said = number(&line, "benches").map_err(broken)?;
                let heard = self.figures.len();
                if u64::try_from(heard) != Ok(said) {
                    return Err(broken(format!("the run says {said} benches, and {heard} were heard")));
                }
                self.ended = true;
                Ok(Heard::End)
            }
            // Its figures would be those of Xen's traps.
            "bench-begin" if line.get("tsc") == Some("emulated") => Ok(Heard::Remark(text.trim_end().to_owned())),
            "bench-skip" | "bench-error" => Ok(Heard::Remark(text.trim_end().to_owned())),
            _ => Ok(Heard::Nothing),
        }
    }

    fn is_whole(&self) -> Result<(), String> {
        match self.figures.last() {
            Some(figures) if !self.whole => {
                Err(format!("the histogram of {} is not complete: {} parts came", figures.name, self.parts.0))
            }
            _ if self.ended => Err("the run had ended".to_owned()),
            _ => Ok(()),
        }
    }

    fn add_part(&mut self, line: &Line) -> Result<(), String> {
        let (name, part, of) = (value(line, "name")?, number(line, "part")?, number(line, "of")?);
        let buckets = buckets(value(line, "buckets")?)?;
        let figures = match self.figures.last_mut() {
            Some(figures) if figures.name == name && !self.whole => figures,
            _ => return Err(format!("a histogram of {name}, which is not being told")),
        };
        let (before, expected) = self.parts;
        if part != before + 1 || part > of || expected.is_some_and(|expected| expected != of) {
            return Err(format!("part {part} of {of} after part {before}"));
        }
        self.parts = (part, Some(of));
        figures.buckets.extend(buckets);
        if !figures.buckets.is_sorted_by(|a, b| a.0 < b.0) {
            return Err("buckets do not rise".to_owned());
        }
        self.whole = part == of;
        if self.whole {
            let told = figures.buckets.iter().try_fold(0_u64, |sum, (_, count)| sum.checked_add(*count));
            if told != Some(figures.n) {
                return Err(format!("the buckets of {name} do not hold n={} samples", figures.n));
            }
        }
        Ok(())
    }
}

/// The line, if it is this side's. Both sides' syntax is the same after the first word.
pub(super) fn parse(side: Side, text: &str) -> Option<Result<Line, logfmt::Broken>> {
    match side {
        Side::Stasis => Line::parse(text),
        Side::Linux => Line::parse(&format!("{}{}", logfmt::PREFIX, text.strip_prefix(side.prefix())?)),
    }
}

fn figures(line: &Line) -> Result<Figures, String> {
    let name = value(line, "name")?.to_owned();
    let unit = value(line, "unit")?;
    if unit != "cycles" {
        return Err(format!("figures are in cycles, not {unit}"));
    }
    let keys = find(&name).map_or(&[][..], |known| known.variant);
    let variant: Result<Vec<String>, String> =
        keys.iter().map(|key| value(line, key).map(|value| format!("{key}={value}"))).collect();
    let variant = variant?.join(" ");
    let number = |key: &str| number(line, key);
    let figures = Figures {
        abi: value(line, "abi")?.to_owned(),
        n: number("n")?,
        min: number("min")?,
        p50: number("p50")?,
        p90: number("p90")?,
        p99: number("p99")?,
        p999: number("p999")?,
        max: number("max")?,
        name,
        variant,
        buckets: Vec::new(),
    };
    if figures.n == 0 {
        return Err("no sample".to_owned());
    }
    let Figures { min, p50, p90, p99, p999, max, .. } = figures;
    if ![min, p50, p90, p99, p999, max].is_sorted() {
        return Err("percentiles do not rise".to_owned());
    }
    Ok(figures)
}

pub(super) fn value<'a>(line: &'a Line, key: &str) -> Result<&'a str, String> {
    line.get(key).ok_or_else(|| format!("no {key}="))
}

pub(super) fn number(line: &Line, key: &str) -> Result<u64, String> {
    let text = value(line, key)?;
    text.parse().map_err(|_| format!("{key}={text} is no number"))
}

fn buckets(text: &str) -> Result<Vec<(u64, u64)>, String> {
    let bad = |pair: &str| format!("{pair:?} is no bucket");
    text.split(',')
        .map(|pair| {
            let (low, count) = pair.split_once(':').ok_or_else(|| bad(pair))?;
            Ok((low.parse().map_err(|_| bad(pair))?, count.parse().map_err(|_| bad(pair))?))
        })
        .collect()
}

#[cfg(test)]
#[path = "said_tests.rs"]
mod tests;
