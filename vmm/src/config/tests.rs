//! What a configuration accepts and refuses.

use std::time::Duration;

use super::*;
use crate::boot::{DEFAULT_CMDLINE, NO_PCI};
use crate::kvm::cpuid::baseline::Baseline;
use crate::layout::Transport;
use crate::sandbox::Mode;

fn guest() -> GuestConfig {
    GuestConfig {
        kernel: KernelConfig::File("vmlinuz".into()),
        initramfs: None,
        cmdline: None,
        append: None,
        memory: (512 << 20).into(),
        dirty_tracking: DirtyTracking::default(),
        cpus: 1,
        cpu: Baseline::Host,
        nets: Vec::new(),
        disks: Vec::new(),
        balloon: None,
        transport: Transport::Mmio,
        serial: SerialConfig::None,
        control: None,
        tls: None,
        sandbox: Mode::Kill,
    }
}

fn net(name: &str) -> NetConfig {
    NetConfig {
        tap: TapConfig::Existing(name.to_owned()),
        mac: None,
        queues: None,
        mtu: None,
    }
}

#[test]
fn targets_are_read_and_shown() {
    let table = [
        (
            "tcp:127.0.0.1:7000",
            Target::Tcp("127.0.0.1".to_owned(), 7000),
        ),
        (
            "tcp:host.example:1",
            Target::Tcp("host.example".to_owned(), 1),
        ),
        ("tcp:[::1]:65535", Target::Tcp("::1".to_owned(), 65535)),
        ("tcp:localhost:0", Target::Tcp("localhost".to_owned(), 0)),
        ("unix:/run/x:y", Target::Unix("/run/x:y".into())),
    ];
    for (text, target) in table {
        assert_eq!(text.parse::<Target>().as_ref(), Ok(&target), "{text}");
        assert_eq!(target.to_string(), text);
    }
    let nonsense = [
        "",
        "tcp",
        "tcp:",
        "tcp::1",
        "tcp:h:",
        "tcp:h:x",
        "tcp:h:65536",
        "tcp:h:+1",
        "tcp:h: 1",
        "tcp:::1:80",
        "tcp:[::1:80",
        "tcp:[::1]",
        "tcp:[h]:80",
        "tcp:[]:80",
        "tcp:[::1]x:80",
        "tcp:a b:80",
        "tcp:a/b:80",
        "tcp:\u{7}:80",
        "udp:h:80",
        "unix:",
        "unix:a\0b",
        "127.0.0.1:80",
        "tcp:x]:80\n",
    ];
    for text in nonsense {
        assert!(text.parse::<Target>().is_err(), "{text:?}");
    }
    assert!(
        format!("tcp:{}:1", "h".repeat(254))
            .parse::<Target>()
            .is_err()
    );
}

#[test]
fn plaintext_stays_on_this_machine_unless_told() {
    let local = [
        "tcp:127.0.0.1:1",
        "tcp:127.9.9.9:1",
        "tcp:[::1]:1",
        "tcp:LocalHost:1",
        "unix:/x",
    ];
    for text in local {
        let target: Target = text.parse().unwrap();
        assert_eq!(target.check_plaintext(false), Ok(()), "{text}");
    }
    let beyond = [
        "tcp:0.0.0.0:1",
        "tcp:[::]:1",
        "tcp:10.0.0.1:1",
        "tcp:[fe80::1]:1",
        "tcp:localhost.evil.example:1",
        "tcp:127.0.0.1.example:1",
        "tcp:127.1:1",
        "tcp:[::ffff:10.0.0.1]:1",
    ];
    for text in beyond {
        let target: Target = text.parse().unwrap();
        let error = target.check_plaintext(false).unwrap_err().to_string();
        assert!(
            error.contains(text) && error.contains("--insecure-plaintext"),
            "{error}"
        );
        assert_eq!(target.check_plaintext(true), Ok(()), "{text}");
    }
}

