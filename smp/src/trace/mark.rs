//! [`Mark`]: a moment in a suspend, as one CPU saw it; and [`Stage`]: what the time before it was spent on.
//!
//! A mark says that something *has been reached*. So the time between two marks belongs to the later one: what it took
//! to get there. Stages are for pictures and sums; several marks belong to each.
//!
//! The order of the table is the order in which they come, but for vCPU 0, which sees timer and IPI when it unmasks, and
//! for a CPU whose task saw the request before its IPI came: it has no `Kicked`.
#![forbid(unsafe_code)]

use core::fmt;

use crate::order::{EachCpu, Prepare, TakeOver};

/// A moment that has been reached. Its number is what a ring stores: a mark is made without looking anything up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Mark {
    /// vCPU 0: the request to suspend was seen.
    Asked = 1,
    /// vCPU 0: the request has been acknowledged.
    Answered,
    /// vCPU 0: nothing of xenstore's is under way.
    Quiet,
    /// vCPU 0: the rendezvous begins; everybody is out of the last one.
    Begun,
    /// vCPU 0: everybody else has been rung.
    Rung,
    /// Another CPU: the IPI of the rendezvous came, and found it running or asleep.
    Kicked,
    /// Another CPU: its task is at an await, and it parks.
    Parked,
    /// Another CPU: it waits, and serves calls until all have arrived.
    Arrived,
    /// vCPU 0: all have arrived.
    AllArrived,
    /// vCPU 0: and they wait, and serve nobody any more.
    AllStopped,
    /// vCPU 0: [`Prepare::MaskLegacySlots`] is done.
    LegacyMasked,
    /// vCPU 0: [`Prepare::DetachEvents`] is done.
    EventsDetached,
    /// vCPU 0: [`Prepare::UnmapSharedInfo`] is done.
    SharedInfoUnmapped,
    /// vCPU 0: [`Prepare::MfnsToPfns`] is done.
    RingsToPfns,
    /// vCPU 0: [`Prepare::TakeOthersDown`] is done.
    OthersDown,
    /// vCPU 0: the next instruction is the hypercall.
    Suspending,
    /// vCPU 0: the first instruction after it.
    Back,
    /// vCPU 0: [`Prepare::TakeOthersDown`] is undone.
    OthersUpAgain,
    /// vCPU 0: [`Prepare::MfnsToPfns`] is undone.
    RingsToMfns,
    /// vCPU 0: [`Prepare::UnmapSharedInfo`] is undone.
    SharedInfoRemapped,
    /// vCPU 0: [`Prepare::DetachEvents`] is undone.
    EventsReattached,
    /// vCPU 0: [`Prepare::MaskLegacySlots`] is undone, for which there is nothing to do.
    LegacyLeft,
    /// vCPU 0: [`TakeOver::MapSharedInfo`] is done.
    SharedInfoMapped,
    /// vCPU 0: [`TakeOver::MaskLegacySlots`] is done.
    NewLegacyMasked,
    /// vCPU 0: [`TakeOver::PlaceBootVcpuInfo`] is done.
    VcpuInfoPlaced,
    /// vCPU 0: [`TakeOver::RebaseClock`] is done.
    ClockRebased,
    /// vCPU 0: [`TakeOver::PublishP2m`] is done.
    P2mPublished,
    /// vCPU 0: [`TakeOver::AttachEvents`] is done.
    EventsAttached,
    /// vCPU 0: [`TakeOver::BindForOthers`] is done, or left to the others.
    OthersBound,
    /// vCPU 0: [`TakeOver::InitialiseOthers`] is done.
    OthersInitialised,
    /// vCPU 0: it has released the others.
    AllReleased,
    /// vCPU 0: all others are brought up in a new domain.
    OthersUp,
    /// Another CPU: it has seen that it is released.
    Released,
    /// [`EachCpu::Bind`] is done.
    Bound,
    /// [`EachCpu::ServeInbox`] is done.
    InboxServed,
    /// [`EachCpu::JoinRollCall`] is done.
    Joined,
    /// vCPU 0: the ports of console and xenstore are bound.
    Connected,
    /// vCPU 0: xenstore goes on, and with it every task that waited for it.
    Thawed,
    /// The first timer event.
    Timer,
    /// The first IPI of another CPU.
    Ipi,
    /// Another CPU: it runs its first task.
    FirstTask,
    /// vCPU 0: every vcpu has taken a timer event and an IPI.
    AllAlive,
}

