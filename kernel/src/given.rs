//! Who asks Xen for a vcpu's ports after a restore (`resume=`): the vcpu itself, or vcpu 0 for all others, before it releases them.
//!
//! | `resume=` | virqs, IPI and tick of another vcpu | hypercalls of vcpu 0 for `n` others | of each other for itself |
//! |---|---|---|---|
//! | `parallel` | its own affair, in the multicall that it makes anyhow | none | 1 |
//! | `batched` | vcpu 0's, [`AT_ONCE`] calls in a multicall | 3 `n` / 16 | 1 |
//! | `serial` | vcpu 0's, call by call, as Linux does it | 3 `n` | 1 |
//!
//! The one of each other remains: its runstate area, and with FIFO its control block. What each way costs is in
//! `docs/decisions/0006-who-binds-after-resume.md`.
//!
//! A port that vcpu 0 was given stays masked until its vcpu takes it over as its own. The tick is stopped before VIRQ_TIMER is bound,
//! so that no event of it passes for the timer's.
//!
//! Suspend: what was given is taken once, by the vcpu that it is for, in the life of the domain that it is of: only those that are
//! up are given anything, and each of them comes back and takes it. Turned down: vcpu 0 writes others' tables in `evtchn` (each table
//! has one writer, which is why nothing in them needs a lock).

use core::fmt;

use arrayvec::ArrayVec;
use evtchn::{Answers, BindError, Binds, Intent, Ipi, Place, PortNr, Virq};
use percpu::{CpuId, PerCpu, Quiesced};
use xen_sys::Errno;
use xen_sys::hypercall::{Batch, CallToken, PortToken, Results};
use xen_sys::primitive::sync::atomic::{AtomicU32, Ordering};

/// Calls in a multicall of vcpu 0's: those of five vcpus; 2 KiB of the stack.
const AT_ONCE: usize = 16;

/// What vcpu 0 was given for each, by [`Intent::index`]; 0: nothing. Written by vcpu 0 while all others are parked, taken by its CPU.
pub(crate) struct Given {
    ports: PerCpu<[AtomicU32; Intent::COUNT]>,
    one_by_one: bool,
}

/// What Xen refused to do for another vcpu.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotGiven {
    /// A multicall, as a whole.
    Multicall(Errno),
    /// To stop a tick.
    Tick { cpu: CpuId, errno: Errno },
    /// To bind a port.
    Port(BindError),
}

impl fmt::Display for NotGiven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotGiven::Multicall(errno) => write!(f, "multicall for others: {errno}"),
            NotGiven::Tick { cpu, errno } => write!(f, "stop_periodic_timer of cpu {cpu}: {errno}"),
            NotGiven::Port(error) => error.fmt(f),
        }
    }
}

impl Given {
    /// For the first `nr` CPUs; `None` where each binds its own.
    pub(crate) fn new(nr: usize, resume: boot::Resume) -> Option<Given> {
        let one_by_one = match resume {
            boot::Resume::Parallel => return None,
            boot::Resume::Batched => false,
            boot::Resume::Serial => true,
        };
        let ports = PerCpu::new(nr, |_| [const { AtomicU32::new(0) }; Intent::COUNT]);
        Some(Given { ports, one_by_one })
    }

    /// Binds for `cpus` what `intents` says that each wants. Context: vcpu 0, in a new life of the domain.
    ///
    /// # Errors
    /// The first call that Xen refused; there is no way on from there.
    // What stands on the stack for it is not to stand there in all steps of a resume.
    #[inline(never)]
    pub(crate) fn ask_xen<I: Iterator<Item = Intent>>(
        &self,
        _others: &Quiesced,
        cpus: impl Iterator<Item = CpuId>,
        intents: impl Fn(CpuId) -> I,
    ) -> Result<(), NotGiven> {
        if self.one_by_one {
            Round::<_, 1>::new(self, Batch::issue).go(cpus, intents)
        } else {
            Round::<_, AT_ONCE>::new(self, Batch::issue).go(cpus, intents)
        }
    }
}

/// One call for another vcpu, and where its answer will be.
enum Asked {
    Tick(CallToken),
    Port(Intent, PortToken),
}

