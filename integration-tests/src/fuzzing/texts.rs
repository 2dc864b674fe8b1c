//! What people write: the command line's words, those of pulse, dirty curves, and the files of studies.

use std::ffi::OsString;
use std::fmt::{Debug, Display};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use guest_images::config::Config;
use migration::predict::Curve;
use vmm::config::{DirtyTracking, MemoryConfig, Target, display_mac, parse_mac};
use vmm::study::spec::{MAX_CASES, Spec};
use vmm::units::{Rate, Size, Span};

use super::input::{Program, Written};

/// The input is a file: JSON if it begins with a brace, else TOML.
pub fn run_sweep(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let json = text.starts_with('{');
    match Spec::parse(text, json, Path::new("study")) {
        Ok(spec) => assert!((1..=MAX_CASES).contains(&spec.cases().count())),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

pub fn seeds_sweep() -> Vec<Vec<u8>> {
    let toml = include_bytes!("../../studies/study.toml").to_vec();
    let short = "[[sweep]]\nname = \"uniform\"\nmemory = \"512M\"\nworking_set = [\"64M\", \"256M\"]\ndirty_rate = [0, \"0.5x\", \"40MB/s\", \"max\"]\nlink = [\"1Gbit\", \"loopback\"]\nthrottle = [\"auto\", \"off\"]\npredict = true\n";
    let json = r#"{"title":"t","sweep":[{"name":"a","memory":"64M","working_set":"16M","dirty_rate":"1MB/s","link":"1Gbit","pattern":"zipf","phases":"100:200","streams":[1,2],"downtime":"50ms"}]}"#;
    let phases = "title = \"t\"\n[[sweep]]\nname = \"a\"\nmemory = \"64M\"\nphases = \"100:200\"\nwriters = 2\ncomputing = 1\ndirty_tracking = \"ring\"\ntimeout = \"10s\"\nrepeats = 3\n";
    let mut seeds = vec![toml];
    seeds.extend([short, json, phases].map(|text| text.as_bytes().to_vec()));
    seeds
}

/// The input: which of the languages, and the words in it.
pub fn run_units(input: &[u8]) {
    let mut program = Program::new(input);
    let which = program.u8() % 11;
    let text = String::from_utf8_lossy(program.rest());
    match which {
        0 => drop(text.parse::<Size>().map(|size| size.to_string())),
        1 => drop(text.parse::<Rate>().map(|rate| rate.to_string())),
        2 => drop(text.parse::<Span>().map(|span| span.to_string())),
        3 => drop(text.parse::<MemoryConfig>()),
        4 => drop(text.parse::<DirtyTracking>()),
        5 => same_again::<Target>(&text),
        6 => same_again::<Config>(&text),
        7 => drop(guest_images::config::cpus_asked_for(&text)),
        8 => {
            if let Ok(mac) = parse_mac(&text) {
                assert_eq!(parse_mac(&display_mac(mac)).unwrap(), mac);
            }
        }
        9 => curve(text.as_bytes()),
        _ => command_line(&text),
    }
}

/// What was understood and is shown is understood again, as the same.
fn same_again<T: FromStr<Err: Debug> + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        let shown = value.to_string();
        assert_eq!(shown.parse::<T>().unwrap(), value, "{shown:?}");
    }
}

/// Words, one a line.
fn command_line(text: &str) {
    let words = text.split('\n').map(OsString::from);
    if let Err(line) = vmm::cli::check_words(std::iter::once("ferry".into()).chain(words)) {
        assert!(!line.is_empty());
    }
}

/// Points of 4 bytes of milliseconds and 4 of pages: any curve has a guest that it fits.
fn curve(bytes: &[u8]) {
    let number = |at: &[u8]| u32::from_le_bytes(at.try_into().unwrap());
    let point = |point: &[u8]| {
        let time = Duration::from_millis(number(&point[..4]).into());
        (time, u64::from(number(&point[4..])))
    };
    if let Ok(curve) = Curve::new(bytes.chunks_exact(8).map(point).collect()) {
        let pages = curve.points().iter().map(|point| point.1).max().unwrap();
        let writes = curve.fit(pages.max(1));
        assert!(writes.error.is_finite(), "{}", writes.error);
    }
}

pub fn seeds_units() -> Vec<Vec<u8>> {
    let texts: [(u8, &str); 18] = [
        (0, "1.5GiB"),
        (0, "512M"),
        (1, "1Gbit"),
        (1, "100MB/s"),
        (2, "1.5s"),
        (2, "50ms"),
        (3, "512M,backing=memfd"),
        (4, "ring,entries=4096"),
        (5, "tcp:[::1]:4700"),
        (5, "unix:/tmp/b.ferry"),
        (
            6,
            "ws=16:256 rate=20000 pattern=zipf phases=100:200 beat=2 wait=spin",
        ),
        (
            6,
            "cpus=4 ws=16:64 rate=max cpu1.role=compute cpu2.pattern=sweep",
        ),
        (7, "cpus=8"),
        (8, "02:00:00:00:00:01"),
        (
            10,
            "migrate\n--control\n/tmp/a\ntcp:h:1\n--downtime\n50ms\n--delta\n64M\n--streams\n2",
        ),
        (
            10,
            "run\nvmlinuz\n--memory\n1G\n--cpus\n2\n--net\ntap=t\n--dirty-tracking\nring",
        ),
        (
            10,
            "predict\n--memory\n4G\n--link\n1Gbit\n--dirty-curve\n125ms:2507,250ms:5030",
        ),
        (
            10,
            "receive\n--listen\ntcp:0.0.0.0:1\n--max-memory\n8G\n--net\n0=tap=t",
        ),
    ];
    let seed = |(which, text): (u8, &str)| Written::default().u8(which).bytes(text.as_bytes()).0;
    let mut seeds: Vec<_> = texts.into_iter().map(seed).collect();
    let points = [
        (125, 2507),
        (250, 5030),
        (500, 9000),
        (1000, 12_000),
        (2000, 12_100),
    ];
    let curve = points
        .into_iter()
        .fold(Written::default().u8(9), |curve, (time, pages)| {
            curve.u32(time).u32(pages)
        });
    seeds.push(curve.0);
    seeds
}
