//! Whether several hosts may share a folder.

use std::path::{Path, PathBuf};

/// File systems that hosts share, by the names that Linux gives them.
const SHARED: [&str; 16] = [
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "glusterfs",
    "gpfs",
    "lustre",
    "nfs",
    "nfs4",
    "orangefs",
    "panfs",
    "pvfs2",
    "smb3",
    "wekafs",
    "virtiofs",
];

/// Whether a folder, there or not yet, is on a file system that hosts share. Programs in user space (FUSE) may do anything, so theirs
/// count.
pub(super) fn is_shared(folder: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let there = folder.ancestors().find_map(|part| part.canonicalize().ok());
    is_shared_among(&there.unwrap_or_else(|| folder.to_owned()), &mounts)
}

/// The same, given the table of `/proc/self/mounts`: device, folder, file system, and more.
fn is_shared_among(folder: &Path, mounts: &str) -> bool {
    let mut file_system = "";
    let mut depth = 0;
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(mounted), Some(kind)) = (words.next(), words.next()) else {
            continue;
        };
        let mounted = PathBuf::from(mounted.replace("\\040", " "));
        let parts = mounted.components().count();
        // Of two in one place the later one is seen.
        if folder.starts_with(&mounted) && parts >= depth {
            (file_system, depth) = (kind, parts);
        }
    }
    SHARED.contains(&file_system) || file_system.starts_with("fuse")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "overlay / overlay rw 0 0\n\
        server:/home /home nfs4 rw,vers=4.2 0 0\n\
        /dev/sda1 /home/local\\040disk ext4 rw 0 0\n\
        sshfs /mnt/far fuse.sshfs rw 0 0\n\
        tmpfs /data tmpfs rw 0 0\n\
        scratch@tcp:/scratch /data lustre rw 0 0\n";

    #[test]
    fn the_innermost_mount_decides() {
        let shared = |folder| is_shared_among(Path::new(folder), MOUNTS);
        assert!(!shared("/var/cache"));
        assert!(!shared("/homework"));
        assert!(shared("/home/me/.cache"));
        assert!(!shared("/home/local disk/cache"));
        assert!(shared("/mnt/far"));
        assert!(shared("/data/cache"));
        assert!(!is_shared_among(Path::new("/home"), ""));
    }

    #[test]
    fn folders_of_this_machine_are_looked_up() {
        // The kernel's own tables are no other host's.
        assert!(!is_shared(Path::new("/proc/self/not-there/either")));
    }
}
