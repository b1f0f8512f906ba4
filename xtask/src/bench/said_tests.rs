//! The tests of [`super::Listener`], on what guests have said.

use super::*;

const EVENT: &str =
    "peer: bench name=self-event unit=cycles abi=fifo where=cpu0 n=4 min=70 p50=72 p90=300 p99=300 p999=300 max=303";

fn heard(side: Side, lines: &[&str]) -> Result<Vec<Figures>, Broken> {
    let mut listener = Listener::new(side);
    for line in lines {
        listener.take(line)?;
    }
    Ok(listener.into_figures())
}

fn why(lines: &[&str]) -> String {
    heard(Side::Linux, lines).expect_err("broken").why
}

#[test]
fn a_bench_is_told_when_its_last_part_has_come() {
    let mut listener = Listener::new(Side::Linux);
    assert_eq!(listener.take("Linux version 6.1.0"), Ok(Heard::Nothing));
    assert_eq!(listener.take(EVENT), Ok(Heard::Nothing));
    assert_eq!(listener.take("peer: bench-hist name=self-event part=1 of=2 buckets=70:1,72:2"), Ok(Heard::Nothing));
    let Ok(Heard::Figures(figures)) = listener.take("peer: bench-hist name=self-event part=2 of=2 buckets=300:1")
    else {
        panic!("it is complete");
    };
    assert_eq!((figures.abi.as_str(), figures.variant.as_str(), figures.p50), ("fifo", "", 72));
    assert_eq!(figures.buckets, [(70, 1), (72, 2), (300, 1)]);
    assert!(!listener.ended());
    assert_eq!(listener.take("peer: bench-end benches=1"), Ok(Heard::End));
    assert!(listener.ended());
}

#[test]
fn the_other_sides_lines_and_other_events_are_passed_over() {
    let others = ["stasis: bench-end benches=9", "peer: \"", "peer: up cpus=2", ""];
    assert_eq!(heard(Side::Linux, &others), Ok(vec![]));
    assert_eq!(heard(Side::Stasis, &["peer: bench-end benches=9", "stasis: online vcpus=2 ns=1"]), Ok(vec![]));
}

#[test]
fn variants_are_told_apart_by_their_benchs_own_keys() {
    let line = "(d3) stasis: bench name=ipi-broadcast unit=cycles abi=2l vcpus=2 other=spin n=1 min=1 p50=1 p90=1 p99=1 p999=1 max=1\r";
    let figures = heard(Side::Stasis, &[line]).expect("well formed");
    assert_eq!(figures[0].variant, "vcpus=2 other=spin");
    let without = "peer: bench name=drain unit=cycles abi=2l n=1 min=1 p50=1 p90=1 p99=1 p999=1 max=1";
    assert_eq!(why(&[without]), "no k=");
}

#[test]
fn what_was_left_out_is_told() {
    let line = "peer: bench-skip name=drain k=1024 ports=900 errno=28";
    assert_eq!(Listener::new(Side::Linux).take(line), Ok(Heard::Remark(line.to_owned())));
}

#[test]
fn an_emulated_tsc_is_told() {
    let heard = |tsc| {
        Listener::new(Side::Stasis)
            .take(&format!("stasis: bench-begin vcpus=2 tsc={tsc} rdtsc=45"))
            .map(|heard| heard != Heard::Nothing)
    };
    assert_eq!((heard("emulated"), heard("native")), (Ok(true), Ok(false)));
}

#[test]
fn every_way_to_be_broken_is_named() {
    let first = "peer: bench-hist name=self-event part=1 of=1 buckets=70:4";
    for (lines, want) in [
        (vec!["peer: bench name=x"], "no unit="),
        (vec!["peer: bench name=\"x"], "the quote of `name=` never closes"),
        (vec!["peer: bench name=x unit=ns"], "figures are in cycles, not ns"),
        (vec![&EVENT.replace("n=4", "n=-4")], "n=-4 is no number"),
        (vec![&EVENT.replace("n=4", "n=0")], "no sample"),
        (vec![&EVENT.replace("p90=300", "p90=71")], "percentiles do not rise"),
        (vec![EVENT, EVENT], "the histogram of self-event is not complete: 0 parts came"),
        (vec![EVENT, "peer: bench-end benches=1"], "the histogram of self-event is not complete: 0 parts came"),
        (vec![first], "a histogram of self-event, which is not being told"),
        (vec![EVENT, first, first], "a histogram of self-event, which is not being told"),
        (vec![EVENT, &first.replace("part=1 of=1", "part=2 of=2")], "part 2 of 2 after part 0"),
        (vec![EVENT, &first.replace("of=1", "of=0")], "part 1 of 0 after part 0"),
        (vec![EVENT, &first.replace("70:4", "70:3")], "the buckets of self-event do not hold n=4 samples"),
        (vec![EVENT, &first.replace("70:4", "72:2,70:2")], "buckets do not rise"),
        (vec![EVENT, &first.replace("70:4", "70")], "\"70\" is no bucket"),
        (vec![EVENT, first, "peer: bench-end benches=2"], "the run says 2 benches, and 1 were heard"),
        (vec![EVENT, first, "peer: bench-end benches=1", "peer: bench-end benches=1"], "the run had ended"),
    ] {
        assert_eq!(why(&lines), want, "{lines:?}");
    }
}
