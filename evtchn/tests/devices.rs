//! Device ports against the hosted Xen: bound, unbound, freed, and kept from taking a CPU for themselves. Every test runs with
//! each ABI.
#![cfg(not(loom))]

mod domain;
#[macro_use]
mod each_abi;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use domain::{device, on_device, restore, see, seen, up, upcall};
use evtchn::hosted::{self, Channel, Fake, GLOBAL, bring_up, cpu, masked, nr};
use evtchn::{
    AbiKind, Action, BURST, Binding, DeviceError, EndOfEvent, Events, Intent, SendOutcome, Unbinding, Upcall, Virq,
};
use xen_sys::Errno;
use xen_sys::primitive::sync::atomic::Ordering::Relaxed;

with_each_abi! {
    devices_can_be_bound_anywhere_and_unbound,
    device_errors_change_nothing,
    unbinding_in_a_handler,
    an_action_is_freed_after_its_last_run,
    an_unbinding_over_a_restore_frees_the_action_for_another_port,
    a_port_that_fires_without_end_is_muted_until_the_next_turn,
    a_late_port_waits_for_the_end_of_its_event,
}

fn devices_can_be_bound_anywhere_and_unbound(abi: AbiKind) {
    let action = device(1);
    let (xen, events) = up(abi, 2);
    upcall(&xen, &events, 1);
    let _on = percpu::hosted::enter(cpu(0));
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    let binding = events.bind_device(nr(at), cpu(1), &action).expect("free");
    let port = binding.port();
    assert_eq!((action.port(), binding.cpu()), (Some(port), cpu(1)));
    assert_eq!(xen.channel(at), Channel::Device(cpu(1)));
    assert_eq!(events.send(port), SendOutcome::Sent);

    xen.raise(at);
    assert_eq!(upcall(&xen, &events, 1), Some(Upcall::Handled(1)));
    assert_eq!(seen(), [(1, "device 1")]);
    assert_eq!(action.count(), 1);
    assert_eq!(events.counts_racy(cpu(1)).devices, 1);

    assert_eq!(hosted::unbind(&events, binding), Ok(nr(at)));
    assert!(xen.is_masked(at));
    assert_eq!((action.port(), Arc::strong_count(&action)), (None, 1));
    xen.raise(at);
    assert_eq!(upcall(&xen, &events, 1), None);

    // What came meanwhile is delivered where the port is bound next.
    events.bind_device(nr(at), cpu(0), &action).expect("free again");
    upcall(&xen, &events, 0);
    assert_eq!(seen(), [(0, "device 1")]);
}

/// A port that was left unmasked, against EV1: Xen told CPU 0, which had no use for it. Binding still tells CPU 1.
#[test]
fn an_event_told_to_the_wrong_cpu_is_told_anew() {
    let abi = AbiKind::TwoLevel;
    let action = device(0);
    let (xen, events) = up(abi, 2);
    upcall(&xen, &events, 1);
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    xen.0.shared.evtchn_mask[at as usize / 64].fetch_and(!(1 << (at % 64)), Relaxed);
    xen.raise(at);
    assert_eq!(upcall(&xen, &events, 0), Some(Upcall::Spurious));
    events.bind_device(nr(at), cpu(1), &action).expect("free");
    assert_eq!(upcall(&xen, &events, 1), Some(Upcall::Handled(1)));
    assert_eq!(seen(), [(1, "device 0")]);
}

fn device_errors_change_nothing(abi: AbiKind) {
    let one = device(0);
    let two = device(1);
    let (xen, events) = up(abi, 2);
    let _on = percpu::hosted::enter(cpu(0));
    upcall(&xen, &events, 0);
    let (a, b) =
        (xen.allocate(Channel::Device(cpu(0))).expect("room"), xen.allocate(Channel::Device(cpu(0))).expect("room"));
    let has = events.bind_device(nr(a), cpu(0), &one).expect("free").port();
    assert_eq!(events.bind_device(nr(a), cpu(0), &two).err(), Some(DeviceError::PortTaken { nr: nr(a) }));
    assert_eq!(two.port(), None);
    assert_eq!(events.bind_device(nr(b), cpu(0), &one).err(), Some(DeviceError::ActionTaken { nr: nr(b), has }));
    let beyond = hosted::capacity(abi);
    let refused = DeviceError::NoSuchPort { nr: nr(beyond), errno: Errno::ENOSPC };
    assert_eq!(events.bind_device(nr(beyond), cpu(0), &two).err(), Some(refused));

    // An intent's port goes on working; another CPU's is refused by Xen.
    let timer = xen.find(Channel::Virq(Virq::TIMER, cpu(0))).expect("bound");
    assert_eq!(events.bind_device(nr(timer), cpu(0), &two).err(), Some(DeviceError::PortTaken { nr: nr(timer) }));
    let other = xen.find(Channel::Virq(Virq::TIMER, cpu(1))).expect("bound");
    let refused = DeviceError::Route { nr: nr(other), cpu: cpu(0), errno: Errno::EINVAL };
    assert_eq!(events.bind_device(nr(other), cpu(0), &two).err(), Some(refused));
    assert!(hosted::with_device(&events, nr(other), |_| ()).is_none() && !xen.is_masked(other));
    // Xen would move this one.
    let global = xen.find(Channel::Virq(GLOBAL, cpu(0))).expect("bound");
    assert_eq!(events.bind_device(nr(global), cpu(1), &two).err(), Some(DeviceError::PortTaken { nr: nr(global) }));
    assert_eq!(xen.channel(global), Channel::Virq(GLOBAL, cpu(0)));
    xen.raise(timer);
    xen.raise(a);
    assert_eq!(upcall(&xen, &events, 0), Some(Upcall::Handled(2)));
    assert_eq!(seen().len(), 2);
}

