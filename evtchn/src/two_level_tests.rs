//! Tests of the 2-level ABI's bit work, with a `shared_info` and a `vcpu_info` in ordinary memory.

use super::*;

/// The ABI's last port.
const LAST: u32 = if cfg!(miri) { 255 } else { 4095 };

struct Rig {
    shared: SharedInfo,
    flags: VcpuInfo,
    own: OwnPorts,
    masked: Masked,
}

fn nr(nr: u32) -> PortNr {
    PortNr::new(nr).expect("tests use no port 0")
}

impl Rig {
    /// A CPU that owns `ports`, all unmasked.
    fn new(ports: &[u32]) -> Rig {
        let rig = Rig {
            shared: SharedInfo::new(),
            flags: VcpuInfo::new(),
            own: OwnPorts::new(),
            masked: percpu::hosted::masked(),
        };
        rig.abi().mask_all(&crate::hosted::quiesced());
        for port in ports {
            rig.own.add(nr(*port));
            rig.unmask(*port);
        }
        rig
    }

    fn abi(&self) -> TwoLevel<'_> {
        TwoLevel::new(&self.shared)
    }

    /// As Xen delivers to this vcpu.
    fn raise(&self, port: u32) {
        let (word, bit) = (port as usize / 64, 1 << (port % 64));
        if self.shared.evtchn_pending[word].fetch_or(bit, Ordering::Relaxed) & bit != 0 {
            return;
        }
        if self.shared.evtchn_mask[word].load(Ordering::Relaxed) & bit == 0
            && self.flags.evtchn_pending_sel.fetch_or(1 << word, Ordering::Relaxed) & (1 << word) == 0
        {
            self.flags.evtchn_upcall_pending.store(1, Ordering::Relaxed);
        }
    }

    fn unmask(&self, port: u32) {
        self.abi().unmask_own(&self.masked, &self.flags, nr(port));
    }

    /// The ports that were handed out, and the number of passes.
    fn take(&self) -> (Vec<u32>, u64) {
        let mut seen = Vec::new();
        let passes = self.take_with(|nr| seen.push(nr.get()));
        (seen, passes)
    }

    fn take_with(&self, handle: impl FnMut(PortNr)) -> u64 {
        let passes = Counter::new();
        self.abi().take_pending(&self.masked, &self.flags, &self.own, &passes, handle);
        passes.get()
    }
}

#[test]
fn first_and_last_port_of_words() {
    let ports = [1, 63, 64, 127, LAST];
    let rig = Rig::new(&ports);
    for port in ports {
        rig.raise(port);
    }
    assert_eq!(rig.take().0, ports);
    assert!(ports.iter().all(|port| !rig.abi().is_pending_racy(nr(*port))));
    assert_eq!(rig.take().0, []);
}

#[test]
fn ports_of_others_are_left_pending() {
    let rig = Rig::new(&[5]);
    rig.shared.evtchn_mask[0].store(0, Ordering::Relaxed);
    rig.raise(6);
    rig.raise(5);
    rig.raise(70);
    assert_eq!(rig.take().0, [5]);
    assert!(rig.abi().is_pending_racy(nr(6)));
}

#[test]
fn masked_waits_for_unmask() {
    let rig = Rig::new(&[5]);
    rig.abi().mask_port(nr(5));
    assert!(rig.abi().is_masked_racy(nr(5)));
    rig.raise(5);
    assert_eq!(rig.flags.evtchn_upcall_pending.load(Ordering::Relaxed), 0);
    assert_eq!(rig.take().0, []);
    rig.unmask(5);
    assert_eq!(rig.flags.evtchn_upcall_pending.load(Ordering::Relaxed), 1);
    assert_eq!(rig.take().0, [5]);
}

#[test]
fn unmask_of_an_idle_port_raises_nothing() {
    let rig = Rig::new(&[5]);
    rig.unmask(5);
    assert_eq!(rig.flags.evtchn_upcall_pending.load(Ordering::Relaxed), 0);
    assert_eq!(rig.flags.evtchn_pending_sel.load(Ordering::Relaxed), 0);
}

