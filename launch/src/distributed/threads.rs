//! How many threads a rank computes with: ranks of one host share its cores.

use super::session::Session;
use crate::machine;

/// Sets the number of threads of this process, before any thread of the pool runs: the cores that it may use over the ranks that may
/// use the same ones. `RAYON_NUM_THREADS` goes first.
pub(crate) fn share(session: &Session, rank: usize) {
    let asked = std::env::var("RAYON_NUM_THREADS").is_ok_and(|number| !number.trim().is_empty());
    let own = Cores::of_this_process();
    session.set(&key(rank), own.written().as_bytes());
    let peers = session.peers();
    let here = |peer: &&super::session::Peer| peers[rank].host == peer.host;
    let sharing = peers.iter().filter(here).filter(|peer| {
        let said = session.wait(&key(peer.rank));
        said == own.written().as_bytes()
    });
    let threads = (own.count / sharing.count().max(1)).max(1);
    if asked {
        return;
    }
    tracing::debug!("{threads} threads on the cores {}", own.list);
    if let Err(error) = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global() {
        tracing::warn!("the number of threads stays as it is: {error}");
    }
}

fn key(rank: usize) -> String {
    format!("cores/{rank}")
}

/// The cores that a process may use.
struct Cores {
    /// Their numbers, as Linux writes them; ranks that launchers have bound to cores of their own have different ones.
    list: String,
    /// How many run at the same time; a quota may make it less than the list.
    count: usize,
}

impl Cores {
    fn of_this_process() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        Self {
            list: list.unwrap_or("unknown").trim().to_owned(),
            count: machine::cores(),
        }
    }

    fn written(&self) -> String {
        format!("{} of {}", self.count, self.list)
    }
}
