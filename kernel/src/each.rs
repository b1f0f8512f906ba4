//! [`call_for_each`]: the same hypercall for each of many vcpus, several by one multicall.
//!
//! Context: any; no lock, no allocation. Suspend: nothing here is kept.

use core::fmt;

use arrayvec::ArrayVec;
use percpu::CpuId;
use xen_sys::Errno;
use xen_sys::hypercall::{Batch, BatchFull, CallToken, Results};

/// A vcpu of which Xen refused something.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) what: &'static str,
    /// None: a multicall as a whole.
    pub(crate) cpu: Option<CpuId>,
    pub(crate) errno: Errno,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refused { what, cpu, errno } = self;
        match cpu {
            Some(cpu) => write!(f, "{what} of vcpu {cpu}: {errno}"),
            None => write!(f, "multicall for {what}: {errno}"),
        }
    }
}

/// One call for each of `cpus`, `N` by one multicall.
///
/// # Errors
/// The first that Xen refused. What was in the same multicall has been done, what comes after it has not.
pub(crate) fn call_for_each<const N: usize>(
    cpus: impl Iterator<Item = CpuId>,
    what: &'static str,
    push: impl Fn(&mut Batch<N>, u32) -> Result<CallToken, BatchFull>,
    mut issue: impl for<'b> FnMut(&'b mut Batch<N>) -> Result<Results<'b, N>, Errno>,
) -> Result<(), Refused> {
    let mut cpus = cpus.peekable();
    while cpus.peek().is_some() {
        let mut batch = Batch::new();
        let asked: ArrayVec<_, N> = cpus
            .by_ref()
            .take(N)
            .map(|cpu| (cpu, push(&mut batch, cpu.vcpu()).expect("a batch takes as many as it has room for")))
            .collect();
        let results = issue(&mut batch).map_err(|errno| Refused { what, cpu: None, errno })?;
        for (cpu, call) in asked {
            results.get(call).map_err(|errno| Refused { what, cpu: Some(cpu), errno })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use xen_sys::abi::vcpu::VCPUOP_down;
    use xen_sys::abi::xen::__HYPERVISOR_vcpu_op;

    use super::*;

    const CALLS: usize = 8;

    /// Takes all others of `nr` vcpus down before a Xen that does not know the one it `refuses`. Whom it was asked for, and by how many
    /// multicalls.
    fn take_down(nr: usize, refuses: Option<u64>) -> (Result<(), Refused>, Vec<u64>, usize) {
        let (mut asked, mut multicalls) = (Vec::new(), 0);
        let result = call_for_each::<CALLS>(CpuId::first(nr).skip(1), "VCPUOP_down", Batch::down, |batch| {
            multicalls += 1;
            batch.issue_with(|entries| {
                for entry in entries {
                    assert_eq!((entry.op, entry.args[0]), (__HYPERVISOR_vcpu_op, u64::from(VCPUOP_down)));
                    let vcpu = entry.args[1];
                    asked.push(vcpu);
                    entry.result = if refuses == Some(vcpu) { (-2_i64).cast_unsigned() } else { 0 };
                }
                Ok(())
            })
        });
        (result, asked, multicalls)
    }

    #[test]
    fn each_is_asked_for_once() {
        for (nr, multicalls) in [(1, 0), (2, 1), (1 + CALLS, 1), (2 + CALLS, 2), (CpuId::MAX, CpuId::MAX / CALLS)] {
            let (result, asked, issued) = take_down(nr, None);
            assert!(result.is_ok());
            assert!(asked.into_iter().eq(1..nr as u64));
            assert_eq!(issued, multicalls, "{nr} vcpus");
        }
    }

    #[test]
    fn who_is_refused_is_named() {
        let (result, asked, _) = take_down(80, Some(33));
        let error = result.expect_err("it is refused");
        assert_eq!(error.to_string(), "VCPUOP_down of vcpu 33: ENOENT (2)");
        assert!(asked.into_iter().eq(1..=40), "those of its own multicall, and none after it");
    }

    #[test]
    fn a_multicall_that_is_refused_ends_it() {
        let refused = call_for_each::<CALLS>(CpuId::first(80), "VCPUOP_up", Batch::up, |_| Err(Errno::EPERM));
        assert_eq!(refused.expect_err("it is refused").to_string(), "multicall for VCPUOP_up: EPERM (1)");
    }
}
