//! Property: whatever line is written is read back as it was; whatever bytes come, reading survives.

use proptest::prelude::*;
use xtask::logfmt::Line;

fn line() -> impl Strategy<Value = Line> {
    let key = "[a-z][a-z0-9_]{0,12}";
    let pairs = proptest::collection::vec((key, any::<String>()), 0..8);
    ("[a-z][a-z-]{0,15}", pairs).prop_map(|(event, pairs)| Line { event, pairs })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 8 } else { 512 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn written_lines_read_back(line in line()) {
        let text = line.to_string();
        prop_assert!(!text.contains(['\n', '\r']), "a line must stay one line: {text:?}");
        prop_assert_eq!(Line::parse(&text), Some(Ok(line)), "{}", text);
    }

    #[test]
    fn any_text_is_survived(text in any::<String>()) {
        // Only that it returns: most of these are broken or not ours.
        let _ = Line::parse(&format!("stasis: {text}"));
        let _ = xtask::contract::read(&text);
    }

    #[test]
    fn what_reads_well_writes_the_same_meaning(text in "[ -~]{0,60}") {
        if let Some(Ok(line)) = Line::parse(&format!("stasis: {text}")) {
            prop_assert_eq!(Line::parse(&line.to_string()), Some(Ok(line)));
        }
    }
}
