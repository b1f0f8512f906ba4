//! Random operations, transactions and suspends over a cut-up, gossiping connection agree with a map.
#![cfg(not(loom))]

use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;
use xen_sys::Errno;
use xen_sys::hypercall::sched::SuspendOutcome;
use xenbus::fake::{self, HOME, Twist, block_on};
use xenbus::{Cause, Scope, Store, StoreError};

const PATHS: [&str; 6] = ["p", "p/a", "p/a/b", "p/c", "q/r/s", "t"];

#[derive(Clone, Debug)]
enum Op {
    Read(&'static str),
    Write(&'static str, String),
    Mkdir(&'static str),
    Rm(&'static str),
    Directory(&'static str),
}

#[derive(Clone, Debug)]
enum Step {
    One(Op),
    /// Some operations in a transaction that commits or aborts.
    Transaction(Vec<Op>, bool),
    Suspend(SuspendOutcome, bool),
}

fn op() -> impl Strategy<Value = Op> {
    let path = || prop::sample::select(&PATHS[..]);
    prop_oneof![
        path().prop_map(Op::Read),
        (path(), "[a-z]{0,3}|[a-z]{1500}").prop_map(|(path, value)| Op::Write(path, value)),
        path().prop_map(Op::Mkdir),
        path().prop_map(Op::Rm),
        path().prop_map(Op::Directory),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => op().prop_map(Step::One),
        2 => (vec(op(), 0..5), any::<bool>()).prop_map(|(ops, commit)| Step::Transaction(ops, commit)),
        1 => (prop::sample::select(&[SuspendOutcome::Resumed, SuspendOutcome::Continued][..]), any::<bool>())
            .prop_map(|(outcome, reset)| Step::Suspend(outcome, reset)),
    ]
}

/// What an operation comes to; directories as sorted lists.
type Outcome = Result<Vec<String>, Errno>;
type Map = BTreeMap<String, String>;

/// The naive store: a node is there if it is in the map.
fn expect(map: &mut Map, op: &Op) -> Outcome {
    fn put(map: &mut Map, path: &str, value: Option<&str>) {
        for (at, _) in path.match_indices('/') {
            map.entry(path[..at].into()).or_default();
        }
        let node = map.entry(path.into()).or_default();
        if let Some(value) = value {
            *node = value.into();
        }
    }
    match op {
        Op::Read(path) => map.get(*path).map(|value| vec![value.clone()]).ok_or(Errno::ENOENT),
        Op::Write(path, value) => {
            put(map, path, Some(value));
            Ok(vec![])
        }
        Op::Mkdir(path) => {
            put(map, path, None);
            Ok(vec![])
        }
        Op::Rm(path) => {
            if let Some((above, _)) = path.rsplit_once('/')
                && !map.contains_key(above)
            {
                return Err(Errno::ENOENT);
            }
            map.retain(|node, _| node != path && !node.starts_with(&format!("{path}/")));
            Ok(vec![])
        }
        Op::Directory(path) => {
            map.get(*path).ok_or(Errno::ENOENT)?;
            let below = map.keys().filter_map(|node| node.strip_prefix(&format!("{path}/")));
            Ok(below.filter(|name| !name.contains('/')).map(String::from).collect())
        }
    }
}

fn outcome(result: Result<Vec<String>, StoreError>) -> Outcome {
    result.map_err(|error| match error.cause {
        Cause::Xen(errno) => errno,
        _ => panic!("{error}"),
    })
}

async fn in_scope(scope: &Scope<'_>, op: &Op) -> Outcome {
    outcome(match op {
        Op::Read(path) => scope.read(path).await.map(|value| vec![value]),
        Op::Write(path, value) => scope.write(path, value).await.map(|()| vec![]),
        Op::Mkdir(path) => scope.mkdir(path).await.map(|()| vec![]),
        Op::Rm(path) => scope.rm(path).await.map(|()| vec![]),
        Op::Directory(path) => scope.directory(path).await,
    })
}

async fn outside(store: &Store, op: &Op) -> Outcome {
    outcome(match op {
        Op::Read(path) => store.read(&format!("{HOME}/{path}")).await.map(|value| vec![value]),
        Op::Write(path, value) => store.write(path, value).await.map(|()| vec![]),
        Op::Mkdir(path) => store.mkdir(path).await.map(|()| vec![]),
        Op::Rm(path) => store.rm(path).await.map(|()| vec![]),
        Op::Directory(path) => store.directory(path).await,
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 3 } else { 300 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_store_is_a_map(
        start in any::<u32>(),
        chunk in prop::sample::select(&[1usize, 5, 17, 1000, 4096][..]),
        gossip in vec(any::<bool>(), 0..20),
        steps in vec(step(), 1..if cfg!(miri) { 6 } else { 25 }),
    ) {
        let (store, mut fake) = fake::pair(start);
        fake.chunk = if cfg!(miri) { 4096 } else { chunk };
        fake.twists.extend(gossip.iter().map(|&event| if event { Twist::AfterEvent } else { Twist::Twice }));
        let mut map = Map::new();
        for step in &steps {
            match step {
                Step::One(op) => {
                    prop_assert_eq!(block_on(&store, &mut fake, outside(&store, op)), expect(&mut map, op));
                }
                Step::Transaction(ops, commit) => {
                    let give_up = StoreError {
                        op: xenbus::wire::Kind::TransactionEnd, object: String::new(), cause: Cause::Lost,
                    };
                    let result = block_on(&store, &mut fake, store.transaction(async |tx| {
                        let mut outcomes = vec![];
                        for op in ops {
                            outcomes.push(in_scope(tx, op).await);
                        }
                        // What others see meanwhile is what was there before.
                        for path in PATHS {
                            let read = Op::Read(path);
                            assert_eq!(outside(&store, &read).await, expect(&mut map.clone(), &read));
                        }
                        if *commit { Ok(outcomes) } else { Err(give_up.clone()) }
                    }));
                    let mut changed = map.clone();
                    let expected: Vec<_> = ops.iter().map(|op| expect(&mut changed, op)).collect();
                    if *commit {
                        prop_assert_eq!(result, Ok(expected));
                        map = changed;
                    } else {
                        prop_assert_eq!(result, Err(give_up));
                    }
                }
                Step::Suspend(outcome, reset_indices) => {
                    let quiet = block_on(&store, &mut fake, store.quiesce()).expect("nobody else");
                    if *outcome == SuspendOutcome::Resumed {
                        fake.restore(*reset_indices);
                        map.clear();
                    }
                    quiet.resume(*outcome);
                }
            }
        }
        fake::settle(&store, &mut fake);
        prop_assert!(store.holds_no_request());
        prop_assert_eq!(store.fault(), None);
        prop_assert_eq!(fake.open_transactions(), 0);
    }
}
