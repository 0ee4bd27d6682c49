//! Two hosts on one machine: namespaces of its network, with a cable between them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::binary::Scratch;

/// Two hosts, gone when this is.
pub struct Hosts {
    /// What the namespaces begin with; 0 and 1 follow.
    prefix: String,
    /// What mpirun starts processes on the other host with.
    agent: PathBuf,
}

impl Hosts {
    /// The hosts, where they may be made: it takes root, `ip` and `unshare`.
    ///
    /// # Panics
    /// When they can be made in part.
    pub fn new(scratch: &Scratch) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("il{}-{number}-", std::process::id() % 100_000);
        let uts = Command::new("unshare")
            .args(["--uts", "true"])
            .stderr(Stdio::null())
            .status();
        if !uts.is_ok_and(|status| status.success()) || !ip(&format!("netns add {prefix}0")) {
            return None;
        }
        let agent = scratch.path("agent.sh");
        let script = format!(
            "#!/bin/sh\nhost=$1; shift\ncase $host in *.1) n=0;; *) n=1;; esac\n\
             exec ip netns exec {prefix}$n unshare --uts sh -c \"hostname gpu0$n; $*\"\n"
        );
        fs::write(&agent, script).expect("a file");
        fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).expect("a file");
        let hosts = Self { prefix, agent };
        let prefix = &hosts.prefix;
        let mut commands = vec![
            format!("netns add {prefix}1"),
            format!("link add v0 netns {prefix}0 type veth peer name v1 netns {prefix}1"),
        ];
        for host in 0..2 {
            let of_host = format!("-n {prefix}{host}");
            commands.push(format!("{of_host} link set lo up"));
            commands.push(format!("{of_host} addr add 10.77.0.{}/24 dev v{host}", host + 1));
            commands.push(format!("{of_host} link set v{host} up"));
        }
        for command in commands {
            assert!(ip(&command), "ip {command}");
        }
        Some(hosts)
    }

    /// mpirun on the first host, with one rank on each: `command` is what it would be on one.
    pub fn spread(&self, command: &Command) -> Command {
        let mut on_hosts = Command::new("ip");
        on_hosts
            .args(["netns", "exec", &format!("{}0", self.prefix)])
            .args(["unshare", "--uts", "sh", "-c", "hostname gpu00; exec \"$@\"", "sh"])
            .arg(command.get_program())
            .args(["--host", "10.77.0.1:1,10.77.0.2:1"])
            .args(command.get_args())
            .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .env("OMPI_MCA_plm_rsh_agent", &self.agent)
            .env("OMPI_MCA_orte_keep_fqdn_hostnames", OsStr::new("1"))
            .stdin(Stdio::null());
        if let Some(folder) = command.get_current_dir() {
            on_hosts.current_dir(folder);
        }
        on_hosts
    }

    /// Pulls the cable.
    ///
    /// # Panics
    /// When it does not come out.
    pub fn cut(&self) {
        assert!(ip(&format!("-n {}0 link set v0 down", self.prefix)));
    }

    /// Ends every process on both hosts.
    pub fn end_all(&self) {
        for host in 0..2 {
            let listed = Command::new("ip")
                .args(["netns", "pids", &format!("{}{host}", self.prefix)])
                .output();
            let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            for process in listed.unwrap_or_default().split_whitespace() {
                // It may have ended in this moment.
                let _ = Command::new("kill")
                    .args(["-KILL", process])
                    .stderr(Stdio::null())
                    .status();
            }
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.end_all();
        for host in 0..2 {
            ip(&format!("netns del {}{host}", self.prefix));
        }
    }
}

fn ip(arguments: &str) -> bool {
    let mut command = Command::new("ip");
    command.args(arguments.split(' ')).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
