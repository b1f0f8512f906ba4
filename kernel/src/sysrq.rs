//! The letters of `control/sysrq`, as `xl sysrq DOM LETTER` writes them, and what each of them does. Where a letter has a
//! meaning for Linux that comes near one of ours, it is the same letter.
//!
//! A task of its own on vcpu 0: letters are served while a suspend is being prepared, and none keeps `control/shutdown` from
//! being seen.

use core::convert::Infallible;

use xenbus::Store;
use xenbus::sysrq::{Key, NODE, take_key};

use crate::control::{Failed, Lossy, RETRY_NS, answered, complain};
use crate::{dump, timer};

/// For people who ask.
const KEYS: &str = "e=evtchn h=help t=dump w=dump";

/// Takes letters for ever.
pub(crate) async fn serve(store: &'static Store) {
    loop {
        let Err(error) = serve_until_error(store).await;
        complain(NODE, &error);
        timer::sleep(RETRY_NS).await;
    }
}

async fn serve_until_error(store: &'static Store) -> Result<Infallible, Failed> {
    let mut watch = answered(store.watch(NODE, "sysrq")).await?;
    loop {
        // Takes as long as it takes: nobody has to want anything. After a restore there may be a letter too.
        let _ = watch.changed().await.map_err(Failed::Store)?;
        match answered(take_key(store)).await {
            Ok(Some(key)) => act(key),
            Ok(None) => {}
            // It stands there until the next one replaces it. Tried again every second instead, one that we may not clear
            // would fill the console.
            Err(error) => complain(NODE, &error),
        }
    }
}

fn act(key: Key) {
    match key {
        Key::Letter(letter @ 'e') => {
            crate::say!("sysrq", key = letter, does = "evtchn");
            dump::ask_for_ports();
        }
        Key::Letter(letter @ ('t' | 'w')) => {
            crate::say!("sysrq", key = letter, does = "dump");
            dump::every_cpu();
        }
        Key::Letter(letter @ 'h') => crate::say!("sysrq", key = letter, does = "help", keys = KEYS),
        Key::Letter(letter) => crate::say!("control-unknown", node = NODE, value = letter, keys = KEYS),
        Key::Odd(text) => crate::say!("control-unknown", node = NODE, value = Lossy(text.as_bytes()), keys = KEYS),
    }
}
