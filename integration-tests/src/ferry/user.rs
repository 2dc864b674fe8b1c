//! Somebody who is not root, and may open a KVM device of his own.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::{fs, io};

use tempfile::TempDir;

use super::Netns;
use crate::{Error, programs};

/// Makes the device, in a mount namespace that is gone with the program: words of a shell. $1 is an empty folder, $2
/// the user. 10, 232 are the numbers of /dev/kvm (Documentation/admin-guide/devices.txt).
const DEVICE: &str = "mount -t tmpfs none \"$1\" && mknod \"$1/kvm\" c 10 232 && chown \"$2\" \"$1/kvm\" \
    && chmod 600 \"$1/kvm\" && chmod 755 \"$1\" && mount --bind \"$1/kvm\" /dev/kvm && shift 2 && exec \"$@\"";

/// A user with no name, no group and no capability.
#[derive(Debug)]
pub struct User {
    uid: u32,
    /// Holds the program, where he may read it, and the place of the device.
    folder: TempDir,
}

impl User {
    /// The user of that number.
    ///
    /// # Errors
    /// There is no ferry binary, or no place for a copy.
    pub fn new(uid: u32) -> Result<Self, Error> {
        let ferry = programs::ferry()?;
        let make = || -> io::Result<TempDir> {
            let folder = tempfile::Builder::new().prefix("ferry-user-").tempdir()?;
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
            fs::create_dir(folder.path().join("dev"))?;
            Ok(folder)
        };
        let folder = make().map_err(|e| Error::file("make a place for", &ferry, e))?;
        programs::install(&ferry, &folder.path().join("ferry"))?;
        Ok(Self { uid, folder })
    }

    /// Gives him a file or a folder.
    ///
    /// # Errors
    /// We are not root.
    pub fn own(&self, path: &Path) -> Result<(), Error> {
        chown(path, Some(self.uid), Some(self.uid)).map_err(|e| Error::file("give away", path, e))
    }

    /// `ferry`, run by him in a network namespace, as the same process that is started. The device is his alone.
    pub fn command(&self, netns: &Netns) -> Command {
        let uid = self.uid.to_string();
        let mut command = netns.command("unshare".as_ref());
        command
            .args(["--mount", "sh", "-c", DEVICE, "sh"])
            .arg(self.folder.path().join("dev"))
            .args([&uid, "setpriv", "--reuid", &uid, "--regid", &uid])
            .args(["--clear-groups", "--inh-caps=-all", "--bounding-set=-all"])
            .arg(self.folder.path().join("ferry"));
        command
    }
}
