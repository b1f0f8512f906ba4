//! Device ports that move from CPU to CPU against the hosted Xen, and CPUs that go down without them. Every test runs with each
//! ABI.
#![cfg(not(loom))]

mod domain;
#[macro_use]
mod each_abi;

use domain::{HANDLERS, device, raise, restore, restore_with_all_up, seen, up, upcall};
use evtchn::hosted::{self, Channel, Fake, bring_up, cpu, masked, nr, quiesced};
use evtchn::{AbiKind, Action, BURST, DeviceError, EndOfEvent, Hypervisor, Ipi, SendOutcome, Upcall, Virq};

with_each_abi! {
    a_moved_port_takes_its_events_along,
    a_cpu_that_is_down_has_its_ports_and_no_devices,
    nobody_looks_at_a_port_that_has_moved_and_is_gone,
    a_muted_port_whose_move_is_given_up_is_muted_again,
    a_late_port_that_is_moved_waits_for_the_end_of_its_event,
}

/// Whatever is pending when the port is moved, the new CPU handles it.
fn a_moved_port_takes_its_events_along(abi: AbiKind) {
    let (xen, events) = up(abi, 2);
    let _on = percpu::hosted::enter(cpu(0));
    upcall(&xen, &events, 0);
    upcall(&xen, &events, 1);
    let action = device(0);
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    let mut binding = events.bind_device(nr(at), cpu(0), &action).expect("free");

    // Nothing pending.
    hosted::move_to(&events, &mut binding, cpu(1)).expect("up");
    assert_eq!((binding.cpu(), xen.channel(at)), (cpu(1), Channel::Device(cpu(1))));
    xen.raise(at);
    assert_eq!((upcall(&xen, &events, 0), upcall(&xen, &events, 1)), (None, Some(Upcall::Handled(1))));

    // Told to the old CPU, which has not looked.
    xen.raise(at);
    let mut moving = events.move_device(&mut binding, cpu(0)).expect("up");
    if abi == AbiKind::Fifo {
        assert_eq!(moving.is_over(), Ok(false), "it stands in the old CPU's queue");
        assert_eq!(upcall(&xen, &events, 1), Some(Upcall::Spurious));
    }
    assert_eq!(moving.is_over(), Ok(true));
    drop(moving);
    // With the 2-level ABI the old CPU was told, and hands it on.
    let forwarded = u64::from(abi == AbiKind::TwoLevel);
    let told = if abi == AbiKind::Fifo { None } else { Some(Upcall::Handled(1)) };
    assert_eq!((upcall(&xen, &events, 1), upcall(&xen, &events, 0)), (told, Some(Upcall::Handled(1))));
    assert_eq!(events.counts_racy(cpu(1)).forwarded, forwarded);
    assert_eq!(seen(), [(1, "device 0"), (0, "device 0")]);
    assert_eq!(events.ports_racy(cpu(1)).count(), 2, "timer and IPI");

    // To where it is; to a CPU that is not up; given up half way; after a restore.
    hosted::move_to(&events, &mut binding, cpu(0)).expect("it is there");
    xen.raise(at);
    drop(events.move_device(&mut binding, cpu(1)).expect("up"));
    assert_eq!(upcall(&xen, &events, 0), Some(Upcall::Handled(1)));
    assert!(!xen.is_masked(at));
    restore(&xen, &events);
    assert_eq!(events.move_device(&mut binding, cpu(1)).err(), Some(DeviceError::NotBound));
    bring_up(&events, &xen).expect("room");
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    let mut binding = events.bind_device(nr(at), cpu(0), &action).expect("free");
    let not_ready = DeviceError::CpuNotReady { nr: nr(at), cpu: cpu(1) };
    assert_eq!(events.move_device(&mut binding, cpu(1)).err(), Some(not_ready));
}

/// Its device port is seen and moved away first; none comes meanwhile; its own ports wait for it.
fn a_cpu_that_is_down_has_its_ports_and_no_devices(abi: AbiKind) {
    let (xen, events) = up(abi, 2);
    let _on = percpu::hosted::enter(cpu(0));
    upcall(&xen, &events, 0);
    upcall(&xen, &events, 1);
    let one = [cpu(1)].into_iter().collect();
    assert_eq!(events.first_device_on(&quiesced(), &one), None);
    let [first, second] = [device(0), device(1)];
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    let mut binding = events.bind_device(nr(at), cpu(1), &first).expect("free");
    assert_eq!(events.first_device_on(&quiesced(), &one), Some((nr(at), cpu(1))));
    hosted::move_to(&events, &mut binding, cpu(0)).expect("up");
    assert_eq!(events.first_device_on(&quiesced(), &one), None);

    // On its way back to it as it goes down.
    let mut moving = events.move_device(&mut binding, cpu(1)).expect("up");
    events.close_cpu(&quiesced(), cpu(1));
    let not_ready = DeviceError::CpuNotReady { nr: nr(at), cpu: cpu(1) };
    assert_eq!(moving.is_over(), Err(not_ready));
    drop(moving);
    xen.raise(at);
    assert_eq!(upcall(&xen, &events, 0), Some(Upcall::Handled(1)), "it stays, and works");
    assert_eq!(events.move_device(&mut binding, cpu(1)).err(), Some(not_ready));
    let other = xen.allocate(Channel::Device(cpu(0))).expect("room");
    let not_ready = DeviceError::CpuNotReady { nr: nr(other), cpu: cpu(1) };
    assert_eq!(events.bind_device(nr(other), cpu(1), &second).err(), Some(not_ready));
    assert_eq!(events.ports_racy(cpu(1)).count(), 2, "timer and IPI");
    assert_eq!(events.send_ipi(cpu(1), Ipi::Call), SendOutcome::Sent);

    {
        let _on = percpu::hosted::enter(cpu(1));
        events.reopen_cpu(&masked());
    }
    seen();
    assert_eq!(upcall(&xen, &events, 1), Some(Upcall::Handled(1)), "sent while it was down");
    assert_eq!(seen(), [(1, "call")]);
    hosted::move_to(&events, &mut binding, cpu(1)).expect("up");

    // Down over a restore, and started anew.
    events.close_cpu(&quiesced(), cpu(1));
    restore_with_all_up(&xen, &events, 2);
    events.bind_device(nr(xen.allocate(Channel::Device(cpu(0))).expect("room")), cpu(1), &second).expect("up");
}

