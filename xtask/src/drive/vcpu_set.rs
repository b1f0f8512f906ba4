//! `xl vcpu-set`, also where it races the end of its domain.
//!
//! xl looks for the domain first and writes `cpu/N/availability` after. Where a save or a migration ends in between, these nodes
//! are made in xenstore for a domain that is gone, and nobody removes them. Turned down: not racing; it is what a toolstack does.

#![forbid(unsafe_code)]

use std::fmt::Display;

/// The command that has `vcpus` of the domain's vCPUs up. The lab has fewer processors than most guests have vCPUs.
pub fn vcpu_set(name: &str, vcpus: impl Display) -> String {
    format!("xl vcpu-set --ignore-host {name} {vcpus}")
}

/// `script`, in which `vcpu-set` may race the end of the domain of this name: removes what that leaves. Anything else that is left
/// stays, and is shown. Ends as `script` does, which is to have waited for its jobs.
pub fn swept(name: &str, script: &str) -> String {
    format!(
        "was=$(xl domid {name}) || exit 1\n\
         ({script}\n\
         ); code=$?\n\
         home=/local/domain/$was\n\
         if ! xl domname $was >/dev/null 2>&1 && xenstore-exists $home; then\n  \
         xenstore-ls -f $home | grep -Ev \"^$home/cpu(/[0-9]+(/availability)?)? = \" || xenstore-rm $home\n\
         fi\n\
         exit $code"
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    /// Runs a swept `exit 3` among tools that know of domain 7, which is gone where `left` says what is left of it. The exit code, and
    /// whether that was removed.
    fn run(left: Option<&str>) -> (Option<i32>, bool) {
        let tools = tempfile::tempdir().expect("a directory");
        let path = |name: &str| tools.path().join(name);
        let tool = |name: &str, script: &str| {
            fs::write(path(name), format!("#!/bin/sh\n{script}\n")).expect("written");
            fs::set_permissions(path(name), fs::Permissions::from_mode(0o755)).expect("made executable");
        };
        let gone = i32::from(left.is_some());
        tool("xl", &format!("case $1 in domid) echo 7;; domname) exit {gone};; esac"));
        tool("xenstore-exists", &format!("[ $1 = /local/domain/7 ] && exit {}", i32::from(left == Some(""))));
        tool("xenstore-ls", &format!("cat <<'END'\n{}\nEND", left.unwrap_or("")));
        tool("xenstore-rm", &format!("[ $1 = /local/domain/7 ] && touch {}", path("removed").display()));
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(swept("it", "exit 3")).env("PATH", format!("{}:/usr/bin:/bin", tools.path().display()));
        let code = shell.output().expect("a shell").status.code();
        (code, path("removed").exists())
    }

    #[test]
    fn only_what_vcpu_set_leaves_is_removed() {
        let nodes =
            "/local/domain/7/cpu = \"\"\n/local/domain/7/cpu/0 = \"\"\n/local/domain/7/cpu/0/availability = \"online\"";
        assert_eq!(run(Some(nodes)), (Some(3), true));
        let others = format!("{nodes}\n/local/domain/7/device = \"\"");
        assert_eq!(run(Some(&others)), (Some(3), false));
    }

    #[test]
    fn nothing_is_removed_of_a_domain_that_lives_or_has_left_nothing() {
        assert_eq!(run(None), (Some(3), false));
        assert_eq!(run(Some("")), (Some(3), false));
    }
}
