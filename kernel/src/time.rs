//! Guest time: monotonic on every CPU, across CPUs, and across every suspend.
//!
//! Xen gives each vcpu a record (`vcpu_time_info`) that turns the TSC into *system time*: nanoseconds since the host booted.
//! Guest time is system time plus an offset, which vcpu 0 sets anew after a restore, while all others are parked. The time
//! that the domain spent saved counts: what passed meanwhile on Xen's wall clock (`shared_info.wc_*`, read just before the
//! suspend and just after it) is added, unless that went backwards, and guest time goes on from there. On the same host
//! this is the same as system time having gone on, unless somebody set the clock while the domain was saved: that cannot be
//! told from time that passed. A clock that was set while the domain ran makes no difference.
//!
//! Where Xen does not vouch for the TSC across CPUs (flag `TSC_STABLE_BIT`) a shared last value keeps order between CPUs;
//! otherwise no line is written at all.
//!
//! Turned down: the secondary time area (`VCPUOP_register_vcpu_time_memory_area`). It repeats what the registered
//! `vcpu_info` already holds, for readers in user mode, of which there are none.

use core::arch::x86_64::_rdtsc;

use percpu::Quiesced;
use xen_sys::abi::xen::{SharedInfo, VcpuTimeInfo};
use xen_sys::primitive::sync::atomic::{AtomicI64, AtomicU64, Ordering, fence};

/// Added to system time. Written by vcpu 0 while all others are parked, or at boot.
static OFFSET_NS: AtomicI64 = AtomicI64::new(0);
/// The last guest time that any CPU has read. Used only while the TSC is not vouched for.
static LAST_NS: AtomicU64 = AtomicU64::new(0);

const TSC_STABLE_BIT: u8 = 1;

/// The TSC, raw. Costs 26 cycles where native, about 8700 where Xen traps it.
#[inline]
pub(crate) fn tsc() -> u64 {
    // SAFETY: RDTSC is always there in a 64-bit PV guest; Xen emulates it where it is not native.
    unsafe { _rdtsc() }
}

/// Whether Xen traps every RDTSC of this domain, as its time leaf has it. The answer can change with a restore.
/// Source: xen/include/public/arch-x86/cpuid.h, leaf 0x40000x03, sub-leaf 0.
#[cfg(target_os = "none")]
pub(crate) fn tsc_is_emulated() -> bool {
    /// Xen's leaves begin elsewhere only where another hypervisor's come first, and none do for a PV guest.
    const TIME_LEAF: u32 = 0x4000_0003;
    let flags: u32;
    // SAFETY: the prefix (`ud2`, "xen") has Xen emulate the instruction, which writes four registers; rbx is put back, as it may
    //   not be named.
    unsafe {
        core::arch::asm!(
            "mov {rbx}, rbx",
            ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e",
            "cpuid",
            "mov rbx, {rbx}",
            rbx = out(reg) _,
            inout("eax") TIME_LEAF => flags,
            inout("ecx") 0 => _,
            out("edx") _,
            options(nostack, nomem, preserves_flags),
        );
    }
    flags & 1 != 0
}

/// A consistent copy of a time record.
#[derive(Clone, Copy)]
pub(crate) struct TimeRecord {
    tsc_timestamp: u64,
    system_time: u64,
    mul: u32,
    shift: i8,
    stable: bool,
}

impl TimeRecord {
    /// Reads `info`, again while Xen is writing it. Only for the record of the vcpu that this runs on: Xen writes
    /// it on this processor, so the wait is at most for one update.
    pub(crate) fn read(info: &VcpuTimeInfo) -> TimeRecord {
        loop {
            // ORDERING: Acquire, pairs with Xen's write barrier after it made the version odd; the fields below are read after it.
            let version = info.version.load(Ordering::Acquire);
            // ORDERING: Relaxed, bracketed by the two loads of the version.
            let record = TimeRecord {
                tsc_timestamp: info.tsc_timestamp.load(Ordering::Relaxed),
                system_time: info.system_time.load(Ordering::Relaxed),
                mul: info.tsc_to_system_mul.load(Ordering::Relaxed),
                shift: info.tsc_shift.load(Ordering::Relaxed),
                stable: info.flags.load(Ordering::Relaxed) & TSC_STABLE_BIT != 0,
            };
            // ORDERING: Acquire fence, keeps the second load of the version behind the fields.
            fence(Ordering::Acquire);
            // ORDERING: Relaxed, ordered by the fence.
            if version & 1 == 0 && info.version.load(Ordering::Relaxed) == version {
                return record;
            }
            core::hint::spin_loop();
        }
    }

