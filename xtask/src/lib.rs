//! The host tool, as a library: `main.rs` is its command line, the ladders in `tests/` use it too.
//!
//! Runs on the host only. Three kinds of module: what can be pure is (`logfmt`, `contract`, `elfcheck`,
//! `xlcfg`, `report`, `counts`, `licences`, `timeline`); places where a guest can run (`host`, `lab`); and what the
//! user asks for (`commands`, `drive`). Turned down: shell scripts, which cannot be tested.

pub mod bench;
pub mod cargo;
pub mod cli;
pub mod commands;
pub mod contract;
pub mod counts;
pub mod drive;
pub mod elfcheck;
pub mod ending;
pub mod host;
pub mod image;
pub mod lab;
pub mod licences;
pub mod lock;
pub mod logfmt;
pub mod mutate;
pub mod options;
pub mod progress;
pub mod report;
pub mod symbolise;
pub mod timeline;
pub mod workspace;
pub mod xlcfg;
