//! The command line as text: what is taken, what is refused, and with which status.

use super::*;
use crate::config::{
    BalloonConfig, DirtyTracking, DiskConfig, DiskFile, GuestConfig, KernelConfig, Listen,
    NetConfig, ReceiveConfig, SerialConfig, TapConfig, Target,
};
use crate::kvm::cpuid::baseline::Baseline;
use crate::layout::Transport;
use crate::sandbox::Mode;
use devices::virtio::block::DiskOptions;

fn parse(line: &[&str]) -> Result<Args, clap::Error> {
    let words = std::iter::once("ferry").chain(line.iter().copied());
    let matches = command().try_get_matches_from(words)?;
    Args::from_arg_matches(&matches)
}

fn guest(line: &[&str]) -> GuestConfig {
    match parse(line).unwrap().command {
        Command::Run(args) => args.config().unwrap(),
        other => panic!("{other:?}"),
    }
}

fn receiver(line: &[&str]) -> ReceiveConfig {
    match parse(line).unwrap().command {
        Command::Receive(args) => args.config().unwrap(),
        other => panic!("{other:?}"),
    }
}

fn status_of(line: &[&str]) -> u8 {
    run(std::iter::once("ferry")
        .chain(line.iter().copied())
        .map(OsString::from))
}

#[test]
fn clap_finds_nothing_wrong() {
    command().debug_assert();
}

#[test]
fn every_help_has_a_line_for_every_command_and_flag() {
    let mut whole = command();
    whole.build();
    for command in whole
        .get_subcommands()
        .filter(|command| command.get_name() != "help")
    {
        assert!(command.get_about().is_some(), "{}", command.get_name());
        for arg in command.get_arguments() {
            assert!(
                arg.get_help().is_some(),
                "{} {}",
                command.get_name(),
                arg.get_id()
            );
        }
    }
}

#[test]
fn a_guest_with_everything() {
    let config = guest(&[
        "run",
        "vmlinuz",
        "--initramfs",
        "initrd",
        "--append",
        "quiet",
        "--memory",
        "5G",
        "--cpus",
        "4",
        "--net",
        "tap=tap0,queues=4",
        "--net",
        "create=ferry0,mac=52:54:00:12:34:56,mtu=9000",
        "--net",
        "fd=7:8",
        "--balloon",
        "1G,reporting=off",
        "--disk",
        "a.img",
        "--disk",
        "/dev/b,ro,direct=on,queues=4",
        "--virtio",
        "mmio",
        "--serial",
        "socket=/s",
        "--control",
        "/c",
        "--dirty-tracking",
        "ring,entries=4096",
        "--cpu",
        "v3",
        "--sandbox",
        "log",
    ]);
    let expected = GuestConfig {
        kernel: KernelConfig::File("vmlinuz".into()),
        initramfs: Some("initrd".into()),
        cmdline: None,
        append: Some("quiet".to_owned()),
        memory: (5 << 30).into(),
        dirty_tracking: DirtyTracking::Ring {
            entries: Some(4096),
        },
        cpus: 4,
        cpu: Baseline::V3,
        nets: vec![
            NetConfig {
                tap: TapConfig::Existing("tap0".to_owned()),
                mac: None,
                queues: Some(4),
                mtu: None,
            },
            NetConfig {
                tap: TapConfig::Create("ferry0".to_owned()),
                mac: Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
                queues: None,
                mtu: Some(9000),
            },
            NetConfig {
                tap: TapConfig::Fds(vec![7, 8]),
                mac: None,
                queues: None,
                mtu: None,
            },
        ],
        disks: vec![
            DiskConfig {
                file: DiskFile {
                    path: "a.img".into(),
                    options: DiskOptions::default(),
                },
                queues: 1,
            },
            DiskConfig {
                file: DiskFile {
                    path: "/dev/b".into(),
                    options: DiskOptions {
                        read_only: true,
                        direct: true,
                    },
                },
                queues: 4,
            },
        ],
        transport: Transport::Mmio,
        balloon: Some(BalloonConfig {
            bytes: 1 << 30,
            reporting: false,
            deflate_on_oom: false,
        }),
        serial: SerialConfig::Socket("/s".into()),
        control: Some("/c".into()),
        tls: None,
        sandbox: Mode::Log,
    };
    assert_eq!(config, expected);
}

