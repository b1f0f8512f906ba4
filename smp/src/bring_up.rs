//! Starting a vcpu, for the first time or again: the order of the three hypercalls, and the context that the vcpu starts with.
//!
//! | call | why here |
//! |---|---|
//! | `VCPUOP_register_vcpu_info` | only on a vcpu that is down, or by itself; needed by the next from vcpu 32 on |
//! | `VCPUOP_initialise` | needs the former, takes the context |
//! | (the rendezvous begins to wait for it) | from the next call on it may run |
//! | `VCPUOP_up` | it starts at once, in parallel with us |
//!
//! Context: task, on vCPU 0. Blocking: three hypercalls. A new vcpu finds its own feet: what else it needs (ports,
//! timer, roll call) it does by itself, as after a restore. One that has only gone down in this life of the domain needs the
//! last call alone, with the rendezvous told before it ([`restart`]). Turned down: letting Xen start it with `VGCF_online` set,
//! as then the rendezvous would have to wait for it before it is known to be initialised.

use alloc::boxed::Box;
use core::fmt;

use percpu::CpuId;
use xen_sys::Errno;
use xen_sys::abi::arch::{
    FLAT_KERNEL_CS, FLAT_KERNEL_SS, TrapInfo, VGCF_failsafe_disables_events, VGCF_in_kernel,
    VGCF_syscall_disables_events, VcpuGuestContext, xen_pfn_to_cr3,
};
use xen_sys::hypercall::vcpu;

use crate::rendezvous::Rendezvous;

/// Where a `vcpu_info` is, for Xen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VcpuInfoPlace {
    /// Machine frame.
    pub mfn: u64,
    /// Offset in bytes: a multiple of 8, at most 4032.
    pub offset: u32,
}

/// What a vcpu starts with. All addresses are virtual and in the kernel's half.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// First instruction.
    pub entry: u64,
    /// End of its stack, a multiple of 16; also the stack for entries from user mode.
    pub stack_top: u64,
    /// What it finds in rdi.
    pub argument: u64,
    /// Its area.
    pub gs_base: u64,
    /// mfn of its L4.
    pub root_mfn: u64,
    /// Entries of its trap table, in any order.
    pub traps: &'a [TrapInfo],
    /// Where upcalls enter.
    pub upcall_entry: u64,
    /// Where Xen goes when it cannot load a segment register.
    pub failsafe_entry: u64,
    /// Where `syscall` in user mode enters; 0 for none.
    pub syscall_entry: u64,
}

impl Start<'_> {
    /// What `VCPUOP_initialise` takes: 5 KiB, so on the heap. Upcalls are masked in the failsafe and syscall entries.
    pub fn context(&self) -> Box<VcpuGuestContext> {
        let mut context = Box::new(VcpuGuestContext::zeroed());
        context.flags = VGCF_in_kernel | VGCF_failsafe_disables_events | VGCF_syscall_disables_events;
        context.user_regs.rip = self.entry;
        context.user_regs.rsp = self.stack_top;
        context.user_regs.rdi = self.argument;
        context.user_regs.cs = FLAT_KERNEL_CS;
        context.user_regs.ss = FLAT_KERNEL_SS;
        for trap in self.traps {
            context.trap_ctxt[usize::from(trap.vector)] = *trap;
        }
        context.kernel_ss = u64::from(FLAT_KERNEL_SS);
        context.kernel_sp = self.stack_top;
        context.ctrlreg[3] = xen_pfn_to_cr3(self.root_mfn);
        context.event_callback_eip = self.upcall_entry;
        context.failsafe_callback_eip = self.failsafe_entry;
        context.syscall_callback_eip = self.syscall_entry;
        context.gs_base_kernel = self.gs_base;
        context
    }
}

/// The call that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// `VCPUOP_register_vcpu_info`. `EINVAL` also means that it was placed before in this domain.
    RegisterVcpuInfo,
    /// `VCPUOP_initialise`. `EEXIST`: it was initialised before in this domain, and has only gone down.
    Initialise,
    /// `VCPUOP_up`.
    Up,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::RegisterVcpuInfo => "VCPUOP_register_vcpu_info",
            Operation::Initialise => "VCPUOP_initialise",
            Operation::Up => "VCPUOP_up",
        })
    }
}

/// A vcpu that could not be started. It is down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StartError {
    /// Which call failed; those before it hold.
    pub operation: Operation,
    /// Of which vcpu.
    pub cpu: CpuId,
    /// What Xen said.
    pub errno: Errno,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of vcpu {}: {}", self.operation, self.cpu, self.errno)
    }
}

impl core::error::Error for StartError {}

/// The hypercalls of this file; [`Xen`], or what a test puts in its place.
pub trait Vcpus {
    /// `VCPUOP_register_vcpu_info`.
    ///
    /// # Errors
    /// Xen's.
    ///
    /// # Safety
    /// As [`vcpu::register_vcpu_info`].
    unsafe fn register_vcpu_info(&self, cpu: CpuId, place: VcpuInfoPlace) -> Result<(), Errno>;