#[test]
fn memory_has_bounds_that_the_error_tells() {
    let with = |memory: u64, kernel| {
        GuestConfig {
            memory: memory.into(),
            kernel,
            ..guest()
        }
        .checked()
    };
    let linux = || KernelConfig::File("k".into());
    let pulse = || KernelConfig::Pulse(String::new());
    assert!(with(MIN_LINUX_MEMORY, linux()).is_ok());
    assert!(with(MAX_MEMORY, linux()).is_ok());
    assert!(with(MIN_PULSE_MEMORY, pulse()).is_ok());
    for memory in [
        0,
        MIN_LINUX_MEMORY - REGION_ALIGN,
        MIN_LINUX_MEMORY + 4096,
        MAX_MEMORY + REGION_ALIGN,
        u64::MAX,
    ] {
        assert!(
            matches!(with(memory, linux()), Err(ConfigError::Memory { .. })),
            "{memory}"
        );
    }
    let error = with(64 << 20, linux()).unwrap_err().to_string();
    assert_eq!(
        error,
        "64M of guest memory: take a multiple of 2M from 128M to 16T"
    );
}

#[test]
fn devices_do_not_share() {
    let with = |nets| GuestConfig { nets, ..guest() }.checked();
    assert!(with(vec![net("a"), net("b")]).is_ok());
    assert_eq!(
        with(vec![net("a"), net("a")]),
        Err(ConfigError::TapTwice("a".to_owned()))
    );
    let create = NetConfig {
        tap: TapConfig::Create("a".to_owned()),
        ..net("a")
    };
    assert_eq!(
        with(vec![net("a"), create]),
        Err(ConfigError::TapTwice("a".to_owned()))
    );
    let many = (0..9).map(|i| net(&format!("t{i}"))).collect();
    assert_eq!(with(many), Err(ConfigError::Nets(9)));
    for name in [
        "",
        ".",
        "..",
        "a/b",
        "a b",
        "tap%d",
        "a:1",
        "sixteen-letters-",
        "a\0",
    ] {
        assert_eq!(
            with(vec![net(name)]),
            Err(ConfigError::TapName(name.to_owned()))
        );
    }
    let mac = |mac| NetConfig {
        mac: Some(mac),
        ..net("a")
    };
    assert!(with(vec![mac([2, 0, 0, 0, 0, 1])]).is_ok());
    for bad in [[0; 6], [1, 0, 0, 0, 0, 1], [0xff; 6]] {
        assert_eq!(
            with(vec![mac(bad)]),
            Err(ConfigError::Mac(display_mac(bad)))
        );
    }
}

#[test]
fn the_command_line_is_put_together_and_bounded() {
    let line = |cmdline: Option<&str>, append: Option<&str>| {
        let config = GuestConfig {
            cmdline: cmdline.map(str::to_owned),
            append: append.map(str::to_owned),
            ..guest()
        };
        config.checked().map(|config| config.kernel_cmdline())
    };
    assert_eq!(line(None, None), Ok(format!("{DEFAULT_CMDLINE} {NO_PCI}")));
    assert_eq!(
        line(None, Some("quiet")),
        Ok(format!("{DEFAULT_CMDLINE} {NO_PCI} quiet"))
    );
    let with_pci = GuestConfig {
        transport: Transport::Pci,
        ..guest()
    };
    assert_eq!(with_pci.kernel_cmdline(), DEFAULT_CMDLINE);
    for (words, refused) in [
        ("quiet pci=off", true),
        ("pci=noacpi,off root=x", true),
        ("pci=noacpi", false),
        ("xpci=off", false),
    ] {
        let config = GuestConfig {
            append: Some(words.to_owned()),
            ..with_pci.clone()
        };
        let expected = refused.then_some(ConfigError::PciOff);
        assert_eq!(config.checked().err(), expected, "{words}");
    }
    assert_eq!(
        line(Some("root=x"), Some("quiet")).as_deref(),
        Ok("root=x quiet")
    );
    assert_eq!(line(Some(""), Some("quiet")).as_deref(), Ok("quiet"));
    assert!(line(Some(&"x".repeat(MAX_CMDLINE - 1)), None).is_ok());
    assert_eq!(
        line(Some(&"x".repeat(MAX_CMDLINE)), None),
        Err(ConfigError::Cmdline(MAX_CMDLINE))
    );
    assert_eq!(line(Some("a\0b"), None), Err(ConfigError::Cmdline(3)));
}

#[test]
fn macs_are_six_pairs() {
    assert_eq!(
        parse_mac("52:54:00:ab:CD:ef"),
        Ok([0x52, 0x54, 0, 0xab, 0xcd, 0xef])
    );
    for text in [
        "",
        "52:54:00:12:34",
        "52:54:00:12:34:56:78",
        "5:54:00:12:34:56",
        "+2:54:00:12:34:56",
        "52-54-00-12-34-56",
    ] {
        assert_eq!(
            parse_mac(text),
            Err(ConfigError::Mac(text.to_owned())),
            "{text}"
        );
    }
}