/// Calls for other vcpus, up to `N` by one multicall.
struct Round<'g, Issue, const N: usize> {
    given: &'g Given,
    batch: Batch<N>,
    asked: ArrayVec<(CpuId, Asked), N>,
    issue: Issue,
}

impl<'g, Issue, const N: usize> Round<'g, Issue, N>
where
    Issue: for<'b> FnMut(&'b mut Batch<N>) -> Result<Results<'b, N>, Errno>,
{
    fn new(given: &'g Given, issue: Issue) -> Self {
        Round { given, batch: Batch::new(), asked: ArrayVec::new(), issue }
    }

    fn go<I: Iterator<Item = Intent>>(
        &mut self,
        cpus: impl Iterator<Item = CpuId>,
        intents: impl Fn(CpuId) -> I,
    ) -> Result<(), NotGiven> {
        let room = "a batch that is full is issued";
        for cpu in cpus {
            self.ask(cpu, |batch| Asked::Tick(batch.stop_periodic_timer(cpu.vcpu()).expect(room)))?;
            for intent in intents(cpu) {
                self.ask(cpu, |batch| {
                    let token = match intent {
                        Intent::Virq(virq) => Binds::bind_virq(batch, virq, cpu),
                        Intent::Ipi(_) => Binds::bind_ipi(batch, cpu),
                    };
                    Asked::Port(intent, token.expect(room))
                })?;
            }
        }
        if self.asked.is_empty() { Ok(()) } else { self.issue() }
    }

    fn ask(&mut self, cpu: CpuId, call: impl FnOnce(&mut Batch<N>) -> Asked) -> Result<(), NotGiven> {
        let asked = call(&mut self.batch);
        self.asked.push((cpu, asked));
        if self.asked.is_full() { self.issue() } else { Ok(()) }
    }

    fn issue(&mut self) -> Result<(), NotGiven> {
        let results = (self.issue)(&mut self.batch).map_err(NotGiven::Multicall)?;
        for (cpu, asked) in self.asked.drain(..) {
            match asked {
                Asked::Tick(call) => drop(results.get(call).map_err(|errno| NotGiven::Tick { cpu, errno })?),
                Asked::Port(intent, token) => {
                    let nr = results.port(token);
                    let nr = nr.map_err(|errno| NotGiven::Port(BindError::Refused { cpu, intent, errno }))?;
                    // ORDERING: Relaxed, passed on by the release of the others.
                    self.given.ports.on(cpu)[intent.index()].store(nr, Ordering::Relaxed);
                }
            }
        }
        self.batch.clear();
        Ok(())
    }
}

/// A vcpu's own batch; what was given for it is not asked for again.
pub(crate) struct Own<const N: usize> {
    pub(crate) batch: Batch<N>,
    given: [u32; Intent::COUNT],
}

impl<const N: usize> Own<N> {
    /// An empty batch of this CPU's, which takes what was given for it.
    pub(crate) fn new(given: Option<&Given>) -> Self {
        let mut own = Own { batch: Batch::new(), given: [0; Intent::COUNT] };
        if let Some(given) = given {
            for (nr, port) in own.given.iter_mut().zip(given.ports.mine()) {
                // ORDERING: Relaxed twice: written before this CPU's release, and by nobody else until the next life.
                *nr = port.load(Ordering::Relaxed);
                port.store(0, Ordering::Relaxed);
            }
        }
        own
    }

    /// Whether anything was given, and with it all that vcpu 0 does for others.
    pub(crate) fn is_given(&self) -> bool {
        self.given.iter().any(|nr| *nr != 0)
    }

    fn given(&self, intent: Intent) -> Option<Token> {
        Some(self.given[intent.index()]).filter(|nr| *nr != 0).map(Token::Given)
    }
}

/// Where a port is to be found.
#[derive(Clone, Copy)]
pub(crate) enum Token {
    Given(u32),
    Asked(PortToken),
}

impl<const N: usize> Binds for Own<N> {
    type Token = Token;
    type Call = CallToken;

    unsafe fn init_control(&mut self, cpu: CpuId, block: Place) -> Option<CallToken> {
        // SAFETY: the caller's.
        unsafe { Binds::init_control(&mut self.batch, cpu, block) }
    }

    fn bind_virq(&mut self, virq: Virq, cpu: CpuId) -> Option<Token> {
        let given = self.given(Intent::Virq(virq));
        given.or_else(|| Binds::bind_virq(&mut self.batch, virq, cpu).map(Token::Asked))
    }