/// A handler that unbinds a device whose event is pending in the same word: the event is dropped, nothing panics, and the
/// end comes after the upcall.
fn unbinding_in_a_handler(abi: AbiKind) {
    let (xen, events) = up(abi, 1);
    let kept = Box::into_raw(Box::new(events));
    // SAFETY: freed at the end, when nothing of it is borrowed any more.
    let events: &'static Events<Fake> = unsafe { &*kept };
    let _on = percpu::hosted::enter(cpu(0));
    upcall(&xen, events, 0);
    thread_local! {
        static VICTIM: RefCell<Option<Binding>> = const { RefCell::new(None) };
        static UNBINDING: RefCell<Option<Unbinding<'static, Fake>>> = const { RefCell::new(None) };
        static EVENTS: Cell<Option<&'static Events<Fake>>> = const { Cell::new(None) };
    }
    let killer = Action::new(EndOfEvent::AtOnce, 0, |_, _| {
        see("kill");
        let victim = VICTIM.take().expect("set below");
        let events = EVENTS.get().expect("set below");
        let mut unbinding = events.unbind_device(victim).expect("bound");
        assert!(!unbinding.is_over(), "this CPU may be handling it, for all that is known");
        UNBINDING.set(Some(unbinding));
    });
    EVENTS.set(Some(events));
    let victim = device(0);
    let ports = [killer, victim].map(|action| {
        let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
        let binding = events.bind_device(nr(at), cpu(0), &action).expect("free");
        VICTIM.set(Some(binding));
        at
    });
    for port in ports {
        xen.raise(port);
    }
    assert_eq!(upcall(&xen, events, 0), Some(Upcall::Handled(1)));
    assert_eq!(seen(), [(0, "kill")]);
    assert!(xen.is_pending(ports[1]) && xen.is_masked(ports[1]));
    assert_eq!(xen.flags(cpu(0)).evtchn_upcall_pending.load(Relaxed), 0);
    let mut unbinding = UNBINDING.take().expect("it was begun");
    assert!(unbinding.is_over());
    drop(unbinding);
    // SAFETY: from the box above.
    drop(unsafe { Box::from_raw(kept) });
}

/// What was unbound is freed when it is over, and not while its CPU is in an upcall.
fn an_action_is_freed_after_its_last_run(abi: AbiKind) {
    struct Told(Rc<Cell<bool>>);
    // SAFETY: everything in this test happens on one thread.
    unsafe impl Send for Told {}
    // SAFETY: as above.
    unsafe impl Sync for Told {}
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }
    let freed = Rc::new(Cell::new(false));
    let told = Told(freed.clone());
    let action = Action::new(EndOfEvent::AtOnce, 0, move |_, _| {
        let _owned = &told;
        see("told");
    });
    let (xen, events) = up(abi, 1);
    let _on = percpu::hosted::enter(cpu(0));
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    let binding = events.bind_device(nr(at), cpu(0), &action).expect("free");
    drop(action);
    xen.raise(at);
    assert_eq!(upcall(&xen, &events, 0), Some(Upcall::Handled(1)));
    assert_eq!(seen(), [(0, "told")]);
    assert!(!freed.get(), "the slot has a share");
    hosted::unbind(&events, binding).expect("bound");
    assert!(freed.get());

    // After a restore there is nothing to unbind; what the slots had is freed with the next bind.
    let freed_too = Rc::new(Cell::new(false));
    let told = Told(freed_too.clone());
    let action = Action::new(EndOfEvent::AtOnce, 0, move |_, _| {
        let _owned = &told;
    });
    let binding = events.bind_device(nr(at), cpu(0), &action).expect("free again");
    drop((action, binding));
    restore(&xen, &events);
    assert!(!freed_too.get(), "nothing is freed while the domain is quiesced");
    bring_up(&events, &xen).expect("room");
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    let _bound = events.bind_device(nr(at), cpu(0), &device(0)).expect("free");
    assert!(freed_too.get());
}

