//! User mode: a [`Process`] has an address space and registers, belongs to one CPU, and runs there whenever that CPU's executor has nothing
//! else to do.
//!
//! | what | how | hypercalls |
//! |---|---|---|
//! | in | by the executor, where it would block otherwise: the root, and the stack for what comes from there | 1 multicall, 1 iret |
//! | an event, and no task is ready, no timer fired, no rendezvous asked for, nothing frozen | handled, and back; it counts as a turn of the executor's | 1 iret, as in kernel mode |
//! | an event, and one of these is not so | handled, and out: the executor's loop goes on, and comes back here when it is through | none; 2 for the way in |
//! | `syscall`, or an exception | out: [`Process::run`] returns | none |
//!
//! So user mode is preempted, kernel code is not, and a rendezvous finds no CPU in user mode: a process is frozen as any task is, with
//! its registers in memory. The root stays loaded meanwhile; in a new domain that is so on vcpu 0, whose the toolstack translates, and no other
//! vcpu has one until it loads it.
//!
//! Why the executor, and not the task, enters: a task that does would keep others waiting that are ready already, and timers that are not
//! armed yet. The price is that tasks go before processes: one that is always ready leaves them nothing.
//!
//! One process runs on a CPU at a time, so vector registers are not switched: nothing else of ours uses them but `workload=vectors`. A
//! process finds there what the one before it has left.
//!
//! Context: task, unless said otherwise. Suspend: all of it is *kept*, but for what user mode has loaded into data segment registers: no
//! program here does, and a vcpu other than 0 that was down over a suspend has them empty. Each way in loads the root, which costs Xen
//! a comparison where it is loaded already.

pub(crate) mod programs;
mod stubs;

use core::cell::{Cell, RefCell};
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use mm::layout::PAGE_SIZE;
use mm::{AddressSpace, MmError, Pfn};
use percpu::{Local, Masked};
use spin::Once;
use xen_sys::Errno;
use xen_sys::abi::arch::FLAT_KERNEL_SS;
use xen_sys::hypercall::Batch;
use xen_sys::primitive::sync::atomic::{AtomicU64, Ordering};

use crate::traps::{self, Frame, SYSCALL, UPCALL};
use crate::vector::{self, Width};
use crate::{cpus, events, executor, memory};

/// Exception 14 has its address in cr2.
const PAGE_FAULT: u64 = 14;

/// Why user mode was left for good, until it is run again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) enum Why {
    /// `syscall`. It goes on behind it; rcx and r11 are lost.
    Syscall,
    /// An exception. It would go on at the same instruction, or behind it where that is a trap.
    Fault(Fault),
    /// Xen does not enter it.
    Refused(Errno),
}

/// An exception in user mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fault {
    pub(crate) vector: u64,
    pub(crate) error_code: u64,
    /// The instruction.
    pub(crate) rip: u64,
    /// Of a page fault, the address; 0 else.
    pub(crate) address: u64,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Syscall => f.write_str("syscall"),
            Why::Fault(fault) => {
                let Fault { vector, error_code, rip, address } = *fault;
                write!(f, "{} at {rip:#x}: error_code={error_code:#x} address={address:#x}", traps::name(vector))
            }
            Why::Refused(errno) => write!(f, "not entered: {errno}"),
        }
    }
}

/// What user mode runs, or has run, on this CPU.
struct Job {
    root: Pfn,
    registers: Frame,
    waker: Waker,
    /// It has left, and waits for its task.
    left: Option<Why>,
}

/// One CPU's part. Written by that CPU's tasks and executor.
struct Slot {
    job: RefCell<Option<Job>>,
    /// The root that was loaded last, if its address space is still there.
    loaded: Cell<Option<Pfn>>,
}

static SLOTS: Once<Local<Slot>> = Once::new();

/// Makes the slots. Boot, once.
pub(crate) fn init(nr_cpus: usize) {
    SLOTS.call_once(|| Local::new(nr_cpus, |_| Slot { job: RefCell::new(None), loaded: Cell::new(None) }));
}

fn slot(masked: &Masked) -> &Slot {
    SLOTS.get().expect("init() runs at boot, before any task").mine(masked)
}