#[test]
fn the_bare_guest_says_itself_how_many_vcpus_it_has_unless_the_flag_does() {
    let cpus = |args: &[&str]| guest(&[&["run", "--pulse"], args].concat()).cpus;
    assert_eq!(cpus(&["cpus=4 cpu3.role=compute"]), 4);
    assert_eq!(cpus(&["cpus=2", "--append", "cpus=3"]), 3);
    assert_eq!(cpus(&["cpu1.role=compute", "--cpus", "2"]), 2);
    assert_eq!(cpus(&["beat=5"]), 1);
    // A kernel's own parameters are its own affair.
    assert_eq!(guest(&["run", "vmlinuz", "--append", "cpus=4"]).cpus, 1);
}

#[test]
fn a_guest_with_nothing_has_the_defaults_of_the_help() {
    let config = guest(&["run", "vmlinuz"]);
    assert_eq!((config.memory.bytes, config.cpus), (512 << 20, 1));
    assert_eq!(config.dirty_tracking, DirtyTracking::Bitmap);
    assert_eq!(config.transport, Transport::Pci);
    assert_eq!(config.serial, SerialConfig::Stdio);
    assert_eq!(config.kernel_cmdline(), crate::boot::DEFAULT_CMDLINE);
    let mut whole = command();
    let help = whole
        .find_subcommand_mut("run")
        .unwrap()
        .render_long_help()
        .to_string();
    assert!(help.contains(crate::boot::DEFAULT_CMDLINE), "{help}");
}

#[test]
fn the_bare_guest_takes_parameters_or_none() {
    assert_eq!(
        guest(&["run", "--pulse"]).kernel,
        KernelConfig::Pulse(String::new())
    );
    let config = guest(&["run", "--pulse", "ws=16:256 rate=max", "--memory", "1G"]);
    assert_eq!(
        config.kernel,
        KernelConfig::Pulse("ws=16:256 rate=max".to_owned())
    );
    assert_eq!(config.memory.bytes, 1 << 30);
}

#[test]
fn a_receiver() {
    let config = receiver(&[
        "receive",
        "--listen",
        "tcp:[::1]:7000",
        "--net",
        "0=tap=t0",
        "--net",
        "2=fd=9",
        "--disk",
        "3=/d=e.img,ro",
        "--once",
        "--dirty-tracking",
        "ring",
        "--peer-timeout",
        "700ms",
    ]);
    assert_eq!(config.peer_timeout, std::time::Duration::from_millis(700));
    assert_eq!(
        config.listen,
        Listen::At(Target::Tcp("::1".to_owned(), 7000))
    );
    let passed = receiver(&["receive", "--listen", "systemd"]);
    assert_eq!(passed.listen, Listen::Passed);
    let nets = vec![
        (0, TapConfig::Existing("t0".to_owned())),
        (2, TapConfig::Fds(vec![9])),
    ];
    assert_eq!(config.nets, nets);
    let (number, disk) = &config.disks[0];
    assert_eq!((*number, disk.path.to_str()), (3, Some("/d=e.img")));
    assert!(disk.options.read_only && !disk.options.direct);
    assert_eq!(config.dirty_tracking, DirtyTracking::Ring { entries: None });
    assert_eq!(config.max_memory, crate::config::DEFAULT_MAX_MEMORY);
    assert!(config.once && !config.insecure_plaintext);
}

