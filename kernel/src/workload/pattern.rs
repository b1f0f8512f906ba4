//! A pattern over more than half of free memory, verified after every resume. Each vcpu fills and verifies a share, so that
//! page tables, p2m and memory itself are looked at from every vcpu.
//!
//! A word's value follows from where it stands and from a seed, so a page that has come back as another page, as zeroes, or
//! as its own older self of another seed is found. After each verification the share is filled with the next seed.
//!
//! The share of a vcpu that is down is not waited for, and counted in the report (`down_shares=`). It is verified when the vcpu
//! is up again, and reported then only if it is not what it was.

use alloc::vec::Vec;

use percpu::{CpuId, PerCpu};
use spin::Once;
use xen_sys::primitive::sync::atomic::{AtomicUsize, Ordering};

use crate::{cpus, executor, wait};

/// Words that are handled between two await points.
const BLOCK_WORDS: usize = 4096;

/// One vcpu's part in the verifications.
struct Share {
    wanted: wait::Flag,
    /// The last round that this vcpu has finished. Written by it alone.
    finished: AtomicUsize,
}

static SHARES: Once<PerCpu<Share>> = Once::new();
/// How many verifications have been asked for. Written by vcpu 0.
static ROUND: AtomicUsize = AtomicUsize::new(0);
/// The last round that has been reported.
static REPORTED: AtomicUsize = AtomicUsize::new(0);
/// Words found wrong, ever.
static WRONG: AtomicUsize = AtomicUsize::new(0);
/// Pages under the pattern.
static PAGES: AtomicUsize = AtomicUsize::new(0);
/// vcpus for whose share there was not a page.
static EMPTY_SHARES: AtomicUsize = AtomicUsize::new(0);

/// Takes the memory and starts the tasks that fill and verify it.
///
/// vcpu 0 takes it for all: when 128 vcpus on two processors took it in blocks of 32 KiB, one now and then lost its
/// processor with the heap's lock held and got it back after the others had burnt their credit: 10 to 18 s of that.
pub(super) fn start() {
    SHARES
        .call_once(|| PerCpu::new(cpus::nr(), |_| Share { wanted: wait::Flag::new(), finished: AtomicUsize::new(0) }));
    // A little more than half, as what is asked for is at least half.
    let share = crate::heap::get().stats().free / 16 * 9 / cpus::nr();
    for cpu in CpuId::first(cpus::nr()) {
        let pieces = take(share / size_of::<u64>());
        let words: usize = pieces.iter().map(Vec::capacity).sum();
        // ORDERING: Relaxed, statistic only.
        let pages = words * size_of::<u64>() / 4096;
        PAGES.fetch_add(pages, Ordering::Relaxed);
        EMPTY_SHARES.fetch_add(usize::from(pages == 0), Ordering::Relaxed);
        executor::spawn_on(cpu, guard(cpu, pieces));
    }
}

/// Room for `words` in as few pieces as the heap has them.
fn take(mut words: usize) -> Vec<Vec<u64>> {
    let mut pieces = Vec::new();
    let mut size = words;
    while size >= BLOCK_WORDS || size == words {
        let mut piece = Vec::new();
        if pieces.try_reserve(1).is_ok() && piece.try_reserve_exact(size).is_ok() {
            pieces.push(piece);
            words -= size;
            size = size.min(words);
        } else {
            size /= 2;
        }
        if words == 0 {
            return pieces;
        }
    }
    crate::note!(Warn, "no memory for {words} words of the pattern");
    pieces
}

/// Has every vcpu verify its share. A verification that is still under way goes on, and another follows.
pub(super) fn verify() {
    let Some(shares) = SHARES.get() else { return };
    // ORDERING: Relaxed, published by the flags.
    ROUND.fetch_add(1, Ordering::Relaxed);
    for (_, share) in shares.iter() {
        share.wanted.set();
    }
}

