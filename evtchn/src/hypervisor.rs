//! [`Hypervisor`]: what this crate asks of Xen, and no more. [`Xen`] asks the real one, tests bring their own.
//!
//! Binding a CPU's intents goes through a batch instead ([`Binds`], [`Answers`]), so that everything that a vcpu needs
//! in a resume is one hypercall.

use core::ptr::NonNull;

use arrayvec::ArrayVec;
use percpu::CpuId;
use xen_sys::Errno;
use xen_sys::hypercall::{self, Batch, CallToken, PortToken, Results};

use crate::intent::Virq;
use crate::port::PortNr;

/// Where something of ours is for Xen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The machine frame of its page, in this life of the domain.
    pub mfn: u64,
    /// Bytes from the start of the page.
    pub offset: u32,
}

/// Sends that one multicall carries: 136 bytes of the stack for each.
const SENDS: usize = 32;

/// Hypercalls on single ports. Context: any; a bounded time in Xen each.
pub trait Hypervisor {
    /// Where `address` is, which is in memory of this kernel's.
    fn place_of<T>(&self, address: NonNull<T>) -> Place;
    /// `EVTCHNOP_init_control`: the control block of `cpu` is at `block`. The first one switches the domain to the FIFO
    /// ABI.
    ///
    /// # Errors
    /// Xen's.
    /// # Safety
    /// A control block is there, all zero, for as long as this life of the domain lasts.
    unsafe fn init_control(&self, cpu: CpuId, block: Place) -> Result<(), Errno>;
    /// `EVTCHNOP_expand_array`: the page at `page` has the event words of the next 1024 ports.
    ///
    /// # Errors
    /// Xen's.
    /// # Safety
    /// An event page is there for as long as this life of the domain lasts.
    unsafe fn expand_array(&self, page: Place) -> Result<(), Errno>;
    /// `EVTCHNOP_send`: tells the port's other end.
    ///
    /// # Errors
    /// Xen's.
    fn send(&self, port: PortNr) -> Result<(), Errno>;
    /// [`Hypervisor::send`] for each of `ports`, whatever becomes of the one before, in fewer hypercalls where that can
    /// be. `answer` is told what became of each, in order. A port may be sent twice.
    fn send_each(&self, ports: impl IntoIterator<Item = PortNr>, mut answer: impl FnMut(Result<(), Errno>)) {
        ports.into_iter().for_each(|port| answer(self.send(port)));
    }
    /// `EVTCHNOP_unmask`: for a port that another CPU owns, or may own.
    ///
    /// # Errors
    /// Xen's.
    fn unmask(&self, port: PortNr) -> Result<(), Errno>;
    /// `EVTCHNOP_bind_vcpu`: later events of the port go to `cpu`.
    ///
    /// # Errors
    /// Xen's.
    fn bind_vcpu(&self, port: PortNr, cpu: CpuId) -> Result<(), Errno>;
    /// `EVTCHNOP_close`: the port is free again, and so is not pending.
    ///
    /// # Errors
    /// Xen's.
    fn close(&self, port: PortNr) -> Result<(), Errno>;
}

/// A batch that collects what a CPU asks of Xen when it comes to life.
pub trait Binds {
    /// Finds the answer to a request for a port again.
    type Token: Copy;
    /// Finds the answer to another request again.
    type Call: Copy;

    /// Asks for `EVTCHNOP_init_control`. `None` if the batch is full.
    ///
    /// # Safety
    /// As [`Hypervisor::init_control`].
    unsafe fn init_control(&mut self, cpu: CpuId, block: Place) -> Option<Self::Call>;

    /// Asks for `EVTCHNOP_bind_virq`. `None` if the batch is full.
    fn bind_virq(&mut self, virq: Virq, cpu: CpuId) -> Option<Self::Token>;
    /// Asks for `EVTCHNOP_bind_ipi`. `None` if the batch is full.
    fn bind_ipi(&mut self, cpu: CpuId) -> Option<Self::Token>;
    /// Asks for `EVTCHNOP_set_priority`: later events of the port go to that queue, 0 the first. FIFO ABI only. `None` if the
    /// batch is full.
    fn set_priority(&mut self, port: PortNr, priority: u32) -> Option<Self::Call>;
    /// Asks for `EVTCHNOP_send`. `None` if the batch is full.
    fn send(&mut self, port: PortNr) -> Option<Self::Call>;
}

/// The answers of a batch that has been issued.
pub trait Answers<B: Binds> {
    /// The port that Xen gave.
    ///
    /// # Errors
    /// Xen's.
    fn port(&self, token: B::Token) -> Result<u32, Errno>;

    /// Whether a call that gives no port was carried out.
    ///
    /// # Errors
    /// Xen's.
    fn done(&self, call: B::Call) -> Result<(), Errno>;
}

/// The real Xen.
#[derive(Clone, Copy, Debug)]
pub struct Xen {
    /// Where an address is for Xen: a frame of the domain's as it lives now.
    pub place_of: fn(*const ()) -> Place,
}

impl Hypervisor for Xen {
    fn place_of<T>(&self, address: NonNull<T>) -> Place {
        (self.place_of)(address.as_ptr().cast_const().cast())
    }