    /// System time at the moment when the TSC was `tsc`, which may be before the record was made.
    #[inline]
    pub(crate) fn system_time_ns(&self, tsc: u64) -> u64 {
        let ahead = tsc.wrapping_sub(self.tsc_timestamp).cast_signed();
        let ns = scale(ahead.unsigned_abs(), self.mul, self.shift);
        if ahead < 0 { self.system_time.saturating_sub(ns) } else { self.system_time.saturating_add(ns) }
    }

    /// What the TSC is when system time becomes `system_ns`, which may be before the record was made.
    pub(crate) fn tsc_at(&self, system_ns: u64) -> u64 {
        let ahead = system_ns.wrapping_sub(self.system_time).cast_signed();
        let ticks = self.ticks(ahead.unsigned_abs());
        if ahead < 0 { self.tsc_timestamp.wrapping_sub(ticks) } else { self.tsc_timestamp.wrapping_add(ticks) }
    }

    /// How many TSC ticks go into `ns`, rounded down.
    pub(crate) fn ticks(&self, ns: u64) -> u64 {
        let shifted = (u128::from(ns) << 32) / u128::from(self.mul.max(1));
        let by = self.shift.unsigned_abs();
        u64::try_from(if self.shift < 0 { shifted << by } else { shifted >> by }).unwrap_or(u64::MAX)
    }
}

/// What guest time is at which TSC, as it stands at some moment: still right for readings from before a suspend when that has
/// set all of it anew.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    record: TimeRecord,
    offset_ns: i64,
}

impl Scale {
    /// As this CPU has it now. Context: any but parked.
    #[cfg(target_os = "none")]
    #[inline(never)]
    pub(crate) fn now() -> Scale {
        // ORDERING: Relaxed, as in `to_guest_ns`.
        Scale { record: TimeRecord::read(&percpu::vcpu_info().time), offset_ns: OFFSET_NS.load(Ordering::Relaxed) }
    }

    /// A TSC from not long before.
    pub(crate) fn some_tsc(&self) -> u64 {
        self.record.tsc_timestamp
    }

    /// Guest time when the TSC was `tsc`.
    #[inline(never)]
    pub(crate) fn guest_ns(&self, tsc: u64) -> u64 {
        self.record.system_time_ns(tsc).saturating_add_signed(self.offset_ns)
    }

    /// The TSC at guest time `guest_ns`.
    #[inline(never)]
    pub(crate) fn tsc_at(&self, guest_ns: u64) -> u64 {
        self.record.tsc_at(guest_ns.saturating_add_signed(self.offset_ns.saturating_neg()))
    }
}

/// TSC ticks to nanoseconds: `(ticks << shift) * mul / 2^32`, without losing high bits.
fn scale(ticks: u64, mul: u32, shift: i8) -> u64 {
    let ticks = u128::from(ticks);
    let shifted = if shift < 0 { ticks >> shift.unsigned_abs() } else { ticks << shift.unsigned_abs() };
    u64::try_from(shifted.saturating_mul(u128::from(mul)) >> 32).unwrap_or(u64::MAX)
}

/// System time now: nanoseconds since the host booted. Goes back, or far ahead, in a migration.
#[cfg(target_os = "none")]
pub(crate) fn system_ns() -> u64 {
    TimeRecord::read(&percpu::vcpu_info().time).system_time_ns(tsc())
}

/// Guest time now, in ns. Never goes back, on any CPU. Not to be read while parked. Called and not repeated in each caller: what a resume
/// executes is cold.
#[cfg(target_os = "none")]
#[inline(never)]
pub(crate) fn now_ns() -> u64 {
    let record = TimeRecord::read(&percpu::vcpu_info().time);
    let ns = to_guest_ns(record.system_time_ns(tsc()));
    if record.stable {
        return ns;
    }
    // ORDERING: AcqRel, pairs with the same operation on other CPUs: who has seen something happen after a reading
    //   there reads no less here.
    LAST_NS.fetch_max(ns, Ordering::AcqRel).max(ns)
}

/// Guest time that corresponds to a system time.
fn to_guest_ns(system_ns: u64) -> u64 {
    // ORDERING: Relaxed, written only while all CPUs but the writer are parked; the release of the rendezvous orders it.
    system_ns.saturating_add_signed(OFFSET_NS.load(Ordering::Relaxed))
}