/// Every mark, and what it is called in lines of the console, where `_ns` follows.
const NAMES: [(Mark, &str); 42] = [
    (Mark::Asked, "asked"),
    (Mark::Answered, "answered"),
    (Mark::Quiet, "quiet"),
    (Mark::Begun, "begun"),
    (Mark::Rung, "rung"),
    (Mark::Kicked, "kicked"),
    (Mark::Parked, "parked"),
    (Mark::Arrived, "arrived"),
    (Mark::AllArrived, "all_arrived"),
    (Mark::AllStopped, "all_stopped"),
    (Mark::LegacyMasked, "legacy_masked"),
    (Mark::EventsDetached, "events_detached"),
    (Mark::SharedInfoUnmapped, "shared_info_unmapped"),
    (Mark::RingsToPfns, "rings_to_pfns"),
    (Mark::OthersDown, "others_down"),
    (Mark::Suspending, "suspending"),
    (Mark::Back, "back"),
    (Mark::OthersUpAgain, "others_up_again"),
    (Mark::RingsToMfns, "rings_to_mfns"),
    (Mark::SharedInfoRemapped, "shared_info_remapped"),
    (Mark::EventsReattached, "events_reattached"),
    (Mark::LegacyLeft, "legacy_left"),
    (Mark::SharedInfoMapped, "shared_info_mapped"),
    (Mark::NewLegacyMasked, "new_legacy_masked"),
    (Mark::VcpuInfoPlaced, "vcpu_info_placed"),
    (Mark::ClockRebased, "clock_rebased"),
    (Mark::P2mPublished, "p2m_published"),
    (Mark::EventsAttached, "events_attached"),
    (Mark::OthersBound, "others_bound"),
    (Mark::OthersInitialised, "others_initialised"),
    (Mark::AllReleased, "all_released"),
    (Mark::OthersUp, "others_up"),
    (Mark::Released, "released"),
    (Mark::Bound, "bound"),
    (Mark::InboxServed, "inbox_served"),
    (Mark::Joined, "joined"),
    (Mark::Connected, "connected"),
    (Mark::Thawed, "thawed"),
    (Mark::Timer, "timer"),
    (Mark::Ipi, "ipi"),
    (Mark::FirstTask, "first_task"),
    (Mark::AllAlive, "all_alive"),
];

const _: () = assert!(Mark::COUNT < 1 << Mark::CODE_BITS, "a word of a ring has room for every code");

impl Mark {
    /// How many there are.
    pub const COUNT: usize = NAMES.len();
    /// Bits of a word that hold any [`Mark::code`].
    pub(crate) const CODE_BITS: u32 = 6;

    /// Every mark, in the order of the table.
    pub fn all() -> impl Iterator<Item = Mark> {
        NAMES.iter().map(|(mark, _)| *mark)
    }

    /// As it is called in lines of the console: lower-case letters, digits and `_`.
    pub fn name(self) -> &'static str {
        NAMES[self.index()].1
    }

    /// The mark of this name.
    pub fn by_name(name: &str) -> Option<Mark> {
        NAMES.iter().find(|(_, called)| *called == name).map(|(mark, _)| *mark)
    }

    /// Its place in the order of the table, below [`Mark::COUNT`].
    pub const fn index(self) -> usize {
        self.code() as usize - 1
    }

    /// Its number in a word of a ring: 1 to [`Mark::COUNT`].
    pub(crate) const fn code(self) -> u8 {
        self as u8
    }

    /// This step of the preparation is done.
    pub fn prepared(step: Prepare) -> Mark {
        match step {
            Prepare::MaskLegacySlots => Mark::LegacyMasked,
            Prepare::DetachEvents => Mark::EventsDetached,
            Prepare::UnmapSharedInfo => Mark::SharedInfoUnmapped,
            Prepare::MfnsToPfns => Mark::RingsToPfns,
            Prepare::TakeOthersDown => Mark::OthersDown,
        }
    }

    /// This step of the preparation is undone.
    pub fn undone(step: Prepare) -> Mark {
        match step {
            Prepare::MaskLegacySlots => Mark::LegacyLeft,
            Prepare::DetachEvents => Mark::EventsReattached,
            Prepare::UnmapSharedInfo => Mark::SharedInfoRemapped,
            Prepare::MfnsToPfns => Mark::RingsToMfns,
            Prepare::TakeOthersDown => Mark::OthersUpAgain,
        }
    }

    /// This step in the new domain is done.
    pub fn took_over(step: TakeOver) -> Mark {
        match step {
            TakeOver::MapSharedInfo => Mark::SharedInfoMapped,
            TakeOver::MaskLegacySlots => Mark::NewLegacyMasked,
            TakeOver::PlaceBootVcpuInfo => Mark::VcpuInfoPlaced,
            TakeOver::RebaseClock => Mark::ClockRebased,
            TakeOver::PublishP2m => Mark::P2mPublished,
            TakeOver::AttachEvents => Mark::EventsAttached,
            TakeOver::BindForOthers => Mark::OthersBound,
            TakeOver::InitialiseOthers => Mark::OthersInitialised,
        }
    }

    /// This CPU has done this step for itself.
    pub fn restored(step: EachCpu) -> Mark {
        match step {
            EachCpu::Bind => Mark::Bound,
            EachCpu::ServeInbox => Mark::InboxServed,
            EachCpu::JoinRollCall => Mark::Joined,
        }
    }

    /// The mark of a [`Mark::code`].
    pub(crate) fn of_code(code: u8) -> Option<Mark> {
        NAMES.get(usize::from(code).checked_sub(1)?).map(|(mark, _)| *mark)
    }

    /// What the time before it was spent on.
    pub fn stage(self) -> Stage {
        match self {
            Mark::Asked | Mark::Answered | Mark::Quiet => Stage::Quiesce,
            Mark::Begun | Mark::Rung | Mark::Kicked | Mark::Parked | Mark::Arrived => Stage::Gather,
            Mark::AllArrived | Mark::AllStopped => Stage::Wait,
            Mark::LegacyMasked
            | Mark::EventsDetached
            | Mark::SharedInfoUnmapped
            | Mark::RingsToPfns
            | Mark::OthersDown
            | Mark::Suspending => Stage::Prepare,
            Mark::Back => Stage::Suspended,
            Mark::OthersUpAgain
            | Mark::RingsToMfns
            | Mark::SharedInfoRemapped
            | Mark::EventsReattached
            | Mark::LegacyLeft
            | Mark::SharedInfoMapped
            | Mark::NewLegacyMasked
            | Mark::VcpuInfoPlaced
            | Mark::ClockRebased
            | Mark::P2mPublished
            | Mark::EventsAttached
            | Mark::OthersBound
            | Mark::OthersInitialised
            | Mark::AllReleased
            | Mark::OthersUp => Stage::TakeOver,
            Mark::Released => Stage::Notice,
            Mark::Bound | Mark::InboxServed | Mark::Joined => Stage::Restore,
            Mark::Connected | Mark::Thawed => Stage::Connect,
            Mark::Timer | Mark::Ipi | Mark::AllAlive => Stage::Prove,
            Mark::FirstTask => Stage::Resume,
        }
    }
}

