//! `ferry run` with values, hosts, taps and paths that cannot be used.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use integration_tests::ferry::Netns;
use integration_tests::programs;
use tempfile::TempDir;
use vmm::kvm::cpuid;
use vmm::kvm::cpuid::baseline::{self, Baseline};

use super::support::{beating, ferry, ferry_after, ferry_in, refuses, text, ticks_on};

const USAGE: i32 = 2;
const ERROR: i32 = 1;

/// `ferry run --pulse WORDS` with more arguments.
fn pulse<'a>(words: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--pulse", words], args].concat()
}

#[test]
fn values_that_make_no_sense() {
    for (flag, value, part) in [
        ("--memory", "8M", "a multiple of 2M from 16M to 16T"),
        ("--memory", "0", "a multiple of 2M from 16M"),
        (
            "--memory",
            "17M",
            "17M of guest memory: take a multiple of 2M",
        ),
        ("--memory", "17T", "17T of guest memory"),
        ("--memory", "64X", "'64X' for '--memory <SIZE>'"),
        ("--memory", "-64M", "'-64M' for '--memory <SIZE>'"),
        ("--memory", "99999999999999999999G", "is too large"),
        ("--cpus", "0", "0 vCPUs: take 1 to 16"),
        ("--cpus", "17", "17 vCPUs: take 1 to 16"),
        ("--cpus", "-1", "from 1 to 16"),
        ("--cpus", "two", "from 1 to 16"),
        ("--net", "tap=", "tap=NAME"),
        ("--net", "eth0", "tap=NAME"),
        ("--net", "tap=sixteen-letters-", "1 to 15 characters"),
        ("--net", "tap=a/b", "1 to 15 characters"),
        ("--net", "tap=a,mac=5", "MAC address 5: take six hex pairs"),
        ("--net", "tap=a,mac=01:00:00:00:00:01", "nor multicast"),
        ("--net", "fd=1", "take a number above 2"),
        (
            "--balloon",
            "1G",
            "a balloon of 1G is larger than the guest's memory of 512M",
        ),
        ("--balloon", "off", "or on"),
        ("--balloon", "on,report=on", "reporting=on|off and"),
        ("--balloon", "on,reporting=1", "take on or off"),
        ("--dirty-tracking", "list", "take bitmap, ring or"),
        ("--dirty-tracking", "ring,entries=9", "a power of two from"),
        ("--serial", "tty", "stdio, file=PATH, socket=PATH or none"),
        ("--sandbox", "on", "take kill, log or off"),
        ("--cpu", "v5", "take host, v1, v2, v3 or v4"),
        ("--pulse-rate", "5", "unexpected argument '--pulse-rate'"),
    ] {
        refuses(ferry(&pulse("", &[flag, value])), USAGE, &[part]);
    }
    refuses(ferry(&["run"]), USAGE, &["<KERNEL>", "ferry run --help"]);
    refuses(
        ferry(&pulse("", &["--net", "tap=a", "--net", "tap=a"])),
        USAGE,
        &["tap a is given to two network devices"],
    );
    for (net, part) in [
        ("tap=a,queues=0", "\"0\" queues: take 1 to 8"),
        ("tap=a,queues=9", "\"9\" queues: take 1 to 8"),
        ("tap=a,mtu=67", "an MTU of \"67\": take 68 to 65521"),
        ("fd=7,queues=2", "1 descriptors for 2 queues"),
        ("fd=7:8,queues=1", "2 descriptors for 1 queues"),
        ("fd=7:7", "descriptor 7 is given twice"),
    ] {
        refuses(ferry(&pulse("", &["--net", net])), USAGE, &[part]);
    }
    let long = "x".repeat(3000);
    refuses(
        ferry(&["run", "vmlinuz", "--append", &long]),
        USAGE,
        &["a kernel command line of 30", "shorter than 2048 bytes"],
    );
    refuses(
        ferry(&["run", "vmlinuz", "--memory", "126M"]),
        USAGE,
        &["126M of guest memory", "from 128M"],
    );
}

#[test]
fn parameters_of_the_bare_guest() {
    for (words, parts) in [
        ("beat=0", ["\"beat=0\"", "from 1 to 10000"]),
        ("tempo=3", ["\"tempo=3\"", "there are beat"]),
        ("ws=16", ["\"ws=16\"", "for example ws=16:256"]),
        ("ws=16:1000", ["ends at 1016 MiB", "more --memory"]),
        ("rate=5", ["vCPU 0", "a rate needs a working set"]),
        ("cpu1.role=compute", ["has 1 vCPU(s)", "--cpus"]),
        ("cpus=17", ["\"cpus=17\"", "a number from 1 to 16"]),
        (
            "pattern=zigzag",
            ["\"pattern=zigzag\"", "uniform, sweep or zipf"],
        ),
    ] {
        refuses(ferry(&pulse(words, &["--memory", "64M"])), USAGE, &parts);
    }
    refuses(
        ferry(&pulse("cpus=4", &["--cpus", "1"])),
        USAGE,
        &["\"cpus=4\" and --cpus 1", "give it once"],
    );
}

