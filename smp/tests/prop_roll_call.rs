//! The roll call with any number of CPUs, in any order of coming, of timer events and of IPIs: one IPI to each, from
//! another CPU, never to one that has not come, and the end is said once, with the right CPU as the slowest.
#![cfg(not(loom))]

use std::cell::RefCell;

use percpu::CpuId;
use proptest::prelude::*;
use smp::{Progress, RollCall};

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("below CpuId::MAX")
}

/// A CPU and what happens to it next, chosen by `choice` among all that can happen.
fn run(nr: usize, choices: &[usize]) -> Result<(), TestCaseError> {
    let roll_call = RollCall::new(nr);
    let mut away: Vec<usize> = (0..nr).collect();
    let mut timers: Vec<usize> = Vec::new();
    let sent = RefCell::new(Vec::new());
    let mut got = vec![0; nr];
    let mut came = vec![false; nr];
    let mut shown = vec![0; nr];
    let (mut completed, mut now, mut last) = (0, 0, None);
    let mut choices = choices.iter().cycle();
    loop {
        let events = away.len() + timers.len() + sent.borrow().len();
        if events == 0 {
            break;
        }
        now += 1;
        let choice = choices.next().map_or(0, |choice| choice % events);
        let (me, progress) = if choice < away.len() {
            let me = away.swap_remove(choice);
            came[me] = true;
            timers.push(me);
            roll_call.restored(cpu(me), |to| sent.borrow_mut().push((me, to.index())));
            (me, Progress::Going)
        } else if choice < away.len() + timers.len() {
            let me = timers.swap_remove(choice - away.len());
            shown[me] += 1;
            (me, roll_call.took_timer(cpu(me), || now))
        } else {
            let (from, to) = sent.borrow_mut().swap_remove(choice - away.len() - timers.len());
            prop_assert!(came[to], "sent to a CPU that has not come");
            prop_assert!(from != to || nr == 1, "an IPI to itself");
            got[to] += 1;
            shown[to] += 1;
            (to, roll_call.took_ipi(cpu(to), || now, |next| sent.borrow_mut().push((to, next.index()))))
        };
        if shown[me] == 2 {
            last = Some((cpu(me), now));
        }
        completed += usize::from(progress == Progress::Complete);
        prop_assert_eq!(roll_call.is_complete(), completed == 1);
    }
    prop_assert!(got.iter().all(|ipis| *ipis == 1), "one IPI to each: {:?}", got);
    prop_assert_eq!(completed, 1);
    prop_assert_eq!(Some(roll_call.slowest()), last);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 8 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_order(
        nr in 1..if cfg!(miri) { 6_usize } else { 40 },
        choices in prop::collection::vec(any::<usize>(), 1..200),
    ) {
        run(nr, &choices)?;
    }
}