/// Runs user mode until it is left, if a process is to run here; whether one was. Context: the executor, with nothing else to do.
pub(crate) fn run_if_any(masked: &Masked) -> bool {
    let slot = slot(masked);
    let (root, mut registers) = match &*slot.job.borrow() {
        Some(Job { root, registers, left: None, .. }) => (*root, registers.clone()),
        _ => return false,
    };
    cpus::note_user();
    vector::note_use(Width::Xmm);
    registers.enter_user();
    // What another address space had at the same addresses is in the TLB, and global.
    let flush = slot.loaded.replace(Some(root)) != Some(root);
    let root_mfn = memory::mfn_in_use(root).get();
    // SAFETY: masked, by the token. The registers go to user mode, with a `rip` by US1. The executor holds nothing: what runs in upcalls
    //   from user mode are handlers, as in any other upcall.
    let refused = unsafe { stubs::stasis_user_run(&raw mut registers, root_mfn, flush) };
    let why = match (refused, registers.vector) {
        (0, UPCALL) => None,
        (0, SYSCALL) => Some(Why::Syscall),
        (0, vector) => Some(Why::Fault(Fault {
            vector,
            error_code: registers.error_code,
            rip: registers.rip,
            address: if vector == PAGE_FAULT { last_fault_address() } else { 0 },
        })),
        (errno, _) => Some(Why::Refused(Errno::check(errno.into()).err().unwrap_or(Errno::EINVAL))),
    };
    let mut job = slot.job.borrow_mut();
    let job = job.as_mut().expect("no task runs while user mode does");
    job.registers = registers;
    job.left = why;
    if why.is_some() {
        job.waker.wake_by_ref();
    }
    true
}

fn last_fault_address() -> u64 {
    percpu::vcpu_info().arch.cr2.load(Ordering::Relaxed) // ORDERING: Relaxed, written by Xen as it came here.
}

/// Has Xen enter user mode on this root and take the stack below `top` for what comes from there. 0, or Xen's refusal. Called by
/// `stasis_user_run` on that stack, upcalls masked; one hypercall.
extern "C" fn load(top: u64, root_mfn: u64, flush: bool) -> i32 {
    const ROOM: &str = "the batch has room for three";
    let mut batch = Batch::<3>::new();
    // SAFETY: below is this CPU's stack, and its owner waits in `stasis_user_run` while user mode runs.
    unsafe { batch.stack_switch(FLAT_KERNEL_SS, top) }.expect(ROOM);
    let root = batch.user_root(root_mfn).expect(ROOM);
    if flush {
        batch.flush_tlb_here().expect(ROOM);
    }
    // Neither the stack nor the flush can fail.
    match batch.issue().and_then(|results| results.get(root).map(drop)) {
        Ok(()) => {
            percpu::area().set_in_user(true);
            0
        }
        Err(errno) => -i32::from(errno.code()),
    }
}

/// Something has come from user mode. Whether to leave it. Context: upcalls masked, on the stack that [`load`] has named.
pub(crate) fn entered(frame: &mut Frame) -> bool {
    let area = percpu::area();
    area.set_in_user(false);
    if frame.vector != UPCALL {
        return true;
    }
    traps::upcall(&frame.rip);
    // SAFETY: Xen masks upcalls on each way out of user mode.
    let masked = unsafe { Masked::assume() };
    if executor::is_wanted(&masked) {
        return true;
    }
    // The executor would find nothing to do, so this has been as good as a turn of it: no port fires too often in one.
    events::get().end_turn(&area.vcpu_info);
    area.set_in_user(true);
    false
}

/// A process: its address space, and its registers while it does not run. It belongs to the CPU that it first runs on, and is dropped
/// there; its memory is given back then.
///
/// - US1: `rip` is an address of the lower half. `new` sees to it, user mode gets no further without a fault, and whoever changes it keeps
///   to it.
pub(crate) struct Process {
    /// There until it is dropped.
    space: Option<AddressSpace>,
    /// As user mode has them; `cs`, `ss`, `vector` and the error code count for nothing.
    pub(crate) registers: Frame,
}

