//! The ladder under xl: start, save, restore, checkpoint, migrate, fail, end; one lab for all steps but two.
//!
//! Each step creates its own guest and sees it gone from Xen and xenstore at its end, so any of them
//! can be run alone (`cargo test -p tests --test xl -- migrate::`) and a failed one leaves nothing to
//! the next. The order is from plain to hard. `steps` are the good ways, `trouble` the others,
//! `hung` has a vCPU that does not come, `ports` compares the guest's view with Xen's, `phases` looks at what it tells of its suspends,
//! `hotplug` changes how many vCPUs are up, `channel` suspends through the suspend event channel, `pages` counts what
//! is written to and runs xl remus, `vectors` looks at registers, `user` at vCPUs in user mode, `rogue` has another domain ring without end, `soak` does all
//! of it at random.

#![forbid(unsafe_code)]

#[path = "xl/channel.rs"]
mod channel;
#[path = "xl/hotplug.rs"]
mod hotplug;
#[path = "xl/hung.rs"]
mod hung;
#[path = "xl/pages.rs"]
mod pages;
#[path = "xl/phases.rs"]
mod phases;
#[path = "xl/place.rs"]
mod place;
#[path = "xl/ports.rs"]
mod ports;
#[path = "xl/rogue.rs"]
mod rogue;
#[path = "xl/soak.rs"]
mod soak;
#[path = "xl/steps.rs"]
mod steps;
#[path = "xl/trouble.rs"]
mod trouble;
#[path = "xl/user.rs"]
mod user;
#[path = "xl/vectors.rs"]
mod vectors;

use anyhow::Result;
use libtest_mimic::Trial;
use place::Place;
use tests::{Invocation, Shared, verdict};
use xtask::drive::cycles::Kind;

type Step = Box<dyn FnOnce(&mut Place) -> Result<()> + Send>;

