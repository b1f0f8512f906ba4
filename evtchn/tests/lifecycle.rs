//! The life of a domain's event channels against the hosted Xen: boot, upcalls, suspend, both outcomes. Every test runs with
//! each ABI.
#![cfg(not(loom))]

mod domain;
#[macro_use]
mod each_abi;

use domain::{HANDLERS, device, raise, restore, seen, up, upcall};
use evtchn::hosted::{self, Batch, Channel, Fake, GLOBAL, bring_up, cpu, masked, nr, quiesced};
use evtchn::{
    AbiKind, Answers, BindError, CpuCounts, DeviceError, Hypervisor, Incarnation, Intent, Ipi, Port, PortKind, Ports,
    SendOutcome, Upcall, Virq,
};
use xen_sys::Errno;

with_each_abi! {
    virqs_and_ipis_reach_their_cpu,
    everything_is_masked_until_bound,
    a_cpu_that_is_not_up_is_not_bound_to_and_not_sent_to,
    restore_gives_every_intent_a_new_port_and_devices_none,
    cancelled_suspend_keeps_everything,
    failed_binds_are_undone_and_named,
    a_full_batch_and_a_stale_plan_are_refused,
    a_muted_intent_waits,
    refused_sends_are_counted,
    dump_shows_what_stands_in_the_tables,
    ipis_come_first,
    a_batch_carries_the_last_of_a_bring_up,
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
    restore(&xen, &events);
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
    restore(&xen, &events);
    assert_eq!(events.plan_ipi(cpu(1), Ipi::Call, &mut batch), None, "its port was of the last life");
}