#[test]
fn nonsense_is_usage_before_anything_is_done() {
    let table: &[&[&str]] = &[
        &[],
        &["fly"],
        &["run"],
        &["run", "a", "b"],
        &["run", "a", "--pulse"],
        &["run", "a", "--memory", "1gb2"],
        &["run", "a", "--memory", "64M"],
        &["run", "a", "--memory", "511.5M"],
        &["run", "a", "--dirty-tracking", "pml"],
        &["run", "a", "--dirty-tracking", "ring,entries=1000"],
        &["run", "a", "--cpus", "0"],
        &["run", "a", "--cpus", "17"],
        &["run", "a", "--cpus", "300"],
        &["run", "a", "--net", "tap0"],
        &["run", "a", "--net", "tap="],
        &["run", "a", "--net", "fd=0"],
        &["run", "a", "--net", "tap=x", "--net", "tap=x"],
        &["run", "a", "--net", "tap=sixteen-letters-"],
        &["run", "a", "--net", "tap=x,mac=01:00:00:00:00:00"],
        &["run", "a", "--net", "tap=x,mtu=67"],
        &["run", "a", "--net", "tap=x,mtu=65522"],
        &["run", "a", "--net", "tap=x,mtu=+100"],
        &["run", "a", "--net", "tap=x,mtu=1500,mtu=1500"],
        &["run", "a", "--net", "tap=x,queues=0"],
        &["run", "a", "--net", "tap=x,queues=9"],
        &["run", "a", "--net", "tap=x,queues=1,queues=1"],
        &["run", "a", "--net", "fd=7,queues=2"],
        &["run", "a", "--net", "fd=7:7"],
        &["run", "a", "--net", "fd=7:"],
        &["run", "a", "--net", "fd=3:4:5:6:7:8:9:10:11"],
        &["run", "a", "--virtio", "isa"],
        &["run", "a", "--balloon", "much"],
        &["run", "a", "--balloon", "1G"],
        &["balloon", "--control", "/c"],
        &["balloon", "--control", "/c", "-1"],
        &["run", "a", "--disk", ""],
        &["run", "a", "--disk", ",ro"],
        &["run", "a", "--disk", "x,rw"],
        &["run", "a", "--disk", "x,queues=0"],
        &["run", "a", "--disk", "x,queues=9"],
        &["run", "a", "--disk", "x,direct=maybe"],
        &["run", "a", "--disk", "x", "--disk", "x"],
        &["run", "a", "--serial", "tty"],
        &["predict"],
        &["predict", "tcp:127.0.0.1:1"],
        &["predict", "--control", "/c"],
        &["predict", "--memory", "1G"],
        &["predict", "--link", "1Gbit"],
        &["predict", "--memory", "0", "--link", "1Gbit"],
        &["predict", "--memory", "1G", "--link", "1bit"],
        &["predict", "--memory", "32T", "--link", "1Gbit"],
        &[
            "predict", "--memory", "1G", "--link", "1Gbit", "--zero", "101",
        ],
        &[
            "predict", "--memory", "1G", "--link", "1Gbit", "--busy", "0",
        ],
        &[
            "predict",
            "--memory",
            "1G",
            "--link",
            "1Gbit",
            "--touched",
            "2G",
        ],
        &[
            "predict",
            "--memory",
            "1G",
            "--link",
            "1Gbit",
            "--working-set",
            "1M",
        ],
        &[
            "predict", "--memory", "1G", "--link", "1Gbit", "--watch", "1s",
        ],
        &[
            "predict",
            "--memory",
            "1G",
            "--link",
            "1Gbit",
            "--dirty-curve",
            "1s:x",
        ],
        &[
            "predict",
            "--memory",
            "1G",
            "--link",
            "1Gbit",
            "--dirty-curve",
            "/nonexistent",
        ],
        &[
            "predict",
            "--memory",
            "1G",
            "--link",
            "1Gbit",
            "--downtime",
            "0ms",
        ],
        &[
            "predict",
            "--control",
            "/c",
            "tcp:127.0.0.1:1",
            "--memory",
            "1G",
        ],
        &[
            "predict",
            "--control",
            "/c",
            "tcp:127.0.0.1:1",
            "--watch",
            "2h",
        ],
        &["receive"],
        &["receive", "--listen", "7000"],
        &["receive", "--listen", "tcp:0.0.0.0:7000"],
        &["receive", "--listen", "tcp:::1:7000"],
        &["receive", "--listen", "tcp:127.0.0.1:70000"],
        &["receive", "--listen", "tcp:127.0.0.1:1", "--net", "tap=x"],
        &["receive", "--listen", "unix:/x", "--disk", "x"],
        &["receive", "--listen", "unix:/x", "--disk", "=x"],
        &["receive", "--listen", "unix:/x", "--disk", "7=x"],
        &["receive", "--listen", "unix:/x", "--disk", "0=x,queues=2"],
        &[
            "receive",
            "--listen",
            "tcp:127.0.0.1:1",
            "--net",
            "0=tap=x",
            "--net",
            "0=tap=y",
        ],
        &[
            "receive",
            "--listen",
            "tcp:127.0.0.1:1",
            "--net",
            "99=tap=x",
        ],
        &["migrate", "tcp:127.0.0.1:1"],
        &["migrate", "--control", "/c", "tcp:10.0.0.1:7000"],
        &["migrate", "--control", "/c", "unix:/x", "--tls"],
        &["migrate", "--control", "/c", "--tls", "tcp:10.0.0.1:7000"],
        &[
            "migrate",
            "--control",
            "/c",
            "tcp:10.0.0.1:7000",
            "--tls",
            "--insecure-plaintext",
        ],
        &[
            "migrate",
            "--control",
            "/c",
            "tcp:10.0.0.1:7000",
            "--peer",
            "beta",
        ],
        &[
            "migrate",
            "--control",
            "/c",
            "tcp:10.0.0.1:7000",
            "--tls",
            "--peer",
            "be ta",
        ],
        &[
            "receive",
            "--listen",
            "tcp:10.0.0.1:7000",
            "--tls",
            "/d",
            "--insecure-plaintext",
        ],
        &[
            "receive",
            "--listen",
            "tcp:127.0.0.1:7000",
            "--peer",
            "beta",
        ],
        &["certs", "host", "/d", "../up"],
        &["certs", "host", "/d", "a.example", "--san", "no name"],
        &["certs", "ca", "/d", "--days", "0"],
        &[
            "migrate",
            "--control",
            "/c",
            "tcp:127.0.0.1:1",
            "--downtime",
            "50",
        ],
        &[
            "migrate",
            "--control",
            "/c",
            "tcp:127.0.0.1:1",
            "--downtime",
            "0ms",
        ],
        &[
            "migrate",
            "--control",
            "/c",
            "tcp:127.0.0.1:1",
            "--downtime",
            "1500us",
        ],
        &[
            "migrate",
            "--control",
            "/c",
            "tcp:127.0.0.1:1",
            "--bandwidth",
            "1Gb",
        ],
        &[
            "migrate",
            "--control",
            "/c",
            "tcp:127.0.0.1:1",
            "--bandwidth",
            "1Kbit",
        ],
        &[
            "migrate",
            "--control",
            "/c",
            "tcp:127.0.0.1:1",
            "--max-rounds",
            "0",
        ],
        &[
            "migrate",
            "--control",
            "/c",
            "tcp:127.0.0.1:1",
            "--on-timeout",
            "wait",
        ],
        &[
            "migrate",
            "--control",
            "/c",
            "tcp:127.0.0.1:1",
            "--compress",
            "gzip",
        ],
        &[
            "migrate",
            "--control",
            "/c",
            "tcp:127.0.0.1:1",
            "--delta",
            "1000K",
        ],
        &["migrate", "--control", "/c", "--delta", "tcp:127.0.0.1:1"],
        &["status"],
        &["dirty-rate", "--control", "/c", "--longest", "65s"],
        &["dirty-rate", "--control", "/c", "--longest", "0ms"],
        &["dirty-rate", "--control", "/c", "--sample", "0"],
        &["dirty-rate", "--control", "/c", "--sample", "1025"],
        &["resume", "--control", "/c", "--forse"],
    ];
    for line in table {
        assert_eq!(status_of(line), exit::USAGE, "{line:?}");
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for line in [
        &["--help"][..],
        &["--version"],
        &["help", "run"],
        &["migrate", "--help"],
    ] {
        assert_eq!(status_of(line), exit::OK, "{line:?}");
    }
}

#[test]
fn orders_to_nobody_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none.sock");
    let socket = socket.to_str().unwrap();
    for order in ["status", "dirty-rate", "pause", "resume", "cancel", "stop"] {
        assert_eq!(
            status_of(&[order, "--control", socket]),
            exit::ERROR,
            "{order}"
        );
    }
    let line = ["migrate", "--control", socket, "tcp:127.0.0.1:1"];
    assert_eq!(status_of(&line), exit::ERROR);
}
