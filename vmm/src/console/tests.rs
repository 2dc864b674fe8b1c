//! The console against pseudo-terminals, files and sockets.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use super::*;

fn read_exactly(client: &mut UnixStream, length: usize) -> String {
    let mut bytes = vec![0; length];
    client
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    client.read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn wait_for_input(input: &Input, wanted: &[u8]) {
    let mut seen = Vec::new();
    for _ in 0..20_000 {
        seen.extend(input.take(100).bytes);
        if seen.len() >= wanted.len() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(seen, wanted);
}

fn socket(path: &Path) -> Console {
    Console::open(&SerialConfig::Socket(path.to_owned())).unwrap()
}

#[test]
fn a_file_has_everything_once_the_console_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serial.log");
    fs::write(&path, "of an earlier run").unwrap();
    let console = Console::open(&SerialConfig::File(path.clone())).unwrap();
    assert!(console.input().is_none());
    let mut output = console.output();
    // A serial device writes a byte at a time.
    let text = "line\r\n".repeat(100_000);
    for byte in text.bytes() {
        output.write_all(&[byte]).unwrap();
    }
    drop(console);
    assert!(fs::read_to_string(&path).unwrap() == text);
    // A device that outlives its console is let go.
    output.write_all(&vec![0; ring::CAPACITY * 2]).unwrap();
}

#[test]
fn a_file_that_cannot_be_made_is_named() {
    let error = Console::open(&SerialConfig::File("/nowhere/serial.log".into())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot open /nowhere/serial.log for the serial port; take a file in a folder that exists and that you may write to"
    );
}

#[test]
fn a_socket_keeps_what_was_written_before_its_client_came() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serial.sock");
    let console = socket(&path);
    let mut output = console.output();
    output.write_all(b"early ").unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    assert_eq!(read_exactly(&mut client, 6), "early ");
    output.write_all(b"late").unwrap();
    assert_eq!(read_exactly(&mut client, 4), "late");
    client.write_all(b"typed").unwrap();
    wait_for_input(console.input().unwrap(), b"typed");
}

#[test]
fn a_socket_has_one_client_at_a_time_and_the_next_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serial.sock");
    let console = socket(&path);
    let mut output = console.output();
    let mut first = UnixStream::connect(&path).unwrap();
    output.write_all(b"one").unwrap();
    assert_eq!(read_exactly(&mut first, 3), "one");
    let mut second = UnixStream::connect(&path).unwrap();
    let mut refusal = String::new();
    second.read_to_string(&mut refusal).unwrap();
    assert!(refusal.starts_with("ferry: another client"), "{refusal}");
    drop(first);
    // The place is free as soon as the end of the first was seen.
    let mut seen = String::new();
    for _ in 0..1000 {
        let mut next = UnixStream::connect(&path).unwrap();
        next.set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        output.write_all(b"two").unwrap();
        let mut bytes = [0; 3];
        if next.read_exact(&mut bytes).is_ok() && &bytes == b"two" {
            seen = "two".to_owned();
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(seen, "two");
}

#[test]
fn a_client_that_does_not_read_does_not_hold_up_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serial.sock");
    let console = socket(&path);
    let mut output = console.output();
    let mut client = UnixStream::connect(&path).unwrap();
    // Far more than ring and socket hold: if writing waited for the reader, this would never end.
    let block = vec![b'x'; 64 << 10];
    for _ in 0..400 {
        output.write_all(&block).unwrap();
    }
    output.write_all(b"the end").unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while !text.ends_with(b"the end") {
        let count = client.read(&mut buffer).unwrap();
        assert!(count > 0, "cut off");
        text.extend_from_slice(&buffer[..count]);
    }
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("bytes of output dropped"));
    assert!(text.len() < 400 * block.len());
}

#[test]
fn the_last_words_reach_the_client_and_the_socket_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serial.sock");
    let console = socket(&path);
    let mut output = console.output();
    let mut client = UnixStream::connect(&path).unwrap();
    output.write_all(b"hello ").unwrap();
    assert_eq!(read_exactly(&mut client, 6), "hello ");
    output.write_all(b"good bye").unwrap();
    drop(console);
    let mut rest = String::new();
    client.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "good bye");
    assert!(!path.exists());
}

#[test]
fn a_paste_into_a_guest_that_reads_slowly_is_not_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serial.sock");
    let console = socket(&path);
    let client = UnixStream::connect(&path).unwrap();
    let paste: Vec<u8> = (0..20_000u32)
        .map(|i| u8::try_from(i % 253).unwrap())
        .collect();
    let sent = paste.clone();
    let typist = std::thread::spawn(move || (&client).write_all(&sent).map(|()| client));
    wait_for_input(console.input().unwrap(), &paste);
    drop(typist.join().unwrap().unwrap());
}

/// Its paste fills the queue, since nobody reads it, and then it leaves.
#[test]
fn a_client_that_leaves_a_guest_that_does_not_read_makes_room_for_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serial.sock");
    let console = socket(&path);
    let mut output = console.output();
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(&[b'x'; 16 << 10]).unwrap();
    let input = console.input().unwrap();
    let began = Instant::now();
    while input.room() > 0 {
        assert!(began.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(client);
    loop {
        let mut next = UnixStream::connect(&path).unwrap();
        next.set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        output.write_all(b"next").unwrap();
        let mut bytes = [0; 4];
        if next.read_exact(&mut bytes).is_ok() && &bytes == b"next" {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(1));
    }
}
