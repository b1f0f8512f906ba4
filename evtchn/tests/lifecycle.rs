//! The life of a domain's event channels against the hosted Xen: boot, upcalls, devices, suspend, both outcomes. Every
//! test runs with each ABI.
#![cfg(not(loom))]

#[macro_use]
mod each_abi;

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

use evtchn::hosted::{self, Batch, Channel, Fake, GLOBAL, bring_up, cpu, masked, nr, quiesced};
use evtchn::{
    AbiKind, Action, ActionHandler, BindError, CpuCounts, DeviceError, Events, Handlers, Hypervisor, Incarnation,
    Intent, Ipi, Port, PortKind, Ports, SendOutcome, Upcall, Virq,
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

/// A device's action. They live for ever, so they are kept where a leak check finds them.
fn action(handler: ActionHandler, context: usize) -> &'static Action {
    static KEPT: Mutex<Vec<&'static Action>> = Mutex::new(Vec::new());
    let action: &'static Action = Box::leak(Box::new(Action::new(handler, context)));
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).push(action);
    action
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
    assert_eq!(seen(), [(0, "global"), (1, "timer"), (1, "call")]);

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

    let action = action(on_device, 0);
    events.bind_device(nr(port), cpu(0), action).expect("free");
    assert_eq!(upcall(&xen, &events, 0), Some(Upcall::Handled(1)), "the early event was kept");
    assert_eq!(seen(), [(0, "device 0")]);
}

fn devices_can_be_bound_anywhere_and_unbound(abi: AbiKind) {
    let action = action(on_device, 1);
    let (xen, events) = up(abi, 2);
    upcall(&xen, &events, 1);
    let _on = percpu::hosted::enter(cpu(0));
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    let port = events.bind_device(nr(at), cpu(1), action).expect("free");
    assert_eq!(action.port(), Some(port));
    assert_eq!(xen.channel(at), Channel::Device(cpu(1)));
    assert_eq!(events.send(port), SendOutcome::Sent);

    xen.raise(at);
    assert_eq!(upcall(&xen, &events, 1), Some(Upcall::Handled(1)));
    assert_eq!(seen(), [(1, "device 1")]);
    assert_eq!(action.count(), 1);
    assert_eq!(events.counts_racy(cpu(1)).devices, 1);

    assert_eq!(events.unbind_device(action), Ok(nr(at)));
    assert!(xen.is_masked(at));
    assert_eq!(events.unbind_device(action), Err(DeviceError::NotBound));
    xen.raise(at);
    assert_eq!(upcall(&xen, &events, 1), None);

    // What came meanwhile is delivered where the port is bound next.
    events.bind_device(nr(at), cpu(0), action).expect("free again");
    upcall(&xen, &events, 0);
    assert_eq!(seen(), [(0, "device 1")]);
}

/// A port that was left unmasked, against EV1: Xen told CPU 0, which had no use for it. Binding still tells CPU 1.
#[test]
fn an_event_told_to_the_wrong_cpu_is_told_anew() {
    let abi = AbiKind::TwoLevel;
    let action = action(on_device, 0);
    let (xen, events) = up(abi, 2);
    upcall(&xen, &events, 1);
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    xen.0.shared.evtchn_mask[at as usize / 64].fetch_and(!(1 << (at % 64)), Relaxed);
    xen.raise(at);
    assert_eq!(upcall(&xen, &events, 0), Some(Upcall::Spurious));
    events.bind_device(nr(at), cpu(1), action).expect("free");
    assert_eq!(upcall(&xen, &events, 1), Some(Upcall::Handled(1)));
    assert_eq!(seen(), [(1, "device 0")]);
}

fn device_errors_change_nothing(abi: AbiKind) {
    let one = action(on_device, 0);
    let two = action(on_device, 1);
    let (xen, events) = up(abi, 2);
    let _on = percpu::hosted::enter(cpu(0));
    upcall(&xen, &events, 0);
    let (a, b) =
        (xen.allocate(Channel::Device(cpu(0))).expect("room"), xen.allocate(Channel::Device(cpu(0))).expect("room"));
    let has = events.bind_device(nr(a), cpu(0), one).expect("free");
    assert_eq!(events.bind_device(nr(a), cpu(0), two), Err(DeviceError::PortTaken { nr: nr(a) }));
    assert_eq!(two.port(), None);
    assert_eq!(events.bind_device(nr(b), cpu(0), one), Err(DeviceError::ActionTaken { nr: nr(b), has }));
    let beyond = hosted::capacity(abi);
    let refused = DeviceError::NoSuchPort { nr: nr(beyond), errno: Errno::ENOSPC };
    assert_eq!(events.bind_device(nr(beyond), cpu(0), two), Err(refused));

    // An intent's port goes on working; another CPU's is refused by Xen.
    let timer = xen.find(Channel::Virq(Virq::TIMER, cpu(0))).expect("bound");
    assert_eq!(events.bind_device(nr(timer), cpu(0), two), Err(DeviceError::PortTaken { nr: nr(timer) }));
    let other = xen.find(Channel::Virq(Virq::TIMER, cpu(1))).expect("bound");
    let refused = DeviceError::Route { nr: nr(other), cpu: cpu(0), errno: Errno::EINVAL };
    assert_eq!(events.bind_device(nr(other), cpu(0), two), Err(refused));
    assert!(hosted::device_of_racy(&events, nr(other)).is_none() && !xen.is_masked(other));
    // Xen would move this one.
    let global = xen.find(Channel::Virq(GLOBAL, cpu(0))).expect("bound");
    assert_eq!(events.bind_device(nr(global), cpu(1), two), Err(DeviceError::PortTaken { nr: nr(global) }));
    assert_eq!(xen.channel(global), Channel::Virq(GLOBAL, cpu(0)));
    xen.raise(timer);
    xen.raise(a);
    assert_eq!(upcall(&xen, &events, 0), Some(Upcall::Handled(2)));
    assert_eq!(seen().len(), 2);
}