/// System time that corresponds to a guest time: what Xen wants as a deadline.
pub(crate) fn to_system_ns(guest_ns: u64) -> u64 {
    // ORDERING: Relaxed, as in `to_guest_ns`.
    guest_ns.saturating_add_signed(OFFSET_NS.load(Ordering::Relaxed).saturating_neg())
}

/// Wall clock at system time 0, in ns since 1970.
#[inline(never)]
pub(crate) fn wall_at_system_zero_ns(shared: &SharedInfo) -> u64 {
    loop {
        // ORDERING: Acquire, pairs with Xen's write barrier after it made the version odd.
        let version = shared.wc_version.load(Ordering::Acquire);
        // ORDERING: Relaxed, bracketed by the two loads of the version.
        let low = shared.wc_sec.load(Ordering::Relaxed);
        let high = shared.wc_sec_hi.load(Ordering::Relaxed);
        let nsec = shared.wc_nsec.load(Ordering::Relaxed);
        // ORDERING: Acquire fence, keeps the second load of the version behind the fields.
        fence(Ordering::Acquire);
        // ORDERING: Relaxed, ordered by the fence.
        if version & 1 == 0 && shared.wc_version.load(Ordering::Relaxed) == version {
            let sec = u64::from(high) << 32 | u64::from(low);
            return sec.saturating_mul(1_000_000_000).saturating_add(u64::from(nsec));
        }
        core::hint::spin_loop();
    }
}

/// Starts guest time: it was 0 when the TSC was `entered_tsc`. Boot CPU, once; its `vcpu_info` is registered.
#[cfg(target_os = "none")]
pub(crate) fn start(quiesced: &Quiesced, entered_tsc: u64, shared: &SharedInfo) {
    let system_ns = TimeRecord::read(&percpu::vcpu_info().time).system_time_ns(entered_tsc);
    let wall_zero_ns = wall_at_system_zero_ns(shared);
    Rebased::new(Before::at(0, system_ns, wall_zero_ns), system_ns, wall_zero_ns).set(quiesced);
}

/// What is kept over the suspend so that guest time can go on from it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Before {
    /// Guest time just before the hypercall.
    guest_ns: u64,
    /// Xen's wall clock at the same moment.
    wall_ns: u64,
}

impl Before {
    /// The instant when guest time was `guest_ns`, system time `system_ns` and the wall clock at system time 0 `wall_zero_ns`.
    fn at(guest_ns: u64, system_ns: u64, wall_zero_ns: u64) -> Before {
        Before { guest_ns, wall_ns: wall_zero_ns.saturating_add(system_ns) }
    }

    /// The instant when the TSC was `tsc`, which `scale` reads. No CPU has read a later guest time.
    #[cfg(target_os = "none")]
    pub(crate) fn of(scale: &Scale, tsc: u64, wall_zero_ns: u64, _quiesced: &Quiesced) -> Before {
        // ORDERING: Relaxed, all others are parked; the rendezvous orders what they read before.
        let read_ns = LAST_NS.load(Ordering::Relaxed);
        Before::at(scale.guest_ns(tsc).max(read_ns), scale.record.system_time_ns(tsc), wall_zero_ns)
    }
}

/// Sets guest time anew after a restore, to go on from `before` when the TSC was `tsc`. Returns how the TSC reads now.
#[cfg(target_os = "none")]
pub(crate) fn rebase(quiesced: &Quiesced, before: Before, tsc: u64, wall_zero_ns: u64) -> Scale {
    let record = TimeRecord::read(&percpu::vcpu_info().time);
    let rebased = Rebased::new(before, record.system_time_ns(tsc), wall_zero_ns);
    rebased.set(quiesced);
    Scale { record, offset_ns: rebased.offset_ns }
}

/// Where guest time stands from now on.
#[derive(Clone, Copy, Debug)]
struct Rebased {
    offset_ns: i64,
}

impl Rebased {
    /// Guest time at the instant when system time was `system_ns` and the new host's wall clock at system time 0 was `wall_zero_ns`.
    fn new(before: Before, system_ns: u64, wall_zero_ns: u64) -> Rebased {
        let wall_ns = wall_zero_ns.saturating_add(system_ns);
        // The new host's clock may be behind: then no time has passed, as far as anybody can tell.
        let away_ns = wall_ns.saturating_sub(before.wall_ns);
        let guest_ns = before.guest_ns.saturating_add(away_ns);
        Rebased { offset_ns: difference(guest_ns, system_ns) }
    }

    /// Makes it hold for all CPUs. They are parked, and read it after they have been released.
    fn set(&self, _quiesced: &Quiesced) {
        // ORDERING: Relaxed, ordered before every reader by the release of the rendezvous.
        OFFSET_NS.store(self.offset_ns, Ordering::Relaxed);
    }
}

