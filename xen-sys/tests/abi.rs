//! Compares every size, offset and constant of `xen_sys::abi` and every `Errno` with Xen's own headers.
//!
//! Writes a C program from the table in `abi/rows.rs`, compiles it against Debian's libxen-dev, runs it, and compares
//! what it prints with what Rust says. A second test reads our own source and fails for whatever is not in the table,
//! so that nothing can be left out silently.
//!
//! Turned down: comparing with numbers copied into the test. Those would be checked by the eye that wrote the types.
#![cfg(all(not(miri), not(loom)))]

#[path = "abi/rows.rs"]
mod rows;
#[path = "abi/scan.rs"]
mod scan;
#[path = "abi/table.rs"]
mod table;

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, process::Command};

use table::{Row, Table};
use xen_sys::{Errno, abi::io::xs_wire::XSD_ERRORS};

const HOW_TO_MEND: &str = "run: apt-get install gcc libc6-dev libxen-dev";

/// The headers that the table names things of; xs_wire.h knows its errors only after errno.h.
const INCLUDES: &str = "\
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <xen/xen.h>
#include <xen/event_channel.h>
#include <xen/vcpu.h>
#include <xen/sched.h>
#include <xen/memory.h>
#include <xen/grant_table.h>
#include <xen/callback.h>
#include <xen/version.h>
#include <xen/features.h>
#include <xen/elfnote.h>
#include <xen/io/console.h>
#include <xen/io/xs_wire.h>
#include <xen/io/xenbus.h>
";

/// The C program: a line `name value…` for each row, then the error numbers and xenstore's errors as the headers list
/// them.
fn program(table: &Table) -> String {
    let mut c = String::from(INCLUDES);
    c.push_str("int main(void) {\n");
    for row in &table.rows {
        let name = row.name();
        match row {
            Row::Type { c_type, .. } => writeln!(c, "printf(\"{name} %zu\\n\", sizeof({c_type}));"),
            Row::Field { c_type, c_field, .. } => writeln!(
                c,
                "printf(\"{name} %zu %zu\\n\", offsetof({c_type}, {c_field}), sizeof((({c_type} *)0)->{c_field}));"
            ),
            Row::Value { c_expr, .. } => writeln!(c, "printf(\"{name} %llu\\n\", (unsigned long long)({c_expr}));"),
        }
        .expect("writing to a string");
    }
    // The header lists its numbers through this macro, so this prints all of them and not only those that we know.
    c.push_str("#define XEN_ERRNO(name, value) printf(\"errno:\" #name \" %d\\n\", value);\n#include <xen/errno.h>\n");
    c.push_str(
        "for (unsigned i = 0; i < sizeof(xsd_errors) / sizeof(*xsd_errors); i++)\n\
         printf(\"xsd:%u:%s %d\\n\", i, xsd_errors[i].errstring, xsd_errors[i].errnum);\n",
    );
    c.push_str("return 0;\n}\n");
    c
}

/// What Rust says, in the same form.
fn ours(table: &Table) -> BTreeMap<String, String> {
    let rows = table.rows.iter().map(|row| (row.name(), row.value()));
    let errnos = Errno::ALL.iter().map(|(name, errno)| (format!("errno:{name}"), errno.code().to_string()));
    let xsd = XSD_ERRORS.iter().enumerate();
    let xsd = xsd.map(|(i, (name, errno))| (format!("xsd:{i}:{name}"), errno.code().to_string()));
    rows.chain(errnos).chain(xsd).collect()
}

/// Compiles and runs `source`, and returns its output by name.
fn theirs(source: &str) -> BTreeMap<String, String> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (c, exe) = (dir.join("abi.c"), dir.join("abi"));
    fs::write(&c, source).expect("cargo's directory for tests can be written");
    // The tools' view has all of the ABI and the newest interface version.
    let flags = ["-std=gnu11", "-D__XEN_TOOLS__", "-Wno-overflow", "-o"];
    let cc = Command::new("cc").args(flags).arg(&exe).arg(&c).output();
    let cc = cc.unwrap_or_else(|error| panic!("cc cannot be run ({error}); {HOW_TO_MEND}"));
    let complaints = String::from_utf8_lossy(&cc.stderr);
    assert!(
        !complaints.contains("No such file or directory"),
        "Xen's headers are missing; {HOW_TO_MEND}\n{complaints}"
    );
    assert!(cc.status.success(), "a name of the table is not in the headers as it says:\n{complaints}");
    let run = Command::new(&exe).output().expect("what was just compiled can be run");
    assert!(run.status.success(), "the C program failed: {run:?}");
    let text = String::from_utf8(run.stdout).expect("the program prints ASCII");
    text.lines()
        .map(|line| {
            let (name, value) = line.split_once(' ').expect("every line has a name and a value");
            (name.to_owned(), value.to_owned())
        })
        .collect()
}

/// Every name on which the two sides do not agree, one a line.
fn differences(ours: &BTreeMap<String, String>, theirs: &BTreeMap<String, String>) -> String {
    let mut names: Vec<_> = ours.keys().chain(theirs.keys()).collect();
    names.sort();
    names.dedup();
    let mut report = String::new();
    for name in names {
        let (rust, c) = (ours.get(name), theirs.get(name));
        if rust != c {
            writeln!(report, "  {name}: Rust {rust:?}, C {c:?}").expect("writing to a string");
        }
    }
    report
}

#[test]
fn everything_is_as_in_xens_headers() {
    let table = rows::table();
    let report = differences(&ours(&table), &theirs(&program(&table)));
    assert!(report.is_empty(), "differs from the headers (size; offset and size; value):\n{report}");
}

#[test]
fn nothing_of_the_source_is_missing_in_the_table() {
    let table = rows::table();
    let known: Vec<String> = table.rows.iter().map(Row::name).collect();
    let declared = scan::declared(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/abi"));
    // A scan that finds nothing would find nothing missing.
    assert!(declared.len() > 400, "the scan sees only {} items", declared.len());
    let missing: Vec<_> = declared.iter().filter(|name| !known.contains(name) && !table.not_in_headers(name)).collect();
    assert!(missing.is_empty(), "add these to tests/abi/rows.rs: {missing:#?}");
}

#[test]
fn nothing_of_the_table_or_its_exceptions_has_left_the_source() {
    let table = rows::table();
    let declared = scan::declared(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/abi"));
    let stale: Vec<_> = table.exceptions().filter(|name| !declared.iter().any(|d| d == name)).collect();
    assert!(stale.is_empty(), "exceptions for what no longer exists: {stale:#?}");
    let unscanned: Vec<_> = table.rows.iter().map(Row::name).filter(|name| !declared.contains(name)).collect();
    assert!(unscanned.is_empty(), "in the table, but the scan does not see them: {unscanned:#?}");
}

#[test]
fn a_difference_is_reported_by_name() {
    let side = |pairs: &[(&str, &str)]| pairs.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())).collect();
    let ours: BTreeMap<String, String> = side(&[("a", "1"), ("b", "2"), ("only_rust", "3")]);
    let theirs = side(&[("a", "1"), ("b", "4"), ("only_c", "5")]);
    let report = differences(&ours, &theirs);
    assert_eq!(report.lines().count(), 3, "{report}");
    assert!(report.contains("b: Rust Some(\"2\"), C Some(\"4\")"), "{report}");
    assert!(differences(&ours, &ours).is_empty());
}
