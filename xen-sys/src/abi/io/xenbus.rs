//! io/xenbus.h: the states that a frontend and its backend write into xenstore.
//!
//! Contexts: any; plain data. The peer may write any text, so the number is converted, never transmuted.

/// State of one end of a device, in decimal under its `state` node.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum XenbusState {
    /// No node, or not a number we know.
    #[default]
    Unknown = 0,
    /// Just created.
    Initialising = 1,
    /// Waits for information from the peer or a script.
    InitWait = 2,
    /// Waits for the peer to connect.
    Initialised = 3,
    /// Works.
    Connected = 4,
    /// Is being closed.
    Closing = 5,
    /// Is closed.
    Closed = 6,
    /// Is being changed.
    Reconfiguring = 7,
    /// Has been changed.
    Reconfigured = 8,
}

impl XenbusState {
    /// The state with this number; [`XenbusState::Unknown`] for any other.
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Initialising,
            2 => Self::InitWait,
            3 => Self::Initialised,
            4 => Self::Connected,
            5 => Self::Closing,
            6 => Self::Closed,
            7 => Self::Reconfiguring,
            8 => Self::Reconfigured,
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::XenbusState;

    #[test]
    fn every_number_goes_there_and_back() {
        for number in 0..=8 {
            assert_eq!(XenbusState::from_number(number) as u32, number);
        }
        assert_eq!(XenbusState::from_number(9), XenbusState::Unknown);
        assert_eq!(XenbusState::from_number(u32::MAX), XenbusState::Unknown);
    }
}
