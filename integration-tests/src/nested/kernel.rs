//! The nested host's kernel: Debian's generic one, taken from its package and kept in a cache.
//!
//! The generic kernel and not the smaller cloud one, since only it has 9p, by which the host's files are
//! shared. The cache holds `vmlinuz` and, ready decompressed and numbered in load order, the modules.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;

/// Depends on the newest kernel package.
const META_PACKAGE: &str = "linux-image-amd64";

/// The modules that are loaded at boot; those that they need come by themselves.
const MODULES: &[&str] = &[
    // The port to the runner, and the shared files.
    "virtio_pci",
    "virtio_console",
    "9p",
    "9pnet_virtio",
    "overlay",
    // KVM, both vendors: which one fits is a matter of the machine below.
    "kvm-amd",
    "kvm-intel",
    // Networks for guests.
    "tun",
    "macvtap",
    "veth",
    "bridge",
    "vxlan",
    "vhost_net",
    "sch_htb",
    "sch_tbf",
    "sch_netem",
    "sch_fq",
    "sch_ingress",
];

/// A kernel with its modules, in the cache.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    /// The modules, in load order.
    pub modules: Vec<PathBuf>,
}

impl Kernel {
    /// The newest kernel that apt knows of: from the cache, else downloaded and put there.
    ///
    /// # Errors
    /// apt or dpkg are not there or fail, or the package lacks a module.
    pub fn newest(cache: &Path) -> Result<Self, Error> {
        let package = newest_package()?;
        let home = cache.join(&package.file_stem);
        let list = MODULES.join(" ");
        if fs::read_to_string(home.join("modules.list")).is_ok_and(|cached| cached == list) {
            return Self::open(&home);
        }
        fs::create_dir_all(cache).map_err(|e| Error::file("make", cache, e))?;
        let work = tempfile::tempdir_in(cache).map_err(|e| Error::file("make", cache, e))?;
        unpack(&package.name, work.path())?;
        let ready = work.path().join("ready");
        arrange(&work.path().join("root"), &ready)?;
        fs::write(ready.join("modules.list"), list).map_err(|e| Error::file("write", &ready, e))?;
        // Another runner may have been quicker, or an older list may lie there: either is replaced.
        let _ = fs::remove_dir_all(&home);
        match fs::rename(&ready, &home) {
            Err(_) if home.join("modules.list").exists() => {}
            other => other.map_err(|e| Error::file("move into place", &home, e))?,
        }
        Self::open(&home)
    }

    fn open(home: &Path) -> Result<Self, Error> {
        let folder = home.join("modules");
        let mut modules = Vec::new();
        for entry in fs::read_dir(&folder).map_err(|e| Error::file("read", &folder, e))? {
            let entry = entry.map_err(|e| Error::file("read", &folder, e))?;
            modules.push(entry.path());
        }
        modules.sort();
        let image = home.join("vmlinuz");
        Ok(Self { image, modules })
    }
}

struct Package {
    name: String,
    /// Name and version, fit for a file name.
    file_stem: String,
}

/// Follows the meta package to the package of the day.
fn newest_package() -> Result<Package, Error> {
    let depends = output(Command::new("apt-cache").args(["depends", META_PACKAGE]))?;
    let name = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .ok_or(Error::NoPackage(META_PACKAGE))?
        .to_owned();
    let policy = output(Command::new("apt-cache").args(["policy", &name]))?;
    let version = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))
        .ok_or(Error::NoPackage(META_PACKAGE))?;
    let file_stem = format!("{name}_{}", version.replace(':', "-"));
    Ok(Package { name, file_stem })
}

/// Downloads the package and unpacks it to `work/root`.
fn unpack(package: &str, work: &Path) -> Result<(), Error> {
    output(
        Command::new("apt-get")
            .args(["download", "-q", package])
            .current_dir(work),
    )?;
    let deb = files_below(work)?
        .into_iter()
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .ok_or(Error::NoPackage(META_PACKAGE))?;
    output(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(&deb)
            .arg(work.join("root")),
    )?;
    Ok(())
}

/// Puts `vmlinuz` and the numbered modules from an unpacked package into `ready`.
fn arrange(root: &Path, ready: &Path) -> Result<(), Error> {
    let mut image = None;
    let mut modules = BTreeMap::new();
    for path in files_below(root)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("vmlinuz") {
            image = Some(path.clone());
        } else if let Some((stem, _)) = name.split_once(".ko") {
            modules.insert(module_name(stem), path.clone());
        }
    }
    let image = image.ok_or(Error::NoPackage(META_PACKAGE))?;
    let folder = ready.join("modules");
    fs::create_dir_all(&folder).map_err(|e| Error::file("make", &folder, e))?;
    fs::copy(&image, ready.join("vmlinuz")).map_err(|e| Error::file("copy", &image, e))?;

    let mut ordered = Vec::new();
    for name in MODULES {
        add_with_needs(&module_name(name), &modules, &mut ordered)?;
    }
    for (index, (name, bytes)) in ordered.iter().enumerate() {
        let path = folder.join(format!("{index:03}-{name}.ko"));
        fs::write(&path, bytes).map_err(|e| Error::file("write", &path, e))?;
    }
    Ok(())
}

/// Adds a module after the modules that it names in its own `depends=`.
fn add_with_needs(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    ordered: &mut Vec<(String, Vec<u8>)>,
) -> Result<(), Error> {
    if ordered.iter().any(|(known, _)| known == name) {
        return Ok(());
    }
    let path = files
        .get(name)
        .ok_or_else(|| Error::NoModule(name.to_owned()))?;
    let bytes = read_module(path)?;
    for need in needs(&bytes) {
        add_with_needs(&need, files, ordered)?;
    }
    ordered.push((name.to_owned(), bytes));
    Ok(())
}

/// The module as the kernel takes it: newer Debian releases compress them.
fn read_module(path: &Path) -> Result<Vec<u8>, Error> {
    let tool = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).map_err(|e| Error::file("read", path, e)),
    };
    raw_output(Command::new(tool).arg("-dc").arg(path))
}

/// The names after `depends=` in a module's `.modinfo` section, whose entries end with a zero byte.
fn needs(module: &[u8]) -> Vec<String> {
    module
        .split(|&byte| byte == 0)
        .find_map(|entry| entry.strip_prefix(b"depends="))
        .map(|names| String::from_utf8_lossy(names).into_owned())
        .unwrap_or_default()
        .split(',')
        .filter(|name| !name.is_empty())
        .map(module_name)
        .collect()
}

/// File names write `-` or `_` as they like; the kernel means the same by both.
fn module_name(name: &str) -> String {
    name.replace('-', "_")
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).map_err(|e| Error::file("read", &folder, e))? {
            let entry = entry.map_err(|e| Error::file("read", &folder, e))?;
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    Ok(found)
}

fn output(command: &mut Command) -> Result<String, Error> {
    raw_output(command).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn raw_output(command: &mut Command) -> Result<Vec<u8>, Error> {
    let shown = format!("{command:?}");
    match command.output() {
        Ok(output) if output.status.success() => Ok(output.stdout),
        Ok(output) => Err(Error::Tool {
            command: shown,
            said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }),
        Err(error) => Err(Error::Tool {
            command: shown,
            said: error.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_names_what_it_needs() {
        let module = b"\x7fELF\0license=GPL\0depends=kvm,ccp,irq-bypass\0retpoline=Y\0";
        assert_eq!(needs(module), ["kvm", "ccp", "irq_bypass"]);
        assert!(needs(b"license=GPL\0depends=\0name=kvm\0").is_empty());
        assert!(needs(b"no such thing").is_empty());
    }
}
