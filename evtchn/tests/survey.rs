//! The list of all ports of a domain, as our tables and the hosted Xen have them. Every test runs with each ABI.
#![cfg(not(loom))]

#[macro_use]
mod each_abi;

use evtchn::hosted::{self, Channel, Fake, GLOBAL, NR_PORTS, PEER_PORT, bring_up, cpu, nr};
use evtchn::{AbiKind, Action, EndOfEvent, Events, Handlers, Hypervisor, Ipi, PortKind, PortNr, PortState, Step, Virq};
use percpu::CpuId;

with_each_abi! {
    every_port_is_listed_once_in_order,
    a_port_of_nobodys_is_listed,
    a_port_that_xen_sends_elsewhere_is_named,
    a_port_that_xen_has_closed_is_listed_while_the_tables_have_it,
    tables_of_an_earlier_life_are_not_listed,
    ports_beyond_xens_last_are_listed_while_the_tables_have_them,
}

const HANDLERS: Handlers = Handlers::new().virq(Virq::TIMER, |_| {}).virq(GLOBAL, |_| {}).ipi(Ipi::Call, |_| {});

/// Opens a device port and binds it to `cpu`.
fn bind(xen: &Fake, events: &Events<Fake>, cpu: CpuId, context: usize) -> PortNr {
    let port = nr(xen.allocate(Channel::Device(CpuId::BOOT)).expect("room"));
    bind_port(events, port, cpu, context);
    port
}

fn bind_port(events: &Events<Fake>, port: PortNr, cpu: CpuId, context: usize) {
    events.bind_device(port, cpu, &Action::new(EndOfEvent::AtOnce, context, |_, _| {})).expect("free");
}

/// A domain of two CPUs that are up.
fn up(abi: AbiKind) -> (Fake, Events<Fake>) {
    let xen = Fake::new(2);
    let events = hosted::boot(&xen, abi, HANDLERS);
    for cpu in CpuId::first(2) {
        let _on = percpu::hosted::enter(cpu);
        xen.place(cpu);
        bring_up(&events, &xen).expect("the fake has ports enough");
    }
    (xen, events)
}

fn listed(events: &Events<Fake>) -> Vec<PortState> {
    let _on = percpu::hosted::enter(cpu(0));
    let mut survey = events.survey();
    let mut found = Vec::new();
    loop {
        match survey.step() {
            Step::Port(port) => found.push(port),
            Step::Nothing => {}
            Step::End => break,
        }
    }
    assert_eq!(survey.step(), Step::End, "it stays at its end");
    found
}

fn lines(events: &Events<Fake>) -> Vec<String> {
    listed(events).iter().map(PortState::to_string).collect()
}

fn every_port_is_listed_once_in_order(abi: AbiKind) {
    let (xen, events) = up(abi);
    let _on = percpu::hosted::enter(cpu(0));
    let at = bind(&xen, &events, cpu(1), 7);
    xen.raise(at.get());
    let linked = u8::from(abi == AbiKind::Fifo);

    let found = listed(&events);
    assert!(found.is_sorted_by_key(|port| port.nr));
    for port in &found {
        let channel = xen.channel(port.nr.get());
        assert_eq!(port.cpu, channel.cpu(), "{port}");
        assert_eq!(port.astray(), None, "{port}");
    }
    let open = xen.channels().iter().filter(|channel| **channel != Channel::Free).count();
    assert_eq!(found.len(), open);
    let line = |of: Channel| {
        let port = nr(xen.find(of).expect("bound"));
        found.iter().find(|found| found.nr == port).expect("listed").to_string()
    };
    let port = |of: Channel| xen.find(of).expect("bound");
    for (of, rest) in [
        (Channel::Virq(Virq::TIMER, cpu(1)), "state=virq cpu=1 virq=0 kind=timer count=0".to_owned()),
        (Channel::Virq(GLOBAL, cpu(0)), "state=virq cpu=0 virq=2 kind=virq2 count=0".to_owned()),
        (Channel::Ipi(cpu(0)), "state=ipi cpu=0 kind=ipi-call count=0".to_owned()),
    ] {
        assert_eq!(line(of), format!("port={:<4} pending=0 masked=0 linked=0 {rest}", port(of)));
    }
    assert_eq!(
        line(Channel::Device(cpu(1))),
        format!(
            "port={at:<4} pending=1 masked=0 linked={linked} \
             state=interdomain cpu=1 dom=0 peer={PEER_PORT} kind=device7 count=0"
        )
    );
}

