//! [`Patience`]: the end of a wait for somebody who may never come, where no clock can be relied on.
//!
//! Counted in TSC ticks, as the clock is there only after `vcpu_info` has been placed, and a dying kernel may not have one.
//! And in looks: a wait whose caller gives up its processor between two looks ends even if the TSC stood still.
//!
//! Context: any; a value on the stack.

/// 5 s at 4 GHz, 20 s at 1 GHz.
const TICKS: u64 = 20_000_000_000;
/// Second line of defence; a look that gives up the processor costs a hypercall, so these take longer than the ticks.
const LOOKS: u32 = 50_000_000;

/// A wait that has begun.
pub(crate) struct Patience {
    since: u64,
    looks_left: u32,
}

impl Patience {
    /// Begins when the TSC is `tsc`.
    pub(crate) fn new(tsc: u64) -> Patience {
        Patience { since: tsc, looks_left: LOOKS }
    }

    /// Whether to look once more.
    pub(crate) fn lasts(&mut self, tsc: u64) -> bool {
        self.looks_left = self.looks_left.saturating_sub(1);
        // Another processor's TSC may be a little behind.
        self.looks_left != 0 && tsc.saturating_sub(self.since) < TICKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Patience {
        pub(crate) fn with_looks(looks: u32) -> Patience {
            Patience { looks_left: looks, ..Patience::new(0) }
        }
    }

    #[test]
    fn ends_by_the_clock() {
        let mut patience = Patience::new(1000);
        assert!(patience.lasts(900), "a processor whose TSC is behind");
        assert!(patience.lasts(1000 + TICKS - 1));
        assert!(!patience.lasts(1000 + TICKS));
    }

    #[test]
    fn ends_although_the_clock_stands_still() {
        let mut patience = Patience::with_looks(1000);
        assert_eq!((0..5000).filter(|_| patience.lasts(0)).count(), 999);
        assert_ne!(Patience::new(7).looks_left, 0);
    }
}
