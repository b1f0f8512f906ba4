//! `device/suspend/event-channel`: the number of the port by which the toolstack may ask a domain to suspend.
//!
//! Logic over the client, for one task. libxl makes the node, empty and writable for the domain, and asks through
//! `control/shutdown` as long as it is empty; a restored domain has an empty one again. What the port is and does is the kernel's.
//!
//! Source: tools/libs/light/libxl_create.c (libxl__domain_make), libxl_dom_suspend.c (libxl__domain_suspend_init).
#![forbid(unsafe_code)]

use crate::error::StoreError;
use crate::store::Store;
use alloc::string::ToString;

/// The node, relative to the domain's home.
pub const NODE: &str = "device/suspend/event-channel";

/// Offers `port`. To be called once it can be bound: from then on no other way is used, and a port that cannot be bound fails
/// every save.
/// # Errors
/// As for a write; `EACCES` where the toolstack has made no such node.
pub async fn offer(store: &Store, port: u32) -> Result<(), StoreError> {
    store.write(NODE, &port.to_string()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Cause;
    use crate::fake::{self, Twist, block_on};
    use xen_sys::Errno;

    #[test]
    fn the_port_is_plain_decimal_and_the_last_one_holds() {
        let (store, mut fake) = fake::pair(0);
        fake.set(NODE, b"");
        for (port, text) in [(3, &b"3"[..]), (131_071, b"131071")] {
            assert_eq!(block_on(&store, &mut fake, offer(&store, port)), Ok(()));
            assert_eq!(fake.value(NODE), Some(text));
        }
    }

    #[test]
    fn a_node_that_is_not_ours_is_an_error_and_stays_as_it_is() {
        let (store, mut fake) = fake::pair(0);
        fake.set(NODE, b"");
        fake.twists.push_back(Twist::Error("EACCES"));
        let error = block_on(&store, &mut fake, offer(&store, 3)).expect_err("the write is refused");
        assert_eq!(error.cause, Cause::Xen(Errno::EACCES));
        assert_eq!(fake.value(NODE), Some(&b""[..]));
    }
}
