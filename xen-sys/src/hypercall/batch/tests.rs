//! Marshalling of a batch, against a fake Xen that reads the arguments by address, as the real one does.

use super::*;

/// Reads an argument where an entry says it is.
///
/// # Safety
/// `address` was exposed by a live `T`.
unsafe fn read<T: Copy>(address: u64) -> T {
    let address = usize::try_from(address).expect("64-bit host");
    // SAFETY: the caller's.
    unsafe { core::ptr::with_exposed_provenance::<T>(address).read() }
}

/// Writes an argument where an entry says it is.
///
/// # Safety
/// As for [`read`], and nobody else uses the memory now.
unsafe fn write<T>(address: u64, value: T) {
    let address = usize::try_from(address).expect("64-bit host");
    // SAFETY: the caller's.
    unsafe { core::ptr::with_exposed_provenance_mut::<T>(address).write(value) }
}

/// Whether the whole of a `T` at `address` lies in the bytes of `batch`.
fn inside<T, const N: usize>(batch: core::ops::Range<u64>, address: u64) -> bool {
    address >= batch.start
        && address + size_of::<T>() as u64 <= batch.end
        && address.is_multiple_of(align_of::<T>() as u64)
}

fn bytes_of<const N: usize>(batch: &Batch<N>) -> core::ops::Range<u64> {
    let start = core::ptr::from_ref(batch).addr() as u64;
    start..start + size_of::<Batch<N>>() as u64
}

#[test]
fn binds_go_out_and_their_ports_come_back() {
    let mut batch = Batch::<4>::new();
    let virq = batch.bind_virq(1, 33).expect("room for four");
    let ipi = batch.bind_ipi(33).expect("room for four");
    let range = bytes_of(&batch);
    let results = batch
        .issue_with(|entries| {
            assert_eq!(entries.len(), 2);
            for (entry, port) in entries.iter_mut().zip([70u32, 71]) {
                assert_eq!(entry.op, __HYPERVISOR_event_channel_op);
                let address = entry.args[1];
                if entry.args[0] == u64::from(EVTCHNOP_bind_virq) {
                    assert!(inside::<EvtchnBindVirq, 4>(range.clone(), address));
                    // SAFETY: the entry of a bind_virq points to its argument.
                    let op: EvtchnBindVirq = unsafe { read(address) };
                    assert_eq!((op.virq, op.vcpu), (1, 33));
                    // SAFETY: as above; the batch lends it to us until we return.
                    unsafe { write(address, EvtchnBindVirq { port, ..op }) };
                } else {
                    assert_eq!(entry.args[0], u64::from(EVTCHNOP_bind_ipi));
                    assert!(inside::<EvtchnBindIpi, 4>(range.clone(), address));
                    // SAFETY: the entry of a bind_ipi points to its argument.
                    let op: EvtchnBindIpi = unsafe { read(address) };
                    assert_eq!(op.vcpu, 33);
                    // SAFETY: as above.
                    unsafe { write(address, EvtchnBindIpi { port, ..op }) };
                }
            }
            Ok(())
        })
        .expect("the fake took all");
    assert_eq!(results.port(virq), Ok(70));
    assert_eq!(results.port(ipi), Ok(71));
}

#[test]
fn every_call_is_marshalled_as_the_header_says() {
    let runstate = core::ptr::without_provenance_mut(0x1000);
    let time = core::ptr::without_provenance_mut(0x2000);
    let mut batch = Batch::<6>::new();
    batch.send(12).expect("room");
    // SAFETY: only ever issued to the fake below.
    unsafe { batch.register_vcpu_info(5, 0x77, 0x140) }.expect("room");
    // SAFETY: as above.
    unsafe { batch.register_runstate(5, runstate) }.expect("room");
    // SAFETY: as above.
    unsafe { batch.register_time(5, time) }.expect("room");
    batch.stop_periodic_timer(5).expect("room");
    batch.set_timer(123_456).expect("room");
    batch
        .issue_with(|entries| {
            let [send, info, run, time, stop, timer] = entries else { panic!("six went in") };
            assert_eq!((send.op, send.args[0]), (32, 4));
            // SAFETY: each entry points to the argument of its operation.
            let op: EvtchnSend = unsafe { read(send.args[1]) };
            assert_eq!(op.port, 12);

            assert_eq!((info.op, info.args[0], info.args[1]), (24, 10, 5));
            // SAFETY: as above.
            let op: VcpuRegisterVcpuInfo = unsafe { read(info.args[2]) };
            assert_eq!((op.mfn, op.offset, op.rsvd), (0x77, 0x140, 0));

            assert_eq!((run.op, run.args[0], run.args[1]), (24, 5, 5));
            // SAFETY: as above; read as the integer that Xen takes it for.
            assert_eq!(unsafe { read::<u64>(run.args[2]) }, 0x1000);

            assert_eq!((time.op, time.args[0], time.args[1]), (24, 13, 5));
            // SAFETY: as above.
            assert_eq!(unsafe { read::<u64>(time.args[2]) }, 0x2000);

            assert_eq!((stop.op, stop.args), (24, [7, 5, 0, 0, 0, 0]));
            assert_eq!((timer.op, timer.args), (15, [123_456, 0, 0, 0, 0, 0]));
            Ok(())
        })
        .expect("the fake took all");
}

