//! How much memory the lab's machine needs for a guest.
//!
//! Owns the arithmetic, which is pure. The figures beside the formulas were measured; they err on the side of
//! too much, because a migration that fails for want of memory looks like a bug of the guest.

/// The lab's memory, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// QEMU's, all of it.
    pub machine_mib: u32,
    /// dom0's part. Saved domains are files in it.
    pub dom0_mib: u32,
}

/// The memory of a lab that holds `copies` domains of `vcpus` and `guest_mib` at a time, and room in dom0
/// for one saved. A migration to the same machine has two copies for a while.
#[must_use]
pub fn memory_for(vcpus: u32, guest_mib: u32, copies: u32) -> Memory {
    // Kernel, initramfs and daemons take 200; a migration's helpers map tables of the guest's size.
    let dom0_mib = 512 + guest_mib + guest_mib / 8;
    // Shadow paging takes 128 pages a vCPU and a page per MiB at once, for each copy while both are shadowed
    // (xen/arch/x86/mm/shadow/common.c, sh_min_allocation). Xen's own per domain and vCPU is below 4 MiB + 64 KiB.
    let shadow_mib = vcpus.div_ceil(2) + guest_mib.div_ceil(256);
    let copy_mib = guest_mib + shadow_mib + vcpus.div_ceil(16) + 4;
    // Xen's heap, frame table and the multiboot modules until dom0 has them.
    let xen_mib = 256;
    Memory { machine_mib: dom0_mib + copies * copy_mib + xen_mib, dom0_mib }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_copies_with_their_shadows_fit() {
        let Memory { machine_mib, dom0_mib } = memory_for(128, 256, 2);
        assert!(machine_mib - dom0_mib >= 2 * (256 + 64));
        assert!(dom0_mib >= 512 + 256);
    }

    #[test]
    fn more_of_anything_needs_more() {
        let base = memory_for(8, 64, 1);
        for more in [memory_for(1024, 64, 1), memory_for(8, 4096, 1), memory_for(8, 64, 2)] {
            assert!(more.machine_mib > base.machine_mib);
        }
    }
}
