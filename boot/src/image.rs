//! Where the linker put what. The symbols come from `link.ld`; only their addresses mean anything.

/// A range of virtual addresses, page aligned, `end` exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// First byte.
    pub start: u64,
    /// First byte behind it.
    pub end: u64,
}

unsafe extern "C" {
    static stasis_text_start: u8;
    static stasis_text_end: u8;
    static stasis_rodata_end: u8;
    static stasis_data_start: u8;
    static stasis_image_end: u8;
    static stasis_boot_stack_guard: u8;
    static stasis_boot_stack_bottom: u8;
    static stasis_boot_stack_top: u8;
    static stasis_window: u8;
}

macro_rules! address_of {
    ($symbol:ident) => {
        (&raw const $symbol).addr() as u64
    };
}

/// Executable code.
pub fn text() -> Section {
    Section { start: address_of!(stasis_text_start), end: address_of!(stasis_text_end) }
}

/// Constants and notes.
pub fn rodata() -> Section {
    Section { start: address_of!(stasis_text_end), end: address_of!(stasis_rodata_end) }
}

/// Everything writable: data, bss, the boot stack and its guard page.
pub fn data() -> Section {
    Section { start: address_of!(stasis_data_start), end: address_of!(stasis_image_end) }
}

/// The page below the boot stack, to be unmapped.
pub fn boot_stack_guard() -> u64 {
    address_of!(stasis_boot_stack_guard)
}

/// The boot CPU's stack, for life.
pub fn boot_stack() -> Section {
    Section { start: address_of!(stasis_boot_stack_bottom), end: address_of!(stasis_boot_stack_top) }
}

/// A page of the image that is there only to be mapped to something else while page tables are made.
pub fn window() -> u64 {
    address_of!(stasis_window)
}
