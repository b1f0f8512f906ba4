//! Which files of a crate are mutated: those that are both in the image and in its models.
//!
//! From a library's `lib.rs` on, every module that is in both. Of the kernel, which is a binary, the files that a loom
//! test takes in with `#[path]`. Turned down: a list of files, which nobody would add to.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use syn::{Attribute, Expr, Item, ItemMod, Lit, Meta};

use super::cfg::in_image_and_model;
use crate::workspace::Member;

/// The files of `member` below `root`, relative to it.
///
/// # Errors
/// When a file cannot be read, is not Rust, or names a module that is not there.
pub fn of(root: &Path, member: &Member) -> Result<Vec<PathBuf>> {
    let home = root.join(&member.name);
    let mut files = Vec::new();
    let library = home.join("src/lib.rs");
    if library.is_file() {
        follow(&library, &mut files)?;
    }
    for test in member.loom_tests() {
        let test = home.join("tests").join(format!("{test}.rs"));
        for module in modules(&test)? {
            // A test lies one directory below its crate.
            let path = path_of(&module.attrs);
            if let Some(inside) = path.as_deref().and_then(|path| path.strip_prefix("../")) {
                let file = home.join(inside);
                if file.starts_with(home.join("src")) && !files.contains(&file) {
                    follow(&file, &mut files)?;
                }
            }
        }
    }
    files
        .iter()
        .map(|file| Ok(file.strip_prefix(root).context("a source outside the workspace")?.to_path_buf()))
        .collect()
}

/// This file and the modules below it.
fn follow(file: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    files.push(file.to_path_buf());
    let stem = file.file_stem().unwrap_or_default();
    let dir = file.with_file_name("");
    let below = if stem == "lib" || stem == "mod" { dir.clone() } else { dir.join(stem) };
    for module in modules(file)?.iter().filter(|module| in_image_and_model(&module.attrs)) {
        let name = module.ident.to_string();
        let places = match path_of(&module.attrs) {
            Some(path) => vec![dir.join(path)],
            None => vec![below.join(format!("{name}.rs")), below.join(&name).join("mod.rs")],
        };
        let Some(place) = places.iter().find(|place| place.is_file()) else {
            bail!("{} has a module `{name}` that is in no file", file.display());
        };
        follow(place, files)?;
    }
    Ok(())
}

/// The modules of a file that are files of their own.
fn modules(file: &Path) -> Result<Vec<ItemMod>> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let parsed = syn::parse_file(&text).with_context(|| format!("{} is not Rust", file.display()))?;
    let modules = parsed.items.into_iter().filter_map(|item| match item {
        Item::Mod(module) if module.content.is_none() => Some(module),
        _ => None,
    });
    Ok(modules.collect())
}

fn path_of(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            Expr::Lit(literal) => match &literal.lit {
                Lit::Str(path) => Some(path.value()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cargo;

    #[test]
    fn models_of_xen_are_not_mutated_and_all_else_is() {
        if cfg!(miri) {
            return;
        }
        let member = |name: &str, tests: &[&str]| Member {
            name: name.to_owned(),
            tests: tests.iter().map(|test| (*test).to_owned()).collect(),
        };
        let of = |member: &Member| -> Vec<String> {
            let files = of(&cargo::root(), member).expect("our own sources");
            files.iter().map(|file| file.display().to_string()).collect()
        };
        let evtchn = of(&member("evtchn", &["loom_fifo"]));
        for file in ["evtchn/src/fifo/word.rs", "evtchn/src/two_level.rs"] {
            assert!(evtchn.iter().any(|one| one == file), "{file} in {evtchn:?}");
        }
        assert!(evtchn.iter().all(|file| !file.contains("hosted") && !file.contains("tests")), "{evtchn:?}");
        assert_eq!(of(&member("kernel", &["loom_run_queue"])), ["kernel/src/run_queue.rs"]);
    }
}
