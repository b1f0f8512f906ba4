//! A set of CPUs agrees with a `BTreeSet` of numbers after any history, and what it prints says the same again.
#![cfg(not(loom))]

use std::collections::BTreeSet;

use percpu::{CpuId, CpuSet};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Op {
    Insert(usize),
    Remove(usize),
}

/// Numbers that lie close together, so that there are ranges, and at both ends of words and of the set.
fn number() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..12_usize, 2 => 58..70_usize, 1 => CpuId::MAX - 3..CpuId::MAX, 1 => 0..CpuId::MAX]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![2 => number().prop_map(Op::Insert), 1 => number().prop_map(Op::Remove)]
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("the strategy stays below CpuId::MAX")
}

/// The numbers of `3,7-9` or `none`, and whether the text is the only one for them: rising, and no two parts touch.
fn parse(text: &str) -> (BTreeSet<usize>, bool) {
    if text == "none" {
        return (BTreeSet::new(), true);
    }
    let number = |text: &str| text.parse::<usize>().expect("a number");
    let ranges = text.split(',').map(|part| match part.split_once('-') {
        Some((first, last)) => (number(first), number(last), number(first) < number(last)),
        None => (number(part), number(part), true),
    });
    let ranges: Vec<_> = ranges.collect();
    let apart = ranges.windows(2).all(|two| two[0].1 + 1 < two[1].0);
    (ranges.iter().flat_map(|(first, last, _)| *first..=*last).collect(), apart && ranges.iter().all(|range| range.2))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_set_is_a_set(ops in prop::collection::vec(op(), 0..if cfg!(miri) { 12 } else { 100 }), first in 0..200_usize) {
        let (mut set, mut model) = (CpuSet::first(first), (0..first).collect::<BTreeSet<_>>());
        for op in ops {
            match op {
                Op::Insert(n) => prop_assert_eq!(set.insert(cpu(n)), model.insert(n)),
                Op::Remove(n) => prop_assert_eq!(set.remove(cpu(n)), model.remove(&n)),
            }
            prop_assert_eq!((set.len(), set.is_empty()), (model.len(), model.is_empty()));
        }
        prop_assert!(set.iter().map(CpuId::index).eq(model.iter().copied()));
        prop_assert!((0..CpuId::MAX).all(|n| set.contains(cpu(n)) == model.contains(&n)));
        prop_assert_eq!(&model.iter().map(|n| cpu(*n)).collect::<CpuSet>(), &set);
        prop_assert_eq!(parse(&set.to_string()), (model, true));
    }
}
