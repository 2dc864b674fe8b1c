//! How much memory there is for a guest that asks to come in: what the host has left, and what the control groups of
//! this process have.
//!
//! A guest for which there is not enough would get the receiver killed (or the host into swap) in the middle of the
//! move, or worse after it. The kernel's own estimates are taken: MemAvailable of proc_meminfo(5), and for control
//! groups (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst) the limit less what is used, without the file
//! pages that it would give up first.
//!
//! All of these are files, which a confined process cannot open: they are opened beforehand, those of the groups that
//! the receiver is in then, and read anew for each guest.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use migration::guest::GuestError;

use crate::units::Size;

/// How the two versions of control groups name things.
struct Names {
    limit: &'static str,
    used: &'static str,
    /// In `memory.stat`: file pages that nobody has used lately.
    idle: &'static str,
}

const V2: Names = Names {
    limit: "memory.max",
    used: "memory.current",
    idle: "inactive_file",
};
const V1: Names = Names {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    idle: "total_inactive_file",
};

/// What there is, and of whom that is said.
#[derive(Debug, PartialEq, Eq)]
struct Room {
    bytes: u64,
    whose: String,
}

impl Room {
    /// For people.
    fn rounded(&self) -> Size {
        Size(self.bytes >> 20 << 20)
    }
}

/// The files that tell how much memory there is.
#[derive(Debug)]
pub struct Gauges(Vec<(PathBuf, File)>);

impl Gauges {
    /// Opens those that there are.
    pub fn open() -> Self {
        let files = RefCell::new(Vec::new());
        rooms(&|path| {
            let file = File::open(path).ok()?;
            let text = whole(&file).ok();
            files.borrow_mut().push((path.to_owned(), file));
            text
        });
        Self(files.into_inner())
    }

    /// Checks that a guest of so many bytes fits in.
    ///
    /// # Errors
    /// It does not, with both figures.
    pub(super) fn check(&self, bytes: u64) -> Result<(), GuestError> {
        check_in(bytes, &|path| self.read(path))
    }

    /// Checks that so many bytes can be had ahead of a guest.
    ///
    /// # Errors
    /// They cannot, with both figures.
    pub(crate) fn check_prefault(&self, bytes: u64) -> Result<(), GuestError> {
        match lacking(bytes, &|path| self.read(path)) {
            Some(room) => Err(GuestError::bare(format!(
                "cannot have {} of memory ready for a guest, {} has {} left: free some, or take a smaller --prefault",
                Size(bytes),
                room.whose,
                room.rounded()
            ))),
            None => Ok(()),
        }
    }

    fn read(&self, path: &Path) -> Option<String> {
        let (_, file) = self.0.iter().find(|(opened, _)| opened == path)?;
        whole(file).ok()
    }
}

/// What a file of the kernel's says now; it is made anew when it is read from its beginning.
fn whole(file: &File) -> io::Result<String> {
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let at = u64::try_from(text.len()).unwrap_or(u64::MAX);
        match file.read_at(&mut piece, at)? {
            0 => return String::from_utf8(text).map_err(io::Error::other),
            count => text.extend_from_slice(&piece[..count]),
        }
    }
}

/// Gives the text of a file, if there is one.
type Read<'a> = dyn Fn(&Path) -> Option<String> + 'a;

fn check_in(bytes: u64, read: &Read<'_>) -> Result<(), GuestError> {
    match lacking(bytes, read) {
        Some(room) => Err(GuestError::bare(format!(
            "the guest has {} of memory, {} has {} left: free some, or move the guest elsewhere",
            Size(bytes),
            room.whose,
            room.rounded()
        ))),
        None => Ok(()),
    }
}

/// What has least left, if that is less than so many bytes. A host that says nothing is not refused for that.
fn lacking(bytes: u64, read: &Read<'_>) -> Option<Room> {
    let least = rooms(read).into_iter().min_by_key(|room| room.bytes);
    least.filter(|room| room.bytes < bytes)
}

