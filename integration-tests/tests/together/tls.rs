//! Moves over TLS, there and back, and everybody who must not have the guest: each is refused with a line on both sides
//! while the guest ticks on, and then the right host takes it from the same receiver.

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use integration_tests::ferry::{Ferry, Hosts, Netns, PulseGuest};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use time::OffsetDateTime;
use vmm::certs::{Authority, Ends, Made, Wish};

const STEP: Duration = Duration::from_secs(60);
const GUEST: PulseGuest<'_> = PulseGuest {
    words: "beat=1 ws=16:16 rate=5000",
    cpus: 1,
    mib: 128,
};

fn authority(hosts: &Hosts) -> Authority {
    let read = |name| fs::read_to_string(hosts.path().join(name)).unwrap();
    Authority::of(&read("ca.pem"), &read("ca.key")).unwrap()
}

/// A folder that `ferry certs` would not make.
fn strange(hosts: &Hosts, name: &str, made: &Made) -> String {
    let folder = hosts.path().join(name);
    fs::create_dir(&folder).unwrap();
    fs::copy(hosts.path().join("ca.pem"), folder.join("ca.pem")).unwrap();
    fs::write(folder.join("host.pem"), &made.pem).unwrap();
    secret(&folder.join("host.key"), &made.key);
    folder.to_str().unwrap().to_owned()
}

fn secret(path: &Path, text: &str) {
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
}

fn ticks_on(guest: &Ferry) {
    assert_eq!(guest.state().unwrap(), "running");
    guest.wait_beats(20).unwrap();
}

#[test]
fn there_and_back_over_any_number_of_streams() {
    let host = Netns::new("tls").unwrap();
    let hosts = Hosts::new(&[("alpha", "10.9.9.9"), ("beta", "10.9.9.9")]).unwrap();
    for (streams, port) in [("1", 4710), ("2", 4720), ("4", 4730)] {
        let alpha = hosts.folder("alpha");
        let mut ferry = GUEST.boot_with(Some(&host), &["--tls", &alpha]).unwrap();
        ferry.fill(7, &[GUEST.fillable()]).unwrap();
        let mut last = ferry.check_pulse().unwrap();
        for (port, from, to) in [(port, "alpha", "beta"), (port + 1, "beta", "alpha")] {
            let target = format!("tcp:127.0.0.1:{port}");
            let folder = hosts.folder(to);
            let args = ["--tls", &*folder, "--peer", from];
            let next = Ferry::receive(Some(&host), &target, &args).unwrap();
            // By what the VM itself was started with, which for the way back is what it was received with.
            let args = ["--streams", streams, "--tls", "--peer", to];
            let moved = ferry.migrate(&target, &args).unwrap().completed().unwrap();
            let report = &moved.report;
            assert_eq!(report["tls"], true, "{report}");
            assert_eq!(report["tls_peer"], to, "{report}");
            assert_eq!(report["streams"].to_string(), streams, "{report}");
            assert!(moved.stdout.contains("TLS 1.3"), "{}", moved.stdout);
            println!(
                "{streams} streams to {to}: total {} ms, blackout {} ms",
                report["total_ms"], report["blackout_ms"]
            );
            assert_eq!(ferry.wait_end(STEP).unwrap().code(), Some(0));
            next.wait_beats(50).unwrap();
            let now = next.check_pulse().unwrap();
            now.follows(&last).unwrap();
            next.check_fill(7, &[GUEST.fillable()]).unwrap();
            (ferry, last) = (next, now);
        }
    }
}