fn a_cpu_that_is_not_up_is_not_bound_to_and_not_sent_to(abi: AbiKind) {
    let action = action(on_device, 0);
    let xen = Fake::new(2);
    let events = hosted::boot(&xen, abi, HANDLERS);
    let _on = percpu::hosted::enter(cpu(0));
    bring_up(&events, &xen).expect("room");
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    assert_eq!(events.bind_device(nr(at), cpu(1), action), Err(DeviceError::CpuNotReady { nr: nr(at), cpu: cpu(1) }));
    assert_eq!(events.send_ipi(cpu(1), Ipi::Call), SendOutcome::Unbound);
    assert_eq!(events.counts_racy(cpu(0)).unbound_sends, 1);
    assert!(events.is_ready(cpu(0)) && !events.is_ready(cpu(1)));
    xen.place(cpu(1));
    assert_eq!(upcall(&xen, &events, 1), Some(Upcall::NotReady));
    assert_eq!(upcall(&xen, &events, 1), None, "flags cleared, or the vcpu would be entered without end");
}

fn restore_gives_every_intent_a_new_port_and_devices_none(abi: AbiKind) {
    let action = action(on_device, 0);
    let (xen, events) = up(abi, 2);
    let on = percpu::hosted::enter(cpu(0));
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    let old = events.bind_device(nr(at), cpu(0), action).expect("free");
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
    assert_eq!(events.unbind_device(action), Err(DeviceError::NotBound));

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
    events.bind_device(nr(console), cpu(0), action).expect("the action is free again");
    drop(on);
}

fn cancelled_suspend_keeps_everything(abi: AbiKind) {
    let action = action(on_device, 0);
    let (xen, events) = up(abi, 2);
    let _on = percpu::hosted::enter(cpu(0));
    upcall(&xen, &events, 0);
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    let port = events.bind_device(nr(at), cpu(0), action).expect("free");

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
    let action = action(on_device, 1);
    let (xen, events) = up(abi, 2);
    let _on = percpu::hosted::enter(cpu(0));
    let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
    events.bind_device(nr(at), cpu(1), action).expect("free");
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
            format!("port={timer} kind=timer pending=0 masked=0 linked=0 count=1"),
            format!("port={call} kind=ipi-call pending=0 masked=0 linked=0 count=0"),
            format!("port={at} kind=device1 pending=1 masked=0 linked={linked} count=0"),
        ]
    );
    assert!(events.ports_racy(cpu(0)).all(|port| port.kind != PortKind::Device(1)));
}

/// A handler that unbinds a device whose event is pending in the same word: the event is dropped, nothing panics.
fn unbinding_in_a_handler(abi: AbiKind) {
    thread_local! {
        static EVENTS: RefCell<Option<(Events<Fake>, &'static Action)>> = const { RefCell::new(None) };
    }
    fn kill(_: &Masked, _: &Action) {
        see("kill");
        EVENTS.with_borrow(|events| {
            let (events, victim) = events.as_ref().expect("set below");
            assert!(events.unbind_device(victim).is_ok());
        });
    }

    let (xen, events) = up(abi, 1);
    let _on = percpu::hosted::enter(cpu(0));
    upcall(&xen, &events, 0);
    let victim = action(on_device, 0);
    let ports = [action(kill, 0), victim].map(|action| {
        let at = xen.allocate(Channel::Device(cpu(0))).expect("room");
        events.bind_device(nr(at), cpu(0), action).expect("free");
        at
    });
    for port in ports {
        xen.raise(port);
    }
    EVENTS.set(Some((events, victim)));
    EVENTS.with_borrow(|events| {
        let (events, _) = events.as_ref().expect("just set");
        assert_eq!(upcall(&xen, events, 0), Some(Upcall::Handled(1)));
    });
    assert_eq!(seen(), [(0, "kill")]);
    assert!(xen.is_pending(ports[1]) && xen.is_masked(ports[1]));
    assert_eq!(xen.flags(cpu(0)).evtchn_upcall_pending.load(Relaxed), 0);
    EVENTS.take();
}
