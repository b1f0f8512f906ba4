//! Tokens: zero-sized arguments that prove a context, so that the compiler asks for the proof.
//!
//! A token keeps upcalls and other CPUs out. It does not keep out a second borrow further down the same call:
//! what is reached through one is lent as `&T`, with cells or atomics inside.

use core::marker::PhantomData;
use core::ops::Deref;

use crate::backend;

/// Upcalls are masked on this CPU for as long as this lives: inside the upcall itself, or under a [`MaskGuard`].
///
/// Neither `Send` nor `Sync`: it speaks of the CPU that it was made on.
pub struct Masked {
    not_send: PhantomData<*const ()>,
}

impl Masked {
    /// Claims that upcalls are masked on this CPU.
    ///
    /// # Safety
    /// They are, and stay so until the token is gone.
    pub const unsafe fn assume() -> Masked {
        Masked { not_send: PhantomData }
    }
}

/// Every other vcpu is parked, runs no handler, and stays so for as long as this lives.
pub struct Quiesced {
    not_send: PhantomData<*const ()>,
}

impl Quiesced {
    /// Claims that every other vcpu is parked.
    ///
    /// # Safety
    /// They are, until the token is gone; or no other vcpu has been started yet.
    pub const unsafe fn assume() -> Quiesced {
        Quiesced { not_send: PhantomData }
    }
}

/// Keeps upcalls masked on this CPU; dropping it restores the state that [`mask_upcalls`](crate::mask_upcalls)
/// found. Guards nest.
#[must_use = "upcalls are unmasked again when the guard is dropped"]
pub struct MaskGuard {
    masked: Masked,
    were_masked: bool,
}

impl MaskGuard {
    /// A guard over upcalls that the backend has just masked.
    ///
    /// # Safety
    /// As [`Masked::assume`]; and with `were_masked` false, unmasking is right when the guard is dropped.
    pub(crate) const unsafe fn new(were_masked: bool) -> MaskGuard {
        // SAFETY: the caller masked upcalls, and only the drop below unmasks them.
        let masked = unsafe { Masked::assume() };
        MaskGuard { masked, were_masked }
    }
}

impl MaskGuard {
    /// Gives up the processor until there is an event for this CPU, with upcalls unmasked from inside the hypercall on:
    /// what turned pending since they were masked ends the wait, or keeps it from beginning. The guard is spent, so no
    /// [`Masked`] outlives the mask. Context: task.
    ///
    /// # Panics
    /// If upcalls were masked before this guard was made: then somebody further up relies on it.
    pub fn block(self) {
        assert!(!self.were_masked, "a CPU that blocks under two masks would unmask both");
        // The call does what the drop would do.
        core::mem::forget(self);
        // SAFETY: this guard was the only one, and is gone with all that was borrowed from it.
        unsafe { backend::block() };
    }
}

impl Deref for MaskGuard {
    type Target = Masked;

    fn deref(&self) -> &Masked {
        &self.masked
    }
}

impl Drop for MaskGuard {
    fn drop(&mut self) {
        if !self.were_masked {
            backend::unmask_upcalls();
        }
    }
}
