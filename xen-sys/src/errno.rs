//! Xen's error numbers, as hypercalls return them (negated) and as xenstore spells them (by name).
//!
//! Source: xen/include/public/errno.h. The values are Xen's own, not the host's: on some systems they differ.
//! Contexts: any; plain values.
//!
//! Turned down: an enum with one variant per number. A newer Xen may return a number that this list lacks, and that
//! must stay an error with its number, not become a catch-all.
#![forbid(unsafe_code)]

use core::{fmt, num::NonZeroU16};

/// An error number of Xen's, 1 to 4095.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Errno(NonZeroU16);

macro_rules! errnos {
    ($($name:ident = $value:literal, $doc:literal;)*) => {
        impl Errno {
            $(
                #[doc = $doc]
                pub const $name: Self = Self(NonZeroU16::new($value).expect("the literals below are not zero"));
            )*

            /// Every number that has a name, with the name; aliases come after the name that [`Errno::name`] gives.
            pub const ALL: &'static [(&'static str, Self)] = &[$((stringify!($name), Self::$name),)*];
        }
    };
}

errnos! {
    EPERM = 1, "Operation not permitted.";
    ENOENT = 2, "No such entry.";
    ESRCH = 3, "No such domain.";
    EIO = 5, "I/O error.";
    ENXIO = 6, "No such device or address.";
    E2BIG = 7, "Argument too long.";
    ENOEXEC = 8, "Executable format error.";
    EBADF = 9, "Bad file number.";
    ECHILD = 10, "No child.";
    EAGAIN = 11, "Try again.";
    EWOULDBLOCK = 11, "Alias of `EAGAIN`.";
    ENOMEM = 12, "Out of memory.";
    EACCES = 13, "Permission denied.";
    EFAULT = 14, "Bad address.";
    EBUSY = 16, "Busy.";
    EEXIST = 17, "Exists already.";
    EXDEV = 18, "Cross-device link.";
    ENODEV = 19, "No such device.";
    ENOTDIR = 20, "Not a directory.";
    EISDIR = 21, "Is a directory.";
    EINVAL = 22, "Invalid argument.";
    ENFILE = 23, "File table overflow.";
    EMFILE = 24, "Too many open files.";
    ENOSPC = 28, "No space left.";
    EROFS = 30, "Read-only.";
    EMLINK = 31, "Too many links.";
    EDOM = 33, "Argument out of the function's domain.";
    ERANGE = 34, "Result not representable.";
    EDEADLK = 35, "Would deadlock.";
    EDEADLOCK = 35, "Alias of `EDEADLK`.";
    ENAMETOOLONG = 36, "Name too long.";
    ENOLCK = 37, "No locks left.";
    ENOSYS = 38, "Not implemented.";
    ENOTEMPTY = 39, "Not empty.";
    ENODATA = 61, "No data.";
    ETIME = 62, "Timer expired.";
    EBADMSG = 74, "Not a data message.";
    EOVERFLOW = 75, "Value too large.";
    EILSEQ = 84, "Illegal byte sequence.";
    ENOTSOCK = 88, "Not a socket.";
    EMSGSIZE = 90, "Message too large.";
    EOPNOTSUPP = 95, "Not supported.";
    EADDRINUSE = 98, "Address in use.";
    EADDRNOTAVAIL = 99, "Address not available.";
    ENOBUFS = 105, "No buffers left.";
    EISCONN = 106, "Already connected.";
    ENOTCONN = 107, "Not connected.";
    ETIMEDOUT = 110, "Timed out.";
    ECONNREFUSED = 111, "Connection refused.";
}

impl Errno {
    /// The largest number that a hypercall may return negated.
    pub const MAX: u16 = 4095;

    /// The error with this number; `None` outside of 1 to [`Errno::MAX`].
    pub const fn new(code: u16) -> Option<Self> {
        match NonZeroU16::new(code) {
            Some(code) if code.get() <= Self::MAX => Some(Self(code)),
            _ => None,
        }
    }

    /// Splits a hypercall's raw return: -4095 to -1 is an error, everything else a value.
    ///
    /// # Errors
    /// The error, if `ret` is one.
    #[inline]
    pub const fn check(ret: i64) -> Result<u64, Self> {
        if ret < 0 && ret >= -(Self::MAX as i64) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "-4095..=-1, just compared")]
            let code = (-ret) as u16;
            // The match has no second arm to take: 1 to 4095 is always `Some`.
            if let Some(errno) = Self::new(code) {
                return Err(errno);
            }
        }
        Ok(ret.cast_unsigned())
    }

    /// The error that xenstore means by `name`, such as `b"EAGAIN"`.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| known.as_bytes() == name).map(|&(_, errno)| errno)
    }

    /// The number, positive.
    pub const fn code(self) -> u16 {
        self.0.get()
    }

    /// Xen's name for it; `None` for a number that is not in the header.
    pub fn name(self) -> Option<&'static str> {
        Self::ALL.iter().find(|&&(_, errno)| errno == self).map(|&(name, _)| name)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name().unwrap_or("errno"), self.code())
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl core::error::Error for Errno {}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::Errno;
    use std::format;

    #[test]
    fn only_the_last_page_of_values_is_an_error() {
        assert_eq!(Errno::check(0), Ok(0));
        assert_eq!(Errno::check(7), Ok(7));
        assert_eq!(Errno::check(-1), Err(Errno::EPERM));
        assert_eq!(Errno::check(-22), Err(Errno::EINVAL));
        assert_eq!(Errno::check(-4095).map_err(Errno::code), Err(4095));
        // Just outside: a value with the top bit set, such as an address in the kernel half.
        assert_eq!(Errno::check(-4096), Ok(0xffff_ffff_ffff_f000));
        assert_eq!(Errno::check(i64::MIN), Ok(1 << 63));
        assert_eq!(Errno::check(i64::MAX), Ok(i64::MAX.cast_unsigned()));
    }

    #[test]
    fn numbers_outside_of_the_range_are_refused() {
        assert_eq!(Errno::new(0), None);
        assert_eq!(Errno::new(4096), None);
        assert_eq!(Errno::new(4095).map(Errno::code), Some(4095));
    }

    #[test]
    fn names_go_both_ways_and_aliases_keep_the_first() {
        assert_eq!(Errno::from_name(b"EAGAIN"), Some(Errno::EAGAIN));
        assert_eq!(Errno::from_name(b"EQUOTA"), None);
        assert_eq!(Errno::from_name(b"EAGAIN\0"), None);
        assert_eq!(Errno::EWOULDBLOCK.name(), Some("EAGAIN"));
        assert_eq!(Errno::EDEADLOCK.name(), Some("EDEADLK"));
    }

    #[test]
    fn prints_name_and_number() {
        assert_eq!(format!("{}", Errno::EINVAL), "EINVAL (22)");
        assert_eq!(format!("{:?}", Errno::new(200)), "Some(errno (200))");
    }

    #[test]
    fn an_errno_result_is_two_bytes() {
        assert_eq!(size_of::<Result<(), Errno>>(), 2);
    }
}