fn difference(a: u64, b: u64) -> i64 {
    i64::try_from(i128::from(a) - i128::from(b)).unwrap_or(if a > b { i64::MAX } else { i64::MIN })
}

#[cfg(test)]
impl Scale {
    /// 1 GHz; guest time is `guest_ns` when the TSC is `tsc`.
    pub(crate) fn at(tsc: u64, guest_ns: u64) -> Scale {
        let record = TimeRecord { tsc_timestamp: tsc, system_time: 5000, mul: 1 << 31, shift: 1, stable: true };
        Scale { record, offset_ns: difference(guest_ns, 5000) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_leads_there_and_back() {
        let scale = Scale::at(1_000_000, 70);
        assert_eq!((scale.guest_ns(1_000_000), scale.guest_ns(1_000_005)), (70, 75));
        assert_eq!(scale.tsc_at(75), 1_000_005);
        assert_eq!(scale.tsc_at(0), 999_930, "before the record was made");
    }

    #[test]
    fn scales_without_overflow() {
        // 1 GHz: mul = 2^31, shift = 1.
        assert_eq!(scale(1_000_000_007, 1 << 31, 1), 1_000_000_007);
        // 4 GHz: mul = 2^31, shift = -1; a year of ticks.
        let year = 4_000_000_000 * 86_400 * 365;
        assert_eq!(scale(year, 1 << 31, -1), year / 4);
        assert_eq!(scale(u64::MAX, u32::MAX, 31), u64::MAX);
    }

    #[test]
    fn a_reading_before_the_record_counts_back() {
        let record = TimeRecord { tsc_timestamp: 1000, system_time: 5000, mul: 1 << 31, shift: 1, stable: true };
        assert_eq!(record.system_time_ns(1000), 5000);
        assert_eq!(record.system_time_ns(1010), 5010);
        assert_eq!(record.system_time_ns(990), 4990);
    }

    #[test]
    fn ticks_and_nanoseconds_lead_to_each_other() {
        // 1, 4 and 2.4 GHz, the last as Xen has it: 10^9 * 2^32 / 2.4*10^9, made at least 2^31 by a shift.
        for (mul, shift, khz) in [(1 << 31, 1, 1_000_000), (1 << 31, -1, 4_000_000), (3_579_139_413, -1, 2_400_000)] {
            let record = TimeRecord { tsc_timestamp: 1 << 40, system_time: 5_000_000_000, mul, shift, stable: true };
            assert!(record.ticks(1_000_000).abs_diff(khz) <= 1, "{} kHz", record.ticks(1_000_000));
            for system_ns in [5_000_000_000, 5_001_000_000, 4_999_999_000] {
                let back = record.system_time_ns(record.tsc_at(system_ns));
                assert!(back.abs_diff(system_ns) <= 1, "{system_ns} came back as {back}");
            }
        }
    }

    #[test]
    fn time_goes_on_wherever_the_domain_wakes_up() {
        let before = Before::at(10_000, 20_000, 980_000);
        // The same host, 500 ns later; another host, with a system time far back and the wall clock 2000 ns on; and one whose clock
        // is behind: no time has passed.
        for (system_ns, wall_zero_ns, guest_ns) in
            [(20_500, 980_000, 10_500), (7, 1_001_993, 12_000), (100, 1000, 10_000)]
        {
            let rebased = Rebased::new(before, system_ns, wall_zero_ns);
            assert_eq!(system_ns.saturating_add_signed(rebased.offset_ns), guest_ns);
        }
    }

    #[test]
    fn a_clock_that_was_set_while_the_domain_ran_is_no_time_that_passed() {
        const DAY_NS: u64 = 86_400_000_000_000;
        // Boot at system time 5000, guest time 0. Then the host's clock is set forward, or back, by a day.
        let wall_zero_ns = 100 * DAY_NS;
        let boot = Rebased::new(Before::at(0, 5000, wall_zero_ns), 5000, wall_zero_ns);
        for wall_zero_ns in [wall_zero_ns + DAY_NS, wall_zero_ns - DAY_NS] {
            let guest_ns = 9000_u64.saturating_add_signed(boot.offset_ns);
            let before = Before::at(guest_ns, 9000, wall_zero_ns);
            let after = Rebased::new(before, 9700, wall_zero_ns);
            assert_eq!(9700_u64.saturating_add_signed(after.offset_ns), guest_ns + 700);
        }
    }
}
