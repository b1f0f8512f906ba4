//! [`Handlers`]: what runs for each virq and ipi. Filled at boot, read-only from then on, the same on every CPU.
//!
//! That a handler exists is what makes an [`Intent`] wanted: a separate list of what to bind was turned down,
//! because the two could disagree. Virqs that come and go at run time have no user yet.
#![forbid(unsafe_code)]

use percpu::{CpuId, Masked};

use crate::intent::{Intent, Ipi, Virq};

/// Runs in the upcall, on the CPU that the event was for. It may not block.
pub type Handler = fn(&Masked);

/// One handler for each [`Intent`] that shall be bound.
pub struct Handlers {
    by_intent: [Option<Handler>; Intent::COUNT],
    /// Those of CPU 0 alone, a bit for each.
    of_boot: u32,
}

const _: () = assert!(Intent::COUNT <= 32, "a bit for each");

impl Handlers {
    /// No handlers, so nothing will be bound.
    pub const fn new() -> Handlers {
        Handlers { by_intent: [None; Intent::COUNT], of_boot: 0 }
    }

    /// Runs `handler` for `virq`: on every CPU, or on CPU 0 where the line is a global one.
    #[must_use]
    pub const fn virq(self, virq: Virq, handler: Handler) -> Handlers {
        self.with(Intent::Virq(virq), handler)
    }

    /// Runs `handler` for `virq` on CPU 0 alone, though every vcpu has a line of it: a port less for each of the others.
    #[must_use]
    pub const fn virq_of_boot(mut self, virq: Virq, handler: Handler) -> Handlers {
        let intent = Intent::Virq(virq);
        self.of_boot |= 1 << intent.index();
        self.with(intent, handler)
    }

    /// Runs `handler` on every CPU for `ipi`.
    #[must_use]
    pub const fn ipi(self, ipi: Ipi, handler: Handler) -> Handlers {
        self.with(Intent::Ipi(ipi), handler)
    }

    const fn with(mut self, intent: Intent, handler: Handler) -> Handlers {
        self.by_intent[intent.index()] = Some(handler);
        self
    }

    pub(crate) fn get(&self, intent: Intent) -> Option<Handler> {
        self.by_intent[intent.index()]
    }

    /// The handler of the intent whose [index](Intent::index) is `place`.
    pub(crate) fn at(&self, place: usize) -> Option<Handler> {
        self.by_intent.get(place).copied().flatten()
    }

    /// What `cpu` wants bound.
    pub fn intents(&self, cpu: CpuId) -> impl Iterator<Item = Intent> {
        let here = move |intent: Intent| cpu == CpuId::BOOT || self.of_boot & 1 << intent.index() == 0;
        Intent::all().filter(move |intent| self.get(*intent).is_some() && intent.fits(cpu) && here(*intent))
    }
}

impl Default for Handlers {
    fn default() -> Handlers {
        Handlers::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::hosted::GLOBAL;

    #[test]
    fn intents_are_what_has_a_handler() {
        fn nothing(_: &Masked) {}
        let handlers = Handlers::new().virq(Virq::TIMER, nothing).virq(GLOBAL, nothing).ipi(Ipi::Call, nothing);
        let intents = |cpu| handlers.intents(CpuId::new(cpu).expect("below CpuId::MAX")).collect::<Vec<_>>();
        let (timer, global) = (Intent::Virq(Virq::TIMER), Intent::Virq(GLOBAL));
        assert_eq!(intents(0), [timer, global, Intent::Ipi(Ipi::Call)]);
        assert_eq!(intents(1), [timer, Intent::Ipi(Ipi::Call)]);
        assert_eq!(Handlers::default().intents(CpuId::BOOT).count(), 0);
        let debug = Intent::Virq(Virq::DEBUG);
        let handlers = Handlers::new().virq(Virq::TIMER, nothing).virq_of_boot(Virq::DEBUG, nothing);
        let intents = |cpu| handlers.intents(CpuId::new(cpu).expect("below CpuId::MAX")).collect::<Vec<_>>();
        assert_eq!(intents(0), [timer, debug]);
        assert_eq!(intents(1), [timer]);
    }
}
