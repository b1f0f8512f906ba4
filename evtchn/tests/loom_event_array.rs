//! Xen is told of the FIFO ABI's event pages one after the other, whichever CPU needs them: who tells of a page knows that
//! the one before has been told of, and who need not tell finds the page.
#![cfg(loom)]

use std::ptr::NonNull;

use evtchn::hosted::{Batch, Channel, Fake, cpu, masked, nr, quiesced};
use evtchn::{AbiKind, Action, EndOfEvent, Events, Handlers, Hypervisor, Place, PortNr, Ports};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use percpu::CpuId;
use xen_sys::Errno;

/// Ports that a page is for, in a model.
const PAGE: u32 = 8;

/// The host's Xen, with something in it that only an order between its callers protects.
#[derive(Clone)]
struct Xen {
    fake: Fake,
    pages: Arc<Pages>,
}

struct Pages(UnsafeCell<u32>);

// SAFETY: loom checks every access.
unsafe impl Sync for Pages {}
// SAFETY: as above.
unsafe impl Send for Pages {}

impl Hypervisor for Xen {
    fn place_of<T>(&self, address: NonNull<T>) -> Place {
        self.fake.place_of(address)
    }

    unsafe fn init_control(&self, cpu: CpuId, block: Place) -> Result<(), Errno> {
        // SAFETY: the caller's.
        unsafe { self.fake.init_control(cpu, block) }
    }

    unsafe fn expand_array(&self, page: Place) -> Result<(), Errno> {
        // SAFETY: loom checks it.
        self.pages.0.with_mut(|nr| unsafe { *nr += 1 });
        // SAFETY: the caller's.
        unsafe { self.fake.expand_array(page) }
    }

    fn send(&self, port: PortNr) -> Result<(), Errno> {
        self.fake.send(port)
    }

    fn unmask(&self, port: PortNr) -> Result<(), Errno> {
        self.fake.unmask(port)
    }

    fn bind_vcpu(&self, port: PortNr, cpu: CpuId) -> Result<(), Errno> {
        self.fake.bind_vcpu(port, cpu)
    }

    fn close(&self, port: PortNr) -> Result<(), Errno> {
        self.fake.close(port)
    }
}

/// A domain whose one CPU is up.
fn up() -> (Xen, Arc<Events<Xen>>) {
    let xen = Xen { fake: Fake::new(1), pages: Arc::new(Pages(UnsafeCell::new(0))) };
    let events = Events::new(1, AbiKind::Fifo, Handlers::new(), xen.clone());
    // SAFETY: `events` holds a handle on the page's owner, and no other thread runs.
    unsafe { events.attach(&quiesced(), NonNull::from(&xen.fake.0.shared), Ports::Gone) }.expect("the fake knows FIFO");
    let _on = percpu::hosted::enter(cpu(0));
    let mut batch = Batch::new(&xen.fake);
    let plan = events.plan(&masked(), &mut batch).expect("room");
    events.record(&masked(), xen.fake.flags(cpu(0)), plan, &batch).expect("bound");
    (xen, Arc::new(events))
}

#[test]
fn pages_are_told_of_one_after_the_other() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let (xen, events) = up();
        let binders = [PAGE, 2 * PAGE].map(|port| {
            xen.fake.channels()[port as usize] = Channel::Device(cpu(0));
            let (events, action) = (events.clone(), Action::new(EndOfEvent::AtOnce, 0, |_, _| ()));
            thread::spawn(move || {
                let _on = percpu::hosted::enter(cpu(0));
                events.bind_device(nr(port), cpu(0), &action).expect("free");
            })
        });
        for binder in binders {
            binder.join().expect("no panic");
        }
        // SAFETY: loom checks it.
        assert_eq!(xen.pages.0.with(|nr| unsafe { *nr }), 3);
    });
}
