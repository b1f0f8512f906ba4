//! Turns the raw return addresses of a guest's panic into functions, files and lines.
//!
//! Owns the lookup in the image's debug information. The guest prints addresses only: it links at fixed
//! addresses, so they are valid in the ELF as it was built, and the image stays free of DWARF readers.
//! Turned down: running the `addr2line` program, which a fresh machine may not have.

#![forbid(unsafe_code)]

use std::path::Path;

use anyhow::{Context, Result, anyhow};

/// Debug information of one image, ready for lookups.
pub struct Symbols {
    loader: addr2line::Loader,
}

impl Symbols {
    /// Opens the image.
    ///
    /// # Errors
    /// When it is not there or is no ELF.
    pub fn open(image: &Path) -> Result<Symbols> {
        let loader = addr2line::Loader::new(image)
            .map_err(|error| anyhow!("{error}"))
            .with_context(|| format!("cannot read the debug information of {}", image.display()))?;
        Ok(Symbols { loader })
    }

    /// One line of text per frame at `pc`, innermost inlined function first: `function at file:line`.
    /// `pc` is what a call pushed: the instruction after the call, which may belong to the next line or even to the next
    /// function. An address outside the image gives one line that says so.
    pub fn describe(&self, pc: u64) -> Vec<String> {
        let lookup = pc.saturating_sub(1);
        let mut lines = self.inlined(lookup).unwrap_or_default();
        if lines.is_empty() {
            // Assembly has a symbol but no function entry in the debug information.
            let name = self.loader.find_symbol(lookup).map(demangle);
            lines.push(name.unwrap_or_else(|| "not in the image".to_owned()));
        }
        lines
    }

    fn inlined(&self, lookup: u64) -> Option<Vec<String>> {
        let mut frames = self.loader.find_frames(lookup).ok()?;
        let mut lines = Vec::new();
        while let Ok(Some(frame)) = frames.next() {
            let Some(function) = frame.function else {
                continue;
            };
            let name = function.raw_name().map_or_else(|_| "?".to_owned(), |raw| demangle(&raw));
            lines.push(match frame.location.and_then(|l| Some((l.file?.to_owned(), l.line?))) {
                Some((file, line)) => format!("{name} at {}:{line}", shorten(&file)),
                None => name,
            });
        }
        Some(lines)
    }
}

fn demangle(raw: &str) -> String {
    // `{:#}` leaves the hash out.
    format!("{:#}", rustc_demangle::demangle(raw))
}

/// Paths of crates and of the standard library are long and the same on every line: keep the part
/// that tells them apart.
fn shorten(file: &str) -> &str {
    for mark in ["/library/", "/registry/src/"] {
        if let Some(at) = file.find(mark) {
            return &file[at + 1..];
        }
    }
    let root = env!("CARGO_MANIFEST_DIR").trim_end_matches("xtask");
    file.strip_prefix(root).unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_demangled_without_their_hash() {
        assert_eq!(demangle("_ZN4core9panicking5panic17h0123456789abcdefE"), "core::panicking::panic");
        assert_eq!(demangle("upcall_entry"), "upcall_entry");
    }

    #[test]
    fn long_paths_are_cut() {
        assert_eq!(shorten("/rustc/abc/library/core/src/panicking.rs"), "library/core/src/panicking.rs");
        assert_eq!(shorten("kernel/src/main.rs"), "kernel/src/main.rs");
        assert_eq!(shorten(&format!("{}/src/lib.rs", env!("CARGO_MANIFEST_DIR"))), "xtask/src/lib.rs");
    }

    /// This test binary has debug information of its own: look one of its own functions up.
    #[cfg(not(miri))]
    #[test]
    fn finds_a_function_of_a_real_image() {
        #[inline(never)]
        fn landmark() -> u32 {
            std::hint::black_box(7)
        }
        assert_eq!(landmark(), 7);
        let exe = std::env::current_exe().expect("a test binary has a path");
        let symbols = Symbols::open(&exe).expect("it is an ELF");
        let bytes = std::fs::read(&exe).expect("readable");
        let pc = {
            use object::{Object, ObjectSymbol};
            let file = object::File::parse(&*bytes).expect("it is an ELF");
            file.symbols().find(|s| s.name().is_ok_and(|n| n.contains("landmark"))).expect("not inlined").address()
        };
        let text = symbols.describe(pc + 1).join("\n");
        assert!(text.contains("landmark"), "{text}");
        assert_eq!(symbols.describe(u64::MAX), ["not in the image"]);
    }

    #[test]
    fn a_missing_image_is_named() {
        if cfg!(miri) {
            return;
        }
        let error = Symbols::open(Path::new("/nonexistent/stasis.elf")).err().expect("must fail");
        assert!(format!("{error:#}").contains("/nonexistent/stasis.elf"), "{error:#}");
    }
}
