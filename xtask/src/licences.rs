//! May we link what we link? Reads the licence of every crate and says which are not on our list.
//!
//! Owns the list and the reading of SPDX expressions. Pure; the crates come from `workspace`. Turned
//! down: cargo-deny, a good tool that a fresh machine would have to build for two minutes first.

#![forbid(unsafe_code)]

/// Licences whose terms a binary under MIT OR Apache-2.0 can keep.
const ALLOWED: [&str; 12] = [
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Whether some choice that the expression offers is on the list throughout. An expression that
/// cannot be read is not allowed.
pub fn allowed(expression: &str) -> bool {
    // "MIT/Apache-2.0" is how crates wrote OR before SPDX.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let verdict = any_of(&mut rest);
    verdict == Some(true) && rest.is_empty()
}

fn any_of(words: &mut &[&str]) -> Option<bool> {
    let mut verdict = all_of(words)?;
    while let Some(after) = strip(words, "OR") {
        *words = after;
        verdict |= all_of(words)?;
    }
    Some(verdict)
}

fn all_of(words: &mut &[&str]) -> Option<bool> {
    let mut verdict = one(words)?;
    while let Some(after) = strip(words, "AND") {
        *words = after;
        verdict &= one(words)?;
    }
    Some(verdict)
}

fn one(words: &mut &[&str]) -> Option<bool> {
    if let Some(after) = strip(words, "(") {
        *words = after;
        let verdict = any_of(words)?;
        *words = strip(words, ")")?;
        return Some(verdict);
    }
    let (name, after) = words.split_first()?;
    *words = after;
    if ["OR", "AND", "WITH", ")"].contains(name) {
        return None;
    }
    if let Some(after) = strip(words, "WITH") {
        let (exception, after) = after.split_first()?;
        *words = after;
        return Some(ALLOWED.contains(&format!("{name} WITH {exception}").as_str()));
    }
    Some(ALLOWED.contains(name))
}

fn strip<'a, 'b>(words: &&'a [&'b str], word: &str) -> Option<&'a [&'b str]> {
    let (first, after) = words.split_first()?;
    (*first == word).then_some(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_judged_by_the_choice_they_leave() {
        for good in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
            "MIT AND (BSD-3-Clause OR GPL-2.0)",
        ] {
            assert!(allowed(good), "{good}");
        }
        for bad in [
            "",
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "(MIT OR Apache-2.0) AND GPL-2.0",
            "GPL-2.0 WITH Classpath-exception-2.0",
            "MIT OR",
            "OR MIT",
            "(MIT",
            "MIT)",
            "MIT Apache-2.0",
        ] {
            assert!(!allowed(bad), "{bad}");
        }
    }
}
