//! Moves over TLS: whole, cut at every record, against peers that are silent, cancelled in the handshake, and against
//! every kind of stranger.

use crate::support;

use std::error::Error;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use migration::cancel::CancelToken;
use migration::destination::{Accept, ReceiveError};
use migration::options::Options;
use migration::report::Outcome;
use migration::source::{After, Moved, migrate};
use migration::wire::channel::ChannelError;
use migration::wire::tls::{Credentials, Demand, TlsTarget};
use migration::wire::{Connect, ConnectError, Connected, TcpTarget, Transport};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use support::run::{Further, Receiving, back, options, receiving, receiving_over, verify};
use support::{Faults, Running, World, Writer, boot};
use time::{Duration as Days, OffsetDateTime};

/// A CA of a test.
struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "a CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap();
        Self {
            pem: ca.pem(),
            issuer: Issuer::from_ca_cert_der(ca.der(), key).unwrap(),
        }
    }

    /// Credentials with such a certificate, that trust `whom`.
    fn with(
        &self,
        name: &str,
        whom: &Ca,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        change(&mut params);
        let made = params.signed_by(&key, &self.issuer).unwrap();
        let (pem, key) = (made.pem(), key.serialize_pem());
        Credentials::from_pem(whom.pem.as_bytes(), pem.as_bytes(), key.as_bytes()).unwrap()
    }

    fn host(&self, name: &str) -> Credentials {
        self.with(name, self, |_| {})
    }
}

/// Wraps what comes in at a port.
struct Secured(Further, Demand);

impl Accept for Secured {
    fn accept(
        &mut self,
        deadline: Instant,
        cancel: &CancelToken,
    ) -> std::io::Result<Option<(Box<dyn Transport>, String)>> {
        let Some((socket, peer)) = self.0.accept(deadline, cancel)? else {
            return Ok(None);
        };
        Ok(Some((self.1.secure(socket)?, peer)))
    }
}

/// A receiver over TLS at a port; `further` is what its other streams demand and show.
fn at_a_port(world: &Arc<World>, first: Demand, further: Demand) -> (String, Receiving) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let world = Arc::clone(world);
    let receiving = std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        let socket = first.secure(Box::new(socket)).unwrap();
        let further = Some(Box::new(Secured(Further(listener), further)) as _);
        let cancel = CancelToken::new().unwrap();
        let patience = Duration::from_secs(2);
        receiving_over(&world, socket, further, &cancel, patience)
            .join()
            .unwrap()
    });
    (address, receiving)
}

fn go(guest: Running, target: &dyn Connect, options: &Options) -> Moved<Running> {
    migrate(
        guest,
        target,
        options,
        &CancelToken::new().unwrap(),
        &mut |_| {},
    )
}

fn over(streams: u16) -> Options {
    Options {
        streams,
        ..options()
    }
}

/// An error and its causes.
fn in_full(error: &dyn Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", in_full(cause)),
        None => error.to_string(),
    }
}

#[test]
fn a_busy_guest_arrives_whole_over_any_number_of_encrypted_streams() {
    let ca = Ca::new();
    let (alpha, beta) = (ca.host("alpha"), ca.host("beta"));
    for streams in [1, 2, 4] {
        let writer = Writer {
            pages: 0..12_000,
            per_ms: 100,
        };
        let world = World::new(&[64, 32], writer, Faults::default());
        let demand = beta
            .demand_any_of(&["gamma".into(), "alpha".into()])
            .unwrap();
        let (address, receiving) = at_a_port(&world, demand.clone(), demand);
        let target = TlsTarget::new(TcpTarget::new(address), alpha.demand_name("beta").unwrap());
        let moved = go(boot(&world), &target, &over(streams));
        let report = moved.report;
        assert_eq!(report.outcome, Outcome::Completed, "{}", report.reason);
        assert_eq!(report.streams, streams);
        assert_eq!((report.tls, report.tls_peer), (true, Some("beta".into())));
        verify(&world, receiving.join().unwrap().unwrap());
    }
}

