//! What a signal leaves to be done is done: children with their children, files, newest first.
//!
//! One test in a program of its own, because it really begins the end of its process.

use std::path::Path;
use std::process::Command;
use std::sync::mpsc::channel;

use xtask::ending::{Temporary, at_end, begun, carry_out};

#[test]
fn all_that_must_not_outlive_us_is_ended() {
    let dir = std::env::temp_dir().join(format!("stasis-ending-{}", std::process::id()));
    std::fs::create_dir(&dir).expect("a directory of our own");
    let log = dir.join("log");
    let (done, doing) = channel();
    let say = |what: &'static str| {
        let done = done.clone();
        move || done.send(what).expect("the test listens")
    };

    // A program as `cargo test` is one: it waits for a child, which a signal to it alone would leave behind.
    let (started, child) = channel();
    let runner = std::thread::spawn(move || {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600 & echo $!; wait"]);
        xtask::cargo::run(command, &log, &mut |line| started.send(line.to_owned()).expect("the test listens"))
    });
    let child = child.recv().expect("the child's id");
    assert!(Path::new("/proc").join(&child).exists());

    let file = Temporary::new(dir.join("file"));
    std::fs::write(file.path(), "x").expect("our own directory");
    let _first = at_end(say("first"));
    drop(at_end(say("taken back")));
    let _second = at_end(say("second"));
    assert!(!begun());
    carry_out();

    assert!(begun());
    assert_eq!(doing.try_iter().collect::<Vec<_>>(), ["second", "first"]);
    assert!(!file.path().exists());
    // It returns when nobody holds the pipe any more: the child is gone, too.
    let ran = runner.join().expect("no panic").expect("it was started");
    assert!(!ran.success);
    let _late = at_end(say("late"));
    assert_eq!(doing.try_iter().collect::<Vec<_>>(), ["late"], "what comes too late is done at once");
    std::fs::remove_dir_all(dir).expect("our own directory");
}
