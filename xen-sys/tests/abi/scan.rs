//! Finds what `src/abi` declares: public types with their public fields, constants, functions, aliases, variants.
//!
//! Reads lines, relying on rustfmt's layout: an item's head starts in column 0, its fields and variants in column 4.
//! A Rust parser was turned down: a large dependency, for files whose form the formatter guarantees. What the scan does
//! not understand it cannot miss in silence: the table's rows are looked up in its findings too.

use std::{fs, path::Path};

/// Names in the form of the table's rows: `Type`, `Type.field`, `CONSTANT`, `Enum::Variant`, `function()`.
pub(crate) fn declared(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let entries = fs::read_dir(dir).expect("the source is beside the test");
    for entry in entries {
        let path = entry.expect("the source can be listed").path();
        if path.is_dir() {
            names.extend(declared(&path));
        } else {
            let text = fs::read_to_string(&path).expect("the source can be read");
            scan(&text, &mut names);
        }
    }
    names
}

/// What a line inside of an item's braces may declare.
enum Inside {
    Nothing,
    Fields(String),
    Variants(String),
}

/// The identifier at the start of `text`, without a raw prefix.
fn identifier(text: &str) -> String {
    let text = text.strip_prefix("r#").unwrap_or(text);
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn scan(text: &str, names: &mut Vec<String>) {
    let mut inside = Inside::Nothing;
    for line in text.lines() {
        if let Some(item) = line.strip_prefix("pub ") {
            inside = Inside::Nothing;
            if let Some(rest) = item.strip_prefix("const fn ").or(item.strip_prefix("fn ")) {
                names.push(format!("{}()", identifier(rest)));
            } else if let Some(rest) = item.strip_prefix("const ").or(item.strip_prefix("type ")) {
                names.push(identifier(rest));
            } else if let Some(rest) = item.strip_prefix("struct ").or(item.strip_prefix("union ")) {
                names.push(identifier(rest));
                inside = Inside::Fields(identifier(rest));
            } else if let Some(rest) = item.strip_prefix("enum ") {
                inside = Inside::Variants(identifier(rest));
            }
        } else if line.starts_with(|c: char| !c.is_whitespace()) {
            // The end of the item, or the head of one that is not of interest.
            inside = Inside::Nothing;
        } else {
            let declares = line.strip_prefix("    ").filter(|rest| !rest.starts_with([' ', '/', '#']));
            match (&inside, declares) {
                (Inside::Fields(of), Some(rest)) => {
                    names.extend(rest.strip_prefix("pub ").map(|field| format!("{of}.{}", identifier(field))));
                }
                (Inside::Variants(of), Some(rest)) => names.push(format!("{of}::{}", identifier(rest))),
                _ => {}
            }
        }
    }
}

#[test]
fn each_kind_of_item_is_seen() {
    let text = "\
pub const ONE: u32 = 1;
pub type two_t = u16;
pub const fn three(x: u64) -> u64 {
    x
}
pub struct Four<T>(*mut T);
impl Four {
    pub fn hidden() {}
}
pub struct Five {
    /// Doc.
    pub r#in: u32,
    private: u32,
    pub _pad: [u8; 2],
}
impl Five {
    pub const HIDDEN: u32 = 6;
}
pub union Seven {
    pub a: u32,
}
#[repr(u32)]
pub enum Eight {
    #[default]
    Unknown = 0,
}
pub mod nine;
";
    let mut names = Vec::new();
    scan(text, &mut names);
    let seen =
        ["ONE", "two_t", "three()", "Four", "Five", "Five.in", "Five._pad", "Seven", "Seven.a", "Eight::Unknown"];
    assert_eq!(names, seen);
}