fn a_port_of_nobodys_is_listed(abi: AbiKind) {
    let (xen, events) = up(abi);
    let stray = nr(xen.allocate(Channel::Device(cpu(1))).expect("room"));
    let found = listed(&events);
    let port = found.iter().find(|port| port.nr == stray).expect("Xen has it");
    assert_eq!((port.kind, port.cpu, port.count), (PortKind::None, None, 0));
    let line = port.to_string();
    assert!(line.ends_with("state=interdomain cpu=1 dom=0 peer=24 kind=none count=0"), "{line}");
}

fn a_port_that_xen_sends_elsewhere_is_named(abi: AbiKind) {
    let (xen, events) = up(abi);
    let _on = percpu::hosted::enter(cpu(0));
    let at = bind(&xen, &events, cpu(0), 1);
    let timer = nr(xen.find(Channel::Virq(Virq::TIMER, cpu(1))).expect("bound"));
    xen.bind_vcpu(at, cpu(1)).expect("a device's port can be moved");
    xen.channels()[timer.index()] = Channel::Virq(Virq::TIMER, cpu(0));

    for (of, kind, told) in [(at, "kind=device1", "cpu=1"), (timer, "kind=timer", "cpu=0")] {
        let port = *listed(&events).iter().find(|port| port.nr == of).expect("listed");
        assert_eq!(port.astray(), Some(if told == "cpu=1" { 1 } else { 0 }));
        let line = port.to_string();
        let awaited = format!("awaited_by={}", port.cpu.expect("the tables have it"));
        assert!([told, kind, &awaited].iter().all(|part| line.split(' ').any(|word| word == *part)), "{line}");
    }
}

fn a_port_that_xen_has_closed_is_listed_while_the_tables_have_it(abi: AbiKind) {
    let (xen, events) = up(abi);
    let call = nr(xen.find(Channel::Ipi(cpu(1))).expect("bound"));
    xen.close(call).expect("it is open");
    let line = lines(&events).into_iter().find(|line| line.contains("kind=ipi-call") && line.contains("cpu=1"));
    let line = line.expect("the tables have it");
    assert!(line.contains("state=closed cpu=1 kind=ipi-call"), "{line}");
}

fn tables_of_an_earlier_life_are_not_listed(abi: AbiKind) {
    let (xen, events) = up(abi);
    events.detach(&hosted::quiesced());
    xen.restore();
    hosted::attach(&events, &xen, evtchn::Ports::Gone);
    assert_eq!(lines(&events), Vec::<String>::new());
    let _on = percpu::hosted::enter(cpu(1));
    bring_up(&events, &xen).expect("the fake has ports enough");
    assert!(listed(&events).iter().all(|port| port.cpu == Some(cpu(1))));
    assert!(!listed(&events).is_empty());
}

fn ports_beyond_xens_last_are_listed_while_the_tables_have_them(abi: AbiKind) {
    let (xen, events) = up(abi);
    let found = listed(&events).len();
    let last = u32::try_from(NR_PORTS).expect("few ports") - 1;
    xen.channels()[last as usize] = Channel::Device(cpu(0));
    let _on = percpu::hosted::enter(cpu(0));
    bind_port(&events, nr(last), cpu(0), 1);
    assert_eq!(listed(&events).len(), found + 1);
    xen.channels().truncate(last as usize);
    let port = listed(&events).pop().expect("the tables have it");
    assert_eq!((port.nr, port.cpu), (nr(last), Some(cpu(0))));
    let line = port.to_string();
    assert!(line.contains("state=closed cpu=0 kind=device1"), "{line}");
}
