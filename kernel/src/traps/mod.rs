//! Where Xen enters the kernel: the event callback and exceptions.
//!
//! Every vcpu registers the same trap table and callbacks, the boot CPU by hypercall ([`register`]), the others as
//! part of the context that they are started with. Xen keeps both across save and restore.
//!
//! No exception is expected in kernel mode: each one ends in a panic that names it, but for `int3`. What comes from user mode goes to
//! [`user`].

mod frame;
mod stubs;

use xen_sys::abi::callback::{CALLBACKF_mask_events, CALLBACKTYPE_event, CALLBACKTYPE_failsafe, CALLBACKTYPE_syscall};
use xen_sys::hypercall::traps::{callback_register, set_trap_table};
use xen_sys::primitive::sync::atomic::Ordering;

pub(crate) use frame::Frame;
pub(crate) use stubs::{
    SYSCALL, UPCALL, failsafe as failsafe_entry, syscall as syscall_entry, table, upcall as upcall_entry,
};

use crate::{events, panic, user};

/// Registers the trap table and the callbacks for this vcpu. Boot CPU, once.
///
/// # Panics
/// If Xen refuses: there is no way to run without.
pub(crate) fn register() {
    // SAFETY: each stub is made for its exception's frame.
    unsafe { set_trap_table(&table()) }.expect("Xen takes canonical handler addresses");
    let callbacks = [
        (CALLBACKTYPE_event, upcall_entry()),
        (CALLBACKTYPE_failsafe, failsafe_entry()),
        (CALLBACKTYPE_syscall, syscall_entry()),
    ];
    for (kind, entry) in callbacks {
        // SAFETY: each stub is made for its callback's frame.
        unsafe { callback_register(kind, CALLBACKF_mask_events, entry) }
            .expect("Xen takes canonical callback addresses");
    }
}

/// Called by every stub but the event callback's, and by that where it is not just to be handled; upcalls masked, on the interrupted
/// stack, or from user mode on the one that it was entered from. Whether to leave user mode: to go back to who entered it, and not
/// to what was interrupted.
extern "C" fn entered(frame: &mut Frame) -> bool {
    if frame.is_from_user() {
        return user::entered(frame);
    }
    match frame.vector {
        3 => crate::say!("breakpoint", cpu = percpu::current(), rip = format_args!("{:#x}", frame.rip)),
        UPCALL => upcall_while_dozing(frame),
        _ => panic::exception(frame),
    }
    false
}

/// Goes back masked, as handlers must not run there. Then Xen would not see, as the poll begins, that an event is there, and later ones
/// do not wake it either; so the poll is made to end at once.
fn upcall_while_dozing(frame: &mut Frame) {
    percpu::area().doze.end_at_once();
    frame.return_masked();
}

/// An event has come, or Xen thinks so. Called by the event callback's stub, upcalls masked, on the interrupted stack, unless this CPU
/// dozes or has been in user mode; and by who handles the latter. `rip`: what was interrupted, in its frame.
pub(crate) extern "C" fn upcall(rip: &u64) {
    let area = percpu::area();
    area.upcall_rip.store(*rip, Ordering::Relaxed); // ORDERING: Relaxed, shown to people.
    events::upcall(&area.vcpu_info);
}

/// The name of exception `vector`, as the processor's manuals have it.
pub(crate) fn name(vector: u64) -> &'static str {
    match vector {
        0 => "#DE divide error",
        1 => "#DB debug",
        4 => "#OF overflow",
        5 => "#BR bound range",
        6 => "#UD invalid opcode",
        7 => "#NM device not available",
        8 => "#DF double fault",
        10 => "#TS invalid TSS",
        11 => "#NP segment not present",
        12 => "#SS stack fault",
        13 => "#GP general protection",
        14 => "#PF page fault",
        16 => "#MF x87",
        17 => "#AC alignment check",
        18 => "#MC machine check",
        19 => "#XM SIMD",
        20 => "#VE virtualisation",
        stubs::FAILSAFE => "failsafe callback",
        _ => "unknown exception",
    }
}