#[test]
fn dirty_tracking_is_one_of_two_and_rings_have_a_size() {
    let read = |text: &str| text.parse::<DirtyTracking>();
    assert_eq!(read("bitmap"), Ok(DirtyTracking::Bitmap));
    assert_eq!(read("ring"), Ok(DirtyTracking::Ring { entries: None }));
    for entries in [1024, 65_536] {
        let wanted = DirtyTracking::Ring {
            entries: Some(entries),
        };
        assert_eq!(read(&format!("ring,entries={entries}")), Ok(wanted));
    }
    for (text, hint) in [
        ("", "take bitmap, ring"),
        ("Ring", "take bitmap, ring"),
        ("ring,", "take bitmap, ring"),
        ("ring,entries=", "power of two from 1024 to 65536"),
        ("ring,entries=512", "power of two"),
        ("ring,entries=1025", "power of two"),
        ("ring,entries=131072", "power of two"),
        ("ring,entries=-1024", "power of two"),
    ] {
        let refusal = read(text).unwrap_err();
        assert!(refusal.contains(hint), "{text}: {refusal}");
    }
}

#[test]
fn a_receiver_names_each_slot_once() {
    let with = |nets| {
        ReceiveConfig {
            listen: Listen::At(Target::Unix("/x".into())),
            nets,
            disks: Vec::new(),
            serial: SerialConfig::None,
            max_memory: DEFAULT_MAX_MEMORY,
            prefault: 0,
            huge_pages: false,
            dirty_tracking: DirtyTracking::default(),
            peer_timeout: Duration::from_secs(5),
            once: false,
            control: None,
            tls: None,
            peers: Vec::new(),
            insecure_plaintext: false,
            sandbox: Mode::Kill,
        }
        .checked()
    };
    let tap = |slot, name: &str| (slot, TapConfig::Existing(name.to_owned()));
    assert!(with(vec![tap(0, "a"), tap(7, "b")]).is_ok());
    assert_eq!(
        with(vec![tap(3, "a"), tap(3, "b")]),
        Err(ConfigError::SlotTwice(3))
    );
    assert_eq!(with(vec![tap(8, "a")]), Err(ConfigError::Slot(8)));
    assert_eq!(
        with(vec![tap(u32::MAX, "a")]),
        Err(ConfigError::Slot(u32::MAX))
    );
    assert_eq!(
        with(vec![tap(0, "a"), tap(1, "a")]),
        Err(ConfigError::TapTwice("a".to_owned()))
    );
}

