//! The order of suspend and resume, read in one place. [`suspend`](crate::suspend) follows it.
//!
//! What comes after a step in a table may need it; the tables say what each needs, and a test holds their order to it.
//! What is undone after a failure or a `Continued` is undone in reverse.
//!
//! Turned down: notifier lists with priorities, to which each part of the kernel adds itself: no place then shows the
//! order, and the order is all there is to get right.
#![forbid(unsafe_code)]

/// A step before the suspend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Prepare {
    /// Upcall masks 1 and nothing pending in all 32 legacy slots of `shared_info`. A restore takes vCPU 0's
    /// from there, and without this an upcall strikes it in a domain that is not ready for any.
    MaskLegacySlots,
    /// The demultiplexer lets go of `shared_info`.
    DetachEvents,
    /// `shared_info` out of every root: else the saver drops that whole table page, in silence.
    UnmapSharedInfo,
    /// `start_info`'s mfns of store and console to pfns, as the toolstack reads them.
    MfnsToPfns,
    /// All others down, in Xen's eyes: the toolstack reads, sends and sets no context of theirs, a millisecond or more for each, while
    /// nobody runs; and a restore cannot strike them, as it does not start them.
    TakeOthersDown,
}

/// A step in a new domain, before anybody else is released.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TakeOver {
    /// The new `shared_info`, by the address in `start_info`.
    MapSharedInfo,
    /// As [`Prepare::MaskLegacySlots`], in the new page: placing a `vcpu_info` copies the mask.
    MaskLegacySlots,
    /// vCPU 0's own `vcpu_info`, and with it a clock.
    PlaceBootVcpuInfo,
    /// The guest's time goes on from where it was.
    RebaseClock,
    /// `p2m_cr3` names an mfn of the old domain; nobody notices before the next save.
    PublishP2m,
    /// The demultiplexer takes the new page; every old port means nothing from here on. And the gate's port is made, before anybody binds
    /// many: it has to be in the event pages that are there.
    AttachEvents,
    /// Where vCPU 0 is to do so: the others' virqs and IPIs are bound for them, masked. By itself each binds its own, later.
    BindForOthers,
    /// All others: `vcpu_info` placed, and what they start with. Each is up for a moment, in its wait at the gate, and down again: after the
    /// release they are brought up, and not before, so that vCPU 0's processor is its own.
    InitialiseOthers,
}

/// A step of every CPU after the release.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EachCpu {
    /// In one multicall: runstate area, periodic timer stopped, virqs and IPIs bound.
    /// Then the ports are published.
    Bind,
    /// One look into the inbox. In a new domain events of what was posted before are lost; in the same one an IPI of
    /// the last roll call may still lie there, and would pass for one of the next.
    ServeInbox,
    /// `RollCall::restored`. In one multicall: the timer is set, to fire at once, and whoever is to have an IPI is sent it.
    /// What has come by then is taken; upcalls are unmasked after it.
    JoinRollCall,
}

/// A line of a table: a step, and which earlier ones of the same table it needs.
#[derive(Clone, Copy, Debug)]
pub struct Row<S: 'static> {
    /// The step.
    pub step: S,
    /// Steps that must have been done.
    pub needs: &'static [S],
}

/// Before the hypercall.
pub const PREPARE: [Row<Prepare>; 5] = [
    Row { step: Prepare::MaskLegacySlots, needs: &[] },
    Row { step: Prepare::DetachEvents, needs: &[] },
    Row { step: Prepare::UnmapSharedInfo, needs: &[Prepare::MaskLegacySlots, Prepare::DetachEvents] },
    Row { step: Prepare::MfnsToPfns, needs: &[] },
    Row { step: Prepare::TakeOthersDown, needs: &[] },
];

/// In a new domain.
pub const TAKE_OVER: [Row<TakeOver>; 8] = [
    Row { step: TakeOver::MapSharedInfo, needs: &[] },
    Row { step: TakeOver::MaskLegacySlots, needs: &[TakeOver::MapSharedInfo] },
    Row { step: TakeOver::PlaceBootVcpuInfo, needs: &[TakeOver::MaskLegacySlots] },
    Row { step: TakeOver::RebaseClock, needs: &[TakeOver::PlaceBootVcpuInfo, TakeOver::MapSharedInfo] },
    Row { step: TakeOver::PublishP2m, needs: &[TakeOver::MapSharedInfo] },
    Row { step: TakeOver::AttachEvents, needs: &[TakeOver::MapSharedInfo] },
    Row { step: TakeOver::BindForOthers, needs: &[TakeOver::AttachEvents] },
    Row { step: TakeOver::InitialiseOthers, needs: &[TakeOver::MaskLegacySlots, TakeOver::AttachEvents] },
];

/// Every CPU, in a new domain.
pub const RESUMED: [Row<EachCpu>; 3] = [
    Row { step: EachCpu::Bind, needs: &[] },
    Row { step: EachCpu::ServeInbox, needs: &[EachCpu::Bind] },
    Row { step: EachCpu::JoinRollCall, needs: &[EachCpu::Bind, EachCpu::ServeInbox] },
];

/// Every CPU, in the domain that it was in before.
pub const CONTINUED: [Row<EachCpu>; 2] =
    [Row { step: EachCpu::ServeInbox, needs: &[] }, Row { step: EachCpu::JoinRollCall, needs: &[EachCpu::ServeInbox] }];

#[cfg(all(test, not(loom)))]
mod tests {
    use std::fmt;

    use super::*;

    /// Each step is there once, and after all that it needs.
    fn in_order<S: Copy + PartialEq + fmt::Debug>(rows: &[Row<S>]) {
        for (n, row) in rows.iter().enumerate() {
            let before = &rows[..n];
            assert!(before.iter().all(|earlier| earlier.step != row.step), "{:?} is there twice", row.step);
            for need in row.needs {
                assert!(before.iter().any(|earlier| earlier.step == *need), "{:?} comes before {need:?}", row.step);
            }
        }
    }

    #[test]
    fn every_step_comes_after_what_it_needs() {
        in_order(&PREPARE);
        in_order(&TAKE_OVER);
        in_order(&RESUMED);
        in_order(&CONTINUED);
    }
}
