//! What an ELF file needs: a program's libraries, a kernel module's modules.
//!
//! Owns the reading of both and the closure over them. Pure: files come from a lookup that the caller gives.
//! Turned down: `ldd`, which runs the program's loader on this machine and tells this machine's libraries,
//! and `depmod` with `modprobe`, which would be two more things to carry into dom0.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection};

/// The names of the shared libraries that an ELF program or library asks for; empty for a static one.
pub(super) fn libraries(elf: &[u8]) -> Result<Vec<String>> {
    const DT_NEEDED: u64 = 1;
    let file = object::File::parse(elf).context("no ELF file")?;
    let Some(dynamic) = file.section_by_name(".dynamic") else { return Ok(Vec::new()) };
    let strings = file.section_by_name(".dynstr").context("a .dynamic without a .dynstr")?.data()?;
    let mut names = Vec::new();
    for entry in dynamic.data()?.chunks_exact(16) {
        let (tag, value) = entry.split_at(8);
        if word(tag) == DT_NEEDED {
            let start = usize::try_from(word(value)).context("a string offset beyond memory")?;
            let text = strings.get(start..).context("a library name outside .dynstr")?;
            let name = text.split(|byte| *byte == 0).next().unwrap_or_default();
            names.push(String::from_utf8_lossy(name).into_owned());
        }
    }
    Ok(names)
}

/// The names of the modules that a kernel module needs before it.
pub(super) fn module_dependencies(elf: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(elf).context("no ELF file")?;
    let info = file.section_by_name(".modinfo").context("a kernel module without .modinfo")?.data()?;
    let depends = info
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(b"depends="))
        .context("a kernel module that does not say what it depends on")?;
    let depends = String::from_utf8_lossy(depends);
    Ok(depends.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

/// All of `wanted` and what they need, each once, needed ones first. `needs` tells what one needs.
/// # Errors
/// `needs`'s, and a circle of needs.
pub(super) fn closure(wanted: &[&str], needs: &dyn Fn(&str) -> Result<Vec<String>>) -> Result<Vec<String>> {
    fn visit(
        name: &str,
        needs: &dyn Fn(&str) -> Result<Vec<String>>,
        open: &mut Vec<String>,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<String>,
    ) -> Result<()> {
        if seen.contains(name) {
            return Ok(());
        }
        if open.iter().any(|above| above == name) {
            bail!("{name} needs itself, through {}", open.join(", "));
        }
        open.push(name.to_owned());
        for need in needs(name)? {
            visit(&need, needs, open, seen, order)?;
        }
        open.pop();
        seen.insert(name.to_owned());
        order.push(name.to_owned());
        Ok(())
    }
    let (mut seen, mut order) = (BTreeSet::new(), Vec::new());
    for name in wanted {
        visit(name, needs, &mut Vec::new(), &mut seen, &mut order)?;
    }
    Ok(order)
}

/// A little-endian word of 8 bytes.
fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::write::{Object as Writer, StandardSegment};
    use object::{Architecture, BinaryFormat, Endianness, SectionKind};

    fn elf(sections: &[(&str, &[u8])]) -> Vec<u8> {
        let mut writer = Writer::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
        for (name, content) in sections {
            let segment = writer.segment_name(StandardSegment::Data).to_vec();
            let id = writer.add_section(segment, name.as_bytes().to_vec(), SectionKind::ReadOnlyData);
            writer.append_section_data(id, content, 1);
        }
        writer.write().expect("two plain sections")
    }

    #[test]
    fn libraries_are_the_needed_entries() {
        let strings = b"\0libc.so.6\0libxl.so\0";
        let entry = |tag: u64, value: u64| [tag.to_le_bytes(), value.to_le_bytes()].concat();
        let dynamic = [entry(1, 1), entry(14, 11), entry(1, 11), entry(0, 0)].concat();
        let program = elf(&[(".dynamic", &dynamic), (".dynstr", strings)]);
        assert_eq!(libraries(&program).expect("well formed"), ["libc.so.6", "libxl.so"]);
        assert!(libraries(&elf(&[(".text", b"x")])).expect("a static program").is_empty());
        assert!(libraries(b"#!/bin/sh").is_err());
        let outside = elf(&[(".dynamic", &entry(1, 1000)), (".dynstr", strings)]);
        assert!(libraries(&outside).is_err());
    }

    #[test]
    fn modules_say_what_they_depend_on() {
        let module = elf(&[(".modinfo", b"license=GPL\0depends=virtio,virtio_ring\0")]);
        assert_eq!(module_dependencies(&module).expect("well formed"), ["virtio", "virtio_ring"]);
        assert!(module_dependencies(&elf(&[(".modinfo", b"depends=\0")])).expect("well formed").is_empty());
        assert!(module_dependencies(&elf(&[(".modinfo", b"license=GPL\0")])).is_err());
    }

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let needs = |name: &str| {
            Ok(match name {
                "console" => vec!["virtio".to_owned(), "ring".to_owned()],
                "virtio" => vec!["ring".to_owned()],
                "a" => vec!["b".to_owned()],
                "b" => vec!["a".to_owned()],
                _ => vec![],
            })
        };
        assert_eq!(closure(&["console", "virtio"], &needs).expect("no circle"), ["ring", "virtio", "console"]);
        assert!(closure(&["a"], &needs).expect_err("a circle").to_string().contains("needs itself"));
    }
}
