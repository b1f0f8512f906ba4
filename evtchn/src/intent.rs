//! [`Intent`]: what a CPU wants bound. Ports come and go with the domain's lives; intents stay.
//!
//! Device ports are no intents: their peers give the numbers, and their owners bind them again. Plain values only.
#![forbid(unsafe_code)]

use core::fmt;

use percpu::CpuId;
use xen_sys::abi::xen;

/// A virtual interrupt line, numbered as in `xen.h` (`VIRQ_*`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Virq(u8);

impl Virq {
    /// How many there are (`NR_VIRQS`).
    pub const COUNT: usize = xen::NR_VIRQS as usize;

    /// The vcpu's one-shot or periodic timer.
    pub const TIMER: Virq = Virq::known(xen::VIRQ_TIMER);
    /// Somebody asks the guest to show its state.
    pub const DEBUG: Virq = Virq::known(xen::VIRQ_DEBUG);

    pub(crate) const fn known(nr: u32) -> Virq {
        match Virq::new(nr) {
            Some(virq) => virq,
            None => panic!("VIRQ_* is below NR_VIRQS"),
        }
    }

    /// The line with Xen's number `nr`, or `None` from `NR_VIRQS` on.
    pub const fn new(nr: u32) -> Option<Virq> {
        if nr < xen::NR_VIRQS { Some(Virq(nr.to_le_bytes()[0])) } else { None }
    }

    /// The number as Xen has it.
    pub const fn nr(self) -> u32 {
        self.0 as u32
    }

    /// Whether every vcpu has a line of its own. The others exist once in the domain and are bound on vcpu 0
    /// (`virq_is_global`, `arch_virq_is_global` in Xen).
    pub const fn is_per_vcpu(self) -> bool {
        matches!(self.nr(), xen::VIRQ_TIMER | xen::VIRQ_DEBUG | xen::VIRQ_XENOPROF | xen::VIRQ_XENPMU)
    }
}

impl fmt::Display for Virq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.nr() {
            xen::VIRQ_TIMER => f.write_str("timer"),
            xen::VIRQ_DEBUG => f.write_str("debug"),
            nr => write!(f, "virq{nr}"),
        }
    }
}

/// A kind of interrupt from CPU to CPU. Each kind costs every CPU a port.
///
/// There is one: what the sender wants stands in the target's inbox (crate `smp`). Ports for reschedule and
/// rendezvous of their own were turned down: each is one more bind for each vcpu in a resume, and Xen takes a
/// domain-wide lock for every bind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Ipi {
    /// Look into your inbox.
    Call,
}

impl Ipi {
    /// All kinds, in the order of [`Ipi::index`].
    pub const ALL: [Ipi; Ipi::COUNT] = [Ipi::Call];
    /// How many kinds there are.
    pub const COUNT: usize = 1;

    /// Place of this kind in tables with one entry for each.
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Ipi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ipi::Call => f.write_str("ipi-call"),
        }
    }
}

/// Something that a CPU wants a port for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Intent {
    /// A virtual interrupt line.
    Virq(Virq),
    /// Interrupts from other CPUs.
    Ipi(Ipi),
}

impl Intent {
    /// How many there can be.
    pub const COUNT: usize = Virq::COUNT + Ipi::COUNT;

    /// All of them, in the order of [`Intent::index`].
    pub fn all() -> impl Iterator<Item = Intent> {
        (0..Self::COUNT).filter_map(Self::from_index)
    }

    /// Place of this intent in tables with one entry for each: virqs, then ipis.
    pub const fn index(self) -> usize {
        match self {
            Intent::Virq(virq) => virq.0 as usize,
            Intent::Ipi(ipi) => Virq::COUNT + ipi.index(),
        }
    }

    /// The intent at place `index`.
    pub fn from_index(index: usize) -> Option<Intent> {
        if index < Virq::COUNT {
            return u32::try_from(index).ok().and_then(Virq::new).map(Intent::Virq);
        }
        Ipi::ALL.get(index - Virq::COUNT).copied().map(Intent::Ipi)
    }

    /// Whether `cpu` can have it: global virqs are vcpu 0's.
    pub const fn fits(self, cpu: CpuId) -> bool {
        match self {
            Intent::Virq(virq) => virq.is_per_vcpu() || cpu.index() == CpuId::BOOT.index(),
            Intent::Ipi(_) => true,
        }
    }
}

impl fmt::Display for Intent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Intent::Virq(virq) => virq.fmt(f),
            Intent::Ipi(ipi) => ipi.fmt(f),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::hosted::GLOBAL;

    #[test]
    fn index_goes_there_and_back() {
        assert_eq!(Intent::all().count(), Intent::COUNT);
        for (place, intent) in Intent::all().enumerate() {
            assert_eq!(intent.index(), place);
        }
        assert_eq!(Intent::from_index(Intent::COUNT), None);
        assert_eq!(Virq::new(xen::NR_VIRQS), None);
    }

    #[test]
    fn global_virqs_are_for_vcpu_0() {
        let one = CpuId::new(1).expect("1 is below CpuId::MAX");
        assert!(Intent::Virq(Virq::TIMER).fits(one));
        assert!(Intent::Virq(Virq::DEBUG).fits(one));
        assert!(!Intent::Virq(GLOBAL).fits(one));
        assert!(Intent::Virq(GLOBAL).fits(CpuId::BOOT));
        assert!(Intent::Ipi(Ipi::Call).fits(one));
    }
}
