//! Is this ELF a kernel that Xen's domain builder will load, and is it laid out as we mean it?
//!
//! Owns the rules about ELF notes and segments. Pure: bytes in, facts or a named fault out. Catches
//! here, in a build, what Xen would say in one word at boot ("not a Xen-ELF image") or not at all.
//! Turned down: trusting the linker script; a note dropped by section garbage collection links fine.

#![forbid(unsafe_code)]

use std::fmt;

use object::elf::{FileHeader64, PF_W, PF_X, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, U32, U64};

const PAGE: u64 = 4096;

/// The notes that our kernel must carry, Xen's number and name. FEATURES is not among them: a domU needs none.
const REQUIRED: [(u32, &str); 6] = [
    (note::ENTRY, "ENTRY"),
    (note::VIRT_BASE, "VIRT_BASE"),
    (note::PADDR_OFFSET, "PADDR_OFFSET"),
    (note::XEN_VERSION, "XEN_VERSION"),
    (note::LOADER, "LOADER"),
    (note::INIT_P2M, "INIT_P2M"),
];

/// Xen's note types that we look into (xen/include/public/elfnote.h).
mod note {
    pub(super) const ENTRY: u32 = 1;
    pub(super) const VIRT_BASE: u32 = 3;
    pub(super) const PADDR_OFFSET: u32 = 4;
    pub(super) const XEN_VERSION: u32 = 5;
    pub(super) const LOADER: u32 = 8;
    pub(super) const INIT_P2M: u32 = 15;
}

/// What a sound image is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Where vCPU 0 starts.
    pub entry: u64,
    /// Number of Xen's notes, ours included.
    pub notes: usize,
    /// Bytes that the loaded segments take in the domain's memory.
    pub loaded_bytes: u64,
}

/// Why an image is not sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not a little-endian x86-64 ELF; the reader's words.
    NotElf(String),
    /// No note of this name with owner "Xen".
    NoteMissing(&'static str),
    /// The note is there with a value that Xen 4.17 refuses or that contradicts the segments.
    NoteValue {
        /// Its name.
        note: &'static str,
        /// What is wrong.
        why: String,
    },
    /// No PT_LOAD segment at all.
    NothingToLoad,
    /// The segment at this address is both writable and executable.
    WritableAndExecutable(u64),
    /// The segment at this address is not where its physical address and the notes put it.
    Misplaced {
        /// Its virtual address.
        vaddr: u64,
        /// Where Xen will load it.
        loaded_at: u64,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::NotElf(why) => write!(f, "not an x86-64 ELF: {why}"),
            Fault::NoteMissing(note) => write!(
                f,
                "the ELF note XEN_ELFNOTE_{note} is missing: Xen would refuse or misplace the kernel \
                 (does the linker script KEEP the notes, and has the PT_NOTE segment a header?)"
            ),
            Fault::NoteValue { note, why } => write!(f, "the ELF note XEN_ELFNOTE_{note}: {why}"),
            Fault::NothingToLoad => f.write_str("no PT_LOAD segment"),
            Fault::WritableAndExecutable(at) => {
                write!(f, "the segment at {at:#x} is writable and executable")
            }
            Fault::Misplaced { vaddr, loaded_at } => {
                write!(f, "the segment linked at {vaddr:#x} would be loaded at {loaded_at:#x}")
            }
        }
    }
}

impl std::error::Error for Fault {}

