//! `cargo xtask`: parses the command line, ends everything on a signal, turns errors into an exit code.
//!
//! On Ctrl-C, SIGTERM and SIGHUP what must not outlive us is ended (`xtask::ending`), then this process. Turned down:
//! unwinding through every command.

#![forbid(unsafe_code)]

use std::io::Write;
use std::process::{ExitCode, exit};

use clap::Parser;
use xtask::cli::Cli;
use xtask::commands::test::AlreadyTold;
use xtask::ending;

/// What shells return for a program that Ctrl-C ended. ctrlc does not tell which signal it was.
const INTERRUPTED: i32 = 130;

fn main() -> ExitCode {
    let handler = ctrlc::set_handler(|| {
        // A closed stderr leaves nobody to tell.
        let _ = writeln!(std::io::stderr(), "\ninterrupted");
        ending::carry_out();
        exit(INTERRUPTED);
    });
    if let Err(error) = handler {
        eprintln!("signals will not be handled: {error}");
    }
    let outcome = Cli::parse().run();
    ending::give_way();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<AlreadyTold>() => ExitCode::FAILURE,
        Err(error) => {
            // A closed stderr leaves nobody to tell.
            let _ = writeln!(std::io::stderr(), "\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}
