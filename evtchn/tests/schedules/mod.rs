//! How scenes with many CPUs are played: with seeded random schedules, and with PCT's, which go far with few switches.
//! `smp` takes this file in, too.
//!
//! Where a scene fails, shuttle says in which file it has left the schedule. With that in `SHUTTLE_SCHEDULE` the one test
//! that failed plays just this again. `SHUTTLE_ITERATIONS` is how many schedules of each kind a scene is played with, for a long night.

use std::env;

use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

/// Any number; the same one makes the same schedules.
const SEED: u64 = 0x5745_11E5;
/// Switches away from a CPU that could have gone on, in a schedule of PCT.
const DEPTHS: [usize; 2] = [3, 10];

/// Plays `scene` with `usually` random schedules, and as many of PCT's.
pub(crate) fn explore(usually: usize, scene: impl Fn() + Send + Sync + Clone + 'static) {
    let mut config = Config::new();
    // A livelock ends in a panic, and not in a night of waiting.
    config.max_steps = MaxSteps::FailAfter(2_000_000);
    config.stack_size = 0x2_0000;
    // That orderings are taken for SeqCst is known: they are loom's part.
    config.silence_warnings = true;
    // Some fifty lines of digits, in a terminal.
    config.failure_persistence = FailurePersistence::File(Some(env!("CARGO_TARGET_TMPDIR").into()));
    if let Some(schedule) = env::var_os("SHUTTLE_SCHEDULE") {
        let scheduler = ReplayScheduler::new_from_file(schedule).expect("SHUTTLE_SCHEDULE is the file of a schedule");
        Runner::new(scheduler, config).run(scene);
        return;
    }
    let iterations = match env::var("SHUTTLE_ITERATIONS") {
        Ok(number) => number.parse().expect("SHUTTLE_ITERATIONS is a number"),
        Err(_) => usually,
    };
    Runner::new(RandomScheduler::new_from_seed(SEED, iterations), config.clone()).run(scene.clone());
    for depth in DEPTHS {
        let scheduler = PctScheduler::new_from_seed(SEED, depth, iterations.div_ceil(DEPTHS.len()));
        Runner::new(scheduler, config.clone()).run(scene.clone());
    }
}
