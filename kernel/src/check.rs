//! Self-checks: `stasis: check name= result=pass|fail …`. Under `test=` the first failure is also a panic.

use core::fmt;

use spin::Once;

/// Set at boot where `test=` was given.
static STRICT: Once<()> = Once::new();

/// A failure ends the domain from now on.
pub(crate) fn be_strict() {
    STRICT.call_once(|| ());
}

/// Tells how the check `name` went. `detail` is more fields, `key=value` with plain values.
///
/// # Panics
/// On failure, under `test=`.
pub(crate) fn report(name: &str, pass: bool, detail: fmt::Arguments<'_>) {
    let mut line = crate::logfmt::Line::new("check");
    line.field("name", &name);
    line.field("result", &if pass { "pass" } else { "fail" });
    line.fields(detail);
    crate::console::print(&line);
    assert!(pass || STRICT.get().is_none(), "check {name} failed: {detail}");
}
