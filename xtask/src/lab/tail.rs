//! Follows xenconsoled's log files, so that no line of a guest's console is missed.
//!
//! Owns which files a followed domain can have and how far each has been read. xenconsoled names the log by
//! the domain's name at the moment it first sees it: `guest-NAME.log` after create, restore and reboot,
//! `guest-NAME--incoming.log` after a migration to this machine; it always appends. A file that does not
//! exist yet is simply read later. Runs on one thread that polls: a poll costs two `stat`s per domain.
//!
//! Only `std` is used: this file is compiled into xtask and, by itself, into the agent. Turned down:
//! inotify, which would need unsafe code or a dependency in the agent for a few milliseconds less delay.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Takes console bytes, as domain, log file name, bytes.
pub(crate) type Emit<'a> = dyn FnMut(&str, &str, &[u8]) -> io::Result<()> + 'a;

/// Reads the logs of every followed domain from their first byte.
pub(crate) struct Follower {
    dir: PathBuf,
    domains: Vec<(String, Vec<Log>)>,
}

/// One log file and how much of it has been passed on.
struct Log {
    name: String,
    offset: u64,
}

impl Follower {
    /// A follower of the logs in `dir`, with no domain yet.
    #[must_use]
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), domains: Vec::new() }
    }

    /// Follows `domain` from now on; a second time changes nothing.
    pub(crate) fn follow(&mut self, domain: &str) {
        if self.domains.iter().any(|(name, _)| name == domain) {
            return;
        }
        let log = |suffix: &str| Log { name: format!("guest-{domain}{suffix}.log"), offset: 0 };
        self.domains.push((domain.to_owned(), vec![log(""), log("--incoming")]));
    }

    /// Passes on all that was appended since the last poll to `emit`.
    ///
    /// Within one poll a domain's files come in the order in which they were last written. That is the guest's
    /// order, because a domain is suspended before the next one of its name writes.
    /// # Errors
    /// `emit`'s, unchanged. A log that cannot be read now is tried again at the next poll.
    pub(crate) fn poll(&mut self, emit: &mut Emit) -> io::Result<()> {
        let mut buffer = vec![0; 16 * 1024];
        for (domain, logs) in &mut self.domains {
            let mut grown: Vec<(SystemTime, &mut Log)> = Vec::new();
            for log in logs {
                let Ok(metadata) = std::fs::metadata(self.dir.join(&log.name)) else { continue };
                if metadata.len() < log.offset {
                    // Somebody truncated or replaced it: what is there now has not been seen.
                    log.offset = 0;
                }
                if metadata.len() > log.offset {
                    grown.push((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), log));
                }
            }
            grown.sort_by_key(|(modified, _)| *modified);
            for (_, log) in grown {
                let Ok(mut file) = File::open(self.dir.join(&log.name)) else { continue };
                if file.seek(SeekFrom::Start(log.offset)).is_err() {
                    continue;
                }
                while let Ok(count @ 1..) = file.read(&mut buffer) {
                    emit(domain, &log.name, &buffer[..count])?;
                    log.offset += count as u64;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::io::Write;

    fn append(dir: &Path, name: &str, bytes: &[u8]) {
        let mut file =
            OpenOptions::new().create(true).append(true).open(dir.join(name)).expect("a directory of our own");
        file.write_all(bytes).expect("room on the disk");
    }

    fn poll(follower: &mut Follower) -> Vec<(String, String, Vec<u8>)> {
        let mut seen = Vec::new();
        follower
            .poll(&mut |domain, file, bytes| {
                seen.push((domain.to_owned(), file.to_owned(), bytes.to_vec()));
                Ok(())
            })
            .expect("this emit never fails");
        seen
    }

    fn directory(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("stasis-tail-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the temporary directory is writable");
        dir
    }

    #[test]
    fn bytes_arrive_once_from_the_first_even_of_a_file_that_comes_later() {
        let dir = directory("once");
        let mut follower = Follower::new(&dir);
        follower.follow("g");
        follower.follow("g");
        assert!(poll(&mut follower).is_empty());
        append(&dir, "guest-g.log", b"one\ntw");
        append(&dir, "guest-gg.log", b"another domain\n");
        assert_eq!(poll(&mut follower), [("g".into(), "guest-g.log".into(), b"one\ntw".to_vec())]);
        assert!(poll(&mut follower).is_empty());
        append(&dir, "guest-g.log", b"o\n");
        assert_eq!(poll(&mut follower), [("g".into(), "guest-g.log".into(), b"o\n".to_vec())]);
        std::fs::remove_dir_all(dir).expect("our own directory");
    }

    #[test]
    fn the_file_written_last_comes_last_whatever_its_name() {
        let dir = directory("order");
        let mut follower = Follower::new(&dir);
        follower.follow("g");
        append(&dir, "guest-g--incoming.log", b"before the save\n");
        append(&dir, "guest-g.log", b"restored\n");
        let early = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000);
        File::options()
            .append(true)
            .open(dir.join("guest-g--incoming.log"))
            .and_then(|file| file.set_modified(early))
            .expect("our own file");
        let files: Vec<_> = poll(&mut follower).into_iter().map(|(_, file, _)| file).collect();
        assert_eq!(files, ["guest-g--incoming.log", "guest-g.log"]);
        std::fs::remove_dir_all(dir).expect("our own directory");
    }

    #[test]
    fn a_truncated_log_is_read_again_from_its_start() {
        let dir = directory("truncated");
        let mut follower = Follower::new(&dir);
        follower.follow("g");
        append(&dir, "guest-g.log", b"long first life\n");
        assert_eq!(poll(&mut follower).len(), 1);
        std::fs::write(dir.join("guest-g.log"), b"second\n").expect("our own file");
        assert_eq!(poll(&mut follower), [("g".into(), "guest-g.log".into(), b"second\n".to_vec())]);
        std::fs::remove_dir_all(dir).expect("our own directory");
    }

    #[test]
    fn what_emit_refused_is_not_lost() {
        let dir = directory("refused");
        let mut follower = Follower::new(&dir);
        follower.follow("g");
        append(&dir, "guest-g.log", b"kept\n");
        let refused = follower.poll(&mut |_, _, _| Err(io::ErrorKind::BrokenPipe.into()));
        assert!(refused.is_err());
        assert_eq!(poll(&mut follower).len(), 1);
        std::fs::remove_dir_all(dir).expect("our own directory");
    }
}
