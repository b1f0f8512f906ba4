//! What the workspace consists of, as `cargo metadata` tells it.
//!
//! Owns the questions that commands ask about it: which crates have loom tests, which run under Miri,
//! what is linked under which licence. The reading is pure; one function runs cargo. Turned down: lists
//! of names in here, which a new crate would have to be added to.

#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cargo;
use crate::image::TARGET;

/// Crates that only make sense on the host: no loom, no Miri.
const HOST_TOOLS: [&str; 3] = ["xtask", "tests", "benches"];
/// The binary for Xen. For the host it is what of it can be tested there.
pub const KERNEL: &str = "kernel";

/// One crate of the workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its integration tests and benches, by name.
    pub tests: Vec<String>,
}

impl Member {
    /// Part of the kernel: its tests run under Miri, too.
    pub fn is_kernel_side(&self) -> bool {
        !HOST_TOOLS.contains(&self.name.as_str())
    }

    /// Its tests for loom.
    pub fn loom_tests(&self) -> impl Iterator<Item = &str> {
        self.tests_of("loom_")
    }

    /// Its scenes for shuttle.
    pub fn shuttle_tests(&self) -> impl Iterator<Item = &str> {
        self.tests_of("shuttle_")
    }

    fn tests_of(&self, prefix: &'static str) -> impl Iterator<Item = &str> {
        self.tests.iter().map(String::as_str).filter(move |test| test.starts_with(prefix))
    }
}

/// Somebody else's crate that we build with: for the image, the host tool or the tests of either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    /// Name and version.
    pub name: String,
    /// Its licence expression; empty where it names none.
    pub licence: String,
}

/// The whole of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workspace {
    /// Our crates.
    pub members: Vec<Member>,
    /// Other people's crates, for the platforms of the image and of the host tool.
    pub dependencies: Vec<Dependency>,
}

impl Workspace {
    /// Asks cargo.
    ///
    /// # Errors
    /// When cargo fails or answers something unexpected.
    pub fn load() -> Result<Workspace> {
        let mut command = cargo::cargo();
        command.args(["metadata", "--format-version=1"]);
        for platform in ["x86_64-unknown-linux-gnu", TARGET] {
            command.args(["--filter-platform", platform]);
        }
        read(&cargo::capture(command)?)
    }
}

fn read(metadata: &str) -> Result<Workspace> {
    let metadata: Value = serde_json::from_str(metadata).context("cargo metadata is no JSON")?;
    let packages = metadata["packages"].as_array().context("cargo metadata without packages")?;
    // With a platform filter `packages` still has every platform's crates; `resolve` has ours.
    let nodes = metadata["resolve"]["nodes"].as_array().context("cargo metadata without resolve")?;
    let resolved = |id: &Value| nodes.iter().any(|node| &node["id"] == id);
    let mut workspace = Workspace::default();
    for package in packages.iter().filter(|package| resolved(&package["id"])) {
        let name = package["name"].as_str().context("a package without a name")?;
        if package["source"].is_null() {
            workspace.members.push(member(name, package));
        } else {
            let version = package["version"].as_str().unwrap_or("?");
            let licence = package["license"].as_str().unwrap_or("").to_owned();
            workspace.dependencies.push(Dependency { name: format!("{name} {version}"), licence });
        }
    }
    Ok(workspace)
}

fn member(name: &str, package: &Value) -> Member {
    let targets = package["targets"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is =
        |target: &Value, kind: &str| target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|k| k == kind));
    Member {
        name: name.to_owned(),
        tests: targets
            .iter()
            .filter(|target| is(target, "test"))
            .filter_map(|target| target["name"].as_str().map(str::to_owned))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METADATA: &str = r#"{
      "packages": [
        {"id":"1","name":"evtchn","source":null,"targets":[
          {"kind":["lib"],"name":"evtchn"},{"kind":["test"],"name":"loom_upcall"},{"kind":["test"],"name":"shuttle_events"},{"kind":["test"],"name":"prop_table"}]},
        {"id":"2","name":"kernel","source":null,"targets":[{"kind":["bin"],"name":"stasis"}]},
        {"id":"6","name":"xtask","source":null,"targets":[{"kind":["bin"],"name":"xtask"}]},
        {"id":"3","name":"spin","version":"0.12.0","source":"registry","license":"MIT","targets":[]},
        {"id":"4","name":"for-windows","version":"1.0.0","source":"registry","license":"X","targets":[]},
        {"id":"5","name":"bare","version":"1.0.0","source":"registry","license":null,"targets":[]}
      ],
      "resolve": {"nodes":[{"id":"1"},{"id":"2"},{"id":"3"},{"id":"5"},{"id":"6"}]}
    }"#;

    #[test]
    fn members_and_dependencies_are_told_apart() {
        let workspace = read(METADATA).expect("well formed");
        let names: Vec<_> = workspace.members.iter().map(|m| (m.name.as_str(), m.is_kernel_side())).collect();
        assert_eq!(names, [("evtchn", true), ("kernel", true), ("xtask", false)]);
        assert_eq!(workspace.members[0].loom_tests().collect::<Vec<_>>(), ["loom_upcall"]);
        assert_eq!(workspace.members[0].shuttle_tests().collect::<Vec<_>>(), ["shuttle_events"]);
        let dependency = |name: &str, licence: &str| Dependency { name: name.into(), licence: licence.into() };
        assert_eq!(workspace.dependencies, [dependency("spin 0.12.0", "MIT"), dependency("bare 1.0.0", "")]);
    }

    #[test]
    fn what_is_no_metadata_is_an_error() {
        for text in ["", "{}", r#"{"packages":[]}"#] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
