//! Writes the configuration file that `xl create` reads.
//!
//! Owns which keys a stasis guest needs and how values are quoted. Pure. Turned down: a template file
//! with placeholders; the ports a guest needs must be computed.

#![forbid(unsafe_code)]

use std::fmt::Write;

/// Highest event-channel port that xl allows by default (`max_event_channels`).
const XL_DEFAULT_PORTS: u32 = 1023;
/// Timer, IPI and one to spare for each vCPU.
const PORTS_PER_VCPU: u32 = 3;
/// Store, console, debug, devices.
const PORTS_BESIDES: u32 = 64;

/// A guest as `xl` should make it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestConfig {
    /// The domain's name.
    pub name: String,
    /// Path of the kernel, in dom0.
    pub kernel: String,
    /// Number of vCPUs that are online from the start.
    pub vcpus: u32,
    /// Number of vCPUs that it has, which `xl vcpu-set` may bring online; at least as many.
    pub max_vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The kernel's command line.
    pub cmdline: String,
}

impl GuestConfig {
    /// The file's text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let mut key = |name: &str, value: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name} = {value}");
        };
        key("type", &quote("pv"));
        key("name", &quote(&self.name));
        key("kernel", &quote(&self.kernel));
        key("memory", &self.memory_mib.to_string());
        key("maxmem", &self.memory_mib.to_string());
        key("vcpus", &self.vcpus.to_string());
        if self.max_vcpus > self.vcpus {
            key("maxvcpus", &self.max_vcpus.to_string());
        }
        key("extra", &quote(&self.cmdline));
        if self.is_traced() {
            // Where Xen does not trust the TSC it traps its reading, a few microseconds each, and hands out the last value plus
            // one to a vCPU whose processor is behind: its phases would shrink to nothing.
            key("tsc_mode", &quote("native"));
        }
        key("on_reboot", &quote("restart"));
        // Whoever made the domain looks at what it left and destroys it.
        key("on_crash", &quote("preserve"));
        if let Some(ports) = self.ports_needed() {
            key("max_event_channels", &ports.to_string());
        }
        text
    }

    /// It tells of its suspends without being asked.
    fn is_traced(&self) -> bool {
        self.cmdline.split_whitespace().any(|word| word == "trace=suspend")
    }

    /// The value for `max_event_channels` where xl's default does not do.
    fn ports_needed(&self) -> Option<u32> {
        let ports = self.max_vcpus.saturating_mul(PORTS_PER_VCPU).saturating_add(PORTS_BESIDES);
        (ports > XL_DEFAULT_PORTS).then_some(ports)
    }
}

/// The command line: the workload unless the user's own words choose one, then those.
pub fn cmdline(workload: &str, extra: &str) -> String {
    let chosen =
        extra.split_whitespace().any(|word| ["workload=", "test=", "bench="].iter().any(|key| word.starts_with(key)));
    let first = if chosen { String::new() } else { format!("workload={workload}") };
    [first.as_str(), extra.trim()].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(" ")
}

/// xl reads Python-like strings: backslash escapes, no newline.
fn quote(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', r"\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(vcpus: u32) -> GuestConfig {
        GuestConfig {
            name: "stasis".into(),
            kernel: "/run/stasis.elf".into(),
            vcpus,
            max_vcpus: vcpus,
            memory_mib: 64,
            cmdline: r#"workload=heartbeat note="a\b""#.into(),
        }
    }

    #[test]
    fn the_file_has_every_key_quoted() {
        let want = r#"type = "pv"
name = "stasis"
kernel = "/run/stasis.elf"
memory = 64
maxmem = 64
vcpus = 8
extra = "workload=heartbeat note=\"a\\b\""
on_reboot = "restart"
on_crash = "preserve"
"#;
        assert_eq!(config(8).render(), want);
    }

    #[test]
    fn vcpus_that_are_down_count_too() {
        let fewer = GuestConfig { vcpus: 2, ..config(512) };
        assert!(fewer.render().contains("vcpus = 2\nmaxvcpus = 512\n"));
        assert!(fewer.render().ends_with("max_event_channels = 1600\n"));
    }

    #[test]
    fn who_traces_has_the_tsc_itself() {
        let native = "tsc_mode = \"native\"\n";
        assert!(!config(8).render().contains(native));
        let traced = GuestConfig { cmdline: "workload=idle trace=suspend".into(), ..config(8) };
        assert!(traced.render().contains(native));
    }

    #[test]
    fn ports_are_asked_for_only_above_the_default() {
        assert_eq!(config(319).ports_needed(), None);
        assert_eq!(config(320).ports_needed(), Some(1024));
        assert!(config(512).render().ends_with("max_event_channels = 1600\n"));
        assert_eq!(config(u32::MAX).ports_needed(), Some(u32::MAX));
    }

    #[test]
    fn the_users_words_win_over_the_workload() {
        assert_eq!(cmdline("heartbeat", ""), "workload=heartbeat");
        assert_eq!(cmdline("heartbeat", " log=debug "), "workload=heartbeat log=debug");
        assert_eq!(cmdline("heartbeat", "log=debug workload=idle"), "log=debug workload=idle");
        assert_eq!(cmdline("heartbeat", "test=timer"), "test=timer");
    }
}