fn word(cpu: CpuId, piece: usize, index: usize, seed: u64) -> u64 {
    // Below 256 pieces, as each is at least BLOCK_WORDS or the last; words for 8 TiB in each.
    let place = ((cpu.index() as u64) << 48) | ((piece as u64) << 40) | index as u64;
    // SplitMix64's finaliser: every bit of the place and the seed reaches every bit of the word.
    let mut z = place ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

async fn guard(cpu: CpuId, mut pieces: Vec<Vec<u64>>) {
    for (number, piece) in pieces.iter_mut().enumerate() {
        while piece.len() < piece.capacity() {
            let start = piece.len();
            let end = piece.capacity().min(start + BLOCK_WORDS);
            piece.extend((start..end).map(|index| word(cpu, number, index, 0)));
            wait::yield_now().await;
        }
    }

    let share = SHARES.get().expect("start() makes it").on(cpu);
    for seed in 0_u64.. {
        share.wanted.wait().await;
        // ORDERING: Relaxed, published by the flag.
        let round = ROUND.load(Ordering::Relaxed);
        let mut wrong = 0;
        for (number, piece) in pieces.iter_mut().enumerate() {
            for (block, words) in piece.chunks_mut(BLOCK_WORDS).enumerate() {
                for (index, found) in (block * BLOCK_WORDS..).zip(words) {
                    let expected = word(cpu, number, index, seed);
                    if *found != expected {
                        if wrong == 0 {
                            let address = core::ptr::from_ref(found).addr();
                            crate::note!(Error, "vcpu {cpu}: {address:#x} holds {found:#x}, not {expected:#x}");
                        }
                        wrong += 1;
                    }
                    *found = word(cpu, number, index, seed + 1);
                }
                wait::yield_now().await;
            }
        }
        if wrong != 0 {
            crate::note!(Error, "vcpu {cpu}: {wrong} words of memory are not what they were");
        }
        // ORDERING: Relaxed, published by the store below.
        WRONG.fetch_add(wrong, Ordering::Relaxed);
        // ORDERING: SeqCst, "publish mine, then look at yours": mine here, all others' in `report_if_last`; so at least one
        //   of two that finish together sees both.
        share.finished.store(round, Ordering::SeqCst);
        report_if_last(round);
        // ORDERING: Relaxed, either of two rounds may be the one that tells of it.
        if wrong != 0 && REPORTED.load(Ordering::Relaxed) >= round {
            crate::check::report("memory", false, format_args!("round={round} vcpu={cpu} wrong_words={wrong}"));
        }
    }
}

/// vcpus have come up or gone down: a round that waited for one may be over. Context: task on vcpu 0.
pub(super) fn vcpus_changed() {
    // ORDERING: Relaxed, written by this CPU.
    let round = ROUND.load(Ordering::Relaxed);
    if SHARES.is_completed() && round != 0 {
        report_if_last(round);
    }
}

/// Tells the result of `round`, once all vcpus that are up have finished it.
fn report_if_last(round: usize) {
    let shares = SHARES.get().expect("start() makes it");
    let mut down = 0;
    for (cpu, share) in shares.iter() {
        // ORDERING: SeqCst, see `guard`.
        if share.finished.load(Ordering::SeqCst) < round {
            if cpus::is_up(cpu) {
                return;
            }
            down += 1;
        }
    }
    // ORDERING: AcqRel, pairs with itself: one of those who see the last vcpu finish tells of it.
    if REPORTED.fetch_max(round, Ordering::AcqRel) >= round {
        return;
    }
    // ORDERING: Relaxed, the numbers were published by the vcpus' `finished`.
    let wrong = WRONG.load(Ordering::Relaxed);
    let pages = PAGES.load(Ordering::Relaxed);
    let empty = EMPTY_SHARES.load(Ordering::Relaxed);
    // A vcpu that had nothing to look at has verified nothing.
    let pass = wrong == 0 && empty == 0;
    let detail =
        format_args!("round={round} pages={pages} wrong_words={wrong} empty_shares={empty} down_shares={down}");
    crate::check::report("memory", pass, detail);
}
