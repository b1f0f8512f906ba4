//! Messages survive encoding, any cut and any neighbour; what is not a message is an error and not a panic.
#![cfg(not(loom))]

use proptest::collection::vec;
use proptest::prelude::*;
use xenbus::wire::{self, Header};
use xenbus::{Assembler, Incoming, data};

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 3 } else { 500 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn headers_round_trip(kind in any::<u32>(), req_id in any::<u32>(), tx_id in any::<u32>(), len in any::<u32>()) {
        let header = Header { kind, req_id, tx_id, len };
        prop_assert_eq!(Header::decode(&header.encode()), header);
    }

    #[test]
    fn messages_survive_any_cut(
        messages in vec((any::<u32>(), any::<u32>(), vec(any::<u8>(), 0..80)), 0..8),
        cuts in vec(1usize..40, 1..50),
    ) {
        let mut stream = vec![];
        let mut expected = vec![];
        for (kind, req_id, payload) in messages {
            let header = Header { kind, req_id, tx_id: 0, len: u32::try_from(payload.len()).expect("short") };
            stream.extend(header.encode());
            stream.extend(&payload);
            expected.push(Incoming::Message(header, payload));
        }
        let mut assembler = Assembler::default();
        let mut got = vec![];
        let mut rest = &stream[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (mut piece, after) = rest.split_at((*cut).min(rest.len()));
            rest = after;
            while let Some(incoming) = assembler.take(&mut piece).expect("short lengths are in step") {
                got.push(incoming);
            }
            prop_assert!(piece.is_empty());
        }
        prop_assert_eq!(got, expected);
        prop_assert!(assembler.is_idle());
    }

    #[test]
    fn any_payload_is_read_or_refused(bytes in vec(prop_oneof![Just(0), Just(b'0'), Just(b'/'), any::<u8>()], 0..40)) {
        let mut names = vec![];
        if wire::names(&bytes, &mut names).is_ok() {
            let again: Vec<u8> = names.iter().flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect();
            prop_assert_eq!(&again, &bytes);
        }
        if let Ok(part) = wire::part(&bytes) {
            prop_assert!(bytes.starts_with(&[part.generation, b"\0", part.list].concat()));
            prop_assert!(part.last || !part.list.is_empty());
        }
        if let Some((path, token)) = wire::event(&bytes) {
            prop_assert!(bytes.starts_with(&[path, b"\0", token].concat()));
        }
        if let Ok(id) = wire::transaction_id(&bytes) {
            prop_assert!(id != 0);
        }
        if let Ok(string) = wire::one_string(bytes.clone()) {
            prop_assert!(bytes.starts_with(string.as_bytes()) && bytes.len() - string.len() <= 1);
        }
    }

    #[test]
    fn numbers_have_one_spelling(value in any::<u64>(), text in "[0-9+ -]{0,22}") {
        prop_assert_eq!(data::parse_u64(value.to_string().as_bytes()), Ok(value));
        if let Ok(parsed) = data::parse_u64(text.as_bytes()) {
            prop_assert_eq!(parsed.to_string(), text);
        }
    }
}
