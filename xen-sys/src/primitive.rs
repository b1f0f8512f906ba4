//! The switchable primitives: `core`'s normally, loom's under `cfg(loom)`, shuttle's under `cfg(shuttle)`.
//!
//! Every crate of the workspace takes its atomics from here, so that one build flag turns the whole stack into a model.
//! Contexts: any. Nothing here blocks, except [`thread::yield_now`] in a model, which lets it run another thread.
//!
//! loom tries every order and every value that an ordering allows, with a few threads; shuttle tries some orders, with
//! many threads, and takes every ordering for `SeqCst`. So only loom has cells that watch for races.
//!
//! [`cell::UnsafeCell`] has loom's closure interface in both builds. Handing out the raw pointer, as `core` does, was
//! turned down: loom could not see when the access ends, and would miss every race on plain data.

/// Atomics and fences.
pub mod sync {
    /// The atomic types; `core::sync::atomic`, or a model's.
    pub mod atomic {
        #[cfg(not(any(loom, shuttle)))]
        pub use core::sync::atomic::*;
        // loom has no compiler fence: it models no interrupt on the same thread, so the real one is right there too.
        #[cfg(loom)]
        pub use core::sync::atomic::compiler_fence;
        #[cfg(loom)]
        pub use loom::sync::atomic::*;
        #[cfg(shuttle)]
        pub use shuttle::sync::atomic::*;
    }
}

/// Cells.
pub mod cell {
    #[cfg(loom)]
    pub use loom::cell::UnsafeCell;

    /// `core::cell::UnsafeCell` behind the interface of loom's.
    #[cfg(not(loom))]
    #[derive(Debug, Default)]
    #[repr(transparent)]
    pub struct UnsafeCell<T: ?Sized>(core::cell::UnsafeCell<T>);

    #[cfg(not(loom))]
    impl<T> UnsafeCell<T> {
        /// Wraps `value`.
        pub const fn new(value: T) -> Self {
            Self(core::cell::UnsafeCell::new(value))
        }

        /// Takes the value out.
        pub fn into_inner(self) -> T {
            self.0.into_inner()
        }
    }

    #[cfg(not(loom))]
    impl<T: ?Sized> UnsafeCell<T> {
        /// Lends a pointer for reading; it must not be used after `f` returns.
        #[inline(always)]
        pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }

        /// Lends a pointer for writing; it must not be used after `f` returns.
        #[inline(always)]
        pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }
}

/// Bytes that Xen may write and that nobody here ever reads or writes: padding of the shared structures.
///
/// Not atomics, so that a model of a shared page has no objects for them.
///
/// - OP1: the content is never accessed through this type.
#[repr(transparent)]
pub struct Opaque<T>(core::cell::UnsafeCell<T>);

// SAFETY: sharing it between threads shares nothing, since no method reaches the content (OP1).
unsafe impl<T> Sync for Opaque<T> {}

impl<T> Opaque<T> {
    /// Padding that starts as `value`.
    pub const fn new(value: T) -> Self {
        Self(core::cell::UnsafeCell::new(value))
    }
}

impl<T: Default> Default for Opaque<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> core::fmt::Debug for Opaque<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("_")
    }
}

/// Hints to the processor.
pub mod hint {
    #[cfg(not(any(loom, shuttle)))]
    pub use core::hint::spin_loop;
    #[cfg(loom)]
    pub use loom::hint::spin_loop;
    #[cfg(shuttle)]
    pub use shuttle::hint::spin_loop;
}

/// What a waiting loop calls between two looks.
pub mod thread {
    #[cfg(loom)]
    pub use loom::thread::yield_now;
    #[cfg(shuttle)]
    pub use shuttle::thread::yield_now;

    /// One pause of the processor. The kernel's own loops give the vcpu back through `hypercall::sched` instead.
    #[cfg(not(any(loom, shuttle)))]
    #[inline(always)]
    pub fn yield_now() {
        core::hint::spin_loop();
    }
}

/// A constructor without arguments that is `const`, except under loom, whose atomics are made at run time.
#[macro_export]
macro_rules! const_unless_loom {
    ($(#[$meta:meta])* $vis:vis fn $name:ident() -> $ret:ty $body:block) => {
        #[cfg(not(loom))]
        $(#[$meta])*
        $vis const fn $name() -> $ret $body

        #[cfg(loom)]
        $(#[$meta])*
        $vis fn $name() -> $ret $body
    };
}

/// An array, its length taken from the type expected, each element made by evaluating the expression anew.
#[cfg(not(loom))]
#[macro_export]
macro_rules! array_of {
    ($init:expr) => {
        [const { $init }; _]
    };
}

/// An array, its length taken from the type expected, each element made by evaluating the expression anew.
#[cfg(loom)]
#[macro_export]
macro_rules! array_of {
    ($init:expr) => {
        core::array::from_fn(|_| $init)
    };
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Opaque, cell::UnsafeCell};

    #[test]
    fn cell_lends_its_content() {
        let cell = UnsafeCell::new(1u32);
        // SAFETY: the only access to `cell` at this moment.
        cell.with_mut(|p| unsafe { *p += 1 });
        // SAFETY: as above.
        assert_eq!(cell.with(|p| unsafe { *p }), 2);
        assert_eq!(cell.into_inner(), 2);
    }

    #[test]
    fn opaque_has_the_layout_of_its_content() {
        assert_eq!(size_of::<Opaque<[u8; 6]>>(), 6);
        assert_eq!(align_of::<Opaque<u64>>(), 8);
    }

    #[test]
    fn arrays_take_their_length_from_the_type() {
        const ZEROS: [u16; 5] = array_of!(0);
        assert_eq!(ZEROS, [0; 5]);
    }
}
