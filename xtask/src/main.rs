//! `cargo xtask`: parses the command line, ends everything on Ctrl-C, turns errors into an exit code.
//!
//! On Ctrl-C this process ends at once. Cargo and rustup get the same signal from the terminal; QEMU,
//! which does not, is ended by the kernel when its parent is gone (`xtask::lab`), and what was being
//! put into the cache is left under a temporary name. Turned down: unwinding through every command.

#![forbid(unsafe_code)]

use std::io::Write;
use std::process::{ExitCode, exit};

use clap::Parser;
use xtask::cli::Cli;
use xtask::commands::test::AlreadyTold;

/// What shells return for a program that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

fn main() -> ExitCode {
    let handler = ctrlc::set_handler(|| {
        let _ = writeln!(std::io::stderr(), "\ninterrupted");
        exit(INTERRUPTED);
    });
    if let Err(error) = handler {
        eprintln!("Ctrl-C will not be handled: {error}");
    }
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<AlreadyTold>() => ExitCode::FAILURE,
        Err(error) => {
            // A closed stderr leaves nobody to tell.
            let _ = writeln!(std::io::stderr(), "\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}