/// A sender that is as fast as the handler: it gets its share of the upcall, the port beside it and the tasks get theirs.
fn a_port_that_fires_without_end_is_muted_until_the_next_turn(abi: AbiKind) {
    let (xen, events) = up(abi, 1);
    let _on = percpu::hosted::enter(cpu(0));
    upcall(&xen, &events, 0);
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    let sender = xen.clone();
    let storm = Action::new(EndOfEvent::AtOnce, 0, move |_, _| {
        see("storm");
        sender.raise(at);
    });
    let binding = events.bind_device(nr(at), cpu(0), &storm).expect("free");
    let beside = xen.allocate(Channel::Device(cpu(0))).expect("room");
    let _beside = events.bind_device(nr(beside), cpu(0), &device(1)).expect("free");
    for turn in 1..=3 {
        if turn == 1 {
            xen.raise(at);
        }
        xen.raise(beside);
        assert_eq!(upcall(&xen, &events, 0), Some(Upcall::Handled(BURST + 1)));
        let what = seen();
        assert_eq!(what.iter().filter(|what| **what == (0, "storm")).count(), BURST as usize);
        let place = what.iter().position(|what| *what == (0, "device 1")).expect("it had its turn");
        assert!(place <= 1, "it had to wait for {place} events of the other");
        assert!(xen.is_masked(at) && xen.is_pending(at) && !xen.is_masked(beside));
        assert_eq!(upcall(&xen, &events, 0), None, "the task goes on");
        assert!(events.is_any_muted(&masked()));
        events.end_turn(xen.flags(cpu(0)));
        assert!(!events.is_any_muted(&masked()) && !xen.is_masked(at));
        assert_eq!(events.counts_racy(cpu(0)).muted, turn);
    }
    // Unbound while it is muted, it stays masked.
    upcall(&xen, &events, 0);
    hosted::unbind(&events, binding).expect("bound");
    events.end_turn(xen.flags(cpu(0)));
    assert!(xen.is_masked(at));
    seen();
}

/// Ports of other domains: one event at a time.
fn a_late_port_waits_for_the_end_of_its_event(abi: AbiKind) {
    let (xen, events) = up(abi, 2);
    let _on = percpu::hosted::enter(cpu(0));
    upcall(&xen, &events, 0);
    upcall(&xen, &events, 1);
    let late = Action::new(EndOfEvent::Late, 0, on_device);
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    let mut binding = events.bind_device(nr(at), cpu(0), &late).expect("free");
    xen.raise(at);
    assert_eq!(upcall(&xen, &events, 0), Some(Upcall::Handled(1)));
    xen.raise(at);
    xen.raise(at);
    assert_eq!(upcall(&xen, &events, 0), None);
    events.end_of_event(&late, xen.flags(cpu(0)));
    assert_eq!(upcall(&xen, &events, 0), Some(Upcall::Handled(1)));

    // Ended on another CPU, and while it is moved.
    {
        let _on = percpu::hosted::enter(cpu(1));
        events.end_of_event(&late, xen.flags(cpu(1)));
    }
    assert!(!xen.is_masked(at));
    xen.raise(at);
    assert_eq!(upcall(&xen, &events, 0), Some(Upcall::Handled(1)));
    let moving = events.move_device(&mut binding, cpu(1)).expect("up");
    events.end_of_event(&late, xen.flags(cpu(0)));
    assert!(xen.is_masked(at), "the mask is the mover's");
    drop(moving);
    assert!(!xen.is_masked(at));

    // Its port is gone: nothing is done to whoever has that number now.
    let port = hosted::unbind(&events, binding).expect("bound");
    let _other = events.bind_device(port, cpu(0), &device(1)).expect("free");
    xen.raise(at);
    events.mask_own(&masked(), Intent::Virq(Virq::TIMER));
    events.end_of_event(&late, xen.flags(cpu(0)));
    assert_eq!(upcall(&xen, &events, 0), Some(Upcall::Handled(1)));
    seen();
}

fn an_unbinding_over_a_restore_frees_the_action_for_another_port(abi: AbiKind) {
    for asked in [true, false] {
        let (xen, events) = up(abi, 1);
        let _on = percpu::hosted::enter(cpu(0));
        let action = device(0);
        let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
        let binding = events.bind_device(nr(at), cpu(0), &action).expect("free");
        let mut unbinding = events.unbind_device(binding).expect("bound");
        restore(&xen, &events);
        bring_up(&events, &xen).expect("room");
        if asked {
            assert!(unbinding.is_over());
        } else {
            drop(unbinding);
        }
        let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
        let _bound = events.bind_device(nr(at), cpu(0), &action).expect("the action is free");
    }
}
