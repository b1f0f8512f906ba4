//! Deaths, to see that they are told well. The verdict of these is the `panic` line, or what Xen logs.

use alloc::format;
use core::arch::asm;
use core::hint::black_box;

use percpu::CpuId;

use super::Verdict;
use crate::{cpus, executor, timer};

/// Runs `death` as a task of the last vcpu, and waits for it.
async fn on_last_cpu(death: impl FnOnce() + Send + 'static) -> Verdict {
    let last = CpuId::new(cpus::nr() - 1).expect("there are not more vcpus than CPUs");
    executor::spawn_on(last, async move { death() });
    timer::sleep(20_000_000_000).await;
    Err(format!("vcpu {last} is still alive"))
}

/// A panic on the last vcpu stops all others.
pub(super) async fn panic() -> Verdict {
    on_last_cpu(|| panic!("this is a test")).await
}

/// An exception on the last vcpu ends as a panic does.
pub(super) async fn exception() -> Verdict {
    on_last_cpu(|| {
        // A bare `ud2` could be shared with another function's trap, and the backtrace would lead there.
        // SAFETY: raises #UD, which does not return.
        unsafe { asm!("lea rax, [rip]", "ud2", options(noreturn)) }
    })
    .await
}

/// A stack that overflows hits its guard page. Xen then finds no place for the exception's frame, and destroys the domain.
pub(super) async fn stack_overflow() -> Verdict {
    #[expect(unconditional_recursion, reason = "the stack is to overflow")]
    fn deeper(n: u64) -> u64 {
        let frame = black_box([n; 64]);
        deeper(n + 1) + frame[0]
    }
    on_last_cpu(|| {
        black_box(deeper(0));
    })
    .await
}
