//! The agent as a program of its own: process 2 of the lab's dom0. Compiled by `agent_build.rs`.

mod agent;
mod frame;
mod tail;

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = |what: &str| arguments.next().ok_or_else(|| std::io::Error::other(format!("no {what} given")));
    let line = std::fs::File::options().read(true).write(true).open(argument("line")?)?;
    let places = agent::Places { console_logs: argument("log directory")?.into(), inbox: argument("inbox")?.into() };
    agent::serve(&mut line.try_clone()?, line, places)
}
