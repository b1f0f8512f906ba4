//! What the comment at an ordering says about its tests.
//!
//! Pure, on the lines of a source. Two forms are understood: the name of a loom test, with a path where it is another
//! crate's (`tests/loom_fifo.rs`, `evtchn/tests/loom_fifo.rs`), and `UNTESTED: reason` at the end of the comment, for
//! what no model can miss; `UNTESTED Acquire: reason` where that is one of several orderings, or one half of `AcqRel`. A
//! file may name tests for all of its orderings in its `//!` header.

#![forbid(unsafe_code)]

use super::weaken::Strength;

/// How every comment on an ordering begins.
const MARK: &str = "ORDERING:";
/// How the reason begins why no test is expected to fail.
const UNTESTED: &str = "UNTESTED";

/// A loom test that a comment names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The crate whose test it is; `None` for the one that the comment is in.
    pub of: Option<String>,
    /// Its name.
    pub test: String,
}

/// The comment of a site: of the lines `starts` of the statements around it, innermost first, the nearest that speaks of
/// an ordering. Lines count from 1. Empty where there is none.
pub fn of_site(lines: &[&str], line: usize, starts: &[usize]) -> String {
    let behind = lines.get(line - 1).and_then(|text| Some(text.split_once("// ")?.1.to_owned()));
    let above = std::iter::once(line).chain(starts.iter().copied()).map(|line| block_above(lines, line));
    behind.into_iter().chain(above).find(|text| text.contains(MARK)).unwrap_or_default()
}

/// The `//` lines right above, as one.
fn block_above(lines: &[&str], line: usize) -> String {
    let above = &lines[..(line - 1).min(lines.len())];
    let is_comment = |text: &&&str| {
        let text = text.trim_start();
        text.starts_with("//") && !text.starts_with("///") && !text.starts_with("//!")
    };
    let nr = above.iter().rev().take_while(is_comment).count();
    let block = &above[above.len() - nr..];
    // One comment may follow another: only the last is about what stands below.
    let first = block.iter().rposition(|text| text.contains(MARK)).unwrap_or(0);
    join(&block[first..])
}

/// The `//!` lines, as one.
pub fn header(lines: &[&str]) -> String {
    let header: Vec<&str> = lines.iter().filter(|line| line.starts_with("//!")).copied().collect();
    join(&header)
}

fn join(lines: &[&str]) -> String {
    let bare = lines.iter().map(|line| line.trim().trim_start_matches(['/', '!']).trim());
    bare.collect::<Vec<_>>().join(" ")
}

/// The loom tests that `text` names, in order.
pub fn named(text: &str) -> Vec<Named> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "_/.".contains(c)));
    words
        .filter_map(|word| {
            let word = word.trim_end_matches('.').trim_end_matches(".rs");
            let (path, name) = word.rsplit_once('/').unwrap_or(("", word));
            let of = path.strip_suffix("/tests").map(str::to_owned);
            name.starts_with("loom_").then(|| Named { of, test: name.to_owned() })
        })
        .collect()
}

/// Why no test is expected to fail where `loses` is given up, if that is said.
pub fn untested(text: &str, loses: Strength) -> Option<&str> {
    text.split(UNTESTED).skip(1).find_map(|said| {
        let (of, reason) = said.split_once(':')?;
        let reason = reason.trim();
        ((of.is_empty() || of.trim() == loses.name()) && !reason.is_empty()).then_some(reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
//! Head.
//!
//! Weakening any ordering below fails in `tests/loom_head.rs`.

fn f() {
    // ORDERING: Relaxed, a guess.
    let seen = word.load(Relaxed);
    // ORDERING: AcqRel. Weakening either half
    //   fails in evtchn/tests/loom_fifo.rs.
    match word
        .swap(0, AcqRel)
    {
        // Something else.
        0 => word.store(1, Release), // ORDERING: Release, on the spot.
        _ => other.store(1, Release),
    }
}";

    #[test]
    fn the_nearest_comment_counts() {
        let lines: Vec<&str> = TEXT.lines().collect();
        let of = |line, starts: &[usize]| of_site(&lines, line, starts);
        assert_eq!(of(7, &[7]), "ORDERING: Relaxed, a guess.");
        assert_eq!(of(11, &[10]), "ORDERING: AcqRel. Weakening either half fails in evtchn/tests/loom_fifo.rs.");
        assert_eq!(of(14, &[14, 10]), "ORDERING: Release, on the spot.");
        assert!(of(15, &[15, 10]).contains("either half"), "that of the statement around it");
        assert_eq!(of(5, &[5]), "");
        assert!(header(&lines).ends_with("fails in `tests/loom_head.rs`."));
    }

    #[test]
    fn tests_are_named_with_and_without_their_crate() {
        let one = |of: Option<&str>, test: &str| Named { of: of.map(str::to_owned), test: test.to_owned() };
        assert_eq!(
            named("fails in `tests/loom_a.rs` or evtchn/tests/loom_b.rs. See loom_c, and loom, and bloom_d."),
            [one(None, "loom_a"), one(Some("evtchn"), "loom_b"), one(None, "loom_c")]
        );
    }

    #[test]
    fn a_reason_is_what_follows_the_mark() {
        let (acquire, release) = (Strength::Acquire, Strength::Release);
        assert_eq!(untested("ORDERING: Release. UNTESTED: Xen reads it.", release), Some("Xen reads it."));
        assert_eq!(untested("ORDERING: Release. UNTESTED:", release), None);
        assert_eq!(untested("ORDERING: Release.", release), None);
        let one = "ORDERING: AcqRel, so: x. UNTESTED Acquire: a: b.";
        assert_eq!((untested(one, acquire), untested(one, release)), (Some("a: b."), None));
        let two = "UNTESTED Acquire: one. UNTESTED Release: two.";
        assert_eq!((untested(two, acquire), untested(two, release)), (Some("one."), Some("two.")));
    }
}
