//! `cpu/N/availability`: which of its vcpus the toolstack wants a domain to run.
//!
//! Logic over the client, for one task. libxl writes `online` or `offline` for each vcpu that the domain has, at the start
//! (`vcpus=` of them online, of `maxvcpus=`) and at `xl vcpu-set`, in one transaction; it waits for nothing, and there is
//! nothing to answer. A restored domain finds them as they were when it was saved.
//!
//! Source: tools/libs/light/libxl_dom.c (libxl__build_post), libxl_domain.c (libxl__set_vcpuonline_xenstore).
#![forbid(unsafe_code)]

use crate::engine::SENT_MAX;
use crate::error::{StoreError, Text};
use crate::store::Store;
use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::pin::Pin;
use core::task::Poll;
use xen_sys::Errno;

/// What to watch, relative to the domain's home.
pub const NODE: &str = "cpu";

/// What stands at a vcpu's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Availability {
    /// It is to run.
    Online,
    /// It is to be down.
    Offline,
    /// There is no node: nobody cares.
    Absent,
    /// Something that we do not know, to be named.
    Unknown(Text),
}

impl Availability {
    /// Reads a value of the node. Words are taken exactly.
    pub fn parse(value: &[u8]) -> Self {
        match value {
            b"online" => Self::Online,
            b"offline" => Self::Offline,
            other => Self::Unknown(Text::new(other)),
        }
    }
}

/// The vcpu that a change at `path` is about; `None` if it may be about any.
pub fn vcpu_of(path: &str) -> Option<u32> {
    let rest = path.strip_prefix(NODE)?.strip_prefix('/')?;
    let number = rest.split('/').next()?;
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| number.parse().ok())?
}

/// What stands at the node of `vcpu`.
/// # Errors
/// As for a read, but that there is no node.
pub async fn availability(store: &Store, vcpu: u32) -> Result<Availability, StoreError> {
    match store.read_bytes(&format!("{NODE}/{vcpu}/availability")).await {
        Ok(value) => Ok(Availability::parse(&value)),
        Err(error) if error.is(Errno::ENOENT) => Ok(Availability::Absent),
        Err(error) => Err(error),
    }
}

/// Hands the answer for each of `vcpus` to `seen`, in no order. As many reads are under way at once as the store sends.
pub async fn availability_of_all(
    store: &Store,
    vcpus: impl Iterator<Item = u32>,
    mut seen: impl FnMut(u32, Result<Availability, StoreError>),
) {
    type Read<'a> = Pin<Box<dyn Future<Output = Result<Availability, StoreError>> + Send + 'a>>;
    let mut left = vcpus;
    let mut under_way: Vec<(u32, Read<'_>)> = Vec::new();
    poll_fn(|context| {
        loop {
            let room = SENT_MAX - under_way.len();
            under_way
                .extend(left.by_ref().take(room).map(|vcpu| (vcpu, Box::pin(availability(store, vcpu)) as Read<'_>)));
            let before = under_way.len();
            under_way.retain_mut(|(vcpu, read)| match read.as_mut().poll(context) {
                Poll::Ready(answer) => {
                    seen(*vcpu, answer);
                    false
                }
                Poll::Pending => true,
            });
            if under_way.is_empty() && before < SENT_MAX {
                return Poll::Ready(());
            }
            if under_way.len() == before {
                return Poll::Pending;
            }
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{self, Twist, block_on};
    use alloc::vec;

    #[test]
    fn words_are_taken_exactly() {
        assert_eq!(Availability::parse(b"online"), Availability::Online);
        assert_eq!(Availability::parse(b"offline"), Availability::Offline);
        for odd in [&b""[..], b"Online", b"online\n", b"1", b"\xff"] {
            assert_eq!(Availability::parse(odd), Availability::Unknown(Text::new(odd)), "{odd:?}");
        }
    }

    #[test]
    fn a_change_names_its_vcpu() {
        assert_eq!(vcpu_of("cpu/0/availability"), Some(0));
        assert_eq!(vcpu_of("cpu/1023/availability"), Some(1023));
        assert_eq!(vcpu_of("cpu/7"), Some(7));
        for any in ["cpu", "cpu/", "cpu//availability", "cpu/x/availability", "cpu/+1", "cpu/99999999999", "cpus/1", ""]
        {
            assert_eq!(vcpu_of(any), None, "{any}");
        }
    }

    #[test]
    fn each_is_read_once_however_many() {
        let (store, mut fake) = fake::pair(0);
        for nr in [0, 1, SENT_MAX - 1, SENT_MAX, SENT_MAX + 1, 40] {
            let nr = u32::try_from(nr).expect("small");
            for vcpu in 0..nr {
                fake.set(&format!("cpu/{vcpu}/availability"), if vcpu % 3 == 0 { b"offline" } else { b"online" });
            }
            let mut answers = vec![];
            let all = availability_of_all(&store, 0..nr, |vcpu, answer| answers.push((vcpu, answer)));
            block_on(&store, &mut fake, all);
            answers.sort_by_key(|(vcpu, _)| *vcpu);
            let want = |vcpu| if vcpu % 3 == 0 { Availability::Offline } else { Availability::Online };
            assert_eq!(answers, (0..nr).map(|vcpu| (vcpu, Ok(want(vcpu)))).collect::<Vec<_>>());
        }
    }

    #[test]
    fn one_that_cannot_be_read_keeps_no_other_from_its_answer() {
        let (store, mut fake) = fake::pair(0);
        fake.set("cpu/0/availability", b"online");
        fake.set("cpu/2/availability", b"sideways");
        fake.twists.extend([Twist::Error("EACCES")]);
        let mut answers = vec![];
        block_on(
            &store,
            &mut fake,
            availability_of_all(&store, 0..3, |vcpu, answer| answers.push((vcpu, answer.ok()))),
        );
        answers.sort_by_key(|(vcpu, _)| *vcpu);
        let odd = Availability::Unknown(Text::new(b"sideways"));
        assert_eq!(answers, [(0, None), (1, Some(Availability::Absent)), (2, Some(odd))]);
    }
}