#[test]
fn the_life_of_a_vcpu_is_marshalled_as_the_header_says() {
    let context = VcpuGuestContext::zeroed();
    let mut batch = Batch::<3>::new();
    // SAFETY: only ever issued to the fake below.
    unsafe { batch.initialise(700, &raw const context) }.expect("room");
    batch.up(700).expect("room");
    batch.down(701).expect("room");
    batch
        .issue_with(|entries| {
            let [initialise, up, down] = entries else { panic!("three went in") };
            assert_eq!((initialise.op, initialise.args[0], initialise.args[1]), (24, 0, 700));
            assert_eq!(initialise.args[2], core::ptr::from_ref(&context).addr() as u64, "it is read where it stands");
            assert_eq!((up.op, [up.args[0], up.args[1], up.args[2]]), (24, [1, 700, 0]));
            assert_eq!((down.op, [down.args[0], down.args[1], down.args[2]]), (24, [2, 701, 0]));
            Ok(())
        })
        .expect("the fake takes all");
}

#[test]
fn the_way_into_user_mode_is_marshalled_as_the_header_says() {
    let mut batch = Batch::<3>::new();
    // SAFETY: only ever issued to the fake below.
    unsafe { batch.stack_switch(0xe02b, 0x8000) }.expect("room");
    batch.user_root(0x1234).expect("room");
    batch.flush_tlb_here().expect("room");
    batch
        .issue_with(|entries| {
            let [stack, root, flush] = entries else { panic!("three went in") };
            assert_eq!((stack.op, stack.args), (3, [0xe02b, 0x8000, 0, 0, 0, 0]));
            for (entry, cmd, mfn) in [(root, 15, 0x1234), (flush, 6, 0)] {
                assert_eq!((entry.op, &entry.args[1..]), (26, &[1, 0, 0x7ff0, 0, 0][..]));
                // SAFETY: the entry points to its argument.
                let op: MmuextOp = unsafe { read(entry.args[0]) };
                // SAFETY: both fields are integers of 64 bits.
                assert_eq!((op.cmd, unsafe { op.arg1.mfn }), (cmd, mfn));
            }
            Ok(())
        })
        .expect("the fake took all");
}

#[test]
fn each_call_has_its_own_result() {
    let mut batch = Batch::<3>::new();
    let bad = batch.bind_virq(99, 0).expect("room");
    let good = batch.set_timer(1).expect("room");
    let worse = batch.send(7).expect("room");
    let results = batch
        .issue_with(|entries| {
            entries[0].result = (-22i64).cast_unsigned();
            entries[1].result = 3;
            entries[2].result = (-14i64).cast_unsigned();
            Ok(())
        })
        .expect("the fake took all");
    assert_eq!(results.port(bad), Err(Errno::EINVAL));
    assert_eq!(results.get(good), Ok(3));
    assert_eq!(results.get(worse), Err(Errno::EFAULT));
}

#[test]
fn a_full_batch_refuses_and_stays_as_it_was() {
    let mut batch = Batch::<1>::new();
    batch.set_timer(1).expect("room for one");
    assert_eq!(batch.bind_ipi(0), Err(BatchFull { capacity: 1 }));
    batch
        .issue_with(|entries| {
            assert_eq!(entries.len(), 1);
            assert_eq!(entries[0].op, __HYPERVISOR_set_timer_op);
            Ok(())
        })
        .expect("the fake took it");
}

#[test]
fn issuing_again_starts_from_the_calls_and_not_from_what_xen_left() {
    let mut batch = Batch::<1>::new();
    batch.set_timer(5).expect("room for one");
    for _ in 0..2 {
        batch
            .issue_with(|entries| {
                assert_eq!((entries[0].op, entries[0].args[0], entries[0].result), (15, 5, 0));
                entries[0] = MulticallEntry { op: 0xaaaa, result: 0, args: [0xaaaa; 6] };
                Ok(())
            })
            .expect("the fake took it");
    }
}

#[test]
fn a_batch_may_move_between_push_and_issue() {
    fn moved<const N: usize>(batch: Batch<N>) -> [Batch<N>; 1] {
        [batch]
    }
    let mut batch = Batch::<1>::new();
    let token = batch.bind_ipi(9).expect("room for one");
    let [mut batch] = moved(batch);
    let range = bytes_of(&batch);
    let results = batch
        .issue_with(|entries| {
            let address = entries[0].args[1];
            assert!(inside::<EvtchnBindIpi, 1>(range, address));
            // SAFETY: the entry points to its argument, lent to us until we return.
            unsafe { write(address, EvtchnBindIpi { vcpu: 9, port: 40 }) };
            Ok(())
        })
        .expect("the fake took it");
    assert_eq!(results.port(token), Ok(40));
}

#[test]
fn a_failed_multicall_gives_no_results() {
    let mut batch = Batch::<1>::new();
    batch.set_timer(1).expect("room for one");
    assert_eq!(batch.issue_with(|_| Err(Errno::EFAULT)).map(drop), Err(Errno::EFAULT));
    assert_eq!(batch.issue().map(drop), Err(Errno::ENOSYS));
}

#[test]
#[should_panic(expected = "token of another batch")]
fn a_token_of_a_longer_batch_is_caught() {
    let mut long = Batch::<2>::new();
    long.set_timer(1).expect("room");
    let token = long.set_timer(2).expect("room");
    let mut short = Batch::<2>::new();
    short.set_timer(1).expect("room");
    let results = short.issue_with(|_| Ok(())).expect("the fake took it");
    let _ = results.get(token);
}

#[test]
fn a_cleared_batch_is_as_new() {
    let mut batch = Batch::<1>::new();
    batch.send(7).expect("room for one");
    batch.clear();
    let port = batch.bind_ipi(3).expect("room for one");
    let results = batch.issue_with(|entries| {
        assert_eq!((entries.len(), entries[0].args[0]), (1, u64::from(EVTCHNOP_bind_ipi)));
        Ok(())
    });
    assert_eq!(results.and_then(|results| results.port(port)), Ok(0));
    batch.clear();
    assert!(batch.issue_with(|entries| if entries.is_empty() { Ok(()) } else { Err(Errno::EFAULT) }).is_ok());
}
