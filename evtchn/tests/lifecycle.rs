//! The life of a domain's event channels against the hosted Xen: boot, upcalls, devices, suspend, both outcomes. Every
//! test runs with each ABI.
#![cfg(not(loom))]

#[macro_use]
mod each_abi;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use evtchn::hosted::{self, Batch, Channel, Fake, GLOBAL, bring_up, cpu, masked, nr, quiesced};
use evtchn::{
    AbiKind, Action, Answers, BURST, BindError, Binding, CpuCounts, DeviceError, EndOfEvent, Events, Handlers,
    Hypervisor, Incarnation, Intent, Ipi, Port, PortKind, Ports, SendOutcome, Unbinding, Upcall, Virq,
};
use percpu::{CpuId, Masked};
use xen_sys::Errno;
use xen_sys::primitive::sync::atomic::Ordering::Relaxed;

with_each_abi! {
    virqs_and_ipis_reach_their_cpu,
    everything_is_masked_until_bound,
    devices_can_be_bound_anywhere_and_unbound,
    device_errors_change_nothing,
    a_cpu_that_is_not_up_is_not_bound_to_and_not_sent_to,
    restore_gives_every_intent_a_new_port_and_devices_none,
    cancelled_suspend_keeps_everything,
    failed_binds_are_undone_and_named,
    a_full_batch_and_a_stale_plan_are_refused,
    a_muted_intent_waits,
    refused_sends_are_counted,
    dump_shows_what_stands_in_the_tables,
    unbinding_in_a_handler,
    an_action_is_freed_after_its_last_run,
    a_moved_port_takes_its_events_along,
    a_cpu_that_is_down_has_its_ports_and_no_devices,
    nobody_looks_at_a_port_that_has_moved_and_is_gone,
    an_unbinding_over_a_restore_frees_the_action_for_another_port,
    a_muted_port_whose_move_is_given_up_is_muted_again,
    a_port_that_fires_without_end_is_muted_until_the_next_turn,
    a_late_port_waits_for_the_end_of_its_event,
    ipis_come_first,
    a_batch_carries_the_last_of_a_bring_up,
}