    /// `VCPUOP_initialise`.
    ///
    /// # Errors
    /// Xen's.
    ///
    /// # Safety
    /// As [`vcpu::initialise`].
    unsafe fn initialise(&self, cpu: CpuId, context: &VcpuGuestContext) -> Result<(), Errno>;

    /// `VCPUOP_up`.
    ///
    /// # Errors
    /// Xen's.
    fn up(&self, cpu: CpuId) -> Result<(), Errno>;

    /// `VCPUOP_down` of this CPU, which is `cpu`. Returns when it is up again.
    ///
    /// # Errors
    /// Xen's.
    fn down(&self, cpu: CpuId) -> Result<(), Errno>;

    /// `VCPUOP_is_up`.
    ///
    /// # Errors
    /// Xen's.
    fn is_up(&self, cpu: CpuId) -> Result<bool, Errno>;
}

/// Xen itself.
#[derive(Clone, Copy, Debug)]
pub struct Xen;

impl Vcpus for Xen {
    unsafe fn register_vcpu_info(&self, cpu: CpuId, place: VcpuInfoPlace) -> Result<(), Errno> {
        // SAFETY: the caller's promise is the same.
        unsafe { vcpu::register_vcpu_info(cpu.vcpu(), place.mfn, place.offset) }
    }

    unsafe fn initialise(&self, cpu: CpuId, context: &VcpuGuestContext) -> Result<(), Errno> {
        // SAFETY: the caller's promise is the same.
        unsafe { vcpu::initialise(cpu.vcpu(), context) }
    }

    fn up(&self, cpu: CpuId) -> Result<(), Errno> {
        vcpu::up(cpu.vcpu())
    }

    fn down(&self, cpu: CpuId) -> Result<(), Errno> {
        vcpu::down(cpu.vcpu())
    }

    fn is_up(&self, cpu: CpuId) -> Result<bool, Errno> {
        vcpu::is_up(cpu.vcpu())
    }
}

/// Starts `cpu`, which is down and has not been started in this domain. It may run before this returns.
///
/// # Errors
/// The call that Xen refused; the vcpu is down then, and no rendezvous waits for it. Those before it hold, and Xen refuses them a
/// second time: which way to go then, [`Hotplug`](crate::Hotplug) knows.
///
/// # Safety
/// - `place` is that of a `VcpuInfo` that is never freed and reached through shared references only.
/// - What `context` names (entry, stack, root, callbacks, gs base) is valid for the life of the vcpu, and the stack and
///   the gs base are no other vcpu's.
pub unsafe fn start(
    vcpus: &impl Vcpus,
    rendezvous: &Rendezvous,
    cpu: CpuId,
    place: VcpuInfoPlace,
    context: &VcpuGuestContext,
) -> Result<(), StartError> {
    // SAFETY: the caller's first clause.
    unsafe { vcpus.register_vcpu_info(cpu, place) }.map_err(|errno| StartError {
        operation: Operation::RegisterVcpuInfo,
        cpu,
        errno,
    })?;
    // SAFETY: the caller's second clause.
    unsafe { start_placed(vcpus, rendezvous, cpu, context) }
}

/// The same where its `vcpu_info` has been placed in this domain already.
///
/// # Errors
/// As for [`start`].
///
/// # Safety
/// As for [`start`], second clause.
pub unsafe fn start_placed(
    vcpus: &impl Vcpus,
    rendezvous: &Rendezvous,
    cpu: CpuId,
    context: &VcpuGuestContext,
) -> Result<(), StartError> {
    // SAFETY: the caller's promise is the same.
    unsafe { vcpus.initialise(cpu, context) }.map_err(|errno| StartError {
        operation: Operation::Initialise,
        cpu,
        errno,
    })?;
    restart(vcpus, rendezvous, cpu)
}

