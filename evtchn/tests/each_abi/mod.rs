//! Tests that are the same for both event channel ABIs: functions of one, run with each.

macro_rules! with_each_abi {
    ($($name:ident),* $(,)?) => {
        mod two_level {
            $(#[test] fn $name() { super::$name(evtchn::AbiKind::TwoLevel); })*
        }
        mod fifo {
            $(#[test] fn $name() { super::$name(evtchn::AbiKind::Fifo); })*
        }
    };
}
