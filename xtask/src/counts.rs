//! Counts tests: reads the summaries that test programs print, adds them up per layer.
//!
//! Owns the closing line of `cargo xtask test`, which CI reads. Pure. Turned down: libtest's JSON
//! output, which stable Rust does not have.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;
use std::time::Duration;

/// How many tests did what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Said ok.
    pub passed: u64,
    /// Failed, or could not be built or started.
    pub failed: u64,
    /// Were not run.
    pub skipped: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Counts {
    /// `N passed, N failed`, and `, N skipped` where there are any.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

impl Counts {
    /// One step that is a test as a whole.
    pub fn of_step(success: bool) -> Counts {
        Counts { passed: success.into(), failed: (!success).into(), skipped: 0 }
    }

    /// Adds up every `test result:` line of a cargo run. A run that failed without any failed test
    /// (it did not compile, it crashed) counts as one failure, and so does one that had no tests to run:
    /// a loom test without its cfg is an empty program that succeeds.
    pub fn of_run(output: &str, success: bool) -> Counts {
        let mut counts = Counts::default();
        for line in output.lines() {
            if let Some(result) = line.trim_start().strip_prefix("test result: ") {
                counts += of_result_line(result);
            }
        }
        if (!success && counts.failed == 0) || counts == Counts::default() {
            counts.failed = 1;
        }
        counts
    }
}

/// `ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s`
fn of_result_line(result: &str) -> Counts {
    let numbers = result.split_once(". ").map_or("", |(_, rest)| rest);
    let number = |word: &str| {
        let part = numbers.split(';').find_map(|part| part.trim().strip_suffix(word));
        part.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
    };
    Counts { passed: number(" passed"), failed: number(" failed"), skipped: number(" ignored") }
}

/// The names of the tests that failed, for the report; cargo prints them as `test NAME ... FAILED`.
pub fn failed_names(output: &str) -> Vec<&str> {
    output
        .lines()
        .filter_map(|line| line.strip_prefix("test ")?.strip_suffix("FAILED"))
        .map(|middle| middle.trim_end_matches([' ', '.']))
        .collect()
}

/// Why tests were ignored, one reason each; libtest prints `test NAME ... ignored, REASON`.
pub fn ignored(output: &str) -> impl Iterator<Item = &str> {
    output.lines().filter_map(|line| {
        let (_, verdict) = line.strip_prefix("test ")?.split_once(" ... ignored")?;
        Some(verdict.strip_prefix(", ").unwrap_or("ignored without a reason"))
    })
}

/// One layer of the test run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// What it is called.
    pub name: String,
    /// Its tests.
    pub counts: Counts,
    /// How long it took.
    pub took: Duration,
    /// Why it, or part of it, was not run: each reason, and how often.
    pub skipped_because: BTreeMap<String, u64>,
    /// What to show of its failures.
    pub complaints: Vec<String>,
}

impl Layer {
    /// A layer before its first test.
    pub fn new(name: &str) -> Layer {
        Layer {
            name: name.to_owned(),
            counts: Counts::default(),
            took: Duration::ZERO,
            skipped_because: BTreeMap::new(),
            complaints: Vec::new(),
        }
    }

    /// One more thing was not run, for this reason.
    pub fn skip(&mut self, why: &str) {
        *self.skipped_because.entry(why.to_owned()).or_default() += 1;
    }

    /// All reasons in words; empty where nothing was skipped.
    pub fn why_skipped(&self) -> String {
        let count = |n: u64| if n > 1 { format!("{n} times: ") } else { String::new() };
        let reasons: Vec<String> = self.skipped_because.iter().map(|(why, n)| format!("{}{why}", count(*n))).collect();
        reasons.join("\n")
    }
}

/// The sum over all layers.
pub fn total(layers: &[Layer]) -> Counts {
    let mut sum = Counts::default();
    for layer in layers {
        sum += layer.counts;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "
     Running unittests src/lib.rs
test a::b ... ok
test a::c ... FAILED
test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 7 filtered out; finished in 0.00s
test result: ok. 40 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s
";

    #[test]
    fn result_lines_are_added_up() {
        assert_eq!(Counts::of_run(RUN, false), Counts { passed: 43, failed: 1, skipped: 2 });
        assert_eq!(failed_names(RUN), ["a::c"]);
    }

    #[test]
    fn a_run_that_died_counts_as_a_failure() {
        assert_eq!(Counts::of_run("error: could not compile", false), Counts { failed: 1, ..Counts::default() });
    }

    #[test]
    fn a_run_without_tests_counts_as_a_failure() {
        let none = "running 0 tests\n\ntest result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        for output in ["", "test result: what is this", none] {
            assert_eq!(Counts::of_run(output, true), Counts { failed: 1, ..Counts::default() }, "{output}");
        }
        let ignored = "test result: ok. 0 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out";
        assert_eq!(Counts::of_run(ignored, true), Counts { skipped: 2, ..Counts::default() });
    }

    #[test]
    fn what_is_ignored_says_why() {
        let output =
            "test a ... ok\ntest b ... ignored, too large\ntest c ... ignored\ntest d ... ignored, too large\n";
        let mut layer = Layer::new("miri");
        ignored(output).for_each(|why| layer.skip(why));
        assert_eq!(layer.why_skipped(), "ignored without a reason\n2 times: too large");
        assert_eq!(Layer::new("unit").why_skipped(), "");
    }

    #[test]
    fn the_closing_line_is_plain() {
        assert_eq!(Counts { passed: 5, failed: 0, skipped: 0 }.to_string(), "5 passed, 0 failed");
        assert_eq!(Counts { passed: 5, failed: 1, skipped: 2 }.to_string(), "5 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn the_sum_is_over_all_layers() {
        let layer = |name, counts| Layer { counts, ..Layer::new(name) };
        let unit = layer("unit", Counts { passed: 2, failed: 1, skipped: 0 });
        let miri = layer("miri", Counts { passed: 3, failed: 0, skipped: 4 });
        assert_eq!(total(&[unit, miri]), Counts { passed: 5, failed: 1, skipped: 4 });
    }
}
