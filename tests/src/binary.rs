//! The `interlingua` binary under test, and a scratch folder to run it in.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::SystemTime;

use tempfile::TempDir;

/// The binary, built first if its sources are newer (which they are not under `cargo test --workspace`).
///
/// # Panics
/// When it cannot be built.
pub fn path() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let test = std::env::current_exe().expect("a test has a path");
        let profile = test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps");
        let binary = profile.join("interlingua");
        let built = fs::metadata(&binary).and_then(|metadata| metadata.modified()).ok();
        if built.is_none_or(|built| built < newest_source()) {
            let mut build = Command::new(env!("CARGO"));
            // What cargo tells a test of its package; build scripts would run again with it.
            let of_test = [
                "CARGO_PKG_",
                "CARGO_MANIFEST_",
                "CARGO_BIN_EXE_",
                "CARGO_CRATE_NAME",
                "CARGO_PRIMARY_PACKAGE",
            ];
            let variables = std::env::vars_os().map(|(name, _)| name);
            variables
                .filter(|name| of_test.iter().any(|start| name.to_string_lossy().starts_with(start)))
                .for_each(|name| {
                    build.env_remove(name);
                });
            // All targets, so that crates have the features that they have under `cargo test`, and are not built twice.
            build
                .current_dir(workspace())
                .args(["build", "--workspace", "--all-targets"]);
            for (name, chosen) in [("mpi", cfg!(feature = "mpi")), ("tch", cfg!(feature = "tch"))] {
                if chosen {
                    build.args([
                        "--features",
                        &format!("interlingua-launch/{name},interlingua-tests/{name}"),
                    ]);
                }
            }
            if profile.ends_with("release") {
                build.arg("--release");
            }
            assert!(
                build.status().expect("cargo starts").success(),
                "the binary does not build"
            );
        }
        binary
    })
}

/// The root of the workspace.
///
/// # Panics
/// Never: this crate has a folder above it.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace is above this crate")
}

/// When a source of the binary was last changed.
fn newest_source() -> SystemTime {
    fn newest(path: &Path) -> SystemTime {
        let own = fs::metadata(path)
            .and_then(|metadata| metadata.modified())
            .unwrap_or(SystemTime::UNIX_EPOCH);
        let below = fs::read_dir(path)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| newest(&entry.path()));
        if path.is_dir() {
            below.max().unwrap_or(SystemTime::UNIX_EPOCH)
        } else {
            own
        }
    }
    let crates = ["recipes", "data", "checkpoints", "trainer", "launch"];
    let sources = crates.iter().flat_map(|name| {
        [
            workspace().join(name).join("src"),
            workspace().join(name).join("Cargo.toml"),
        ]
    });
    sources
        .map(|path| newest(&path))
        .max()
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A folder that is deleted at the end of the test, with commands that run in it.
pub struct Scratch {
    folder: TempDir,
}

/// What a run of the binary left.
#[derive(Debug)]
pub struct Ran {
    /// The exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Scratch {
    /// An empty folder.
    ///
    /// # Panics
    /// When there is none to be had.
    #[expect(clippy::new_without_default, reason = "it touches the disk")]
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    /// The folder, or a path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file, with the folders above it.
    ///
    /// # Panics
    /// When the disk refuses.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a file has a folder")).expect("a folder");
        fs::write(&path, content).expect("a file");
        path
    }

    /// The text of a file.
    ///
    /// # Panics
    /// When it is not there.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Copies a folder of the repository into this one.
    ///
    /// # Panics
    /// When it is not there.
    pub fn copy(&self, from: &str, to: &str) {
        fn copy(from: &Path, to: &Path) {
            if from.is_dir() {
                fs::create_dir_all(to).expect("a folder");
                for entry in fs::read_dir(from).expect("a folder").flatten() {
                    copy(&entry.path(), &to.join(entry.file_name()));
                }
            } else {
                fs::copy(from, to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
            }
        }
        copy(&workspace().join(from), &self.path(to));
    }

    /// The binary, ready to run here: offline, without colours, with a cache of its own.
    pub fn command<T: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = T>) -> Command {
        let mut command = Command::new(path());
        command
            .current_dir(self.folder.path())
            .args(arguments)
            .stdin(Stdio::null());
        command
            .env_remove("RUST_LOG")
            .env_remove("RUST_BACKTRACE")
            .env("NO_COLOR", "1")
            .env("HF_HUB_OFFLINE", "1");
        command
            .env("XDG_CACHE_HOME", self.path(".cache"))
            .env("HF_HOME", self.path(".hub"));
        command
    }

    /// Runs the binary here.
    ///
    /// # Panics
    /// When it does not start.
    pub fn run<T: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = T>) -> Ran {
        self.command(arguments).output().expect("the binary starts").into()
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

impl Ran {
    /// Asserts an exit code and that all of `parts` stand in standard error.
    ///
    /// # Panics
    /// When they do not, showing everything.
    pub fn refuses(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{self:#?}");
        for part in parts {
            assert!(
                self.stderr.contains(part),
                "`{part}` is not in standard error: {self:#?}"
            );
        }
        assert!(
            !self.stderr.contains("panicked") && !self.stderr.contains("RUST_BACKTRACE"),
            "{self:#?}"
        );
    }

    /// Asserts success.
    ///
    /// # Panics
    /// When it failed, showing everything.
    pub fn succeeds(&self) -> &Self {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }

    /// Standard output as JSON.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}
