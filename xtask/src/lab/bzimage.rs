//! Takes the kernel proper out of Debian's `vmlinuz`.
//!
//! Owns the way from a bzImage to the ELF file in it. Xen, and xl's domain builder in dom0, could decompress it
//! themselves, but under TCG that costs six seconds of a boot's twenty; here it is done once, by the host.
//!
//! Turned down: a decompressor as a dependency, for one file at preparation; `xz` is on every Debian machine
//! that can unpack packages' sources. A kernel packed otherwise is left as it is, and only boots slower.
//! Source: Documentation/x86/boot.rst in Linux, `payload_offset` and `payload_length`.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Writes the kernel in the bzImage `from` to `to` in the form that boots fastest.
pub(super) fn unpack(from: &Path, to: &Path) -> Result<()> {
    let image = std::fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    let Some(payload) = xz_payload(&image) else {
        return std::fs::write(to, image).with_context(|| format!("writing {}", to.display()));
    };
    let packed = to.with_extension("xz");
    std::fs::write(&packed, payload).with_context(|| format!("writing {}", packed.display()))?;
    let kernel = std::fs::File::create(to).with_context(|| format!("creating {}", to.display()))?;
    let output = Command::new("xz")
        .args(["--decompress", "--stdout", "--single-stream"])
        .arg(&packed)
        .stdout(kernel)
        .stderr(Stdio::piped())
        .output()
        .context("starting xz")?;
    if !output.status.success() {
        bail!("unpacking {}: {}", from.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    std::fs::remove_file(&packed).with_context(|| format!("removing {}", packed.display()))
}

/// The XZ stream in a bzImage, without the length that follows it; `None` for anything else.
fn xz_payload(image: &[u8]) -> Option<&[u8]> {
    const XZ: &[u8] = b"\xfd7zXZ\0";
    const MAGIC_AT: usize = 0x202;
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    if image.get(MAGIC_AT..MAGIC_AT + 4)? != b"HdrS" {
        return None;
    }
    // Counted in sectors, without the first one.
    let setup = (usize::from(*image.get(0x1f1)?) + 1) * 512;
    let start = setup.checked_add(word(0x248)?)?;
    let end = start.checked_add(word(0x24c)?)?.checked_sub(4)?;
    image.get(start..end).filter(|payload| payload.starts_with(XZ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(payload: &[u8], length: u32) -> Vec<u8> {
        let mut image = vec![0; 3 * 512 + 0x20];
        image[0x1f1] = 2;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&0x20_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn the_stream_is_found_without_its_length() {
        let payload = b"\xfd7zXZ\0streamLEN4";
        assert_eq!(xz_payload(&image(payload, 16)), Some(&payload[..12]));
    }

    #[test]
    fn anything_else_is_left_alone() {
        assert_eq!(xz_payload(b"\x7fELF"), None);
        assert_eq!(xz_payload(&image(b"\x1f\x8bgzip stream", 13)), None);
        assert_eq!(xz_payload(&image(b"\xfd7zXZ\0", 1000)), None, "longer than the file");
        assert_eq!(xz_payload(&image(b"\xfd7zXZ\0", 2)), None, "shorter than the length that ends it");
    }
}
