//! A host without a machine for the downtime bench: one well-behaved guest of either side, and one knob for each way to go wrong.

use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::ending::AtEnd;
use crate::host::{ConsoleLine, Exit};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Nothing,
    ModuleIsMissing,
    SaysNothing,
    XlFails,
    Panics,
    ContinuesInstead,
    Emulated,
    SchedIsAnother,
}

struct FakeHost {
    fault: Fault,
    domain: String,
    say: Sender<ConsoleLine>,
    lines: Receiver<ConsoleLine>,
    scripts: Vec<String>,
    /// The ticks of the next suspend.
    held: u64,
}

impl FakeHost {
    fn new(fault: Fault) -> FakeHost {
        let (say, lines) = channel();
        FakeHost { fault, domain: String::new(), say, lines, scripts: Vec::new(), held: 1000 }
    }

    fn side(&self) -> Side {
        if self.domain.starts_with("linux") { Side::Linux } else { Side::Stasis }
    }

    fn says(&self, text: &str) {
        let text = format!("{}{text}", self.side().prefix());
        for domain in ["neighbour", &self.domain] {
            let line = ConsoleLine { domain: domain.to_owned(), text: text.clone(), at: Instant::now() };
            self.say.send(line).expect("the receiver is ours");
        }
    }

    fn boots(&self) {
        match self.fault {
            Fault::SaysNothing => {}
            Fault::ModuleIsMissing => self.says("downtime-error what=insmod errno=1"),
            _ => {
                self.says(
                    "stop-machine vcpus=2 n=30 unit=cycles tsc=native stopped_min=1 stopped_p50=2 stopped_max=3 \
                     whole_min=2 whole_p50=3 whole_max=4",
                );
                self.says("blackout-ready vcpus=2 period_ns=200000");
            }
        }
    }

    fn suspends(&mut self, continues: bool) -> Exit {
        if self.fault == Fault::Panics {
            self.says("panic cpu=1 msg=\"no way\" at=smp/src/x.rs:9");
            self.says("shutdown reason=crash");
            return exit(1, "Domain did not respond");
        }
        if self.fault == Fault::XlFails {
            return exit(1, "unable to save");
        }
        let held = self.held;
        self.held += 1000;
        let outcome = if continues || self.fault == Fault::ContinuesInstead { "continued" } else { "resumed" };
        let tsc = if self.fault == Fault::Emulated { "emulated" } else { "native" };
        let (gap, max) = (held + 10, held + 30);
        self.says(&format!("blackout-gaps first=0 gaps={max},{gap}"));
        self.says(&format!(
            "blackout outcome={outcome} vcpus=2 unit=cycles tsc={tsc} prepare=11 held={held} resume=12 max={max}"
        ));
        exit(0, "")
    }
}

fn exit(code: i32, output: &str) -> Exit {
    Exit { code, output: output.into() }
}

impl Host for FakeHost {
    fn describe(&self) -> String {
        "fake".into()
    }

    fn sh(&mut self, script: &str, _limit: Duration) -> Result<Exit> {
        self.scripts.push(script.into());
        Ok(match script {
            s if s.starts_with("xl create") => {
                self.boots();
                exit(0, "")
            }
            s if s.contains("xl migrate ") || s.contains("xl save ") => self.suspends(s.contains("save -c")),
            "xl info" if self.fault == Fault::SchedIsAnother => exit(0, "xen_scheduler : null\ncpu_mhz : 1000.000\n"),
            "xl info" => exit(0, "xen_scheduler          : credit\ncpu_mhz                : 2399.98\n"),
            s if s.starts_with("# destroy the domain") => exit(0, ""),
            other => bail!("the fake knows no `{other}`"),
        })
    }

    fn at_end(&self, _script: &str) -> Option<AtEnd> {
        None
    }

    fn put(&mut self, name: &str, _bytes: &[u8]) -> Result<String> {
        Ok(format!("/run/{name}"))
    }

    fn follow(&mut self, domain: &str) -> Result<()> {
        self.domain = domain.into();
        Ok(())
    }

    fn lines(&mut self) -> &Receiver<ConsoleLine> {
        &self.lines
    }

    fn interactive(&mut self, _domain: &str) -> Result<()> {
        bail!("nobody is there")
    }
}

const ALL: [Kind; 3] = [Kind::Checkpoint, Kind::SaveRestore, Kind::Migrate];

fn guests(host: &mut FakeHost) -> Guests<'_> {
    let files = Files { stasis: "/run/stasis".into(), linux: Some(("/run/linux".into(), "/run/initramfs".into())) };
    Guests { host, image: PathBuf::new(), files, limit: Duration::from_millis(20) }
}