/// What everybody is told who must not have, or bring, the guest.
#[test]
fn strangers_are_refused_and_the_right_host_is_taken() {
    let host = Netns::new("tls").unwrap();
    let hosts = Hosts::new(&[
        ("alpha", "10.9.9.9"),
        ("beta", "10.9.9.9"),
        ("gamma", "10.9.9.9"),
    ])
    .unwrap();
    let target = "tcp:127.0.0.1:4740";
    let guest = GUEST.boot(Some(&host)).unwrap();
    let beta = hosts.folder("beta");
    // Not --once: it goes on waiting.
    let receive = [
        "receive", "--listen", target, "--tls", &*beta, "--peer", "alpha",
    ];
    let mut receiver = Ferry::start(Some(&host), &receive).unwrap();
    receiver.wait_control(STEP).unwrap();

    let (ca, foreign) = (authority(&hosts), Authority::new(30).unwrap());
    let now = OffsetDateTime::now_utc();
    let day = time::Duration::days(1);
    let wish = Wish::host("alpha", &[], 30);
    let folder =
        |name: &str, ca: &Authority, wish: Wish| strange(&hosts, name, &ca.issue(&wish).unwrap());
    let expired = folder(
        "expired",
        &ca,
        Wish {
            from: now - day * 9,
            until: now - day * 3,
            ..wish.clone()
        },
    );
    let early = folder(
        "early",
        &ca,
        Wish {
            from: now + day,
            ..wish.clone()
        },
    );
    let server = folder(
        "server",
        &ca,
        Wish {
            ends: Ends::Destination,
            ..wish.clone()
        },
    );
    let other = folder("other", &foreign, wish);
    let (alpha, gamma) = (hosts.folder("alpha"), hosts.folder("gamma"));

    type Row<'a> = (&'a [&'a str], &'a str, &'a str);
    let rows: [Row<'_>; 7] = [
        (
            &["--tls", &expired, "--peer", "beta"],
            "host's certificate has expired",
            "its certificate has expired 3 days ago",
        ),
        (
            &["--tls", &early, "--peer", "beta"],
            "not valid yet",
            "not valid yet, for another",
        ),
        (
            &["--tls", &server, "--peer", "beta"],
            "not made for this end",
            "not made for this end",
        ),
        (
            &["--tls", &other, "--peer", "beta"],
            "not of the CA that is trusted there",
            "not of the CA that is trusted here",
        ),
        (
            &["--tls", &gamma, "--peer", "beta"],
            "none of those that may connect there",
            "is for gamma, and only alpha may connect",
        ),
        // The receiver is not who is expected: by its address, no certificate names that.
        (
            &["--tls", &alpha],
            "not for 127.0.0.1",
            "not for the name that it asks for",
        ),
        (
            &[],
            "takes guests over TLS alone",
            "speaks Ferry without TLS",
        ),
    ];
    for (args, here, there) in rows {
        let heard = receiver.messages().since(0).len();
        let moved = guest.migrate(target, args).unwrap();
        assert_eq!(moved.status, 1, "{moved:?}");
        assert!(moved.stderr.contains(here), "{}", moved.stderr);
        assert_eq!(moved.stderr.lines().count(), 1, "{}", moved.stderr);
        let line = receiver
            .messages()
            .wait(heard, STEP, |line| line.contains(there));
        println!(
            "{}  {}",
            moved.stderr,
            line.unwrap_or_else(|| panic!("{}", receiver.messages().tail()))
        );
        ticks_on(&guest);
    }
    // Who shows no certificate at all is no Ferry.
    let told = without_certificate(&host, 4740, &fs::read(hosts.path().join("ca.pem")).unwrap());
    assert!(told.contains("CertificateRequired"), "{told}");
    let line = receiver
        .messages()
        .wait(0, STEP, |line| line.contains("it showed no certificate"));
    assert!(line.is_some(), "{}", receiver.messages().tail());
    ticks_on(&guest);
    assert_eq!(receiver.state().unwrap(), "waiting");

    let last = guest.check_pulse().unwrap();
    let args = ["--tls", &*alpha, "--peer", "beta"];
    guest.migrate(target, &args).unwrap().completed().unwrap();
    receiver.wait_beats(50).unwrap();
    receiver.check_pulse().unwrap().follows(&last).unwrap();
}

/// What a client of TLS 1.3 is told that knows the CA and has no certificate.
fn without_certificate(host: &Netns, port: u16, ca: &[u8]) -> String {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("beta").unwrap();
    let mut session = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let connect = || TcpStream::connect(("127.0.0.1", port));
    let mut socket = host.within(connect).unwrap().unwrap();
    socket.set_read_timeout(Some(STEP)).unwrap();
    let mut stream = rustls::Stream::new(&mut session, &mut socket);
    stream.read(&mut [0]).unwrap_err().to_string()
}

/// A source that encrypts, and a receiver that does not; then the same receiver as it is meant.
#[test]
fn an_encrypted_source_and_a_plain_receiver() {
    let host = Netns::new("tls").unwrap();
    let hosts = Hosts::new(&[("alpha", "10.9.9.9")]).unwrap();
    let target = "tcp:127.0.0.1:4750";
    let guest = GUEST.boot(Some(&host)).unwrap();
    let mut receiver = Ferry::start(Some(&host), &["receive", "--listen", target]).unwrap();
    receiver.wait_control(STEP).unwrap();
    let alpha = hosts.folder("alpha");
    let moved = guest.migrate(target, &["--tls", &alpha]).unwrap();
    assert_eq!(moved.status, 1, "{moved:?}");
    assert!(
        moved
            .stderr
            .contains("speaks Ferry without TLS: start `ferry receive` there with --tls DIR"),
        "{}",
        moved.stderr
    );
    let line = receiver.messages().wait(0, STEP, |line| {
        line.contains("speaks TLS, and nothing is encrypted here")
    });
    assert!(line.is_some(), "{}", receiver.messages().tail());
    ticks_on(&guest);
    let own = guest.migrate(target, &["--tls"]).unwrap();
    assert!(
        own.stderr.contains("started without --tls DIR"),
        "{}",
        own.stderr
    );
    ticks_on(&guest);
    guest.migrate(target, &[]).unwrap().completed().unwrap();
    receiver.wait_beats(50).unwrap();
}

/// The link is measured by the move's own connections, encrypted as it would be; and strangers do not get to measure
/// it.
#[test]
fn a_prediction_goes_over_tls() {
    let host = Netns::new("tls").unwrap();
    let hosts = Hosts::new(&[("alpha", "10.9.9.9"), ("beta", "10.9.9.9")]).unwrap();
    let target = "tcp:127.0.0.1:4760";
    let (alpha, beta) = (hosts.folder("alpha"), hosts.folder("beta"));
    let guest = GUEST.boot(Some(&host)).unwrap();
    let mut receiver = Ferry::start(
        Some(&host),
        &["receive", "--listen", target, "--tls", &beta],
    )
    .unwrap();
    receiver.wait_control(STEP).unwrap();
    let predict = |more: &[&str]| {
        let args = [&[target, "--watch", "100ms", "--json"], more].concat();
        guest.command("predict", &args).unwrap()
    };
    let plain = predict(&[]);
    let said = String::from_utf8_lossy(&plain.stderr);
    assert!(said.contains("takes guests over TLS alone"), "{said}");
    let measured = predict(&["--tls", &alpha, "--peer", "beta"]);
    assert!(measured.status.success(), "{measured:?}");
    ticks_on(&guest);
    let args = ["--tls", &*alpha, "--peer", "beta"];
    guest.migrate(target, &args).unwrap().completed().unwrap();
    receiver.wait_beats(50).unwrap();
}