#[test]
fn all_selector_bits_without_events_are_spurious() {
    let rig = Rig::new(&[5, LAST]);
    rig.flags.evtchn_pending_sel.store(!0, Ordering::Relaxed);
    rig.flags.evtchn_upcall_pending.store(1, Ordering::Relaxed);
    assert_eq!(rig.take(), (vec![], 1));
    assert_eq!(rig.flags.evtchn_pending_sel.load(Ordering::Relaxed), 0);
}

#[test]
fn handler_can_mask_and_drop_ports_of_the_same_word() {
    let rig = Rig::new(&[5, 6, 7]);
    for port in [5, 6, 7] {
        rig.raise(port);
    }
    let mut seen = Vec::new();
    rig.take_with(|at| {
        seen.push(at.get());
        rig.abi().mask_port(nr(6));
        rig.own.remove(nr(7));
    });
    assert_eq!(seen, [5]);
    rig.unmask(6);
    assert_eq!(rig.take().0, [6]);
}

/// A port that fires again each time it is handled, a hundred times, delays the others by one event per pass.
#[test]
fn storm_starves_no_other_port() {
    for stormy in [1, 64, 200] {
        let rig = Rig::new(&[1, 2, 64, 65, 200]);
        rig.raise(stormy);
        let (mut storms, mut worst, mut waiting) = (0, 0, 0);
        rig.take_with(|at| {
            if at.get() == stormy {
                storms += 1;
                waiting += 1;
                if storms < 100 {
                    rig.raise(stormy);
                }
                if storms == 50 {
                    for port in [1, 2, 64, 65, 200].into_iter().filter(|port| *port != stormy) {
                        rig.raise(port);
                    }
                    waiting = 0;
                }
            } else {
                worst = worst.max(waiting);
            }
        });
        assert_eq!(storms, 100);
        assert!(worst <= 1, "port {stormy} came {worst} times before another had its turn");
    }
}

/// Two ports that never rest take turns, wherever they stand.
#[test]
fn turns_alternate() {
    let rig = Rig::new(&[3, 9]);
    for port in [3, 9] {
        rig.raise(port);
    }
    let mut seen = Vec::new();
    rig.take_with(|at| {
        seen.push(at.get());
        if seen.len() < 9 {
            rig.raise(at.get());
        }
    });
    assert!(seen.windows(2).all(|two| two[0] != two[1]), "{seen:?}");
}

#[test]
fn ports_beyond_the_abi_do_nothing() {
    let rig = Rig::new(&[]);
    for port in [LAST + 1, u32::MAX] {
        rig.own.add(nr(port));
        rig.abi().mask_port(nr(port));
        rig.unmask(port);
        assert!(!rig.abi().is_masked_racy(nr(port)));
    }
    assert_eq!(listed(&rig.own), []);
}

#[test]
fn own_ports_come_and_go() {
    assert_eq!(LAST as usize + 1, CAPACITY);
    let own = OwnPorts::new();
    for port in [LAST, 1, 64] {
        own.add(nr(port));
    }
    assert_eq!(listed(&own), [1, 64, LAST]);
    own.remove(nr(64));
    assert_eq!(listed(&own), [1, LAST]);
    own.clear(&percpu::hosted::masked());
    assert_eq!(listed(&own), []);
}

fn listed(own: &OwnPorts) -> Vec<u32> {
    let has = |port: &u32| own.mine[*port as usize / 64].load(Ordering::Relaxed) & 1 << (port % 64) != 0;
    (0..=LAST).filter(has).collect()
}

#[test]
fn what_is_forgotten_is_not_taken() {
    let rig = Rig::new(&[5, 6]);
    rig.raise(5);
    rig.raise(6);
    assert!(rig.abi().forget_pending(nr(5)));
    assert_eq!(rig.take().0, [6]);
    assert!(!rig.abi().forget_pending(nr(LAST + 1)), "beyond the ABI");
}
