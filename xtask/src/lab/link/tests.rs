//! The link and the real agent, joined by a socket pair instead of a virtio port.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use super::super::agent::{Places, serve};
use super::*;

struct Joined {
    link: Link,
    dir: PathBuf,
}

impl Joined {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("stasis-link-{name}-{}", std::process::id()));
        let places = Places { console_logs: dir.join("console"), inbox: dir.join("inbox") };
        std::fs::create_dir_all(&places.console_logs).expect("the temporary directory is writable");
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let mut input = theirs.try_clone().expect("a second handle");
        std::thread::spawn(move || serve(&mut input, theirs, places));
        let link = Link::new(ours.try_clone().expect("a second handle"), ours);
        assert!(link.hello(SMALL).expect("the agent greets"));
        Self { link, dir }
    }

    fn log(&self, file: &str, bytes: &[u8]) {
        let mut file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("console").join(file))
            .expect("our own directory");
        file.write_all(bytes).expect("room on the disk");
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.dir).expect("our own directory");
    }
}

#[test]
fn output_of_both_streams_and_the_code_come_back() {
    let mut joined = Joined::new("run");
    let exit = joined.link.run("echo one; echo two >&2; printf 'three'; exit 7", SMALL).expect("it runs");
    assert_eq!(exit, Exit { code: 7, output: "one\ntwo\nthree".into() });
    let killed = joined.link.run("kill -TERM $$", SMALL).expect("it runs");
    assert_eq!(killed.code, 128 + 15);
}

#[test]
fn a_long_output_arrives_whole() {
    let mut joined = Joined::new("long");
    let exit =
        joined.link.run("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done", SMALL).expect("it runs");
    let expected: String = (0..20000).map(|i| format!("line {i}\n")).collect();
    assert_eq!(exit.output, expected);
}

#[test]
fn a_daemon_left_behind_does_not_hold_the_answer() {
    let mut joined = Joined::new("daemon");
    let exit = joined.link.run("sleep 600 & echo $!", SMALL).expect("answered while its child lives");
    let child = exit.output.trim().to_owned();
    assert_eq!(joined.link.run(&format!("kill {child}"), SMALL).expect("it runs").code, 0);
}

#[test]
fn a_script_over_its_limit_is_killed_and_named_with_its_output() {
    let mut joined = Joined::new("limit");
    let error = joined
        .link
        .run("\necho begun; sleep 600", Duration::from_millis(300))
        .expect_err("it outlives its limit")
        .to_string();
    assert!(error.contains("echo begun; sleep 600"), "{error}");
    assert!(error.ends_with("\nbegun"), "{error}");
    assert_eq!(joined.link.run("echo alive", SMALL).expect("the line still works").output, "alive\n");
}

#[test]
fn files_arrive_bit_for_bit() {
    let mut joined = Joined::new("put");
    let bytes: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    joined.link.put("kernel.elf", &bytes).expect("stored");
    joined.link.put("empty", b"").expect("stored");
    assert_eq!(std::fs::read(joined.dir.join("inbox/kernel.elf")).expect("there"), bytes);
    assert_eq!(std::fs::read(joined.dir.join("inbox/empty")).expect("there"), b"");
    let error = joined.link.put("no/such/directory", b"x").expect_err("the directory does not exist");
    assert!(format!("{error:#}").contains("no/such/directory"), "{error:#}");
}

#[test]
fn console_lines_keep_their_order_and_their_domain_while_a_script_runs() {
    let mut joined = Joined::new("console");
    joined.log("guest-a.log", b"early\r\n");
    joined.link.follow("a").expect("followed");
    joined.link.follow("b").expect("followed");
    for i in 0..200 {
        joined.log("guest-a.log", format!("a {i}").as_bytes());
        joined.log("guest-b.log", format!("b {i}\n").as_bytes());
        joined.log("guest-a.log", b"\n");
    }
    joined.link.run("sleep 0.2", SMALL).expect("it runs");
    joined.log("guest-a--incoming.log", b"moved\n");
    let mut seen: HashMap<String, Vec<String>> = HashMap::new();
    for _ in 0..402 {
        let line = joined.link.lines().recv_timeout(SMALL).expect("402 lines were written");
        seen.entry(line.domain).or_default().push(line.text);
    }
    let a: Vec<String> =
        ["early".to_owned()].into_iter().chain((0..200).map(|i| format!("a {i}"))).chain(["moved".into()]).collect();
    let b: Vec<String> = (0..200).map(|i| format!("b {i}")).collect();
    assert_eq!(seen.get("a"), Some(&a));
    assert_eq!(seen.get("b"), Some(&b));
}

#[test]
fn an_attached_script_hears_the_terminal_and_detaching_ends_it() {
    let mut joined = Joined::new("attach");
    let (keyboard, terminal) = channel();
    keyboard.send(FromTerminal::Bytes(b"hello\n".to_vec())).expect("the receiver lives");
    let mut screen = Vec::new();
    joined.link.attach("read line; echo got $line", &terminal, &mut screen).expect("it ends by itself");
    assert_eq!(screen, b"got hello\n");
    keyboard.send(FromTerminal::Detach).expect("the receiver lives");
    joined.link.attach("sleep 600", &terminal, &mut screen).expect("we leave");
    assert_eq!(joined.link.run("echo alive", SMALL).expect("the line still works").output, "alive\n");
}

#[test]
fn the_end_of_the_line_wakes_everybody() {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let mut link = Link::new(ours.try_clone().expect("a second handle"), ours);
    drop(theirs);
    assert!(link.hello(SMALL).is_err());
    assert!(link.lines().recv_timeout(SMALL).is_err());
    assert!(link.run("true", SMALL).is_err());
}

#[test]
fn unfinished_lines_wait_for_their_end_and_bad_bytes_do_not_stop_them() {
    let mut splitter = Splitter::default();
    let texts = |lines: Vec<ConsoleLine>| lines.into_iter().map(|line| line.text).collect::<Vec<_>>();
    assert!(splitter.feed(b"g\0f\0half").is_empty());
    assert!(splitter.feed(b"g\0other\0else").is_empty());
    assert_eq!(texts(splitter.feed(b"g\0f\0 done\r\n\n\xff!\n")), ["half done", "", "\u{fffd}!"]);
    assert!(splitter.feed(b"no fields").is_empty());
}