// What handlers have seen on this thread: the CPU, and a name.
thread_local! {
    static SEEN: RefCell<Vec<(usize, &'static str)>> = const { RefCell::new(Vec::new()) };
}

fn see(what: &'static str) {
    SEEN.with_borrow_mut(|seen| seen.push((percpu::current().index(), what)));
}

fn seen() -> Vec<(usize, &'static str)> {
    SEEN.take()
}

fn on_timer(_: &Masked) {
    see("timer");
}

fn on_global(_: &Masked) {
    see("global");
}

fn on_call(_: &Masked) {
    see("call");
}

const HANDLERS: Handlers = Handlers::new().virq(Virq::TIMER, on_timer).virq(GLOBAL, on_global).ipi(Ipi::Call, on_call);

fn on_device(_: &Masked, action: &Action) {
    assert!(action.port().is_some(), "an action runs for its port");
    see(["device 0", "device 1"][action.context()]);
}

fn device(context: usize) -> Arc<Action> {
    Action::new(EndOfEvent::AtOnce, context, on_device)
}

/// A domain of `nr_cpus` with all of them up.
fn up(abi: AbiKind, nr_cpus: usize) -> (Fake, Events<Fake>) {
    let xen = Fake::new(nr_cpus);
    let events = hosted::boot(&xen, abi, HANDLERS);
    for cpu in CpuId::first(nr_cpus) {
        let _on = percpu::hosted::enter(cpu);
        xen.place(cpu);
        bring_up(&events, &xen).expect("the fake has ports enough");
    }
    (xen, events)
}

/// The upcall on CPU `n`, if Xen would enter one.
fn upcall(xen: &Fake, events: &Events<Fake>, n: usize) -> Option<Upcall> {
    let _on = percpu::hosted::enter(cpu(n));
    xen.upcall_due(cpu(n)).then(|| events.demux(&masked(), xen.flags(cpu(n))))
}

fn raise(xen: &Fake, channel: Channel) {
    xen.raise(xen.find(channel).expect("bound"));
}

fn virqs_and_ipis_reach_their_cpu(abi: AbiKind) {
    let (xen, events) = up(abi, 3);
    // Placing the vcpu_info left a spurious upcall behind.
    assert_eq!(upcall(&xen, &events, 1), Some(Upcall::Spurious));
    assert_eq!(upcall(&xen, &events, 1), None);

    raise(&xen, Channel::Virq(Virq::TIMER, cpu(1)));
    raise(&xen, Channel::Virq(GLOBAL, cpu(0)));
    {
        let _on = percpu::hosted::enter(cpu(0));
        assert_eq!(events.send_ipi(cpu(1), Ipi::Call), SendOutcome::Sent);
        assert_eq!(events.send_ipi(cpu(1), Ipi::Call), SendOutcome::Sent);
    }
    assert_eq!(upcall(&xen, &events, 0), Some(Upcall::Handled(1)));
    assert_eq!(upcall(&xen, &events, 1), Some(Upcall::Handled(2)));
    assert_eq!(upcall(&xen, &events, 2), Some(Upcall::Spurious));
    let ipis_first = abi == AbiKind::Fifo;
    let mut on_one = [(1, "timer"), (1, "call")];
    on_one.sort_by_key(|what| (what.1 == "call") != ipis_first);
    assert_eq!(seen(), [(0, "global"), on_one[0], on_one[1]]);

    let one = events.counts_racy(cpu(1));
    assert_eq!(one, CpuCounts { upcalls: 2, spurious: 1, passes: 2, virqs: 1, ipis: 1, ..CpuCounts::default() });
    assert_eq!(events.counts_racy(cpu(0)).sent, 2);
}

fn everything_is_masked_until_bound(abi: AbiKind) {
    let xen = Fake::new(1);
    let port = xen.allocate(Channel::Device(cpu(0))).expect("room");
    assert!(!xen.is_masked(port), "a fresh boot has everything unmasked");
    let events = hosted::boot(&xen, abi, HANDLERS);
    assert!((1..u32::try_from(hosted::NR_PORTS).expect("few")).all(|port| xen.is_masked(port)));
    let _on = percpu::hosted::enter(cpu(0));
    xen.raise(port);
    bring_up(&events, &xen).expect("room");
    assert_eq!(upcall(&xen, &events, 0), None, "the device's port is nobody's yet");
    for channel in [Channel::Virq(Virq::TIMER, cpu(0)), Channel::Ipi(cpu(0))] {
        assert!(!xen.is_masked(xen.find(channel).expect("bound")));
    }

    let action = device(0);
    events.bind_device(nr(port), cpu(0), &action).expect("free");
    assert_eq!(upcall(&xen, &events, 0), Some(Upcall::Handled(1)), "the early event was kept");
    assert_eq!(seen(), [(0, "device 0")]);
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

fn a_cpu_that_is_not_up_is_not_bound_to_and_not_sent_to(abi: AbiKind) {
    let action = device(0);
    let xen = Fake::new(2);
    let events = hosted::boot(&xen, abi, HANDLERS);
    let _on = percpu::hosted::enter(cpu(0));
    bring_up(&events, &xen).expect("room");
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    assert_eq!(
        events.bind_device(nr(at), cpu(1), &action).err(),
        Some(DeviceError::CpuNotReady { nr: nr(at), cpu: cpu(1) })
    );
    assert_eq!(events.send_ipi(cpu(1), Ipi::Call), SendOutcome::Unbound);
    assert_eq!(events.counts_racy(cpu(0)).unbound_sends, 1);
    assert!(events.is_ready(cpu(0)) && !events.is_ready(cpu(1)));
    xen.place(cpu(1));
    assert_eq!(upcall(&xen, &events, 1), Some(Upcall::NotReady));
    assert_eq!(upcall(&xen, &events, 1), None, "flags cleared, or the vcpu would be entered without end");
}

fn restore_gives_every_intent_a_new_port_and_devices_none(abi: AbiKind) {
    let action = device(0);
    let (xen, events) = up(abi, 2);
    let on = percpu::hosted::enter(cpu(0));
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    let binding = events.bind_device(nr(at), cpu(0), &action).expect("free");
    let old = binding.port();
    assert_eq!(events.incarnation(), Incarnation::new(1));

    events.detach(&quiesced());
    if abi == AbiKind::TwoLevel {
        assert_eq!(events.demux(&masked(), xen.flags(cpu(0))), Upcall::Detached);
    }
    xen.restore();
    // The toolstack's ports come first in the new domain, so every number has another meaning.
    let console = xen.allocate(Channel::Device(cpu(0))).expect("room");
    hosted::attach(&events, &xen, Ports::Gone);
    assert_eq!(events.incarnation(), Incarnation::new(2));
    assert_eq!(action.port(), None);
    assert_eq!(events.send(old), SendOutcome::Stale);
    assert_eq!(events.counts_racy(cpu(0)).stale_sends, 1);
    assert_eq!(events.unbind_device(binding).err(), Some(DeviceError::NotBound));

    // CPU 0 is back, CPU 1 is not. The port that CPU 1 had is CPU 0's now; a spurious upcall on CPU 1 must not take
    // CPU 0's event from it.
    bring_up(&events, &xen).expect("room");
    assert_eq!(events.send_ipi(cpu(1), Ipi::Call), SendOutcome::Unbound);
    for virq in [Virq::TIMER, GLOBAL] {
        raise(&xen, Channel::Virq(virq, cpu(0)));
    }
    xen.place(cpu(1));
    assert_eq!(upcall(&xen, &events, 1), Some(Upcall::NotReady));
    assert_eq!(seen(), []);
    assert_eq!(upcall(&xen, &events, 0), Some(Upcall::Handled(2)));
    assert_eq!(seen(), [(0, "timer"), (0, "global")]);

    {
        let _on = percpu::hosted::enter(cpu(1));
        bring_up(&events, &xen).expect("room");
    }
    assert_eq!(events.send_ipi(cpu(1), Ipi::Call), SendOutcome::Sent);
    assert_eq!(upcall(&xen, &events, 1), Some(Upcall::Handled(1)));
    events.bind_device(nr(console), cpu(0), &action).expect("the action is free again");
    drop(on);
}

fn cancelled_suspend_keeps_everything(abi: AbiKind) {
    let action = device(0);
    let (xen, events) = up(abi, 2);
    let _on = percpu::hosted::enter(cpu(0));
    upcall(&xen, &events, 0);
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    let port = events.bind_device(nr(at), cpu(0), &action).expect("free").port();

    events.detach(&quiesced());
    // Xen goes on delivering while the page is not mapped here.
    xen.raise(at);
    raise(&xen, Channel::Virq(Virq::TIMER, cpu(0)));
    hosted::attach(&events, &xen, Ports::Kept);

    assert_eq!(events.incarnation(), Incarnation::new(1));
    assert!(events.is_ready(cpu(1)));
    assert_eq!(events.send(port), SendOutcome::Sent);
    assert_eq!(upcall(&xen, &events, 0), Some(Upcall::Handled(2)));
    let mut what = seen();
    what.sort_unstable();
    assert_eq!(what, [(0, "device 0"), (0, "timer")]);
}

fn failed_binds_are_undone_and_named(abi: AbiKind) {
    let (timer, call) = (Intent::Virq(Virq::TIMER), Intent::Ipi(Ipi::Call));
    let cpu1 = cpu(1);
    let beyond = hosted::capacity(abi);
    // With the FIFO ABI the batch begins with the control block.
    let first = usize::from(abi == AbiKind::Fifo);
    let cases = [
        (0, Err(Errno::ENOSPC), BindError::Refused { cpu: cpu1, intent: timer, errno: Errno::ENOSPC }),
        (1, Err(Errno::EINVAL), BindError::Refused { cpu: cpu1, intent: call, errno: Errno::EINVAL }),
        (1, Ok(0), BindError::BadPort { cpu: cpu1, intent: call, nr: 0 }),
        (0, Ok(beyond), BindError::BadPort { cpu: cpu1, intent: timer, nr: beyond }),
        (1, Ok(u32::MAX), BindError::BadPort { cpu: cpu1, intent: call, nr: u32::MAX }),
        // The timer's.
        (1, Ok(1), BindError::BadPort { cpu: cpu1, intent: call, nr: 1 }),
    ];
    for (token, answer, error) in cases {
        let xen = Fake::new(2);
        let events = hosted::boot(&xen, abi, HANDLERS);
        let _on = percpu::hosted::enter(cpu1);
        let mut batch = Batch::new(&xen);
        let plan = events.plan(&masked(), &mut batch).expect("room");
        batch.answer(first + token, answer);
        assert_eq!(events.record(&masked(), xen.flags(cpu1), plan, &batch), Err(error));
        assert!(!events.is_ready(cpu1));
        assert_eq!(events.ports_racy(cpu1).count(), 0);
        // What was bound and was believed is closed.
        let kept = if token == 0 { call } else { timer };
        let channel = match kept {
            Intent::Virq(virq) => Channel::Virq(virq, cpu1),
            Intent::Ipi(_) => Channel::Ipi(cpu1),
        };
        assert_eq!(xen.find(channel), None);
    }
}

fn a_full_batch_and_a_stale_plan_are_refused(abi: AbiKind) {
    let xen = Fake::new(2);
    let events = hosted::boot(&xen, abi, HANDLERS);
    let _on = percpu::hosted::enter(cpu(1));
    let full = events.plan(&masked(), &mut Batch::with_room(&xen, 1)).err();
    assert_eq!(full, Some(BindError::BatchFull { cpu: cpu(1) }));

    xen.restore();
    let stale = Err(BindError::StalePlan { cpu: cpu(1) });
    let mut batch = Batch::new(&xen);
    let plan = events.plan(&masked(), &mut batch).expect("room");
    {
        let _other = percpu::hosted::enter(cpu(0));
        assert_eq!(events.record(&masked(), xen.flags(cpu(0)), plan, &batch), stale);
    }
    let plan = events.plan(&masked(), &mut Batch::new(&Fake::new(2))).expect("room");
    events.detach(&quiesced());
    xen.restore();
    hosted::attach(&events, &xen, Ports::Gone);
    assert_eq!(events.record(&masked(), xen.flags(cpu(1)), plan, &batch), stale);
    assert!(!events.is_ready(cpu(1)));
}

fn a_muted_intent_waits(abi: AbiKind) {
    let (xen, events) = up(abi, 1);
    let _on = percpu::hosted::enter(cpu(0));
    upcall(&xen, &events, 0);
    let timer = Intent::Virq(Virq::TIMER);
    events.mask_own(&masked(), timer);
    raise(&xen, Channel::Virq(Virq::TIMER, cpu(0)));
    raise(&xen, Channel::Virq(Virq::TIMER, cpu(0)));
    assert_eq!(upcall(&xen, &events, 0), None);
    assert_eq!(events.send_ipi(cpu(0), Ipi::Call), SendOutcome::Sent);
    assert_eq!(upcall(&xen, &events, 0), Some(Upcall::Handled(1)));
    events.unmask_own(&masked(), xen.flags(cpu(0)), timer);
    assert_eq!(upcall(&xen, &events, 0), Some(Upcall::Handled(1)));
    assert_eq!(seen(), [(0, "call"), (0, "timer")]);
}

fn refused_sends_are_counted(abi: AbiKind) {
    let (xen, events) = up(abi, 1);
    let _on = percpu::hosted::enter(cpu(0));
    let port = Port { nr: nr(100), incarnation: events.incarnation() };
    assert_eq!(events.send(port), SendOutcome::Refused(Errno::EINVAL));
    assert_eq!(events.counts_racy(cpu(0)).refused_sends, 1);
    assert_eq!(xen.close(nr(100)), Err(Errno::EINVAL));
}

fn dump_shows_what_stands_in_the_tables(abi: AbiKind) {
    let action = device(1);
    let (xen, events) = up(abi, 2);
    let _on = percpu::hosted::enter(cpu(0));
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    events.bind_device(nr(at), cpu(1), &action).expect("free");
    raise(&xen, Channel::Virq(Virq::TIMER, cpu(1)));
    upcall(&xen, &events, 1);
    xen.raise(at);
    seen();

    let linked = u8::from(abi == AbiKind::Fifo);
    let lines: Vec<String> = events.ports_racy(cpu(1)).map(|port| port.to_string()).collect();
    let (timer, call) = (xen.find(Channel::Virq(Virq::TIMER, cpu(1))), xen.find(Channel::Ipi(cpu(1))));
    let (timer, call) = (timer.expect("bound"), call.expect("bound"));
    assert_eq!(
        lines,
        [
            format!("port={timer:<4} pending=0 masked=0 linked=0 cpu=1 kind=timer count=1"),
            format!("port={call:<4} pending=0 masked=0 linked=0 cpu=1 kind=ipi-call count=0"),
            format!("port={at:<4} pending=1 masked=0 linked={linked} cpu=1 kind=device1 count=0"),
        ]
    );
    assert!(events.ports_racy(cpu(0)).all(|port| port.kind != PortKind::Device(1)));
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
    events.detach(&quiesced());
    xen.restore();
    hosted::attach(&events, &xen, Ports::Gone);
    assert!(!freed_too.get(), "nothing is freed while the domain is quiesced");
    bring_up(&events, &xen).expect("room");
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    let _bound = events.bind_device(nr(at), cpu(0), &device(0)).expect("free");
    assert!(freed_too.get());
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
    events.detach(&quiesced());
    xen.restore();
    hosted::attach(&events, &xen, Ports::Gone);
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
    events.detach(&quiesced());
    xen.restore();
    hosted::attach(&events, &xen, Ports::Gone);
    bring_up(&events, &xen).expect("room");
    {
        let _on = percpu::hosted::enter(cpu(1));
        bring_up(&events, &xen).expect("room");
    }
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

/// With the FIFO ABI an IPI is taken before what was sent earlier.
fn ipis_come_first(abi: AbiKind) {
    let (xen, events) = up(abi, 1);
    let _on = percpu::hosted::enter(cpu(0));
    upcall(&xen, &events, 0);
    raise(&xen, Channel::Virq(Virq::TIMER, cpu(0)));
    assert_eq!(events.send_ipi(cpu(0), Ipi::Call), SendOutcome::Sent);
    upcall(&xen, &events, 0);
    let first = if abi == AbiKind::Fifo { "call" } else { "timer" };
    assert_eq!(seen()[0], (0, first));
}

fn a_batch_carries_the_last_of_a_bring_up(abi: AbiKind) {
    let (xen, events) = up(abi, 2);
    let sent_by = |n| events.counts_racy(cpu(n)).sent;
    let _on = percpu::hosted::enter(cpu(0));
    let mut full = Batch::with_room(&xen, 0);
    assert_eq!(events.plan_ipi(cpu(1), Ipi::Call, &mut full), None);
    let priority = events.plan_priority(&masked(), &mut full);
    let mut batch = Batch::new(&xen);
    match abi {
        AbiKind::Fifo => {
            assert_eq!(priority, Err(BindError::BatchFull { cpu: cpu(0) }));
            let call = events.plan_priority(&masked(), &mut batch).expect("room").expect("it has priorities");
            assert_eq!(batch.done(call), Ok(()));
            let ipi = xen.find(Channel::Ipi(cpu(0))).expect("bound");
            assert_eq!(xen.priority(ipi), 0);
        }
        AbiKind::TwoLevel => assert_eq!(priority, Ok(None)),
    }
    let before = sent_by(0);
    let call = events.plan_ipi(cpu(1), Ipi::Call, &mut batch).expect("room");
    assert_eq!(events.sent(batch.done(call)), SendOutcome::Sent);
    assert_eq!(sent_by(0), before + 1);
    seen();
    upcall(&xen, &events, 1);
    assert_eq!(seen(), [(1, "call")]);
    events.detach(&quiesced());
    xen.restore();
    hosted::attach(&events, &xen, Ports::Gone);
    assert_eq!(events.plan_ipi(cpu(1), Ipi::Call, &mut batch), None, "its port was of the last life");
}

fn an_unbinding_over_a_restore_frees_the_action_for_another_port(abi: AbiKind) {
    for asked in [true, false] {
        let (xen, events) = up(abi, 1);
        let _on = percpu::hosted::enter(cpu(0));
        let action = device(0);
        let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
        let binding = events.bind_device(nr(at), cpu(0), &action).expect("free");
        let mut unbinding = events.unbind_device(binding).expect("bound");
        events.detach(&quiesced());
        xen.restore();
        hosted::attach(&events, &xen, Ports::Gone);
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