/// Checks a whole image.
///
/// # Errors
/// The first [`Fault`] found: notes before segments, since segments are judged by the notes.
pub fn check(image: &[u8]) -> Result<Facts, Fault> {
    let broken = |error: object::Error| Fault::NotElf(error.to_string());
    let header = FileHeader64::<Endianness>::parse(image).map_err(broken)?;
    let endian = header.endian().map_err(broken)?;
    if header.e_machine(endian) != object::elf::EM_X86_64 {
        return Err(Fault::NotElf(format!("machine {:?}", header.e_machine(endian))));
    }
    let segments = header.program_headers(endian, image).map_err(broken)?;
    let mut notes: Vec<(u32, &[u8])> = Vec::new();
    for segment in segments {
        // Xen passes over a PT_NOTE at file offset 0, and so do we.
        if segment.p_offset(endian) == 0 {
            continue;
        }
        let Some(mut found) = segment.notes(endian, image).map_err(broken)? else {
            continue;
        };
        while let Some(note) = found.next().map_err(broken)? {
            if note.name() == b"Xen" {
                notes.push((note.n_type(endian).0, note.desc()));
            }
        }
    }
    let value_of = |wanted: u32| notes.iter().find(|(kind, _)| *kind == wanted).map(|(_, desc)| *desc);
    for (kind, name) in REQUIRED {
        value_of(kind).ok_or(Fault::NoteMissing(name))?;
    }
    let number = |kind: u32, name: &'static str| {
        let desc = value_of(kind).ok_or(Fault::NoteMissing(name))?;
        read_number(desc)
            .ok_or_else(|| Fault::NoteValue { note: name, why: format!("{} bytes are no number", desc.len()) })
    };
    for (kind, name, start) in [(note::XEN_VERSION, "XEN_VERSION", "xen-3.0"), (note::LOADER, "LOADER", "generic")] {
        let text = String::from_utf8_lossy(value_of(kind).unwrap_or_default());
        if !text.starts_with(start) {
            let why = format!("`{}` does not start with `{start}`", text.trim_end_matches('\0'));
            return Err(Fault::NoteValue { note: name, why });
        }
    }
    let entry = number(note::ENTRY, "ENTRY")?;
    let virt_base = number(note::VIRT_BASE, "VIRT_BASE")?;
    let paddr_offset = number(note::PADDR_OFFSET, "PADDR_OFFSET")?;
    let init_p2m = number(note::INIT_P2M, "INIT_P2M")?;
    // Xen's builder would ignore it in silence, and the kernel find its p2m elsewhere.
    if init_p2m % PAGE != 0 || init_p2m >= virt_base {
        let why = format!("{init_p2m:#x} is not page aligned and below VIRT_BASE {virt_base:#x}");
        return Err(Fault::NoteValue { note: "INIT_P2M", why });
    }

    let mut range: Option<(u64, u64)> = None;
    for segment in segments.iter().filter(|s| s.p_type(endian) == PT_LOAD && s.p_memsz(endian) > 0) {
        let (vaddr, flags) = (segment.p_vaddr(endian), segment.p_flags(endian));
        if flags.contains(PF_W) && flags.contains(PF_X) {
            return Err(Fault::WritableAndExecutable(vaddr));
        }
        let loaded_at = segment.p_paddr(endian).wrapping_add(virt_base).wrapping_sub(paddr_offset);
        if loaded_at != vaddr {
            return Err(Fault::Misplaced { vaddr, loaded_at });
        }
        let end = vaddr.wrapping_add(segment.p_memsz(endian));
        range = Some(range.map_or((vaddr, end), |(from, to)| (from.min(vaddr), to.max(end))));
    }
    let (from, to) = range.ok_or(Fault::NothingToLoad)?;
    if from % PAGE != 0 {
        return Err(Fault::NoteValue {
            note: "VIRT_BASE",
            why: format!("puts the kernel at {from:#x}, not page aligned"),
        });
    }
    if !(from..to).contains(&entry) {
        return Err(Fault::NoteValue { note: "ENTRY", why: format!("{entry:#x} is outside {from:#x}..{to:#x}") });
    }
    Ok(Facts { entry, notes: notes.len(), loaded_bytes: to - from })
}

/// Xen takes numbers of 4 or 8 bytes.
fn read_number(desc: &[u8]) -> Option<u64> {
    match desc.len() {
        4 => object::pod::from_bytes::<U32<Endianness>>(desc).ok().map(|(n, _)| n.get(Endianness::Little).into()),
        8 => object::pod::from_bytes::<U64<Endianness>>(desc).ok().map(|(n, _)| n.get(Endianness::Little)),
        _ => None,
    }
}

#[cfg(test)]
#[path = "elfcheck_tests.rs"]
mod tests;