impl Process {
    /// One that begins at `entry` in `code`, with a page of data, whose address is in rdi; all other registers are 0. Cost: see
    /// [`AddressSpace::build`].
    ///
    /// # Errors
    /// No memory, or Xen's.
    /// # Panics
    /// If `entry` is not in `code`.
    pub(crate) fn new(code: &[u8], entry: u64) -> Result<Process, MmError> {
        assert!(entry < code.len() as u64, "the entry is not in the code");
        let space = memory::make_user_space(code, 1)?;
        let rip = mm::layout::USER_BASE + entry;
        let registers = Frame { rip, rdi: space.data_va(), ..Frame::default() };
        Ok(Process { space: Some(space), registers })
    }

    fn space(&self) -> &AddressSpace {
        self.space.as_ref().expect("there until it is dropped")
    }

    /// Word `n` of its data. User mode writes to it while it runs.
    ///
    /// # Panics
    /// If there is no such word.
    pub(crate) fn word(&self, n: usize) -> &AtomicU64 {
        assert!(n < native(PAGE_SIZE) / size_of::<AtomicU64>(), "{n} is beyond a page");
        let page = memory::direct::<AtomicU64>(self.space().data().start);
        // SAFETY: within a page that the direct map has writable, that is ours until the drop, and that is only reached as atomics: here,
        //   and by user mode's own aligned accesses.
        unsafe { &*page.wrapping_add(n) }
    }

    /// Machine frame of its root, now, as a number to be compared.
    pub(crate) fn root_mfn(&self) -> u64 {
        memory::mfn_in_use(self.space().root()).get()
    }

    /// Sees whether its address space is as it was made, and its root pinned. Two hypercalls. Context: a task of the CPU that it runs on.
    ///
    /// # Errors
    /// What is not so.
    pub(crate) fn verify(&self) -> Result<(), MmError> {
        memory::verify_user_space(self.space())
    }

    /// Runs it, whenever this CPU has nothing else to do, until it calls or faults.
    ///
    /// # Panics
    /// If another process runs on this CPU.
    pub(crate) fn run(&mut self) -> Run<'_> {
        Run { process: self, is_placed: false }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(space) = self.space.take() else { return };
        unload(space.root());
        if let Err(error) = memory::destroy_user_space(space) {
            crate::note!(Error, "a process's memory is lost: {error}");
        }
    }
}

/// Makes sure that this CPU does not have `root` loaded. One hypercall if it had.
fn unload(root: Pfn) {
    let masked = percpu::mask_upcalls();
    let loaded = &slot(&masked).loaded;
    if loaded.get() == Some(root) {
        loaded.set(None);
        let mut batch = Batch::<1>::new();
        batch.user_root(0).expect("the batch has room for one");
        // Refused, it is loaded still, and Xen does not let its pages be used otherwise: that is told then.
        let _ = batch.issue();
    }
}

/// See [`Process::run`]. Dropped, the process runs no further.
pub(crate) struct Run<'a> {
    process: &'a mut Process,
    is_placed: bool,
}

impl Future for Run<'_> {
    type Output = Why;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Why> {
        let masked = percpu::mask_upcalls();
        let mut job = slot(&masked).job.borrow_mut();
        if !self.is_placed {
            assert!(job.is_none(), "another process runs on this CPU");
            let (root, registers) = (self.process.space().root(), self.process.registers.clone());
            *job = Some(Job { root, registers, waker: context.waker().clone(), left: None });
            self.is_placed = true;
            return Poll::Pending;
        }
        let placed = job.as_mut().expect("taken out by its own task alone");
        let Some(why) = placed.left else {
            placed.waker.clone_from(context.waker());
            return Poll::Pending;
        };
        self.process.registers = placed.registers.clone();
        *job = None;
        self.is_placed = false;
        Poll::Ready(why)
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if self.is_placed {
            let masked = percpu::mask_upcalls();
            if let Some(job) = slot(&masked).job.borrow_mut().take() {
                self.process.registers = job.registers;
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "64 bits here")]
const fn native(value: u64) -> usize {
    value as usize
}
