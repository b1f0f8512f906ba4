//! Writes initramfs archives: cpio in the `newc` format.
//!
//! Owns the format. The output depends on the entries only: inode numbers count up, times and owners are 0,
//! so equal content gives equal bytes, which a deterministic boot needs. Several archives may follow each
//! other in one initramfs; the kernel unpacks them in order.
//!
//! Turned down: gzip. dom0's kernel would have to unpack it under TCG, to save 5 MB that QEMU loads at once.
//! Source: Documentation/driver-api/early-userspace/buffer-format.rst in Linux.

use std::collections::BTreeSet;

/// An archive that is being written.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    inode: u32,
    directories: BTreeSet<String>,
}

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_777;

impl Archive {
    /// Adds a directory and those above it. A path never starts with a slash.
    pub(super) fn directory(&mut self, path: &str) {
        let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
        for end in ends {
            if self.directories.insert(path[..end].to_owned()) {
                self.entry(&path[..end], DIRECTORY, &[]);
            }
        }
    }

    /// Adds a file with permissions `mode`, and the directories above it.
    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.above(path);
        self.entry(path, FILE | mode, content);
    }

    /// Adds a symbolic link to `target`, and the directories above it.
    pub(super) fn symlink(&mut self, path: &str, target: &str) {
        self.above(path);
        self.entry(path, SYMLINK, target.as_bytes());
    }

    /// The whole archive. Its length is a multiple of 4, as the next archive in one initramfs needs.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.header("TRAILER!!!", 0, 0, 1);
        self.bytes
    }

    fn above(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        self.header(path, mode, content.len(), links);
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn header(&mut self, name: &str, mode: u32, length: usize, links: u32) {
        let inode = self.inode;
        let name_length = name.len() + 1;
        // magic, inode, mode, uid, gid, links, mtime, size, device and rdevice (major, minor), name, checksum
        let header = format!(
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{links:08x}{0:08x}{length:08x}\
             {0:08x}{0:08x}{0:08x}{0:08x}{name_length:08x}{0:08x}",
            0
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive as the kernel does: name, mode, content.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let total = bytes.len();
        let mut entries = Vec::new();
        loop {
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).expect("hex digits");
                u32::from_str_radix(text, 16).expect("hex digits")
            };
            assert_eq!(&bytes[..6], b"070701");
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let at = total - bytes.len();
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).expect("our names");
            assert_eq!(bytes[110 + name_size - 1], 0);
            let data = (at + 110 + name_size).next_multiple_of(4) - at;
            if name == "TRAILER!!!" {
                assert_eq!(bytes.len(), data, "nothing follows");
                return entries;
            }
            entries.push((name, mode, bytes[data..data + size].to_vec()));
            bytes = &bytes[(at + data + size).next_multiple_of(4) - at..];
        }
    }

    #[test]
    fn entries_read_back_with_their_parents_first_and_once() {
        let mut archive = Archive::default();
        archive.file("init", 0o755, b"#!/bin/sh\n");
        archive.file("usr/lib/xen/bin/xl", 0o755, &[0xff; 5]);
        archive.file("usr/lib/empty", 0o644, b"");
        archive.symlink("bin/sh", "busybox");
        archive.directory("usr/lib/xen/bin");
        let entries = read(&archive.finish());
        let expected: Vec<(String, u32, Vec<u8>)> = [
            ("init", 0o100_755, b"#!/bin/sh\n".to_vec()),
            ("usr", 0o040_755, vec![]),
            ("usr/lib", 0o040_755, vec![]),
            ("usr/lib/xen", 0o040_755, vec![]),
            ("usr/lib/xen/bin", 0o040_755, vec![]),
            ("usr/lib/xen/bin/xl", 0o100_755, vec![0xff; 5]),
            ("usr/lib/empty", 0o100_644, vec![]),
            ("bin", 0o040_755, vec![]),
            ("bin/sh", 0o120_777, b"busybox".to_vec()),
        ]
        .into_iter()
        .map(|(name, mode, content)| (name.to_owned(), mode, content))
        .collect();
        assert_eq!(entries, expected);
    }

    #[test]
    fn equal_content_gives_equal_bytes_and_archives_may_follow_each_other() {
        let make = |content: &[u8]| {
            let mut archive = Archive::default();
            archive.file("a", 0o644, content);
            archive.finish()
        };
        assert_eq!(make(b"x"), make(b"x"));
        assert_ne!(make(b"x"), make(b"y"));
        for length in 0..8 {
            assert_eq!(make(&vec![1; length]).len() % 4, 0);
        }
    }
}