fn task(side: Side) -> Task<'static> {
    Task { sched: Sched::Credit, round: 2, vcpus: 2, memory_mib: 128, side, operations: &ALL }
}

#[test]
fn either_guest_is_suspended_in_every_way_and_destroyed() {
    for side in [Side::Stasis, Side::Linux] {
        let mut host = FakeHost::new(Fault::Nothing);
        let mut told = Vec::new();
        let mut lines = 0;
        let boot = guests(&mut host).run(task(side), &mut |news| match news {
            News::Says(_) => lines += 1,
            News::Stops(stops) => told.push(format!("stops {}", stops.stopped.p50)),
            News::Suspends(kind) => told.push(kind.name().to_owned()),
            News::Suspended(_, suspended) => told.push(suspended.worst().to_string()),
        });
        let boot = boot.expect("nothing goes wrong");
        assert_eq!(lines, 2 + 3 * 2, "no line of its neighbour");
        assert_eq!(told, ["stops 2", "save -c", "1030", "save + restore", "2030", "migrate", "3030"]);
        let heard: Vec<(Kind, u64, bool)> =
            boot.suspends.iter().map(|(kind, s)| (*kind, s.held, s.continued)).collect();
        assert_eq!(
            heard,
            [(Kind::Checkpoint, 1000, true), (Kind::SaveRestore, 2000, false), (Kind::Migrate, 3000, false)]
        );
        let name = format!("{}-2-2", side.name());
        assert!(host.scripts.last().is_some_and(|last| last.starts_with(&format!("# destroy the domain {name}\n"))));
    }
}

#[test]
fn what_goes_wrong_is_told_and_nothing_is_left() {
    for (fault, side, parts) in [
        (Fault::ModuleIsMissing, Side::Linux, &["downtime-error what=insmod"][..]),
        (Fault::SaysNothing, Side::Linux, &["until it is ready to be suspended within", "in vain"]),
        (Fault::XlFails, Side::Linux, &["save -c", "exit code 1", "unable to save", "blackout-ready"]),
        (Fault::Panics, Side::Stasis, &["save -c", "no way", "smp/src/x.rs:9"]),
        (Fault::ContinuesInstead, Side::Stasis, &["save + restore", "did not come back"]),
        (Fault::Emulated, Side::Stasis, &["emulated"]),
    ] {
        let mut host = FakeHost::new(fault);
        let error = guests(&mut host).run(task(side), &mut |_| ()).expect_err("it goes wrong");
        let text = format!("{error:#}");
        assert!(parts.iter().all(|part| text.contains(part)), "{fault:?}: {text}");
        assert!(host.scripts.last().is_some_and(|last| last.starts_with("# destroy the domain")), "{fault:?}");
    }
}

#[test]
fn the_scheduler_is_the_one_that_was_asked_for() {
    assert_eq!(guests(&mut FakeHost::new(Fault::Nothing)).tsc_khz(Sched::Credit).expect("it says so"), 2_399_980);
    let error = guests(&mut FakeHost::new(Fault::SchedIsAnother)).tsc_khz(Sched::Credit).expect_err("another");
    assert!(error.to_string().contains("under null"), "{error}");
    assert_eq!([khz("1000"), khz("999.1234"), khz("0.5"), khz("?")], [Some(1_000_000), Some(999_123), None, None]);
}

#[test]
fn the_guests_differ_in_what_they_run_only() {
    let mut host = FakeHost::new(Fault::Nothing);
    let guests = guests(&mut host);
    let [stasis, linux] =
        [Side::Stasis, Side::Linux].map(|side| config(&guests.files, task(side), "x").expect("both are there"));
    let differ: Vec<&str> = linux.lines().filter(|line| !stasis.lines().any(|other| other == *line)).collect();
    let own = [
        "kernel = \"/run/linux\"",
        "extra = \"console=hvc0 loglevel=6 printk.time=0 peer.downtime\"",
        "ramdisk = \"/run/initramfs\"",
    ];
    assert_eq!(differ, own);
    for line in ["extra = \"workload=blackout\"", "tsc_mode = \"native\"", "vcpus = 2", "memory = 128"] {
        assert!(stasis.lines().any(|other| other == line), "{line} is not in\n{stasis}");
    }
    let alone = Files { stasis: "/run/stasis".into(), linux: None };
    assert!(config(&alone, task(Side::Linux), "x").is_err());
}