fn ladder() -> Vec<(String, Step)> {
    let mut ladder: Vec<(String, Step)> = Vec::new();
    let mut step = |name: &str, work: Step| ladder.push((name.to_owned(), work));
    step("start", Box::new(|place| steps::start(place, 8, 64)));
    step("start::smallest", Box::new(|place| steps::start(place, 1, 16)));
    step("end::shutdown", Box::new(steps::shutdown));
    step("end::reboot", Box::new(steps::reboot));
    step("end::destroy", Box::new(steps::destroy));
    step("xenstore::figures", Box::new(steps::figures_in_xenstore));
    step("save::twice", Box::new(|place| steps::suspends(place, Kind::SaveRestore, 8, 64, 2)));
    step("checkpoint::three_times", Box::new(|place| steps::suspends(place, Kind::Checkpoint, 8, 64, 3)));
    step("migrate::twice", Box::new(|place| steps::suspends(place, Kind::Migrate, 8, 64, 2)));
    step("migrate::ten_times", Box::new(|place| steps::suspends(place, Kind::Migrate, 4, 32, 10)));
    for (vcpus, memory_mib) in [(1, 32), (2, 32), (33, 64), (64, 128), (128, 256)] {
        for (word, kind) in [("save", Kind::SaveRestore), ("migrate", Kind::Migrate)] {
            let name = format!("{word}::{vcpus}_vcpus");
            step(&name, Box::new(move |place| steps::suspends(place, kind, vcpus, memory_mib, 1)));
        }
    }
    step("checkpoint::33_vcpus", Box::new(|place| steps::suspends(place, Kind::Checkpoint, 33, 64, 1)));
    for abi in ["2l", "fifo"] {
        let words = format!("evtchn={abi}");
        step(&format!("mixed::{abi}"), Box::new(move |place| steps::mixed(place, &words, 8, 64)));
    }
    for (resume, abi) in
        [("parallel", "fifo"), ("batched", "2l"), ("batched", "fifo"), ("serial", "2l"), ("serial", "fifo")]
    {
        let words = format!("resume={resume} evtchn={abi}");
        step(&format!("resume::{resume}_{abi}"), Box::new(move |place| steps::resumes(place, &words, 8, 64)));
    }
    step("resume::batched_34_vcpus", Box::new(|place| steps::resumes(place, "resume=batched", 34, 64)));
    step("mixed::fifo_33_vcpus", Box::new(|place| steps::mixed(place, "evtchn=fifo", 33, 64)));
    step("blackout", Box::new(steps::blackout));
    for (abi, vcpus) in [("2l", 4), ("fifo", 4), ("2l", 34), ("fifo", 34)] {
        let words = format!("evtchn={abi}");
        let name = format!("hotplug::{abi}_{vcpus}_vcpus");
        step(&name, Box::new(move |place| hotplug::down_and_up(place, &words, vcpus)));
    }
    step("hotplug::boots_with_fewer", Box::new(hotplug::boots_with_fewer));
    step("hotplug::while_suspends_run", Box::new(hotplug::while_suspends_run));
    for abi in ["2l", "fifo"] {
        step(&format!("suspend_port::{abi}"), Box::new(move |place| channel::every_way(place, abi)));
    }
    step("suspend_port::emptied_node", Box::new(channel::emptied_node));
    step("suspend_port::toolstack_gone", Box::new(channel::toolstack_gone));
    step("vectors::xmm", Box::new(vectors::xmm));
    for abi in ["2l", "fifo"] {
        let words = format!("evtchn={abi}");
        step(&format!("user_mode::{abi}"), Box::new(move |place| user::over(place, &words)));
    }
    step("remus::evtchn", Box::new(|place| pages::remus(place, "suspend=evtchn", "evtchn")));
    step("remus::xenstore", Box::new(|place| pages::remus(place, "evtchn=fifo", "xenstore")));
    step("pages::budget", Box::new(pages::budget));
    step("trouble::receiver_never_answers", Box::new(trouble::receiver_never_answers));
    step("trouble::receiver_killed", Box::new(trouble::receiver_killed));
    step("trouble::garbage_request", Box::new(trouble::garbage_request));
    step("trouble::withdrawn_request", Box::new(trouble::withdrawn_request));
    step("trouble::second_request", Box::new(trouble::second_request));
    for (test, seen_as) in [("hung-in-suspend", " asked"), ("deaf-in-suspend", " takes no events")] {
        step(&format!("trouble::{test}"), Box::new(move |place| hung::in_a_suspend(place, test, seen_as)));
    }
    step("debug_key", Box::new(steps::debug_key));
    for abi in ["2l", "fifo"] {
        let words = format!("evtchn={abi}");
        step(&format!("ports::{abi}"), Box::new(move |place| ports::as_xen_has_them(place, &words)));
    }
    step("ports::ways_to_ask", Box::new(ports::ways_to_ask));
    for abi in ["2l", "fifo"] {
        step(&format!("rogue::{abi}"), Box::new(move |place| rogue::rings_without_end(place, abi)));
    }
    let resumes = [Kind::SaveRestore, Kind::Migrate];
    step("phases::resumed", Box::new(move |place| phases::of_every_vcpu(place, &resumes)));
    step("phases::continued", Box::new(|place| phases::of_every_vcpu(place, &[Kind::Checkpoint])));
    step("phases::when_asked", Box::new(phases::when_asked));
    step("soak::three_minutes", Box::new(soak::three_minutes));
    step("nothing_left_behind", Box::new(Place::nothing_left_behind));
    ladder
}

fn main() {
    let invocation = Invocation::from_env();
    let place = Shared::<Place>::new();
    // Before the others: each has a lab of its own, and there is memory for one at a time.
    let mut trials = vec![
        Trial::test("trouble::no_log_dirty", || verdict(trouble::no_log_dirty())),
        Trial::test("vectors::ymm", || verdict(vectors::ymm())),
    ];
    trials.extend(ladder().into_iter().map(|(name, work)| {
        let place = place.clone();
        Trial::test(name, move || verdict(place.with(Place::set_up, work)))
    }));
    invocation.conclude(trials)
}