/// Passes whole records on, until the cut: before the record of that number, or in its middle. Then the line is dead
/// both ways. Says how many went through.
fn forward(
    mut from: UnixStream,
    mut to: UnixStream,
    cut: Option<(usize, bool)>,
) -> JoinHandle<usize> {
    std::thread::spawn(move || {
        let mut number = 0;
        loop {
            let mut bytes = vec![0; 5];
            if from.read_exact(&mut bytes).is_err() {
                break;
            }
            // RFC 8446, 5.1: the length is big-endian.
            let length = (u16::from(bytes[3]) << 8) | u16::from(bytes[4]);
            let start = bytes.len();
            bytes.resize(start + usize::from(length), 0);
            if from.read_exact(&mut bytes[start..]).is_err() {
                break;
            }
            match cut {
                Some((at, middle)) if at == number => {
                    if middle {
                        let _ = to.write_all(&bytes[..bytes.len() / 2]);
                    }
                    break;
                }
                _ if to.write_all(&bytes).is_err() => break,
                _ => number += 1,
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
        number
    })
}

/// One move whose line is cut; how many records went there and back.
fn travel(ca: &Ca, cut: Option<(bool, usize, bool)>) -> (usize, usize, Outcome) {
    let world = World::idle(&[2]);
    let (source, near) = UnixStream::pair().unwrap();
    let (far, destination) = UnixStream::pair().unwrap();
    let half = |from_source| {
        cut.filter(|cut| cut.0 == from_source)
            .map(|(_, record, middle)| (record, middle))
    };
    let (near2, far2) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    let there = forward(near, far, half(true));
    let backward = forward(far2, near2, half(false));
    let demand = ca.host("beta").demand_any_of(&[]).unwrap();
    let destination = demand.secure(Box::new(destination)).unwrap();
    let cancel = CancelToken::new().unwrap();
    let patience = Duration::from_secs(5);
    let receiving = receiving_over(&world, destination, None, &cancel, patience);
    let demand = ca.host("alpha").demand_name("beta").unwrap();
    let target = TlsTarget::new(Connected::new(source, "pair"), demand);
    let moved = go(boot(&world), &target, &options());
    let arrived = receiving.join().unwrap();
    let counts = (there.join().unwrap(), backward.join().unwrap());
    let outcome = moved.report.outcome;
    match moved.guest {
        After::Running(_) => {
            assert!(arrived.is_err(), "{cut:?}: two guests");
            assert_eq!(outcome, Outcome::Failed, "{cut:?}");
            verify(&world, back(&world, moved.guest));
        }
        After::Gone(_) => {
            assert_eq!(
                (outcome, world.running()),
                (Outcome::Completed, 1),
                "{cut:?}"
            );
            verify(&world, arrived.unwrap());
        }
        After::Unknown(_) => {
            assert_eq!(outcome, Outcome::Unknown, "{cut:?}");
            assert_eq!(world.running(), i64::from(arrived.is_ok()), "{cut:?}");
        }
        After::Stuck(_, error) => panic!("{cut:?}: {error}"),
    }
    (counts.0, counts.1, outcome)
}

#[test]
fn a_cut_at_any_record_leaves_one_guest_or_says_that_it_does_not_know() {
    let ca = Ca::new();
    let (there, back, outcome) = travel(&ca, None);
    assert_eq!(outcome, Outcome::Completed);
    assert!(there > 8 && back > 6, "{there} {back}");
    let mut unknown = 0;
    for (from_source, count) in [(true, there), (false, back)] {
        // The pages are many records alike.
        let telling =
            |record: &usize| *record < 8 || record + 8 > count || record.is_multiple_of(40);
        for record in (0..count).filter(telling) {
            for middle in [false, true] {
                let (_, _, outcome) = travel(&ca, Some((from_source, record, middle)));
                unknown += u32::from(outcome == Outcome::Unknown);
            }
        }
    }
    // GO that is lost, and LIVE that is lost, cannot be told apart.
    assert!(unknown >= 2, "{unknown}");
}

#[test]
fn a_peer_that_is_silent_in_the_handshake_is_given_up() {
    let ca = Ca::new();
    let world = World::idle(&[8]);
    let (a, _mute) = UnixStream::pair().unwrap();
    let demand = ca.host("alpha").demand_name("beta").unwrap();
    let target = TlsTarget::new(Connected::new(a, "pair"), demand);
    let short = Options {
        peer_timeout: Duration::from_millis(200),
        ..options()
    };
    let moved = go(boot(&world), &target, &short);
    assert_eq!(moved.report.outcome, Outcome::Failed);
    assert!(
        moved.report.reason.contains("sent nothing for 0.2 s"),
        "{}",
        moved.report.reason
    );
    back(&world, moved.guest);

    let (_mute, b) = UnixStream::pair().unwrap();
    let b = ca
        .host("beta")
        .demand_any_of(&[])
        .unwrap()
        .secure(Box::new(b))
        .unwrap();
    let cancel = CancelToken::new().unwrap();
    let receiving = receiving_over(&world, b, None, &cancel, Duration::from_millis(200));
    let error = in_full(&receiving.join().unwrap().unwrap_err());
    assert!(error.contains("sent nothing for 0.2 s"), "{error}");
}

#[test]
fn a_cancel_ends_the_handshake_on_either_side() {
    let ca = Ca::new();
    let world = World::idle(&[8]);
    let hours = Duration::from_secs(3600);
    let (a, mut mute) = UnixStream::pair().unwrap();
    let cancel = CancelToken::new().unwrap();
    let other = cancel.clone();
    let canceller = std::thread::spawn(move || {
        // Its first flight is out: it waits for the answer.
        mute.read_exact(&mut [0; 100]).unwrap();
        other.cancel().unwrap();
        mute
    });
    let demand = ca.host("alpha").demand_name("beta").unwrap();
    let target = TlsTarget::new(Connected::new(a, "pair"), demand);
    let patient = Options {
        peer_timeout: hours,
        ..options()
    };
    let moved = migrate(boot(&world), &target, &patient, &cancel, &mut |_| {});
    assert_eq!(
        moved.report.outcome,
        Outcome::Cancelled,
        "{}",
        moved.report.reason
    );
    back(&world, moved.guest);
    drop(canceller.join().unwrap());

    let (_mute, b) = UnixStream::pair().unwrap();
    let b = ca
        .host("beta")
        .demand_any_of(&[])
        .unwrap()
        .secure(Box::new(b))
        .unwrap();
    let cancel = CancelToken::new().unwrap();
    let receiving = receiving_over(&world, b, None, &cancel, hours);
    cancel.cancel().unwrap();
    let ended = receiving.join().unwrap();
    assert!(
        matches!(
            ended,
            Err(ReceiveError::Channel(ChannelError::Cancelled(_)))
        ),
        "{ended:?}"
    );
}

/// A move of an idle guest between the two; what the source and the destination say of it.
fn refused(source: &Credentials, name: &str, destination: &Demand) -> (String, String) {
    let world = World::idle(&[8]);
    let (address, receiving) = at_a_port(&world, destination.clone(), destination.clone());
    let target = TlsTarget::new(TcpTarget::new(address), source.demand_name(name).unwrap());
    let moved = go(boot(&world), &target, &over(1));
    assert_eq!(moved.report.outcome, Outcome::Failed);
    back(&world, moved.guest);
    let there = receiving.join().unwrap().unwrap_err();
    (moved.report.reason, in_full(&there))
}

#[test]
fn strangers_are_turned_away_with_a_reason_on_both_sides() {
    let (ca, foreign) = (Ca::new(), Ca::new());
    let beta = ca.host("beta");
    let any = beta.demand_any_of(&[]).unwrap();
    let now = OffsetDateTime::now_utc();
    let expired = ca.with("alpha", &ca, |params| {
        params.not_after = now - Days::days(3)
    });
    let early = ca.with("alpha", &ca, |params| {
        params.not_before = now + Days::days(3)
    });
    let other = foreign.with("alpha", &ca, |_| {});
    let server_only = ca.with("alpha", &ca, |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let alpha = ca.host("alpha");
    let only_gamma = beta.demand_any_of(&["gamma".into()]).unwrap();
    let expired_there = ca.with("beta", &ca, |params| params.not_after = now - Days::days(3));
    let expired_there = expired_there.demand_any_of(&[]).unwrap();
    let other_there = foreign
        .with("beta", &ca, |_| {})
        .demand_any_of(&[])
        .unwrap();
    let rows: [(&Credentials, &str, &Demand, &str, &str); 8] = [
        (
            &expired,
            "beta",
            &any,
            "certificate has expired",
            "has expired 3 days ago",
        ),
        (
            &early,
            "beta",
            &any,
            "not valid yet",
            "not valid yet, for another",
        ),
        (
            &other,
            "beta",
            &any,
            "not of the CA that is trusted there",
            "not of the CA that is trusted here",
        ),
        (
            &server_only,
            "beta",
            &any,
            "not made for this end",
            "not made for this end",
        ),
        (
            &alpha,
            "beta",
            &only_gamma,
            "none of those that may connect there",
            "is for alpha, and only gamma may",
        ),
        // The source turns the destination away.
        (
            &alpha,
            "delta",
            &any,
            "is for beta, not for delta",
            "not for the name that it asks for",
        ),
        (
            &alpha,
            "beta",
            &expired_there,
            "has expired 3 days ago",
            "has expired, or is not valid yet",
        ),
        (
            &alpha,
            "beta",
            &other_there,
            "not of the CA that is trusted here",
            "not of the CA that is trusted there",
        ),
    ];
    for (source, name, destination, here, there) in rows {
        let said = refused(source, name, destination);
        assert!(
            said.0.contains(here) && said.0.contains("no TLS with tcp:127.0.0.1:"),
            "{said:?}"
        );
        assert!(
            said.1.contains(there) && said.1.contains("no TLS with the source"),
            "{said:?}"
        );
    }
    assert!(expired.doubt().unwrap().contains("expired"));
    assert!(
        foreign
            .with("x", &ca, |_| {})
            .doubt()
            .unwrap()
            .contains("not of the CA")
    );
    assert_eq!(alpha.doubt(), None);
}

/// Who shows no certificate at all is no Ferry: by rustls alone.
#[test]
fn a_stranger_without_a_certificate_gets_no_further() {
    let ca = Ca::new();
    let world = World::idle(&[8]);
    let demand = ca.host("beta").demand_any_of(&[]).unwrap();
    let (address, receiving) = at_a_port(&world, demand.clone(), demand);
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap())
        .unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_protocol_versions(&[&rustls::version::TLS13])
    .unwrap()
    .with_root_certificates(roots)
    .with_no_client_auth();
    let name = ServerName::try_from("beta").unwrap();
    let mut session = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut socket = TcpStream::connect(address).unwrap();
    let mut stream = rustls::Stream::new(&mut session, &mut socket);
    let told = stream.read(&mut [0]).unwrap_err();
    assert!(told.to_string().contains("CertificateRequired"), "{told}");
    let there = in_full(&receiving.join().unwrap().unwrap_err());
    assert!(there.contains("it showed no certificate"), "{there}");
}

#[test]
fn plain_and_encrypted_ends_tell_each_other_apart() {
    let ca = Ca::new();
    let world = World::idle(&[8]);
    let demand = ca.host("beta").demand_any_of(&[]).unwrap();
    let (address, there) = at_a_port(&world, demand.clone(), demand);
    let moved = go(boot(&world), &TcpTarget::new(address), &over(1));
    let reason = moved.report.reason;
    assert!(
        reason.contains("takes guests over TLS alone") && reason.contains("--tls DIR"),
        "{reason}"
    );
    back(&world, moved.guest);
    let there = in_full(&there.join().unwrap().unwrap_err());
    assert!(
        there.contains("speaks Ferry without TLS") && there.contains("--tls DIR"),
        "{there}"
    );

    let world = World::idle(&[8]);
    let (a, b) = UnixStream::pair().unwrap();
    let there = receiving(&world, b);
    let demand = ca.host("alpha").demand_name("beta").unwrap();
    let target = TlsTarget::new(Connected::new(a, "pair"), demand);
    let moved = go(boot(&world), &target, &over(1));
    let reason = moved.report.reason;
    assert!(
        reason.contains("speaks Ferry without TLS") && reason.contains("--tls DIR"),
        "{reason}"
    );
    back(&world, moved.guest);
    let there = in_full(&there.join().unwrap().unwrap_err());
    assert!(
        there.contains("speaks TLS, and nothing is encrypted here"),
        "{there}"
    );

    // Not Ferry at all.
    let world = World::idle(&[8]);
    let (a, mut b) = UnixStream::pair().unwrap();
    b.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
    let demand = ca.host("alpha").demand_name("beta").unwrap();
    let target = TlsTarget::new(Connected::new(a, "pair"), demand);
    let moved = go(boot(&world), &target, &over(1));
    let reason = moved.report.reason;
    assert!(
        reason.contains("is not TLS") && reason.contains("check the address"),
        "{reason}"
    );
    back(&world, moved.guest);
}

/// Opens the first stream as one host, and the others as another.
struct TwoFaced(TlsTarget<TcpTarget>, TlsTarget<TcpTarget>, AtomicUsize);

impl Connect for TwoFaced {
    fn connect(
        &self,
        timeout: Duration,
        cancel: &CancelToken,
    ) -> Result<Box<dyn Transport>, ConnectError> {
        match self.2.fetch_add(1, SeqCst) {
            0 => self.0.connect(timeout, cancel),
            _ => self.1.connect(timeout, cancel),
        }
    }

    fn name(&self) -> String {
        self.0.name()
    }
}

#[test]
fn further_streams_have_to_be_of_the_same_host() {
    let ca = Ca::new();
    let beta = ca.host("beta").demand_any_of(&[]).unwrap();
    let world = World::idle(&[8]);
    let (address, receiving) = at_a_port(&world, beta.clone(), beta.clone());
    // Both are called alpha, by the same CA.
    let face = || {
        let demand = ca.host("alpha").demand_name("beta").unwrap();
        TlsTarget::new(TcpTarget::new(address.clone()), demand)
    };
    let target = TwoFaced(face(), face(), AtomicUsize::new(0));
    let moved = go(boot(&world), &target, &over(2));
    assert_eq!(moved.report.outcome, Outcome::Failed);
    back(&world, moved.guest);
    let there = in_full(&receiving.join().unwrap().unwrap_err());
    assert!(there.contains("of 2 streams 1 have come"), "{there}");

    let world = World::idle(&[8]);
    let twin = ca.host("beta").demand_any_of(&[]).unwrap();
    let (address, receiving) = at_a_port(&world, beta, twin);
    let demand = ca.host("alpha").demand_name("beta").unwrap();
    let target = TlsTarget::new(TcpTarget::new(address), demand);
    let moved = go(boot(&world), &target, &over(2));
    let reason = moved.report.reason;
    assert!(
        reason.contains("another host answers on a further stream"),
        "{reason}"
    );
    back(&world, moved.guest);
    assert!(receiving.join().unwrap().is_err());
}
