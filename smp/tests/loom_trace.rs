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

/// The ring is full, so that every word is stored over another: one that has not come, or come too early, is of another
/// record.
#[test]
fn a_reader_sees_whole_records_only() {
    check(3, 0, || {
        let ring = Arc::new(Ring::<4>::new());
        ring.mark(Mark::Timer, time(0, 0));
        ring.begin(1);
        let marks = [Mark::Arrived, Mark::Released];
        (0..).zip(marks).for_each(|(nth, mark)| ring.mark(mark, time(1, nth)));
        let writer = thread::spawn({
            let ring = ring.clone();
            move || {
                ring.begin(2);
                (0..).zip(marks).for_each(|(nth, mark)| ring.mark(mark, time(2, nth)));
            }
        });
        for number in [1, 2] {
            let Some(record) = ring.read(number) else { continue };
            let read: Vec<_> = record.marks().map(|(mark, stamp)| (mark, stamp.near(0))).collect();
            let written: Vec<_> = (0..).zip(marks).map(|(nth, mark)| (mark, time(number, nth))).collect();
            assert!(written.starts_with(&read), "{read:?} in the record of {number}");
            assert!(number == 2 || read.len() == 2, "the first one was whole before");
        }
        writer.join().expect("the writer has panicked");
    });
}

#[test]
fn who_sees_the_request_sees_its_number() {
    let request = |trace: &Trace, asked: &AtomicBool| {
        assert_eq!(trace.begin(&hosted::masked()), 1);
        trace.gather(&hosted::masked());
        asked.store(true, Relaxed);
    };
    who_is_asked(request, |trace| {
        assert!(trace.join(&hosted::masked()), "it joins the last suspend");
        trace.mark(&hosted::masked(), Mark::Parked, 7);
        let record = trace.record(cpu(1), 1).expect("just begun");
        assert_eq!(record.marks().count(), 1);
    });
}

#[test]
fn who_sees_another_request_has_no_part_in_the_suspend() {
    let request = |trace: &Trace, asked: &AtomicBool| {
        trace.begin(&hosted::masked());
        trace.gather(&hosted::masked());
        trace.aside(|| asked.store(true, Relaxed));
    };
    who_is_asked(request, |trace| assert!(!trace.join(&hosted::masked()), "it joins the suspend"));
}

/// vCPU 0 makes a request; another CPU, if it sees that, answers.
fn who_is_asked(request: fn(&Trace, &AtomicBool), answer: fn(&Trace)) {
    check(3, 0, move || {
        let trace = Arc::new(Trace::new(2));
        let asked = Arc::new(AtomicBool::new(false));
        let follower = thread::spawn({
            let (trace, asked) = (trace.clone(), asked.clone());
            move || {
                let _on = hosted::enter(cpu(1));
                if asked.load(Relaxed) {
                    answer(&trace);
                }
            }
        });
        {
            let _on = hosted::enter(CpuId::BOOT);
            request(&trace, &asked);
        }
        follower.join().expect("the follower has panicked");
    });
}
