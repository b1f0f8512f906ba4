//! Binding a device port to a CPU that is just coming back from a restore: it is refused, or it holds.
#![cfg(loom)]

use evtchn::hosted::{self, Channel, Fake, bring_up, cpu, masked, nr, quiesced};
use evtchn::{AbiKind, Action, DeviceError, EndOfEvent, Handlers, Ports, Upcall, Virq};
use loom::sync::Arc;
use loom::thread;
use percpu::Masked;

fn on_device(_: &Masked, _: &Action) {}

fn on_timer(_: &Masked) {}

#[test]
fn a_device_bound_to_a_cpu_that_comes_back_stays_bound() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let xen = Fake::new(2);
        let events = Arc::new(hosted::boot(&xen, AbiKind::TwoLevel, Handlers::new().virq(Virq::TIMER, on_timer)));
        {
            let _on = percpu::hosted::enter(cpu(1));
            bring_up(&events, &xen).expect("room");
        }
        let timer = xen.find(Channel::Virq(Virq::TIMER, cpu(1)));
        events.detach(&quiesced());
        xen.restore();
        hosted::attach(&events, &xen, Ports::Gone);
        // The device has the number that was CPU 1's timer in the life before.
        let port = xen.allocate(Channel::Device(cpu(0))).expect("room");
        assert_eq!(Some(port), timer);
        {
            let _on = percpu::hosted::enter(cpu(0));
            bring_up(&events, &xen).expect("room");
        }
        let target = {
            let (xen, events) = (xen.clone(), events.clone());
            thread::spawn(move || {
                let _on = percpu::hosted::enter(cpu(1));
                bring_up(&events, &xen).expect("room");
            })
        };
        let _on = percpu::hosted::enter(cpu(0));
        let bound = events.bind_device(nr(port), cpu(1), &Action::new(EndOfEvent::AtOnce, 0, on_device));
        target.join().expect("the target does not panic");
        match bound {
            Err(error) => assert_eq!(error, DeviceError::CpuNotReady { nr: nr(port), cpu: cpu(1) }),
            Ok(_) => {
                let _on = percpu::hosted::enter(cpu(1));
                assert!(events.ports_racy(cpu(1)).any(|own| own.nr == nr(port)), "the port was forgotten");
                xen.raise(port);
                assert_eq!(events.demux(&masked(), xen.flags(cpu(1))), Upcall::Handled(1));
            }
        }
    });
}