    fn bind_ipi(&mut self, cpu: CpuId) -> Option<Token> {
        let given = Ipi::ALL.into_iter().find_map(|ipi| self.given(Intent::Ipi(ipi)));
        given.or_else(|| Binds::bind_ipi(&mut self.batch, cpu).map(Token::Asked))
    }

    fn set_priority(&mut self, port: PortNr, priority: u32) -> Option<CallToken> {
        Binds::set_priority(&mut self.batch, port, priority)
    }

    fn send(&mut self, port: PortNr) -> Option<CallToken> {
        Binds::send(&mut self.batch, port)
    }
}

impl<const N: usize> Answers<Own<N>> for Results<'_, N> {
    fn port(&self, token: Token) -> Result<u32, Errno> {
        match token {
            Token::Given(nr) => Ok(nr),
            Token::Asked(token) => Results::port(self, token),
        }
    }

    fn done(&self, call: CallToken) -> Result<(), Errno> {
        self.get(call).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use percpu::hosted;
    use std::ptr::with_exposed_provenance_mut;
    use xen_sys::abi::event_channel::{EVTCHNOP_bind_ipi, EVTCHNOP_bind_virq, EvtchnBindIpi, EvtchnBindVirq};
    use xen_sys::abi::vcpu::VCPUOP_stop_periodic_timer;
    use xen_sys::abi::xen::{__HYPERVISOR_event_channel_op, __HYPERVISOR_vcpu_op, MulticallEntry};

    use super::*;

    const INTENTS: [Intent; 3] = [Intent::Virq(Virq::TIMER), Intent::Virq(Virq::DEBUG), Intent::Ipi(Ipi::Call)];

    fn cpu(n: usize) -> CpuId {
        CpuId::new(n).expect("tests use small numbers")
    }

    fn others(nr: usize) -> impl Iterator<Item = CpuId> {
        CpuId::first(nr).skip(1)
    }

    /// What Xen was asked for.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Call {
        Tick(u32),
        Virq(u32, u32),
        Ipi(u32),
    }

    /// Xen as it gives the lowest free port, and refuses the call number `refuses`.
    #[derive(Default)]
    struct Xen {
        multicalls: usize,
        calls: Vec<Call>,
        refuses: Option<usize>,
    }

    impl Xen {
        #[expect(non_upper_case_globals, reason = "constants spelled as Xen spells them, in patterns")]
        fn serve(&mut self, entries: &mut [MulticallEntry]) {
            self.multicalls += 1;
            for entry in entries {
                let nr = u32::try_from(self.calls.len()).expect("few calls");
                let argument = usize::try_from(entry.args[1]).expect("64-bit host");
                let vcpu_op = u64::from(VCPUOP_stop_periodic_timer);
                let (virq, ipi) = (u64::from(EVTCHNOP_bind_virq), u64::from(EVTCHNOP_bind_ipi));
                self.calls.push(match (entry.op, entry.args[0]) {
                    (__HYPERVISOR_vcpu_op, op) if op == vcpu_op => Call::Tick(u32::try_from(argument).expect("a vcpu")),
                    (__HYPERVISOR_event_channel_op, op) if op == virq => {
                        // SAFETY: the entry of a bind_virq points to its argument, lent to Xen during the call.
                        let bind = unsafe { &mut *with_exposed_provenance_mut::<EvtchnBindVirq>(argument) };
                        bind.port = nr + 1;
                        Call::Virq(bind.virq, bind.vcpu)
                    }
                    (__HYPERVISOR_event_channel_op, op) if op == ipi => {
                        // SAFETY: likewise for a bind_ipi.
                        let bind = unsafe { &mut *with_exposed_provenance_mut::<EvtchnBindIpi>(argument) };
                        bind.port = nr + 1;
                        Call::Ipi(bind.vcpu)
                    }
                    other => panic!("nobody asks for {other:?}"),
                });
                let refused = self.refuses == Some(self.calls.len() - 1);
                entry.result = if refused { (-28_i64).cast_unsigned() } else { 0 };
            }
        }

        fn ask<const N: usize>(&mut self, given: &Given, nr: usize) -> Result<(), NotGiven> {
            Round::<_, N>::new(given, |batch| {
                batch.issue_with(|entries| {
                    self.serve(entries);
                    Ok(())
                })
            })
            .go(others(nr), |_| INTENTS.into_iter())
        }
    }

    fn given(nr: usize) -> Given {
        Given::new(nr, boot::Resume::Batched).expect("vcpu 0 binds")
    }

    #[test]
    fn each_gets_its_own_whatever_fits_into_a_multicall() {
        for nr in 1..40 {
            let (one, many) = (given(nr), given(nr));
            let (mut by_one, mut by_many) = (Xen::default(), Xen::default());
            assert_eq!(by_one.ask::<1>(&one, nr), Ok(()));
            assert_eq!(by_many.ask::<AT_ONCE>(&many, nr), Ok(()));
            let calls = (INTENTS.len() + 1) * (nr - 1);
            assert_eq!((by_one.multicalls, by_many.multicalls), (calls, calls.div_ceil(AT_ONCE)));
            assert_eq!(by_one.calls, by_many.calls);
            for n in 1..nr {
                let vcpu = cpu(n).vcpu();
                let first = (n - 1) * 4;
                let of_it = [Call::Tick(vcpu), Call::Virq(0, vcpu), Call::Virq(1, vcpu), Call::Ipi(vcpu)];
                assert_eq!(by_one.calls[first..first + 4], of_it, "the tick ends before its virq is bound");
                let _on = hosted::enter(cpu(n));
                for given in [&one, &many] {
                    let mut own = Own::<4>::new(Some(given));
                    assert!(own.is_given());
                    let tokens =
                        [own.bind_virq(Virq::TIMER, cpu(n)), own.bind_virq(Virq::DEBUG, cpu(n)), own.bind_ipi(cpu(n))];
                    let results = own.batch.issue_with(|entries| {
                        assert!(entries.is_empty(), "all is there");
                        Ok(())
                    });
                    let results = results.expect("nothing was asked for");
                    let ports =
                        tokens.map(|token| Answers::<Own<4>>::port(&results, token.expect("given")).expect("given"));
                    assert_eq!(ports.map(|nr| nr as usize), [first + 2, first + 3, first + 4]);
                    assert!(!Own::<4>::new(Some(given)).is_given(), "it is taken once");
                }
            }
        }
    }

    #[test]
    fn what_is_refused_is_named() {
        let errno = Errno::ENOSPC;
        let refused = |intent| NotGiven::Port(BindError::Refused { cpu: cpu(3), intent, errno });
        for (call, error) in [
            (8, NotGiven::Tick { cpu: cpu(3), errno }),
            (9, refused(INTENTS[0])),
            (10, refused(INTENTS[1])),
            (11, refused(INTENTS[2])),
        ] {
            let told = error.to_string();
            assert!(told.contains("cpu 3") && told.contains("ENOSPC"), "{told}");
            let mut xen = Xen { refuses: Some(call), ..Xen::default() };
            assert_eq!(xen.ask::<AT_ONCE>(&given(5), 5), Err(error));
        }
        let given = given(2);
        let fails = Round::<_, 4>::new(&given, |_| Err(Errno::EFAULT)).go(others(2), |_| INTENTS.into_iter());
        assert_eq!(fails, Err(NotGiven::Multicall(Errno::EFAULT)));
    }

    #[test]
    fn what_is_not_given_is_asked_for() {
        let _on = hosted::enter(cpu(1));
        let mut xen = Xen::default();
        for given in [None, Some(&given(2))] {
            let mut own = Own::<2>::new(given);
            assert!(!own.is_given());
            let timer = own.bind_virq(Virq::TIMER, cpu(1)).expect("room");
            let call = own.bind_ipi(cpu(1)).expect("room");
            assert!(own.bind_ipi(cpu(1)).is_none(), "the batch is full");
            let first = u32::try_from(xen.calls.len()).expect("few calls") + 1;
            let results = own.batch.issue_with(|entries| {
                xen.serve(entries);
                Ok(())
            });
            let results = results.expect("Xen serves");
            assert_eq!([timer, call].map(|token| Answers::<Own<2>>::port(&results, token)), [Ok(first), Ok(first + 1)]);
        }
        assert!(Given::new(2, boot::Resume::Parallel).is_none());
    }
}