/// What a CPU spent its time on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// vCPU 0 answers the request and quiets xenstore; all others run.
    Quiesce,
    /// Coming to the rendezvous; on vCPU 0, calling for it.
    Gather,
    /// vCPU 0 waits for all others.
    Wait,
    /// vCPU 0 prepares the domain.
    Prepare,
    /// Another CPU waits, from its arrival to its release; the suspend is in there.
    Stand,
    /// The hypervisor and the toolstack have the domain.
    Suspended,
    /// vCPU 0 takes the new domain over, or undoes the preparation in the old one.
    TakeOver,
    /// Released, and not aware of it yet: for want of a processor, as a rule, or in a new domain not up yet.
    Notice,
    /// Restoring itself.
    Restore,
    /// vCPU 0 binds the ports of console and xenstore, and xenstore goes on.
    Connect,
    /// Restored; waiting for the first timer event or IPI.
    Prove,
    /// Alive; waiting for something to do.
    Resume,
}

impl Stage {
    /// Every stage, in the order in which they come.
    pub const ALL: [Stage; 12] = [
        Stage::Quiesce,
        Stage::Gather,
        Stage::Wait,
        Stage::Prepare,
        Stage::Stand,
        Stage::Suspended,
        Stage::TakeOver,
        Stage::Notice,
        Stage::Restore,
        Stage::Connect,
        Stage::Prove,
        Stage::Resume,
    ];

    /// As it is called in lines of the console and in xenstore: lower-case letters.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Quiesce => "quiesce",
            Stage::Gather => "gather",
            Stage::Wait => "wait",
            Stage::Prepare => "prepare",
            Stage::Stand => "stand",
            Stage::Suspended => "suspended",
            Stage::TakeOver => "take_over",
            Stage::Notice => "notice",
            Stage::Restore => "restore",
            Stage::Connect => "connect",
            Stage::Prove => "prove",
            Stage::Resume => "resume",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::order::{CONTINUED, PREPARE, RESUMED, TAKE_OVER};

    #[test]
    fn the_table_is_in_the_order_of_the_codes() {
        for (n, mark) in Mark::all().enumerate() {
            assert_eq!(mark.index(), n, "{mark:?}");
            assert_eq!(Mark::of_code(mark.code()), Some(mark));
            assert_eq!(Mark::by_name(mark.name()), Some(mark));
        }
        assert_eq!(Mark::of_code(0), None, "that is the head of a record");
        assert_eq!(Mark::of_code(1 << Mark::CODE_BITS), None);
        assert_eq!(Mark::by_name("lunch"), None);
    }

    /// The steps' marks come in the order in which the steps do.
    #[test]
    fn every_step_of_the_order_has_its_mark() {
        fn ascending(marks: impl Iterator<Item = Mark>) -> bool {
            marks.map(Mark::index).is_sorted_by(|a, b| a < b)
        }
        assert!(ascending(PREPARE.iter().map(|row| Mark::prepared(row.step))));
        assert!(ascending(PREPARE.iter().rev().map(|row| Mark::undone(row.step))));
        assert!(ascending(TAKE_OVER.iter().map(|row| Mark::took_over(row.step))));
        assert!(ascending(RESUMED.iter().map(|row| Mark::restored(row.step))));
        assert!(ascending(CONTINUED.iter().map(|row| Mark::restored(row.step))));
    }

    #[test]
    fn names_are_keys() {
        let names: BTreeSet<&str> = NAMES.iter().map(|(_, name)| *name).collect();
        assert_eq!(names.len(), Mark::COUNT, "no two are the same");
        let key = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit());
        assert!(names.iter().all(|name| key(name)));
        assert!(Stage::ALL.iter().all(|stage| key(stage.name())));
    }
}