/// Brings `cpu` up, which is down and initialised in this life of the domain. One that has gone down by itself goes on where it was,
/// maybe before this returns. Context: task, on vCPU 0; one hypercall.
///
/// # Errors
/// Xen's answer; the vcpu is down then, and no rendezvous waits for it.
pub fn restart(vcpus: &impl Vcpus, rendezvous: &Rendezvous, cpu: CpuId) -> Result<(), StartError> {
    rendezvous.admit(cpu);
    vcpus.up(cpu).map_err(|errno| {
        // SAFETY: Xen has not started it.
        unsafe { rendezvous.dismiss(cpu) };
        StartError { operation: Operation::Up, cpu, errno }
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::Patience;

    /// Records calls, and refuses one of them.
    #[derive(Default)]
    struct Fake {
        calls: RefCell<Vec<(Operation, CpuId)>>,
        refuses: Option<Operation>,
    }

    impl Fake {
        fn call(&self, operation: Operation, cpu: CpuId) -> Result<(), Errno> {
            self.calls.borrow_mut().push((operation, cpu));
            if self.refuses == Some(operation) { Err(Errno::EINVAL) } else { Ok(()) }
        }
    }

    impl Vcpus for Fake {
        unsafe fn register_vcpu_info(&self, cpu: CpuId, _place: VcpuInfoPlace) -> Result<(), Errno> {
            self.call(Operation::RegisterVcpuInfo, cpu)
        }

        unsafe fn initialise(&self, cpu: CpuId, _context: &VcpuGuestContext) -> Result<(), Errno> {
            self.call(Operation::Initialise, cpu)
        }

        fn up(&self, cpu: CpuId) -> Result<(), Errno> {
            self.call(Operation::Up, cpu)
        }

        fn down(&self, _cpu: CpuId) -> Result<(), Errno> {
            panic!("nobody goes down here")
        }

        fn is_up(&self, _cpu: CpuId) -> Result<bool, Errno> {
            panic!("nobody asks")
        }
    }

    const ORDER: [Operation; 3] = [Operation::RegisterVcpuInfo, Operation::Initialise, Operation::Up];

    fn start_on(fake: &Fake, rendezvous: &Rendezvous, cpu: CpuId) -> Result<(), StartError> {
        let place = VcpuInfoPlace { mfn: 1, offset: 64 };
        // SAFETY: nothing is started.
        unsafe { start(fake, rendezvous, cpu, place, &VcpuGuestContext::zeroed()) }
    }

    #[test]
    fn in_the_order_that_xen_needs() {
        let (fake, rendezvous) = (Fake::default(), Rendezvous::new(CpuId::MAX, Patience::SHORT));
        let last = CpuId::new(CpuId::MAX - 1).expect("below MAX");
        assert_eq!(start_on(&fake, &rendezvous, last), Ok(()));
        assert!(fake.calls.borrow().iter().copied().eq(ORDER.map(|operation| (operation, last))));
        assert_eq!(rendezvous.waited_for().map(|(cpu, _)| cpu).collect::<Vec<_>>(), [last]);
    }

    #[test]
    fn again_takes_the_last_call_only() {
        let (fake, rendezvous) = (Fake::default(), Rendezvous::new(2, Patience::SHORT));
        let cpu = CpuId::new(1).expect("below MAX");
        assert_eq!(restart(&fake, &rendezvous, cpu), Ok(()));
        assert_eq!(*fake.calls.borrow(), [(Operation::Up, cpu)]);
        assert_eq!(rendezvous.waited_for().count(), 1);
        let (fake, rendezvous) = (Fake { refuses: Some(Operation::Up), ..fake }, Rendezvous::new(2, Patience::SHORT));
        let error = StartError { operation: Operation::Up, cpu, errno: Errno::EINVAL };
        assert_eq!(restart(&fake, &rendezvous, cpu), Err(error));
        assert_eq!(rendezvous.waited_for().count(), 0);
    }

    #[test]
    fn a_refusal_stops_there_and_leaves_no_follower() {
        for (n, refused) in ORDER.into_iter().enumerate() {
            let (fake, rendezvous) =
                (Fake { refuses: Some(refused), ..Fake::default() }, Rendezvous::new(40, Patience::SHORT));
            let cpu = CpuId::new(33).expect("below MAX");
            let error = start_on(&fake, &rendezvous, cpu).expect_err("it is refused");
            assert_eq!(error, StartError { operation: refused, cpu, errno: Errno::EINVAL });
            assert_eq!(fake.calls.borrow().len(), n + 1);
            assert_eq!(rendezvous.waited_for().count(), 0);
        }
    }

    #[test]
    fn an_error_names_call_vcpu_and_errno() {
        let error = StartError { operation: Operation::Up, cpu: CpuId::BOOT, errno: Errno::EINVAL };
        assert_eq!(error.to_string(), "VCPUOP_up of vcpu 0: EINVAL (22)");
    }

    #[test]
    fn the_context_holds_what_was_asked_for() {
        let trap = TrapInfo { vector: 14, address: 0xeeee, ..TrapInfo::default() };
        let start = Start {
            entry: 0x1000,
            stack_top: 0x2000,
            argument: 7,
            gs_base: 0x3000,
            root_mfn: 0x12345,
            traps: &[trap],
            upcall_entry: 0x4000,
            failsafe_entry: 0x5000,
            syscall_entry: 0x6000,
        };
        let context = start.context();
        assert_eq!((context.user_regs.rip, context.user_regs.rsp, context.user_regs.rdi), (0x1000, 0x2000, 7));
        assert_eq!((context.user_regs.cs, context.user_regs.ss), (FLAT_KERNEL_CS, FLAT_KERNEL_SS));
        assert_eq!((context.kernel_sp, context.gs_base_kernel), (0x2000, 0x3000));
        assert_eq!(context.ctrlreg, [0, 0, 0, 0x1234_5000, 0, 0, 0, 0]);
        assert_eq!(context.trap_ctxt[14].address, 0xeeee);
        assert!(context.trap_ctxt.iter().enumerate().all(|(n, trap)| n == 14 || trap.address == 0));
        assert_eq!(context.event_callback_eip, 0x4000);
        assert_eq!((context.failsafe_callback_eip, context.syscall_callback_eip), (0x5000, 0x6000));
        assert_ne!(context.flags & VGCF_in_kernel, 0);
        assert_eq!((context.gdt_ents, context.vm_assist), (0, 0));
    }
}
