//! `cargo xtask timeline`: draws the suspends that a console's log tells of.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;

use super::relative;
use crate::logfmt::Line;
use crate::timeline::{Timeline, Timelines, picture};

/// Options of `timeline`.
#[derive(Clone, Debug, Args)]
pub struct TimelineOptions {
    /// A log of a guest's console, such as /var/log/xen/console/guest-NAME.log.
    #[arg(value_name = "LOG")]
    log: PathBuf,
    /// Where the pictures go: suspend-N.svg. The log's own directory where not given.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Runs `timeline`.
///
/// # Errors
/// When the log cannot be read, tells of no suspend, or what it tells cannot be.
pub fn run(options: &TimelineOptions) -> Result<()> {
    let log = options.log.display();
    let bytes = fs::read(&options.log).with_context(|| format!("cannot read {log}"))?;
    let timelines = read(&String::from_utf8_lossy(&bytes)).with_context(|| format!("in {log}"))?;
    if timelines.told().is_empty() {
        bail!(
            "{log} tells of no suspend. Start the guest with trace=suspend on its command line, or type `phases` on its \
             console after a suspend"
        );
    }
    let home = options.log.parent().unwrap_or(Path::new("."));
    for timeline in timelines.told() {
        let path = write(timeline, "from a log", options.out.as_deref().unwrap_or(home))?;
        println!("{}", relative(&path));
    }
    Ok(())
}

fn read(log: &str) -> Result<Timelines> {
    let mut timelines = Timelines::default();
    // Xen and the toolstack may write into the same log; half a line at its start is nobody's fault.
    for line in log.lines().filter_map(|text| Line::parse(text)?.ok()) {
        timelines.take(&line).map_err(|why| anyhow!("`{line}`: {why}"))?;
    }
    Ok(timelines)
}

/// Draws `timeline` into `dir`; the picture's path. `how` is what was done to the guest.
///
/// # Errors
/// When there is nothing to draw, or it cannot be written.
pub fn write(timeline: &Timeline, how: &str, dir: &Path) -> Result<PathBuf> {
    let picture =
        picture::draw(timeline, how).context("the guest tells of a suspend, but of nothing that happened in it")?;
    let path = dir.join(format!("suspend-{}.svg", timeline.suspend));
    fs::write(&path, picture).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read_through_what_others_say() {
        let log = "ing half\n(XEN) hello\nstasis: phases suspend=1 outcome=continued\r\nstasis: heartbeat seq=\"\n\
                   stasis: phase suspend=1 vcpu=0 asked_ns=0 suspending_ns=7 back_ns=9\n\
                   stasis: phases-end suspend=1 lines=1 lost_lines=0\n";
        let timelines = read(log).expect("well formed");
        assert_eq!(timelines.told().len(), 1);
        let error = read("stasis: phase suspend=1 vcpu=0\n").expect_err("of no suspend");
        assert!(error.to_string().contains("came before"), "{error}");
        assert!(read("").expect("nothing").told().is_empty());
    }
}
