//! A ring of marks that is read while its owner writes, and the number that everybody's record has.
//!
//! A reader sees whole words only, each in the record that it was written in, and none of what has been written over.
#![cfg(loom)]

mod model;

use loom::sync::Arc;
use loom::sync::atomic::AtomicBool;
use loom::sync::atomic::Ordering::Relaxed;
use loom::thread;
use model::{check, cpu};
use percpu::{CpuId, hosted};
use smp::trace::{Mark, Ring, Trace};

/// The time of a mark tells which record it was made in, and as which of it.
fn time(number: u64, nth: u64) -> u64 {
    number * 10 + nth
}

#[test]
fn a_reader_sees_whole_records_only() {
    check(3, 0, || {
        let ring = Arc::new(Ring::<4>::new());
        ring.begin(1);
        ring.mark(Mark::Arrived, time(1, 0));
        let writer = thread::spawn({
            let ring = ring.clone();
            move || {
                ring.mark(Mark::Stopped, time(1, 1));
                ring.begin(2);
                ring.mark(Mark::Arrived, time(2, 0));
            }
        });
        for number in [1, 2] {
            let Some(record) = ring.read(number) else { continue };
            let marks: Vec<_> = record.marks().map(|(mark, stamp)| (mark, stamp.near(0))).collect();
            let written = [(Mark::Arrived, time(number, 0)), (Mark::Stopped, time(number, 1))];
            assert!(written.starts_with(&marks), "{marks:?} in the record of {number}");
            assert!(number == 2 || !marks.is_empty(), "the beginning of the first one was there before");
        }
        writer.join().expect("the writer has panicked");
    });
}

#[test]
fn who_sees_the_request_sees_its_number() {
    check(3, 0, || {
        let trace = Arc::new(Trace::new(2));
        let asked = Arc::new(AtomicBool::new(false));
        let follower = thread::spawn({
            let (trace, asked) = (trace.clone(), asked.clone());
            move || {
                let _on = hosted::enter(cpu(1));
                if asked.load(Relaxed) {
                    assert!(trace.join(&hosted::masked()), "it joins the last suspend");
                    trace.mark(&hosted::masked(), Mark::Parked, 7);
                    let record = trace.record(cpu(1), 1).expect("just begun");
                    assert_eq!(record.marks().count(), 1);
                }
            }
        });
        {
            let _on = hosted::enter(CpuId::BOOT);
            assert_eq!(trace.begin(&hosted::masked()), 1);
            asked.store(true, Relaxed);
        }
        follower.join().expect("the follower has panicked");
    });
}
