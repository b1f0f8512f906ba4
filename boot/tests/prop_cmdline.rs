//! The command line against a naive model: whatever it is, parsing says something sensible and loses no word.

#![cfg(not(miri))] // No unsafe code behind it, and the strategies take the interpreter a minute.

use boot::{Abi, Cmdline, LogLevel, Resume, Workload};
use proptest::prelude::*;

const CASES: u32 = 512;

fn word() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        Just("evtchn".to_owned()),
        Just("workload".to_owned()),
        Just("suspend".to_owned()),
        Just("test".to_owned()),
        Just("bench".to_owned()),
        Just("log".to_owned()),
        Just("resume".to_owned()),
        Just("seed".to_owned()),
        "[a-z=]{0,6}",
    ];
    let value = prop_oneof![
        Just("2l".to_owned()),
        Just("fifo".to_owned()),
        Just("idle".to_owned()),
        Just("heartbeat".to_owned()),
        Just("blackout".to_owned()),
        Just("xenstore".to_owned()),
        Just("batched".to_owned()),
        Just("warn".to_owned()),
        "[a-z0-9_,=-]{0,6}",
    ];
    (key, any::<bool>(), value)
        .prop_map(|(key, has_value, value)| if has_value { format!("{key}={value}") } else { key })
}

fn pair(word: &str) -> (&str, &str) {
    word.split_once('=').unwrap_or((word, ""))
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_' | '-'))
}

/// Whether the key is known, and if so whether it takes the value.
fn takes(key: &str, value: &str) -> Option<bool> {
    Some(match key {
        "evtchn" => ["2l", "fifo"].contains(&value),
        "workload" => ["idle", "heartbeat", "blackout"].contains(&value),
        "suspend" => ["xenstore", "evtchn"].contains(&value),
        "resume" => ["parallel", "batched", "serial"].contains(&value),
        "seed" => value.parse::<u64>().is_ok(),
        "log" => ["error", "warn", "info", "debug"].contains(&value),
        "test" => is_name(value),
        "bench" => value.split(',').all(is_name),
        _ => return None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_word_counts(words in proptest::collection::vec(word(), 0..8)) {
        let text = words.join(" ");
        let pairs: Vec<_> = words.iter().filter(|word| !word.is_empty()).map(|word| pair(word)).collect();
        let bad = pairs.iter().find(|(key, value)| takes(key, value) == Some(false));
        match (Cmdline::parse(&text), bad) {
            (Err(error), Some((key, value))) => prop_assert_eq!((error.key, error.value), (*key, *value)),
            (Ok(line), None) => {
                let unknown: Vec<_> =
                    pairs.iter().filter(|(key, value)| takes(key, value).is_none()).map(|(key, _)| *key).collect();
                prop_assert_eq!(line.unknown_keys().collect::<Vec<_>>(), unknown);
                let last = |wanted: &str| pairs.iter().rev().find(|(key, _)| *key == wanted).map(|(_, value)| *value);
                prop_assert_eq!(line.test, last("test"));
                prop_assert_eq!(line.bench, last("bench"));
                prop_assert_eq!(line.abi == Abi::Fifo, last("evtchn") == Some("fifo"));
                prop_assert_eq!(line.workload == Workload::Heartbeat, last("workload") == Some("heartbeat"));
                prop_assert_eq!(line.workload == Workload::Blackout, last("workload") == Some("blackout"));
                prop_assert_eq!(line.log == LogLevel::Warn, last("log") == Some("warn"));
                prop_assert_eq!(line.resume == Resume::Batched, last("resume") == Some("batched"));
            }
            (parsed, bad) => prop_assert!(false, "{parsed:?}, but {bad:?}"),
        }
    }

    #[test]
    fn any_text_is_survived(text in "\\PC{0,200}") {
        let _ = Cmdline::parse(&text).map(|line| line.unknown_keys().count());
    }
}
