//! What guests' benches say, told and heard again; and that nothing a console can hold breaks the one who hears it.

use proptest::prelude::*;
use xtask::bench::Side;
use xtask::bench::said::{Figures, Heard, Listener};

const CASES: u32 = if cfg!(miri) { 4 } else { 256 };

fn config() -> ProptestConfig {
    ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() }
}

/// Figures of a bench without variants, with a histogram of the given buckets.
fn figures(buckets: Vec<(u64, u64)>) -> Figures {
    let (low, high) = (buckets[0].0, buckets[buckets.len() - 1].0);
    Figures {
        name: "self-event".into(),
        abi: "2l".into(),
        n: buckets.iter().map(|(_, count)| count).sum(),
        min: low,
        p50: low,
        p90: high,
        p99: high,
        p999: high,
        max: high,
        buckets,
        ..Figures::default()
    }
}

/// As a guest tells it, with so many buckets on a line.
fn told(figures: &Figures, on_a_line: usize) -> Vec<String> {
    let Figures { name, abi, n, min, p50, p90, p99, p999, max, buckets, .. } = figures;
    let mut lines = vec![format!(
        "peer: bench name={name} unit=cycles abi={abi} where=cpu0 n={n} min={min} p50={p50} p90={p90} p99={p99} p999={p999} \
         max={max}"
    )];
    let of = buckets.chunks(on_a_line).len();
    for (index, part) in buckets.chunks(on_a_line).enumerate() {
        let pairs: Vec<String> = part.iter().map(|(low, count)| format!("{low}:{count}")).collect();
        lines.push(format!("peer: bench-hist name={name} part={} of={of} buckets={}", index + 1, pairs.join(",")));
    }
    lines
}

fn some_figures() -> impl Strategy<Value = Figures> {
    proptest::collection::btree_map(any::<u64>(), 1_u64..1 << 32, 1..80)
        .prop_map(|buckets| figures(buckets.into_iter().collect()))
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_is_told_is_heard(all in proptest::collection::vec(some_figures(), 1..4), on_a_line in 1_usize..30) {
        let mut listener = Listener::new(Side::Linux);
        for figures in &all {
            let lines = told(figures, on_a_line);
            for (index, line) in lines.iter().enumerate() {
                let heard = listener.take(line).expect("well formed");
                let want = if index + 1 == lines.len() { Heard::Figures(figures) } else { Heard::Nothing };
                prop_assert_eq!(heard, want);
            }
        }
        prop_assert_eq!(listener.take(&format!("peer: bench-end benches={}", all.len())), Ok(Heard::End));
        prop_assert_eq!(listener.into_figures(), all);
    }

    #[test]
    fn a_lost_line_is_noticed(figures in some_figures(), lost in any::<proptest::sample::Index>()) {
        let mut lines = told(&figures, 7);
        lines.remove(lost.index(lines.len()));
        lines.push("peer: bench-end benches=1".to_owned());
        let mut listener = Listener::new(Side::Linux);
        prop_assert!(lines.iter().any(|line| listener.take(line).is_err()));
    }

    #[test]
    fn no_text_panics_or_ends_a_run(lines in proptest::collection::vec("(peer: bench(-hist|-end)?)?[ -~]{0,80}", 0..20)) {
        let mut listener = Listener::new(Side::Linux);
        for line in &lines {
            let ends = matches!(listener.take(line), Ok(Heard::End));
            prop_assert!(!ends || line.contains("benches="), "{}", line);
        }
    }

    #[test]
    fn a_changed_byte_is_an_error_or_another_figure(figures in some_figures(), at in any::<proptest::sample::Index>(), byte in 33_u8..127) {
        let mut text = told(&figures, 80).join("\n");
        let at = at.index(text.len());
        text.replace_range(at..=at, std::str::from_utf8(&[byte]).expect("ASCII"));
        let mut listener = Listener::new(Side::Linux);
        for line in text.lines() {
            if let Ok(Heard::Figures(heard)) = listener.take(line) {
                // What is believed adds up, whatever it is.
                prop_assert_eq!(heard.n, heard.buckets.iter().map(|(_, count)| count).sum::<u64>());
            }
        }
    }
}
