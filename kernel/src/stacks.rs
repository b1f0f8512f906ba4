//! Which addresses are a stack's.

use boot::image::{self, Section};
use mm::layout::{self, StackPart};

/// The stack that `address` is in.
pub(crate) fn containing(address: u64) -> Option<Section> {
    let boot = image::boot_stack();
    if (boot.start..boot.end).contains(&address) {
        return Some(boot);
    }
    match layout::stack_of(address)? {
        StackPart::Stack(index) => Some(Section { start: layout::stack_bottom(index), end: layout::stack_top(index) }),
        StackPart::Guard(_) => None,
    }
}