    unsafe fn init_control(&self, cpu: CpuId, block: Place) -> Result<(), Errno> {
        // SAFETY: the caller's.
        unsafe { hypercall::evtchn::init_control(cpu.vcpu(), block.mfn, block.offset) }.map(drop)
    }

    unsafe fn expand_array(&self, page: Place) -> Result<(), Errno> {
        // SAFETY: the caller's.
        unsafe { hypercall::evtchn::expand_array(page.mfn) }
    }

    fn send(&self, port: PortNr) -> Result<(), Errno> {
        hypercall::evtchn::send(port.get())
    }

    /// One hypercall for each 32 ports.
    fn send_each(&self, ports: impl IntoIterator<Item = PortNr>, mut answer: impl FnMut(Result<(), Errno>)) {
        let mut ports = ports.into_iter();
        loop {
            let some: ArrayVec<PortNr, SENDS> = ports.by_ref().take(SENDS).collect();
            match some.as_slice() {
                [] => return,
                [port] => answer(self.send(*port)),
                some => send_together(some, Batch::issue, |port| self.send(port), &mut answer),
            }
        }
    }

    fn unmask(&self, port: PortNr) -> Result<(), Errno> {
        hypercall::evtchn::unmask(port.get())
    }

    fn bind_vcpu(&self, port: PortNr, cpu: CpuId) -> Result<(), Errno> {
        hypercall::evtchn::bind_vcpu(port.get(), cpu.vcpu())
    }

    fn close(&self, port: PortNr) -> Result<(), Errno> {
        hypercall::evtchn::close(port.get())
    }
}

/// Sends `ports`, [`SENDS`] at most, by one multicall; one by one if that fails, as it does not say how far it came.
fn send_together(
    ports: &[PortNr],
    issue: impl FnOnce(&mut Batch<SENDS>) -> Result<Results<'_, SENDS>, Errno>,
    send: impl Fn(PortNr) -> Result<(), Errno>,
    mut answer: impl FnMut(Result<(), Errno>),
) {
    let mut batch = Batch::<SENDS>::new();
    let room = "a batch has room for each of its sends";
    let sends: ArrayVec<CallToken, SENDS> = ports.iter().map(|port| batch.send(port.get()).expect(room)).collect();
    match issue(&mut batch) {
        Ok(results) => sends.iter().for_each(|call| answer(results.get(*call).map(drop))),
        Err(_) => ports.iter().for_each(|port| answer(send(*port))),
    }
}

impl<const N: usize> Binds for Batch<N> {
    type Token = PortToken;
    type Call = CallToken;

    unsafe fn init_control(&mut self, cpu: CpuId, block: Place) -> Option<CallToken> {
        // SAFETY: the caller's.
        unsafe { Batch::init_control(self, cpu.vcpu(), block.mfn, block.offset) }.ok()
    }

    fn bind_virq(&mut self, virq: Virq, cpu: CpuId) -> Option<PortToken> {
        Batch::bind_virq(self, virq.nr(), cpu.vcpu()).ok()
    }

    fn bind_ipi(&mut self, cpu: CpuId) -> Option<PortToken> {
        Batch::bind_ipi(self, cpu.vcpu()).ok()
    }

    fn set_priority(&mut self, port: PortNr, priority: u32) -> Option<CallToken> {
        Batch::set_priority(self, port.get(), priority).ok()
    }

    fn send(&mut self, port: PortNr) -> Option<CallToken> {
        Batch::send(self, port.get()).ok()
    }
}

impl<const N: usize> Answers<Batch<N>> for Results<'_, N> {
    fn port(&self, token: PortToken) -> Result<u32, Errno> {
        Results::port(self, token)
    }

    fn done(&self, call: CallToken) -> Result<(), Errno> {
        self.get(call).map(drop)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn ports() -> Vec<PortNr> {
        [3, 7, 9].into_iter().filter_map(PortNr::new).collect()
    }

    /// Xen as it refuses the second call.
    fn refuses_one(batch: &mut Batch<SENDS>) -> Result<Results<'_, SENDS>, Errno> {
        batch.issue_with(|entries| {
            assert_eq!(entries.len(), 3);
            entries[1].result = (-22_i64).cast_unsigned();
            Ok(())
        })
    }

    fn fails(batch: &mut Batch<SENDS>) -> Result<Results<'_, SENDS>, Errno> {
        batch.issue_with(|_| Err(Errno::EFAULT))
    }

    #[test]
    fn each_send_of_a_batch_has_its_own_answer() {
        let mut answers = Vec::new();
        let send = |_| panic!("nothing is left to be sent");
        send_together(&ports(), refuses_one, send, |answer| answers.push(answer));
        assert_eq!(answers, [Ok(()), Err(Errno::EINVAL), Ok(())]);
    }

    #[test]
    fn a_batch_that_fails_is_sent_one_by_one() {
        let (mut answers, sent) = (Vec::new(), RefCell::new(Vec::new()));
        let send = |port: PortNr| {
            sent.borrow_mut().push(port);
            if port.get() == 7 { Err(Errno::EINVAL) } else { Ok(()) }
        };
        send_together(&ports(), fails, send, |answer| answers.push(answer));
        assert_eq!(sent.into_inner(), ports());
        assert_eq!(answers, [Ok(()), Err(Errno::EINVAL), Ok(())]);
    }
}
