//! The lab itself, with Linux as the guest. These boot Xen and take minutes: `cargo xtask test --only lab` runs what is
//! ignored here.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::*;
use crate::bench::Side;
use crate::bench::downtime;
use crate::bench::said::{Heard, Listener};

/// Prints each step with its time.
struct Loud(Instant);

impl Progress for Loud {
    fn stage(&self, name: &str) {
        eprintln!("{:6.1} s  {name}", self.0.elapsed().as_secs_f32());
    }
    fn note(&self, text: &str) {
        eprintln!("{:6.1} s    {text}", self.0.elapsed().as_secs_f32());
    }
    fn finished(&self) {
        eprintln!("{:6.1} s  done", self.0.elapsed().as_secs_f32());
    }
}

/// A terminal whose user leaves at the third line.
struct Screen {
    seen: Vec<u8>,
    keyboard: std::sync::mpsc::Sender<link::FromTerminal>,
}

impl std::io::Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.seen.extend_from_slice(bytes);
        if self.seen.iter().filter(|byte| **byte == b'\n').count() >= 3 {
            self.keyboard.send(link::FromTerminal::Detach).map_err(std::io::Error::other)?;
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

const STEP: Duration = Duration::from_secs(120);

struct Linux {
    lab: Lab,
    clock: Loud,
    beat: u32,
}

impl Linux {
    fn boot(name: &str, shadow_xen: bool) -> Self {
        let clock = Loud(Instant::now());
        let config = LabConfig {
            host_cpus: 2,
            memory: memory_for(4, 128, 2),
            shadow_xen,
            xen_args: Vec::new(),
            deterministic: false,
            logs: std::env::temp_dir().join(format!("stasis-lab-{name}")),
        };
        let lab = Lab::boot(&config, &clock).expect("the lab boots");
        clock.note(&lab.describe());
        Self { lab, clock, beat: 0 }
    }

    fn create(&mut self) {
        let peer = peer(&self.clock).expect("the peer is prepared");
        let kernel = self.lab.put("vmlinuz", &std::fs::read(peer.kernel).expect("cached")).expect("put");
        let ramdisk = self.lab.put("initramfs", &std::fs::read(peer.initramfs).expect("cached")).expect("put");
        self.clock.note("files are in dom0");
        let config = format!(
            "name=\"linux\"\ntype=\"pv\"\nkernel=\"{kernel}\"\nramdisk=\"{ramdisk}\"\nmemory=128\nvcpus=4\n\
             extra=\"console=hvc0 quiet\"\non_crash=\"preserve\"\n"
        );
        let path = self.lab.put("linux.cfg", config.as_bytes()).expect("put");
        self.lab.follow("linux").expect("followed");
        self.ok(&format!("xl create {path}"));
        self.await_line("up", |text| text == "peer: up cpus=4");
        self.beats(5);
    }

    fn ok(&mut self, script: &str) -> String {
        let output = self.lab.sh(script, STEP).expect("it ends").expect_ok(script).expect("it succeeds");
        self.clock.note(script);
        output
    }

    fn await_line(&mut self, what: &str, wanted: impl Fn(&str) -> bool) {
        loop {
            let line = self.lab.lines().recv_timeout(STEP).unwrap_or_else(|_| panic!("waited for {what}"));
            assert_eq!(line.domain, "linux");
            if wanted(&line.text) {
                return;
            }
        }
    }

    /// Joins the console as `interactive` does, and leaves it.
    fn console(&mut self) {
        let (keyboard, typed) = std::sync::mpsc::channel();
        let mut screen = Screen { seen: Vec::new(), keyboard };
        self.lab.link.attach("exec xl console linux", &typed, &mut screen).expect("attached, then left");
        self.clock.note("xl console");
    }

    /// Takes `count` beats, each the successor of the one before: none lost, none twice.
    fn beats(&mut self, count: u32) {
        for _ in 0..count {
            let expected = format!("peer: beat {}", self.beat);
            loop {
                let line = self.lab.lines().recv_timeout(STEP).expect("the guest beats");
                if line.text.starts_with("peer: beat") {
                    assert_eq!(line.text, expected);
                    break;
                }
            }
            self.beat += 1;
        }
    }
}

#[test]
#[ignore = "boots Xen: the layer lab"]
fn linux_is_saved_restored_checkpointed_and_migrated() {
    let mut linux = Linux::boot("shadow", true);
    assert!(linux.lab.has_log_dirty().expect("xl info works"));
    linux.create();
    for _ in 0..2 {
        linux.ok("xl save linux /var/lib/xen/linux.save && xl restore /var/lib/xen/linux.save");
        linux.beats(10);
    }
    linux.ok("xl save -c linux /var/lib/xen/linux.save");
    linux.beats(10);
    for _ in 0..2 {
        linux.ok("xl migrate -s '' linux 'xl migrate-receive'");
        linux.beats(10);
    }
    // A receiver that dies after the stream has begun: the guest goes on where it was.
    let failed = linux.lab.sh("xl migrate -s '' linux 'timeout -s KILL 2 xl migrate-receive'", STEP).expect("it ends");
    linux.clock.note(&format!("failed migrate: {}", failed.output.lines().last().unwrap_or_default()));
    assert!(!failed.ok());
    linux.beats(10);
    linux.console();
    let list = linux.ok("xl list");
    eprintln!("{list}");
    linux.ok("xl destroy linux");
    let count: BTreeMap<bool, usize> = linux.ok("xl list").lines().fold(BTreeMap::new(), |mut count, line| {
        *count.entry(line.starts_with("linux")).or_default() += 1;
        count
    });
    assert_eq!(count.get(&true), None);
}

#[test]
#[ignore = "boots Xen: the layer lab"]
fn debians_xen_saves_and_restores_but_has_no_log_dirty() {
    let mut linux = Linux::boot("stock", false);
    assert!(!linux.lab.has_log_dirty().expect("xl info works"));
    linux.create();
    linux.ok("xl save linux /var/lib/xen/linux.save && xl restore /var/lib/xen/linux.save");
    linux.beats(5);
}

#[test]
#[ignore = "boots Xen: the layer lab"]
fn linux_tells_what_its_suspends_cost() {
    let mut linux = Linux::boot("downtime", false);
    let peer = bench_peer(&linux.clock).expect("the modules are compiled");
    let kernel = linux.lab.put("vmlinuz", &std::fs::read(peer.kernel).expect("cached")).expect("put");
    let ramdisk = linux.lab.put("initramfs", &peer.initramfs).expect("put");
    let config = format!(
        "name=\"linux\"\ntype=\"pv\"\nkernel=\"{kernel}\"\nramdisk=\"{ramdisk}\"\nmemory=128\nvcpus=2\ntsc_mode=\"native\"\n\
         extra=\"console=hvc0 loglevel=6 printk.time=0 peer.downtime\"\n"
    );
    let path = linux.lab.put("linux.cfg", config.as_bytes()).expect("put");
    linux.lab.follow("linux").expect("followed");
    linux.ok(&format!("xl create {path}"));
    let mut ear = downtime::said::Listener::new(Side::Linux, 2);
    let mut hear = |linux: &mut Linux| loop {
        let line = linux.lab.lines().recv_timeout(STEP).expect("the guest tells");
        match ear.take(&line.text).expect("well told") {
            downtime::said::Heard::Nothing => {}
            heard => return heard,
        }
    };
    assert!(matches!(hear(&mut linux), downtime::said::Heard::Ready(stops) if stops.n > 0));
    for (script, continues) in [
        ("xl save -c linux /var/lib/xen/linux.save", true),
        ("xl save linux /var/lib/xen/linux.save && xl restore /var/lib/xen/linux.save", false),
    ] {
        linux.ok(script);
        let downtime::said::Heard::Suspended(told) = hear(&mut linux) else { panic!("not of a suspend") };
        assert_eq!((told.continued, told.gaps.len()), (continues, 2));
        assert!(told.prepare > 0 && told.held > 0 && told.resume > 0, "{told:?}");
    }
}

#[test]
#[ignore = "boots Xen: the layer lab"]
fn linux_measures_with_either_abi() {
    let mut linux = Linux::boot("bench", false);
    let peer = bench_peer(&linux.clock).expect("the module is compiled");
    let kernel = linux.lab.put("vmlinuz", &std::fs::read(peer.kernel).expect("cached")).expect("put");
    let ramdisk = linux.lab.put("initramfs", &peer.initramfs).expect("put");
    for (fifo, abi) in [(0, "2l"), (1, "fifo")] {
        let config = format!(
            "name=\"{abi}\"\ntype=\"pv\"\nkernel=\"{kernel}\"\nramdisk=\"{ramdisk}\"\nmemory=128\nvcpus=2\n\
             extra=\"console=hvc0 loglevel=6 printk.time=0 xen.fifo_events={fifo} peer.bench=drain,event-other peer.n=100\"\n"
        );
        let path = linux.lab.put("bench.cfg", config.as_bytes()).expect("put");
        linux.lab.follow(abi).expect("followed");
        linux.ok(&format!("xl create {path}"));
        let mut ear = Listener::new(Side::Linux);
        while !ear.ended() {
            let line = linux.lab.lines().recv_timeout(STEP).expect("the guest measures");
            if line.domain == abi
                && let Heard::Remark(said) = ear.take(&line.text).expect("well told")
            {
                // More than four hundred loopback channels are more ports than xl gives a guest that does not ask.
                assert!(said.starts_with("peer: bench-skip name=drain k=1024"), "{said}");
            }
        }
        let figures = ear.into_figures();
        let told: Vec<String> = figures.iter().map(|f| format!("{} {} {} {}", f.name, f.variant, f.abi, f.n)).collect();
        let [k1, k8, k64, k256, spin, user, idle] = [
            ("drain k=1", 100),
            ("drain k=8", 100),
            ("drain k=64", 25),
            ("drain k=256", 10),
            ("event-other other=spin", 100),
            ("event-other other=user", 100),
            ("event-other other=idle", 25),
        ]
        .map(|(what, n)| format!("{what} {abi} {n}"));
        assert_eq!(told, [k1, k8, k64, k256, spin, user, idle]);
    }
}
