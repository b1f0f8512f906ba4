//! Kernels made in memory, each doctored in one way, against the checks of `elfcheck`.
//!
//! The ELF is put together byte by byte: a writer that refuses nonsense could not make most of these.

use super::*;

const BASE: u64 = 0xffff_ffff_8000_0000;

/// Makes an ELF: one PT_NOTE segment with `notes`, and PT_LOADs of one page each.
struct Maker {
    notes: Vec<(u32, Vec<u8>)>,
    owner: &'static [u8],
    /// (vaddr, paddr, flags)
    loads: Vec<(u64, u64, u32)>,
    machine: u16,
}

impl Maker {
    fn sound() -> Maker {
        let number = |n: u64| n.to_le_bytes().to_vec();
        Maker {
            notes: vec![
                (note::ENTRY, number(BASE + 0x10_0010)),
                (note::VIRT_BASE, number(BASE)),
                (note::PADDR_OFFSET, number(0)),
                (note::XEN_VERSION, b"xen-3.0\0".to_vec()),
                (note::LOADER, b"generic\0".to_vec()),
                (note::INIT_P2M, number(BASE - 0x80_0000_0000)),
            ],
            owner: b"Xen\0",
            loads: vec![(BASE + 0x10_0000, 0x10_0000, 5), (BASE + 0x10_1000, 0x10_1000, 6)],
            machine: 62,
        }
    }

    fn without(mut self, kind: u32) -> Maker {
        self.notes.retain(|(k, _)| *k != kind);
        self
    }

    fn with(self, kind: u32, desc: &[u8]) -> Maker {
        let mut maker = self.without(kind);
        maker.notes.push((kind, desc.to_vec()));
        maker
    }

    fn build(&self) -> Vec<u8> {
        let mut notes = Vec::new();
        for (kind, desc) in &self.notes {
            for word in [self.owner.len(), desc.len(), usize::try_from(*kind).expect("small")] {
                notes.extend_from_slice(&u32::try_from(word).expect("small").to_le_bytes());
            }
            notes.extend_from_slice(self.owner);
            notes.extend_from_slice(desc);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
        let headers = u16::try_from(self.loads.len() + 1).expect("few");
        let notes_at = 64 + 56 * u64::from(headers);
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(16, 0);
        elf.extend_from_slice(&2u16.to_le_bytes()); // ET_EXEC
        elf.extend_from_slice(&self.machine.to_le_bytes());
        elf.extend_from_slice(&1u32.to_le_bytes());
        for word in [BASE, 64, 0] {
            elf.extend_from_slice(&u64::to_le_bytes(word)); // e_entry, e_phoff, e_shoff
        }
        elf.extend_from_slice(&0u32.to_le_bytes());
        for half in [64u16, 56, headers, 64, 0, 0] {
            elf.extend_from_slice(&half.to_le_bytes());
        }
        let mut header = |kind: u32, flags: u32, words: [u64; 6]| {
            elf.extend_from_slice(&kind.to_le_bytes());
            elf.extend_from_slice(&flags.to_le_bytes());
            for word in words {
                elf.extend_from_slice(&word.to_le_bytes());
            }
        };
        for &(vaddr, paddr, flags) in &self.loads {
            header(1, flags, [notes_at, vaddr, paddr, 0, PAGE, PAGE]);
        }
        let len = notes.len() as u64;
        header(4, 4, [notes_at, 0, 0, len, len, 4]);
        elf.extend_from_slice(&notes);
        elf
    }

    fn fault(&self) -> Fault {
        check(&self.build()).expect_err("doctored")
    }
}

#[test]
fn a_sound_kernel_passes() {
    let want = Facts { entry: BASE + 0x10_0010, notes: 6, loaded_bytes: 0x2000 };
    assert_eq!(check(&Maker::sound().build()), Ok(want));
}

#[test]
fn four_byte_numbers_are_numbers_too() {
    assert!(check(&Maker::sound().with(note::PADDR_OFFSET, &[0; 4]).build()).is_ok());
}

#[test]
fn each_missing_note_is_named() {
    for (kind, name) in REQUIRED {
        let fault = Maker::sound().without(kind).fault();
        assert_eq!(fault, Fault::NoteMissing(name));
        assert!(fault.to_string().contains(&format!("XEN_ELFNOTE_{name} is missing")), "{fault}");
    }
}

#[test]
fn notes_of_another_owner_do_not_count() {
    let maker = Maker { owner: b"GNU\0", ..Maker::sound() };
    assert_eq!(maker.fault(), Fault::NoteMissing("ENTRY"));
}

#[test]
fn wrong_values_are_named() {
    for (kind, desc, name) in [
        (note::XEN_VERSION, &b"xen-2.0\0"[..], "XEN_VERSION"),
        (note::LOADER, b"special\0", "LOADER"),
        (note::ENTRY, b"abc", "ENTRY"),
        (note::ENTRY, &0x1000u64.to_le_bytes(), "ENTRY"),
        (note::INIT_P2M, &BASE.to_le_bytes(), "INIT_P2M"),
        (note::INIT_P2M, &0x1008u64.to_le_bytes(), "INIT_P2M"),
    ] {
        let fault = Maker::sound().with(kind, desc).fault();
        assert!(matches!(fault, Fault::NoteValue { note, .. } if note == name), "{fault}");
    }
}

#[test]
fn segments_must_be_either_writable_or_executable_and_where_the_notes_say() {
    let mut maker = Maker::sound();
    maker.loads[1].2 = 7;
    assert_eq!(maker.fault(), Fault::WritableAndExecutable(BASE + 0x10_1000));

    let mut maker = Maker::sound();
    maker.loads[1].1 = 0x20_0000;
    assert_eq!(maker.fault(), Fault::Misplaced { vaddr: BASE + 0x10_1000, loaded_at: BASE + 0x20_0000 });

    let mut maker = Maker::sound();
    maker.loads.clear();
    assert_eq!(maker.fault(), Fault::NothingToLoad);

    let mut maker = Maker::sound();
    maker.loads[0].0 += 8;
    maker.loads[0].1 += 8;
    assert!(matches!(maker.fault(), Fault::NoteValue { note: "VIRT_BASE", .. }));
}

#[test]
fn what_is_no_x86_64_elf_is_refused() {
    let sound = Maker::sound().build();
    for bytes in [&b""[..], b"#!/bin/sh\n", &sound[..40], &sound[..100]] {
        assert!(matches!(check(bytes), Err(Fault::NotElf(_))), "{} bytes", bytes.len());
    }
    let arm = Maker { machine: 183, ..Maker::sound() };
    assert!(matches!(arm.fault(), Fault::NotElf(_)));
}
