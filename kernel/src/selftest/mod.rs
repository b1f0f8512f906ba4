//! Self-tests: `test=NAME` runs one in a guest of its own and ends the domain. One verdict line each, `stasis: check name=NAME
//! result=…`; a failure is a panic too. `test=list` names them all.
//!
//! Each is an async function on vcpu 0, started when every vcpu is online. They test what only a real Xen can show; logic that
//! the host can run is tested there.

mod broadcast;
mod events;
mod fatal;
mod freeze;
mod hotplug;
mod hung;
mod memory;
mod ports;
mod show;
mod time;
mod user;

use alloc::boxed::Box;
use core::future::Future;
use core::pin::Pin;

use crate::{check, control, executor};

/// What a test has to say at its end: more fields for the verdict, or why it failed.
type Verdict = Result<alloc::string::String, alloc::string::String>;
type Test = fn() -> Pin<Box<dyn Future<Output = Verdict>>>;

macro_rules! tests {
    ($($name:literal => $test:path),* $(,)?) => {
        const TESTS: &[(&str, Test)] = &[$(($name, || Box::pin($test()))),*];
    };
}

tests! {
    "timer" => time::timer,
    "clock" => time::clock,
    "ipi" => events::ipi,
    "broadcast" => broadcast::broadcast,
    "port" => ports::port,
    "affinity" => ports::affinity,
    "storm" => ports::storm,
    "late" => ports::late,
    "many-ports" => show::many_ports,
    "silent-vcpu" => show::silent_vcpu,
    "rendezvous" => events::rendezvous,
    "hotplug" => hotplug::hotplug,
    "hung-vcpu" => events::hung_vcpu,
    "hung-in-suspend" => hung::in_suspend,
    "deaf-in-suspend" => hung::deaf_in_suspend,
    "lost-event" => events::lost_event,
    "wx" => memory::wx,
    "p2m" => memory::p2m,
    "heap" => memory::heap,
    "user" => user::user,
    "freeze" => freeze::freeze,
    "console" => events::console,
    "panic" => fatal::panic,
    "exception" => fatal::exception,
    "stack-overflow" => fatal::stack_overflow,
}

/// Runs the test `name` and ends the domain. Context: vcpu 0. `list` prints the names of all.
///
/// # Panics
/// If the test fails, or there is no such test.
pub(crate) fn start(name: &'static str) {
    check::be_strict();
    let run = async move {
        if name == "list" {
            for (name, _) in TESTS {
                crate::say!("test", name = name);
            }
        } else {
            let test = TESTS.iter().find(|(known, _)| *known == name);
            let (_, test) = test.unwrap_or_else(|| panic!("test={name}: no such test; test=list names them all"));
            match test().await {
                Ok(detail) => check::report(name, true, format_args!("{detail}")),
                Err(why) => {
                    crate::note!(Error, "{name}: {why}");
                    check::report(name, false, format_args!(""));
                }
            }
        }
        control::power_off("poweroff");
    };
    executor::spawn_own(run);
}