fn rooms(read: &Read<'_>) -> Vec<Room> {
    let mut rooms = Vec::new();
    let meminfo = read(Path::new("/proc/meminfo")).unwrap_or_default();
    if let Some(kib) = field(&meminfo, "MemAvailable:") {
        rooms.push(Room {
            bytes: kib.saturating_mul(1024),
            whose: "this host".into(),
        });
    }
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    for line in groups.lines() {
        // "0::/path" of version 2, "4:memory:/path" of version 1; cgroups(7).
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        if controllers.is_empty() {
            group(Path::new("/sys/fs/cgroup"), path, &V2, read, &mut rooms);
        } else if controllers.split(',').any(|name| name == "memory") {
            group(
                Path::new("/sys/fs/cgroup/memory"),
                path,
                &V1,
                read,
                &mut rooms,
            );
        }
    }
    rooms
}

/// What a group and all above it leave. In a container the path may be that of the host, of which only the upper end
/// of what is mounted can be seen: that is the container's own group.
fn group(mount: &Path, path: &str, names: &Names, read: &Read<'_>, rooms: &mut Vec<Room>) {
    let below = Path::new(path.trim_start_matches('/'));
    for part in below.ancestors() {
        let folder: PathBuf = mount.join(part);
        let number = |name: &str| read(&folder.join(name))?.trim().parse::<u64>().ok();
        // "max" is no number, and what version 1 says instead is more than any host has.
        let (Some(limit), Some(used)) = (number(names.limit), number(names.used)) else {
            continue;
        };
        let stat = read(&folder.join("memory.stat")).unwrap_or_default();
        let idle = field(&stat, names.idle).unwrap_or(0);
        rooms.push(Room {
            bytes: limit.saturating_sub(used.saturating_sub(idle)),
            whose: format!("the control group {} of this receiver", folder.display()),
        });
    }
}

/// The number behind a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then_some(words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(bytes: u64, files: &[(&str, &str)]) -> Option<String> {
        let read = |path: &Path| {
            let file = files.iter().find(|(name, _)| Path::new(name) == path);
            file.map(|(_, text)| (*text).to_owned())
        };
        check_in(bytes, &read).err().map(|error| error.to_string())
    }

    const MEMINFO: (&str, &str) = (
        "/proc/meminfo",
        "MemTotal:       8000000 kB\nMemFree:         100 kB\nMemAvailable:    3145728 kB\n",
    );
    const GIB: u64 = 1 << 30;

    #[test]
    fn this_host_tells_and_tells_anew() {
        let gauges = Gauges::open();
        for _ in 0..2 {
            gauges.check(4096).unwrap();
            let text = gauges.check(1 << 60).unwrap_err().to_string();
            assert!(text.contains("left: free some"), "{text}");
        }
    }

    #[test]
    fn the_host_must_have_it() {
        assert_eq!(refusal(3 * GIB, &[MEMINFO]), None);
        let text = refusal(4 * GIB, &[MEMINFO]).unwrap();
        assert!(
            text.contains("the guest has 4G of memory, this host has 3G left"),
            "{text}"
        );
        // Nothing is known.
        assert_eq!(refusal(1 << 60, &[]), None);
    }

    #[test]
    fn so_must_every_group_of_version_2() {
        let mut files = vec![
            MEMINFO,
            ("/proc/self/cgroup", "0::/a/b\n"),
            ("/sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/b/memory.current", "1\n"),
            ("/sys/fs/cgroup/a/memory.max", "2147483648\n"),
            ("/sys/fs/cgroup/a/memory.current", "1610612736\n"),
            (
                "/sys/fs/cgroup/a/memory.stat",
                "anon 5\ninactive_file 536870912\nactive_file 9\n",
            ),
        ];
        assert_eq!(refusal(GIB, &files), None);
        let text = refusal(GIB + 4096, &files).unwrap();
        assert!(
            text.contains("the control group /sys/fs/cgroup/a of this receiver has 1G left"),
            "{text}"
        );
        // Without its statistics nothing is counted as given up.
        files.pop();
        assert!(refusal(GIB, &files).unwrap().contains("has 512M left"));
    }

    #[test]
    fn and_of_version_1_also_where_only_its_root_is_seen() {
        let files = [
            MEMINFO,
            (
                "/proc/self/cgroup",
                "5:cpu:/x\n4:memory,hugetlb:/host/name\n0::/\n",
            ),
            (
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "1073741824\n",
            ),
            (
                "/sys/fs/cgroup/memory/memory.usage_in_bytes",
                "2147483648\n",
            ),
        ];
        let text = refusal(4096, &files).unwrap();
        assert!(
            text.contains("cgroup/memory/ of this receiver has 0 left"),
            "{text}"
        );
    }
}