/// The number of a port that was moved and closed is another CPU's timer next: who had it takes no event of that.
fn nobody_looks_at_a_port_that_has_moved_and_is_gone(abi: AbiKind) {
    let xen = Fake::new(3);
    let events = hosted::boot(&xen, abi, HANDLERS);
    for n in [0, 1] {
        let _on = percpu::hosted::enter(cpu(n));
        bring_up(&events, &xen).expect("room");
    }
    let _on = percpu::hosted::enter(cpu(0));
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    let mut binding = events.bind_device(nr(at), cpu(0), &device(0)).expect("free");
    hosted::move_to(&events, &mut binding, cpu(1)).expect("up");
    hosted::unbind(&events, binding).expect("bound");
    xen.close(nr(at)).expect("open");
    {
        let _on = percpu::hosted::enter(cpu(2));
        bring_up(&events, &xen).expect("room");
    }
    assert_eq!(xen.channel(at), Channel::Virq(Virq::TIMER, cpu(2)));
    for n in [0, 1, 2] {
        raise(&xen, Channel::Virq(Virq::TIMER, cpu(n)));
    }
    for n in [0, 1, 2] {
        assert_eq!(upcall(&xen, &events, n), Some(Upcall::Handled(1)), "cpu {n}");
    }
    assert_eq!(seen(), [(0, "timer"), (1, "timer"), (2, "timer")]);
}

/// It was unmasked before its turn; it gets one more event, and not as many as it likes.
fn a_muted_port_whose_move_is_given_up_is_muted_again(abi: AbiKind) {
    let (xen, events) = up(abi, 2);
    let _on = percpu::hosted::enter(cpu(0));
    upcall(&xen, &events, 0);
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    let sender = xen.clone();
    let storm = Action::new(EndOfEvent::AtOnce, 0, move |_, _| {
        sender.raise(at);
    });
    let mut binding = events.bind_device(nr(at), cpu(0), &storm).expect("free");
    xen.raise(at);
    assert_eq!(upcall(&xen, &events, 0), Some(Upcall::Handled(BURST)));
    drop(events.move_device(&mut binding, cpu(1)).expect("up"));
    assert!(!xen.is_masked(at));
    assert_eq!(upcall(&xen, &events, 0), Some(Upcall::Handled(1)));
    assert!(xen.is_masked(at));
}

/// Its owner has the event that came before, and may not be given another one by a move.
fn a_late_port_that_is_moved_waits_for_the_end_of_its_event(abi: AbiKind) {
    let (xen, events) = up(abi, 2);
    let _on = percpu::hosted::enter(cpu(0));
    upcall(&xen, &events, 0);
    upcall(&xen, &events, 1);
    let late = Action::new(EndOfEvent::Late, 0, |_, _| {});
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    let mut binding = events.bind_device(nr(at), cpu(0), &late).expect("free");
    xen.raise(at);
    assert_eq!(upcall(&xen, &events, 0), Some(Upcall::Handled(1)));
    xen.raise(at);
    // Given up half way, and all the way.
    drop(events.move_device(&mut binding, cpu(1)).expect("up"));
    assert!(xen.is_masked(at));
    hosted::move_to(&events, &mut binding, cpu(1)).expect("up");
    assert!(xen.is_masked(at));
    assert_eq!((upcall(&xen, &events, 0), upcall(&xen, &events, 1)), (None, None));
    events.end_of_event(&late, xen.flags(cpu(0)));
    assert_eq!(upcall(&xen, &events, 1), Some(Upcall::Handled(1)));
    events.end_of_event(&late, xen.flags(cpu(0)));

    // One that is ended meanwhile is unmasked by the move.
    assert!(!xen.is_masked(at));
    xen.raise(at);
    assert_eq!(upcall(&xen, &events, 1), Some(Upcall::Handled(1)));
    let mut moving = events.move_device(&mut binding, cpu(0)).expect("up");
    events.end_of_event(&late, xen.flags(cpu(0)));
    assert_eq!((moving.is_over(), xen.is_masked(at)), (Ok(true), false));
    drop(moving);

    // In another life its port is a new one.
    xen.raise(at);
    assert_eq!(upcall(&xen, &events, 0), Some(Upcall::Handled(1)));
    restore_with_all_up(&xen, &events, 2);
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    let mut binding = events.bind_device(nr(at), cpu(0), &late).expect("free");
    hosted::move_to(&events, &mut binding, cpu(1)).expect("up");
    assert!(!xen.is_masked(at), "nobody will end what came in the life before");
}