#[test]
fn the_bare_guests_parameters_are_read_before_it_is_started() {
    let pulse = |words: &str, cpus| {
        GuestConfig {
            kernel: KernelConfig::Pulse(words.to_owned()),
            memory: (64 << 20).into(),
            cpus,
            ..guest()
        }
        .checked()
    };
    assert!(pulse("ws=16:48 rate=max", 1).is_ok());
    assert!(pulse("cpu1.role=compute", 2).is_ok());
    assert!(pulse("cpus=2 cpu1.role=compute", 2).is_ok());
    for (words, part) in [
        ("tempo=3", "tempo=3"),
        ("cpu1.role=compute", "--cpus"),
        ("cpus=4", "\"cpus=4\" and --cpus 1"),
        ("ws=16:49", "ends at 65 MiB"),
    ] {
        let text = pulse(words, 1).unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn memory_says_what_it_is_made_of() {
    let parse = |text: &str| text.parse::<MemoryConfig>();
    let memfd = parse("4G,backing=memfd").unwrap();
    assert_eq!(
        (memfd.bytes, memfd.backing),
        (4 << 30, MemoryBacking::Memfd)
    );
    for text in ["4G", "4G,backing=anonymous"] {
        assert_eq!(parse(text).unwrap(), MemoryConfig::from(4 << 30));
    }
    for text in ["4G,hugepages=on", "4G,hugepages=on,backing=anonymous"] {
        assert_eq!(parse(text).unwrap().backing, MemoryBacking::HugePages);
    }
    let off = parse("4G,backing=memfd,hugepages=off").unwrap();
    assert_eq!(off.backing, MemoryBacking::Memfd);
    for text in [
        "4G,backing=memfd,hugepages=on",
        "4G,hugepages=on,backing=memfd",
    ] {
        assert!(parse(text).unwrap_err().contains("is for anonymous memory"));
    }
    assert!(
        parse("4G,hugepages")
            .unwrap_err()
            .contains("hugepages=on or")
    );
    assert!(parse("4G,").unwrap_err().contains("behind the size"));
    let error = parse("4G,backing=disk").unwrap_err();
    assert!(
        error.contains("backing=anonymous or backing=memfd"),
        "{error}"
    );
    assert!(parse("4X,backing=memfd").unwrap_err().contains("4X"));
}

fn disk(path: &str, read_only: bool) -> DiskFile {
    let options = devices::virtio::block::DiskOptions {
        read_only,
        direct: false,
    };
    DiskFile {
        path: path.into(),
        options,
    }
}

#[test]
fn a_balloon_is_of_what_the_guest_has() {
    let balloon = |text: &str| text.parse::<BalloonConfig>();
    let of = |bytes, reporting, deflate_on_oom| {
        Ok(BalloonConfig {
            bytes,
            reporting,
            deflate_on_oom,
        })
    };
    for on in ["on", "", "on,reporting=on"] {
        assert_eq!(balloon(on), of(0, true, false));
    }
    assert_eq!(balloon("1G"), of(1 << 30, true, false));
    let all = balloon("0,deflate-on-oom=on,reporting=off");
    assert_eq!(all, of(0, false, true));
    for (text, part) in [
        ("off", "or on"),
        ("-1", "or on"),
        ("on,", "behind on or the size"),
        ("1G,on", "behind on or the size"),
        ("on,reporting", "behind on or the size"),
        ("on,reporting=yes", "take on or off"),
        ("on,deflate-on-oom=", "take on or off"),
    ] {
        let error = balloon(text).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
    let with = |text: &str, disks: usize, nets: usize| {
        let nets = (0..nets).map(|n| net(&format!("tap{n}")));
        let files = (0..disks).map(|n| disk(&format!("d{n}"), false));
        let disks = files.map(|file| DiskConfig { file, queues: 1 });
        let config = GuestConfig {
            balloon: Some(balloon(text).unwrap()),
            disks: disks.collect(),
            nets: nets.collect(),
            ..guest()
        };
        config
            .checked()
            .map(drop)
            .map_err(|error| error.to_string())
    };
    assert_eq!(with("512M", 7, 7), Ok(()));
    let large = with("516M", 0, 0).unwrap_err();
    assert!(
        large.contains("a balloon of 516M is larger than the guest's memory of 512M"),
        "{large}"
    );
    assert!(with("on", 7, 8).unwrap_err().contains("16 virtio devices"));
}

#[test]
fn disks_are_few_and_each_has_its_file() {
    let with = |disks: Vec<(DiskFile, u16)>| {
        let disks = disks.into_iter();
        let disks = disks.map(|(file, queues)| DiskConfig { file, queues });
        GuestConfig {
            disks: disks.collect(),
            ..guest()
        }
        .checked()
    };
    assert!(with(vec![(disk("a", false), 1), (disk("b", false), 8)]).is_ok());
    assert!(with(vec![(disk("a", true), 1), (disk("a", true), 1)]).is_ok());
    for read_only in [false, true] {
        assert_eq!(
            with(vec![(disk("a", false), 1), (disk("a", read_only), 1)]),
            Err(ConfigError::DiskTwice("a".into()))
        );
    }
    for queues in [0, 9] {
        let refused = with(vec![(disk("a", false), queues)]);
        assert_eq!(refused, Err(ConfigError::DiskQueues(queues)));
    }
    let many = (0..8).map(|n| (disk(&format!("d{n}"), false), 1)).collect();
    assert_eq!(with(many), Err(ConfigError::Disks(8)));
}

#[test]
fn a_receiver_names_each_disk_once() {
    use super::disk::check_numbered as check;
    let numbered = |number, path| (number, disk(path, false));
    assert!(check(&[numbered(0, "a"), numbered(6, "b")]).is_ok());
    for (disks, error) in [
        (vec![numbered(7, "a")], ConfigError::DiskNumber(7)),
        (
            vec![numbered(1, "a"), numbered(1, "b")],
            ConfigError::DiskNumberTwice(1),
        ),
        (
            vec![numbered(0, "a"), numbered(1, "a")],
            ConfigError::DiskTwice("a".into()),
        ),
    ] {
        assert_eq!(check(&disks), Err(error));
    }
}
