//! A batch against a naive model: whatever is pushed reaches Xen once, in order, and each token finds its own result.
#![cfg(not(loom))]

use proptest::prelude::*;
use xen_sys::{
    Errno,
    abi::event_channel::{EvtchnBindIpi, EvtchnBindVirq, EvtchnSend, EvtchnSetPriority},
    abi::xen::{__HYPERVISOR_event_channel_op, MulticallEntry},
    hypercall::{Batch, BatchFull, CallToken, PortToken},
};

const CAPACITY: usize = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    BindVirq { virq: u32, vcpu: u32 },
    BindIpi { vcpu: u32 },
    Send { port: u32 },
    SetPriority { port: u32, priority: u32 },
    SetTimer { deadline_ns: u64 },
    StopPeriodic { vcpu: u32 },
}

#[derive(Debug, Clone, Copy)]
enum Token {
    Port(PortToken),
    Call(CallToken),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (any::<u32>(), any::<u32>()).prop_map(|(virq, vcpu)| Op::BindVirq { virq, vcpu }),
        any::<u32>().prop_map(|vcpu| Op::BindIpi { vcpu }),
        any::<u32>().prop_map(|port| Op::Send { port }),
        (any::<u32>(), any::<u32>()).prop_map(|(port, priority)| Op::SetPriority { port, priority }),
        any::<u64>().prop_map(|deadline_ns| Op::SetTimer { deadline_ns }),
        any::<u32>().prop_map(|vcpu| Op::StopPeriodic { vcpu }),
    ]
}

fn push(batch: &mut Batch<CAPACITY>, op: Op) -> Result<Token, BatchFull> {
    match op {
        Op::BindVirq { virq, vcpu } => batch.bind_virq(virq, vcpu).map(Token::Port),
        Op::BindIpi { vcpu } => batch.bind_ipi(vcpu).map(Token::Port),
        Op::Send { port } => batch.send(port).map(Token::Call),
        Op::SetPriority { port, priority } => batch.set_priority(port, priority).map(Token::Call),
        Op::SetTimer { deadline_ns } => batch.set_timer(deadline_ns).map(Token::Call),
        Op::StopPeriodic { vcpu } => batch.stop_periodic_timer(vcpu).map(Token::Call),
    }
}

/// The argument of an event channel operation.
fn argument<T>(entry: &MulticallEntry) -> *mut T {
    std::ptr::with_exposed_provenance_mut(usize::try_from(entry.args[1]).expect("64-bit host"))
}

/// Xen's side: understands an entry, and answers it with `result`; a bind that succeeds gets `port`.
#[expect(non_upper_case_globals, reason = "a constant spelled as Xen spells it, in patterns")]
fn serve(entry: &mut MulticallEntry, result: i64, port: u32) -> Op {
    entry.result = result.cast_unsigned();
    match (entry.op, entry.args[0]) {
        (__HYPERVISOR_event_channel_op, 1) => {
            // SAFETY: the entry of a bind_virq points to its argument, lent to Xen during the call.
            let op = unsafe { &mut *argument::<EvtchnBindVirq>(entry) };
            op.port = port;
            Op::BindVirq { virq: op.virq, vcpu: op.vcpu }
        }
        (__HYPERVISOR_event_channel_op, 7) => {
            // SAFETY: likewise for a bind_ipi.
            let op = unsafe { &mut *argument::<EvtchnBindIpi>(entry) };
            op.port = port;
            Op::BindIpi { vcpu: op.vcpu }
        }
        (__HYPERVISOR_event_channel_op, 4) => {
            // SAFETY: likewise for a send.
            let op = unsafe { &*argument::<EvtchnSend>(entry) };
            Op::Send { port: op.port }
        }
        (__HYPERVISOR_event_channel_op, 13) => {
            // SAFETY: likewise for a set_priority.
            let op = unsafe { &*argument::<EvtchnSetPriority>(entry) };
            Op::SetPriority { port: op.port, priority: op.priority }
        }
        (15, deadline_ns) => Op::SetTimer { deadline_ns },
        (24, 7) => Op::StopPeriodic { vcpu: u32::try_from(entry.args[1]).expect("a vcpu is 32 bits") },
        other => panic!("not an entry of these operations: {other:?}"),
    }
}

fn cases() -> u32 {
    if cfg!(miri) { 8 } else { 256 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_push_reaches_xen_once_and_finds_its_answer(
        ops in prop::collection::vec((op(), -4095i64..4096), 0..2 * CAPACITY),
        rounds in 1usize..3,
    ) {
        let mut batch = Batch::<CAPACITY>::new();
        let mut tokens = Vec::new();
        for (index, &(op, _)) in ops.iter().enumerate() {
            match push(&mut batch, op) {
                Ok(token) => {
                    prop_assert!(index < CAPACITY);
                    tokens.push(token);
                }
                Err(full) => {
                    prop_assert_eq!(full.capacity, CAPACITY);
                    prop_assert!(index >= CAPACITY);
                }
            }
        }
        let taken = &ops[..ops.len().min(CAPACITY)];
        for round in 0..rounds {
            let port_of = |index: usize| u32::try_from(100 * (round + 1) + index).expect("small");
            let mut seen = Vec::new();
            let results = batch.issue_with(|entries| {
                for (index, (entry, &(_, result))) in entries.iter_mut().zip(taken).enumerate() {
                    seen.push(serve(entry, result, port_of(index)));
                }
                assert_eq!(seen.len(), entries.len());
                Ok(())
            }).expect("the fake takes everything");
            prop_assert_eq!(&seen, &taken.iter().map(|&(op, _)| op).collect::<Vec<_>>());
            for (index, (&token, &(_, result))) in tokens.iter().zip(taken).enumerate() {
                match token {
                    Token::Port(token) => {
                        prop_assert_eq!(results.port(token), Errno::check(result).map(|_| port_of(index)));
                    }
                    Token::Call(token) => prop_assert_eq!(results.get(token), Errno::check(result)),
                }
            }
        }
    }
}
