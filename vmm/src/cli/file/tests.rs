//! Files that are taken, files that are refused with their line, and files that were made to do harm.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::*;
use crate::cli::Command;
use crate::config::{GuestConfig, ReceiveConfig};

/// The words behind `ferry`, with `--config` naming a file with this text behind the command's name.
fn expanded(text: &[u8], words: &[&str]) -> Result<Vec<OsString>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f.toml");
    std::fs::write(&path, text).unwrap();
    let mut all: Vec<OsString> = ["ferry", words[0]].map(OsString::from).into();
    all.extend([OsString::from("--config"), path.into()]);
    all.extend(words[1..].iter().map(OsString::from));
    expand(all).map_err(|error| {
        let text = crate::cli::error::chain(&error);
        text.replace(&format!("{}/", folder.path().display()), "")
    })
}

fn run(text: &str, words: &[&str]) -> GuestConfig {
    match crate::cli::parse(expanded(text.as_bytes(), words).unwrap())
        .unwrap()
        .command
    {
        Command::Run(args) => args.config().unwrap(),
        other => panic!("{other:?}"),
    }
}

fn receive(text: &str, words: &[&str]) -> ReceiveConfig {
    match crate::cli::parse(expanded(text.as_bytes(), words).unwrap())
        .unwrap()
        .command
    {
        Command::Receive(args) => args.config().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// What the same words give without a file.
fn typed(words: &[&str]) -> GuestConfig {
    let words = std::iter::once("ferry").chain(words.iter().copied());
    match crate::cli::parse(words.map(OsString::from))
        .unwrap()
        .command
    {
        Command::Run(args) => args.config().unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_says_what_flags_say() {
    let text = "# a guest\nkernel = \"vmlinuz\"\ninitramfs = 'initrd'\nappend = \"quiet splash\"\nmemory = \"5G\"\ncpus = 4\n\
                net = [\"tap=tap0\", \"create=ferry0,mac=52:54:00:12:34:56\"]\nserial = \"none\"\ndirty-tracking = \"ring\"\n\
                sandbox = \"log\"\ncontrol = \"/c\"\n";
    let same = typed(&[
        "run",
        "vmlinuz",
        "--initramfs=initrd",
        "--append=quiet splash",
        "--memory=5G",
        "--cpus=4",
        "--net=tap=tap0",
        "--net=create=ferry0,mac=52:54:00:12:34:56",
        "--serial=none",
        "--dirty-tracking=ring",
        "--sandbox=log",
        "--control=/c",
    ]);
    assert_eq!(run(text, &["run"]), same);
    for balloon in ["balloon = true\n", "balloon = \"on\"\n"] {
        let file = format!("kernel = \"a\"\n{balloon}");
        assert_eq!(run(&file, &["run"]), typed(&["run", "a", "--balloon"]));
    }
    for pulse in ["pulse = true\n", "pulse = \"\"\n"] {
        assert_eq!(run(pulse, &["run"]), typed(&["run", "--pulse"]));
    }
    assert_eq!(
        run("pulse = \"cpus=2 beat=5\"", &["run"]),
        typed(&["run", "--pulse", "cpus=2 beat=5"])
    );
    // One value of many needs no list, and none at all is none.
    assert_eq!(
        run("kernel = \"a\"\nnet = \"tap=x\"", &["run"]).nets.len(),
        1
    );
    assert!(run("kernel = \"a\"\nnet = []", &["run"]).nets.is_empty());
}

#[test]
fn the_command_line_wins() {
    let text = "kernel = \"a\"\nmemory = \"1G\"\ncpus = 2\nnet = [\"tap=x\", \"tap=y\"]\n";
    let config = run(text, &["run", "-m", "2G", "--net", "tap=z", "b"]);
    let same = ["run", "b", "-m", "2G", "--cpus", "2", "--net", "tap=z"];
    assert_eq!(config, typed(&same));
    // A default is not what was typed.
    assert_eq!(run(text, &["run"]).memory.bytes, 1 << 30);

    let text = "listen = \"tcp:10.0.0.1:1\"\nonce = true\ninsecure-plaintext = true\npeer-timeout = \"1s\"\n";
    let config = receive(text, &["receive", "--listen", "unix:/x"]);
    assert!(config.once && config.insecure_plaintext);
    assert_eq!(config.listen, "unix:/x".parse().unwrap());
    assert!(!receive("once = false\nlisten = \"unix:/x\"", &["receive"]).once);
}

#[test]
fn what_makes_no_sense_is_refused_with_its_line() {
    let table: &[(&str, &[&str], &str)] = &[
        (
            "\n\nmemroy = \"1G\"",
            &["run", "a"],
            "f.toml:3: unknown key \"memroy\": `ferry run` has append, ",
        ),
        (
            "memory = \"5X\"",
            &["run", "a"],
            "f.toml:1: invalid value '5X' for '--memory <SIZE>': ",
        ),
        (
            "\nmemory = \"64M\"",
            &["run", "a"],
            "f.toml:2: 64M of guest memory: take a multiple of 2M from 128M",
        ),
        (
            "log = \"loud=very\"",
            &["run", "a"],
            "f.toml:1: invalid value 'loud=very' for '--log <LEVEL>': take error, ",
        ),
        (
            "cpus = 17",
            &["run", "a"],
            "f.toml:1: 17 vCPUs: take 1 to 16",
        ),
        // Without the kernel, which is not to blame, something else would be wrong.
        (
            "kernel = \"a\"\ncpus = 2\nmemory = \"3M\"",
            &["run"],
            "f.toml:3: 3M of guest memory: take ",
        ),
        ("cpus = -1", &["run", "a"], "f.toml:1: invalid value '-1'"),
        (
            "cpus = 0x2",
            &["run", "a"],
            "f.toml:1: cpus is an integer: take a text in quotes, or a decimal number",
        ),
        ("cpus = 1.5", &["run", "a"], "f.toml:1: cpus is a float: "),
        ("cpus = [1]", &["run", "a"], "f.toml:1: cpus is an array: "),
        (
            "cpus = true",
            &["run", "a"],
            "f.toml:1: cpus is a boolean: ",
        ),
        (
            "memory = 2020-01-01",
            &["run", "a"],
            "f.toml:1: memory is a datetime: ",
        ),
        (
            "net = [\"tap=a\", [\"tap=b\"]]",
            &["run", "a"],
            "f.toml:1: net is an array: ",
        ),
        (
            "\nnet = [\"tap=a\",\n\"tap=a\"]",
            &["run", "a"],
            "f.toml:2: tap a is given to two network devices",
        ),
        (
            "cpus = 1\ncpus = 2",
            &["run", "a"],
            "f.toml:2: duplicate key",
        ),
        (
            "[run]\ncpus = 1",
            &["run", "a"],
            "f.toml:1: unknown key \"run\"",
        ),
        (
            "memory.size = \"1G\"",
            &["run", "a"],
            "f.toml:1: memory is a table: ",
        ),
        (
            "config = \"g.toml\"",
            &["run", "a"],
            "f.toml:1: unknown key \"config\"",
        ),
        (
            "help = true",
            &["run", "a"],
            "f.toml:1: unknown key \"help\"",
        ),
        ("m = \"1G\"", &["run", "a"], "f.toml:1: unknown key \"m\""),
        (
            "\"--memory\" = \"1G\"",
            &["run", "a"],
            "f.toml:1: unknown key \"--memory\"",
        ),
        (
            "kernel = \"--pulse\"",
            &["run"],
            "f.toml:1: kernel \"--pulse\" looks like a flag",
        ),
        (
            "control = \"\"",
            &["run", "a"],
            "f.toml:1: a value is required for '--control <SOCKET>'",
        ),
        ("memory", &["run", "a"], "f.toml:1: "),
        (
            "cpus = 2\npulse = true",
            &["run", "a"],
            "f.toml:2: the argument ",
        ),
        (
            "kernel = \"a\"\npulse = true",
            &["run"],
            "f.toml:2: the argument ",
        ),
        (
            "once = \"yes\"",
            &["receive", "--listen", "unix:/x"],
            "f.toml:1: once is true or false, not a string",
        ),
        (
            "kernel = \"a\"",
            &["receive", "--listen", "unix:/x"],
            "f.toml:1: unknown key \"kernel\"",
        ),
        (
            "listen = \"tcp:10.0.0.1:1\"",
            &["receive"],
            "f.toml:1: tcp:10.0.0.1:1 is not on this machine",
        ),
        (
            "\ntls = \"/d\"",
            &["receive", "--listen", "unix:/x", "--insecure-plaintext"],
            "f.toml:2: the argument ",
        ),
        (
            "peer-timeout = \"1ms\"",
            &["receive", "--listen", "unix:/x"],
            "f.toml:1: a peer timeout of 1ms",
        ),
    ];
    for (text, words, expected) in table {
        let error = expanded(text.as_bytes(), words).expect_err(text);
        assert!(error.starts_with(expected), "{text:?}: {error}");
        assert!(!error.contains('\n'), "{error:?}");
    }
    // What was typed is no fault of the file.
    let typed = ["run", "a", "--cpus", "17"];
    assert!(expanded(b"memory = \"1G\"", &typed).is_ok());
    assert!(expanded(b"once = true", &["receive"]).is_ok());
}

#[test]
fn no_value_becomes_two_words() {
    let text = "kernel = \"a --pulse\"\nappend = \"x --memory 1G\\n--cpus=3 -- \\\"\"\ncontrol = \"--sandbox=off\"\n";
    let config = run(text, &["run"]);
    assert_eq!(
        config.append.as_deref(),
        Some("x --memory 1G\n--cpus=3 -- \"")
    );
    assert_eq!(config.control, Some("--sandbox=off".into()));
    assert_eq!((config.cpus, config.memory.bytes), (1, 512 << 20));
}

#[test]
fn what_is_no_file_is_refused_whatever_is_in_it() {
    let refused = |text: &[u8]| expanded(text, &["run", "a"]).unwrap_err();
    let long = vec![b'#'; 65_536];
    assert!(expanded(&long, &["run", "a"]).is_ok());
    assert!(refused(&[b'#'; 65_537]).contains("longer than 65536 bytes"));
    assert!(refused(&vec![b' '; 1 << 20]).contains("longer than"));
    assert!(refused(b"cpus = \xff").contains("cannot read the configuration"));
    assert!(refused(b"\0").starts_with("f.toml:1: "));
    // A tower of brackets does not take the stack with it.
    for open in ["net = ", "a = {b = "] {
        let tower = format!("{open}{}", "[".repeat(60_000));
        assert!(refused(tower.as_bytes()).starts_with("f.toml:1: "));
    }
    let dots = vec!["a"; 30_000].join(".") + " = 1";
    assert!(refused(dots.as_bytes()).starts_with("f.toml:1: "));
    let keys: String = (0..4000).map(|n| format!("k{n} = 1\n")).collect();
    assert!(refused(keys.as_bytes()).contains("unknown key \"k"));

    for path in ["/nonexistent/f.toml", "/", "/dev/zero"] {
        let words = ["ferry", "run", "a", "--config", path].map(OsString::from);
        assert!(expand(words.into()).is_err(), "{path}");
    }
}

#[test]
fn words_that_name_no_file_stay_as_they_are() {
    let odd = OsStr::from_bytes(b"\xff\xfe").to_owned();
    for words in [
        vec![],
        vec!["ferry".into()],
        vec!["ferry".into(), "--help".into()],
        vec!["ferry".into(), "run".into(), odd],
        vec!["ferry".into(), "run".into(), "--config".into()],
        vec![
            "ferry".into(),
            "status".into(),
            "--config".into(),
            "x".into(),
        ],
        vec!["ferry".into(), "run".into(), "--".into(), "--config".into()],
    ] {
        assert_eq!(expand(words.clone()).unwrap(), words);
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "[a-z\\-]{0,8} ?= ?[\\[\\]{}\"'a-z0-9=.,\n\\\\-]{0,40}", bytes in proptest::collection::vec(0u8.., 0..64)) {
        let _ = expanded(text.as_bytes(), &["run", "a"]);
        let _ = expanded(&bytes, &["receive"]);
    }
}