#[test]
fn more_memory_than_the_host_has() {
    for size in ["16T", "12T"] {
        let parts = [size, "more than this host has", "ask for less"];
        refuses(ferry(&pulse("", &["--memory", size])), ERROR, &parts);
    }
}

#[test]
fn a_cpu_that_is_not_here() {
    let host = cpuid::supported(&kvm_ioctls::Kvm::new().unwrap()).unwrap();
    let best = baseline::best(&host).unwrap();
    let Some(above) = Baseline::LEVELS.into_iter().rfind(|&level| level > best) else {
        println!("this host has every level there is");
        return;
    };
    let lacks = baseline::apply(above, &host).unwrap_err();
    let parts = [
        "this host's CPU lacks",
        &lacks[0],
        &format!("take --cpu {best}"),
    ];
    refuses(ferry(&pulse("", &["--cpu", above.word()])), ERROR, &parts);
}

#[test]
fn a_host_without_kvm() {
    let run = pulse("", &[]);
    // A device that belongs to root alone, whatever the host's own is like.
    let folder = TempDir::new().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("ferry");
    programs::install(&programs::ferry().unwrap(), &program).unwrap();
    let locked = folder.path().join("kvm");
    fs::write(&locked, "").unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o600)).unwrap();
    let prepare = format!(
        "mount --bind {} /dev/kvm && set -- setpriv --reuid 65534 --regid 65534 --clear-groups {} run --pulse",
        text(&locked),
        text(&program)
    );
    refuses(
        ferry_after(&prepare, &run),
        ERROR,
        &["cannot open /dev/kvm: no permission", "group"],
    );
    refuses(
        ferry_after("mount -t tmpfs none /dev", &run),
        ERROR,
        &["cannot open /dev/kvm: it does not exist", "load the module"],
    );
    refuses(
        ferry_after("mount --bind /dev/null /dev/kvm", &run),
        ERROR,
        &["/dev/kvm is not KVM's device", "mknod"],
    );
}

#[test]
fn taps_that_cannot_be_had() {
    let netns = Netns::new("taps").unwrap();
    netns.add_tap("tap0", None).unwrap();
    netns.add_tap("single", None).unwrap();
    netns
        .ip("tuntap add dev many mode tap multi_queue vnet_hdr")
        .unwrap();
    let cards = ["--net", "tap=tap0", "--net", "tap=many,queues=4"];
    let holder = beating(Some(&netns), &cards);
    for (net, parts) in [
        ("tap=tap0", ["tap tap0 is in use", "end the process"]),
        ("tap=tap1", ["no interface tap1", "ip tuntap add tap1"]),
        ("create=tap0", ["tap0", "exists already"]),
        ("tap=lo", ["interface lo is not a tap", "ip tuntap"]),
        (
            "tap=single,queues=2",
            ["tap single has 1 of the 2 queues", "mode tap multi_queue"],
        ),
        (
            "tap=many,queues=2",
            ["tap many is in use", "end the process"],
        ),
        (
            "tap=single,mtu=9000",
            [
                "MTU of 1500, the card of 9000",
                "ip link set single mtu 9000",
            ],
        ),
        ("fd=99", ["file descriptor 99", "passed open"]),
    ] {
        refuses(ferry_in(&netns, &pulse("", &["--net", net])), ERROR, &parts);
    }
    ticks_on(&holder);
    refuses(
        ferry_after(
            "mount -t tmpfs none /dev/net",
            &pulse("", &["--net", "create=ferry%d0"]),
        ),
        USAGE,
        &["tap name \"ferry%d0\""],
    );
    refuses(
        ferry_after(
            "mount -t tmpfs none /dev/net",
            &pulse("", &["--net", "create=ferryt0"]),
        ),
        ERROR,
        &["ferryt0", "no /dev/net/tun", "modprobe tun"],
    );
}

#[test]
fn paths_that_cannot_be_used() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| text(&folder.path().join(name)).to_owned();
    fs::write(path("file"), "somebody's").unwrap();
    let _other = UnixListener::bind(path("other")).unwrap();
    let holder = beating(None, &[]);
    let held = text(&holder.control()).to_owned();
    let long = path(&"x".repeat(120));
    for (place, parts) in [
        (path("file"), ["exists and is not a socket", "another path"]),
        (
            path("other"),
            ["is in use by another process", "another path"],
        ),
        (held, ["is in use by another process", "stop that process"]),
        (
            path("no/vm.sock"),
            ["cannot listen on socket", "a folder that exists"],
        ),
        (long, [" bytes: take one of at most 107", "socket path"]),
    ] {
        refuses(ferry(&pulse("", &["--control", &place])), ERROR, &parts);
        let serial = format!("socket={place}");
        refuses(ferry(&pulse("", &["--serial", &serial])), ERROR, &parts);
    }
    for place in [path("no/serial.log"), path("")] {
        let serial = format!("file={place}");
        let parts = [place.as_str(), "for the serial port", "may write to"];
        refuses(ferry(&pulse("", &["--serial", &serial])), ERROR, &parts);
    }
    assert_eq!(fs::read(path("file")).unwrap(), b"somebody's");
    ticks_on(&holder);
}
