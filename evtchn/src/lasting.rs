//! [`Lasting`]: a box whose content Xen, or another model of it, has the address of.
//!
//! A `Box` that is moved claims to be the only way to its content, and what Xen does through an address from before
//! would be undefined. Here the content is reached by shared borrows alone.
//!
//! - LA1: the pointer is from a `Box`, which is freed when this is dropped, and not before.

use alloc::boxed::Box;
use core::ops::Deref;
use core::ptr::NonNull;

pub(crate) struct Lasting<T>(NonNull<T>);

// SAFETY: it owns a T, and gives shared borrows of it.
unsafe impl<T: Send + Sync> Send for Lasting<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Lasting<T> {}

impl<T> Lasting<T> {
    pub(crate) fn new(content: T) -> Lasting<T> {
        Lasting(NonNull::from(Box::leak(Box::new(content))))
    }

    /// Where the content is, for as long as this lives.
    pub(crate) fn address(&self) -> NonNull<T> {
        self.0
    }
}

impl<T> Deref for Lasting<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: alive by LA1, and only ever borrowed shared.
        unsafe { self.0.as_ref() }
    }
}

impl<T> Drop for Lasting<T> {
    fn drop(&mut self) {
        // SAFETY: from a box by LA1, dropped once, and no borrow outlives `self`.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}
