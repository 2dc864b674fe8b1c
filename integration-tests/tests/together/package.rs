//! The Debian package: what is in it, the same bytes from the same input, and a program that runs where it was
//! unpacked.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use integration_tests::programs;

fn run(program: &str, args: &[&Path]) -> Output {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    output
}

fn text(output: Output) -> String {
    String::from_utf8(output.stdout).unwrap()
}

fn build(into: &Path) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vmm/dist/package");
    let ferry = programs::ferry().unwrap();
    let made = text(run(script.to_str().unwrap(), &[&ferry, into]));
    PathBuf::from(made.trim())
}

#[test]
fn the_package_has_everything_and_its_program_runs() {
    let folder = tempfile::tempdir().unwrap();
    let package = build(folder.path());
    let name = package.file_name().unwrap().to_str().unwrap();
    assert_eq!(
        name,
        concat!("ferry_", env!("CARGO_PKG_VERSION"), "_amd64.deb")
    );

    let listing = text(run("dpkg-deb", &[Path::new("-c"), &package]));
    let mut files = BTreeSet::new();
    for line in listing.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words[1], "root/root", "{line}");
        // "-rwxr-xr-x": nobody but root writes there.
        let others = words[0].get(4..).unwrap_or_default();
        assert!(!others.contains('w'), "{line}");
        files.insert(words[5].trim_start_matches('.').to_owned());
    }
    for file in [
        "/usr/bin/ferry",
        "/usr/lib/ferry/receivers",
        "/usr/lib/systemd/system/ferry-receive.socket",
        "/usr/lib/systemd/system/ferry-receive.service",
        "/usr/lib/systemd/system/ferry-receive@.service",
        "/usr/lib/sysusers.d/ferry.conf",
        "/etc/ferry/receive.toml",
        "/usr/share/man/man1/ferry.1.gz",
        "/usr/share/man/man1/ferry-receive.1.gz",
        "/usr/share/man/man1/ferry-certs-host.1.gz",
        "/usr/share/bash-completion/completions/ferry",
        "/usr/share/zsh/vendor-completions/_ferry",
        "/usr/share/fish/vendor_completions.d/ferry.fish",
        "/usr/share/doc/ferry/copyright",
        "/usr/share/doc/ferry/README.md.gz",
    ] {
        assert!(files.contains(file), "{file} is not in {files:#?}");
    }

    let control = folder.path().join("control");
    run("dpkg-deb", &[Path::new("-e"), &package, &control]);
    let conffiles = fs::read_to_string(control.join("conffiles")).unwrap();
    assert_eq!(conffiles, "/etc/ferry/receive.toml\n");
    for script in ["postinst", "prerm", "postrm"] {
        run("sh", &[Path::new("-n"), &control.join(script)]);
    }

    let root = folder.path().join("root");
    run("dpkg-deb", &[Path::new("-x"), &package, &root]);
    let check = Command::new(root.join("usr/bin/ferry"))
        .arg("check")
        .output()
        .unwrap();
    // 0, 1 and 3 are verdicts on this host, all of which a program gives that works.
    assert!(matches!(check.status.code(), Some(0 | 1 | 3)), "{check:?}");
    assert!(
        String::from_utf8_lossy(&check.stdout).contains("run bare guests"),
        "{check:?}"
    );
    let sums = control.join("md5sums");
    let checked = Command::new("md5sum")
        .args(["--check", "--quiet"])
        .arg(sums)
        .current_dir(&root)
        .status();
    assert!(checked.unwrap().success());

    let again = folder.path().join("again");
    fs::create_dir(&again).unwrap();
    let again = build(&again);
    assert!(
        fs::read(package).unwrap() == fs::read(again).unwrap(),
        "not the same bytes"
    );
}
