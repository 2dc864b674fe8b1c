//! The stream by itself: over sockets that take and give one byte at a time, that are full, that break; and what counts
//! as taken then.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::crypto::{CipherSuiteCommon, CryptoProvider, ring};
use rustls::{SupportedCipherSuite, Tls13CipherSuite};

use super::*;

/// Credentials for each name, of one new CA.
fn credentials<const N: usize>(names: [&str; N]) -> [Credentials; N] {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap();
    let issuer = Issuer::from_ca_cert_der(ca.der(), key).unwrap();
    names.map(|name| {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let made = params.signed_by(&key, &issuer).unwrap();
        let (ca, pem, key) = (ca.pem(), made.pem(), key.serialize_pem());
        Credentials::from_pem(ca.as_bytes(), pem.as_bytes(), key.as_bytes()).unwrap()
    })
}

/// What a test has to say about a socket.
#[derive(Debug, Default)]
struct Knobs {
    /// So many bytes more are taken; then there is no room.
    room: AtomicUsize,
    /// Sends fail.
    broken: AtomicBool,
    /// Bytes taken so far.
    taken: AtomicUsize,
}

/// A socket that takes and gives few bytes at a time.
#[derive(Debug)]
struct Narrow {
    inner: UnixStream,
    step: usize,
    knobs: Arc<Knobs>,
}

impl Transport for Narrow {
    fn prepare(&self, peer_timeout: Duration) -> io::Result<()> {
        self.inner.prepare(peer_timeout)
    }

    fn send(&mut self, from: &[Out<'_>], waits: Waits) -> io::Result<usize> {
        if self.knobs.broken.load(SeqCst) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let room = self.knobs.room.load(SeqCst).min(self.step);
        if room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut bytes = vec![0; room];
        let count = iov::gather(from, &mut Place::default(), &mut bytes);
        let sent = self.inner.send(&[Out::bytes(&bytes[..count])], waits)?;
        self.knobs.room.fetch_sub(sent, SeqCst);
        self.knobs.taken.fetch_add(sent, SeqCst);
        Ok(sent)
    }

    fn receive(&mut self, into: &mut [In<'_>], waits: Waits) -> io::Result<usize> {
        // No more than there is room for: what was read and has no place would be lost.
        let room: usize = into.iter().map(In::len).sum();
        let mut bytes = vec![0; self.step.min(room)];
        let count = self.inner.receive(&mut [In::bytes(&mut bytes)], waits)?;
        Ok(iov::scatter(into, &mut Place::default(), &bytes[..count]))
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }

    fn shutdown(&mut self, how: Shutdown) {
        Transport::shutdown(&mut self.inner, how);
    }
}

/// A source's and a destination's end, with the knobs of the source's socket.
fn ends(step: usize) -> (Box<dyn Transport>, Box<dyn Transport>, Arc<Knobs>) {
    ends_of(credentials(["alpha", "beta"]), step)
}

fn ends_of(
    [alpha, beta]: [Credentials; 2],
    step: usize,
) -> (Box<dyn Transport>, Box<dyn Transport>, Arc<Knobs>) {
    let (a, b) = UnixStream::pair().unwrap();
    let narrow = |inner: UnixStream| {
        let knobs = Arc::new(Knobs::default());
        knobs.room.store(usize::MAX / 2, SeqCst);
        let narrow = Narrow {
            inner,
            step,
            knobs: Arc::clone(&knobs),
        };
        narrow.prepare(Duration::from_secs(1)).unwrap();
        (Box::new(narrow), knobs)
    };
    let ((a, knobs), (b, _)) = (narrow(a), narrow(b));
    let a = alpha.demand_name("beta").unwrap().secure(a).unwrap();
    let b = beta.demand_any_of(&[]).unwrap().secure(b).unwrap();
    (a, b, knobs)
}

fn shake(a: &mut dyn Transport, b: &mut dyn Transport) {
    let mut steps = 0;
    loop {
        let done = (a.handshake().unwrap(), b.handshake().unwrap());
        if done == (None, None) {
            return;
        }
        steps += 1;
        assert!(steps < 100_000, "{done:?}");
    }
}

fn would_block<T: std::fmt::Debug>(result: io::Result<T>) {
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

fn receive(from: &mut dyn Transport, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; most];
    let count = from.receive(&mut [In::bytes(&mut bytes)], Waits::No)?;
    bytes.truncate(count);
    Ok(bytes)
}

/// What there is, up to so many bytes, once a record is whole.
fn patiently(from: &mut dyn Transport, most: usize) -> Vec<u8> {
    loop {
        match receive(from, most) {
            Ok(bytes) => return bytes,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }
}

#[test]
fn bytes_go_over_whole_whatever_the_socket_takes_and_gives_at_a_time() {
    for step in [1, 7, 4096, 1 << 20] {
        let (mut a, mut b, _) = ends(step);
        shake(&mut *a, &mut *b);
        assert_eq!(a.identity().unwrap().name, "beta");
        assert_eq!(b.identity().unwrap().name, "alpha");
        let sent: Vec<u8> = (0..40_000u32)
            .map(|n| n.to_le_bytes()[n as usize % 2])
            .collect();
        let pieces = [
            Out::bytes(&sent[..1]),
            Out::bytes(&[]),
            Out::bytes(&sent[1..]),
        ];
        assert_eq!(a.send(&pieces, Waits::No).unwrap(), sent.len());
        let mut got = VecDeque::new();
        while got.len() < sent.len() {
            match a.flush() {
                Ok(()) => {}
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            match receive(&mut *b, 1000) {
                Ok(bytes) => got.extend(bytes),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert!(got == sent, "step {step}");
        // One goodbye, and the end is in order; the other way bytes still go.
        a.shutdown(Shutdown::Write);
        assert_eq!(patiently(&mut *b, 10), b"");
        assert_eq!(b.send(&[Out::bytes(b"after")], Waits::No).unwrap(), 5);
        b.flush().unwrap();
        assert_eq!(patiently(&mut *a, 1), b"a");
        let mut rest = Vec::new();
        while rest.len() < 4 {
            rest.extend(patiently(&mut *a, 10));
        }
        assert_eq!(rest, b"fter");
    }
}

/// A key is good for 2^24 records (RFC 8446, 5.5), 256 GiB of a stream; here for 20.
#[test]
fn keys_are_renewed_before_they_are_worn_out() {
    let mut hosts = credentials(["alpha", "beta"]);
    let provider = ring::default_provider();
    let suite = provider.cipher_suites[0].tls13().unwrap();
    let suite: &'static Tls13CipherSuite = Box::leak(Box::new(Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: suite.common.suite,
            hash_provider: suite.common.hash_provider,
            confidentiality_limit: 20,
        },
        ..*suite
    }));
    let provider = Arc::new(CryptoProvider {
        cipher_suites: vec![SupportedCipherSuite::Tls13(suite)],
        ..provider
    });
    for host in &mut hosts {
        host.provider = Arc::clone(&provider);
    }
    let (mut a, mut b, knobs) = ends_of(hosts, 1 << 20);
    shake(&mut *a, &mut *b);
    let before = knobs.taken.load(SeqCst);
    for n in 0..100 {
        assert_eq!(a.send(&[Out::bytes(&[n; 50])], Waits::No).unwrap(), 50);
        assert_eq!(receive(&mut *b, 100).unwrap(), [n; 50]);
        assert_eq!(b.send(&[Out::bytes(&[n])], Waits::No).unwrap(), 1);
        assert_eq!(receive(&mut *a, 100).unwrap(), [n]);
    }
    // What is more than a hundred records, of 22 bytes beside their content, is messages that renew the key.
    let more = knobs.taken.load(SeqCst) - before - 100 * (50 + 22);
    assert!(more >= 4 * 22, "{more}");
}

/// What `poll` knows nothing of is given before anybody waits.
#[test]
fn what_was_decrypted_is_given_although_the_socket_is_empty() {
    let (mut a, mut b, _) = ends(1 << 20);
    shake(&mut *a, &mut *b);
    a.send(&[Out::bytes(&[1; 100])], Waits::No).unwrap();
    a.send(&[Out::bytes(&[2; 100])], Waits::No).unwrap();
    for byte in [1, 2] {
        for _ in 0..100 {
            assert_eq!(receive(&mut *b, 1).unwrap(), [byte]);
        }
    }
    would_block(receive(&mut *b, 1));
}

/// Whoever connects says the first bytes, and has proved nothing yet: no such record is more than refused, whatever
/// length its message claims, and whatever follows a message that is not whole.
#[test]
fn a_hello_that_is_none_is_an_error_and_no_panic() {
    use std::io::Write;
    const HANDSHAKE: u8 = 22;
    let record = |kind: u8, content: &[u8]| {
        let len = u8::try_from(content.len()).unwrap();
        [&[kind, 3, 1, 0, len], content].concat()
    };
    let alert = record(21, &[2, 40]);
    for length in [
        [0x80, 0, 0],
        [1, 0, 0],
        [0, 0xff, 0xff],
        [0, 0, 200],
        [0, 0, 5],
        [0, 0, 4],
        [0, 0, 0],
    ] {
        for follows in [
            alert.clone(),
            record(23, &[1; 40]),
            record(HANDSHAKE, &[0; 4]),
            vec![0; 64],
        ] {
            let [beta] = credentials(["beta"]);
            let (mut a, b) = UnixStream::pair().unwrap();
            Transport::prepare(&b, Duration::from_secs(1)).unwrap();
            let mut b = beta
                .demand_any_of(&[])
                .unwrap()
                .secure(Box::new(b))
                .unwrap();
            a.write_all(&record(HANDSHAKE, &[&[1][..], &length, &[0; 4]].concat()))
                .unwrap();
            let first = b.handshake();
            a.write_all(&follows).unwrap();
            drop(a);
            let refused = first.is_err() || (0..4).any(|_| b.handshake().is_err());
            assert!(refused, "{length:?}, {follows:?}");
        }
    }
}

/// Who has proved who it is may still send half a message and fall silent, as with a ticket here that goes in pieces:
/// this end writes all the same, hears the rest, and says goodbye.
#[test]
fn half_a_message_keeps_nobody_from_writing() {
    use std::io::{Read, Write};
    for goodbye in [false, true] {
        let [alpha, beta] = credentials(["alpha", "beta"]);
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&beta.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(beta.chain.clone(), beta.key.clone_key())
            .unwrap();
        config.max_fragment_size = Some(64);
        let mut b = rustls::ServerConnection::new(Arc::new(config)).unwrap();
        let (a, mut near_b) = UnixStream::pair().unwrap();
        for socket in [&a, &near_b] {
            Transport::prepare(socket, Duration::from_secs(1)).unwrap();
        }
        let mut a = alpha
            .demand_name("beta")
            .unwrap()
            .secure(Box::new(a))
            .unwrap();
        // Until the tickets lie ready, of which none went out yet.
        while a.handshake().unwrap().is_some() {
            if b.read_tls(&mut near_b).is_ok() {
                b.process_new_packets().unwrap();
            }
            while b.is_handshaking() && b.wants_write() {
                b.write_tls(&mut near_b).unwrap();
            }
        }
        b.read_tls(&mut near_b).unwrap();
        b.process_new_packets().unwrap();
        let mut tickets = Vec::new();
        while b.wants_write() {
            b.write_tls(&mut tickets).unwrap();
        }
        assert_eq!(tickets[3], 0, "a record has 64 bytes or so");
        let record = 5 + usize::from(tickets[4]);
        near_b.write_all(&tickets[..record]).unwrap();
        would_block(receive(&mut *a, 9));
        match goodbye {
            true => a.shutdown(Shutdown::Write),
            false => assert_eq!(a.send(&[Out::bytes(b"on")], Waits::No).unwrap(), 2),
        }
        near_b.write_all(&tickets[record..]).unwrap();
        b.read_tls(&mut near_b).unwrap();
        b.process_new_packets().unwrap();
        let mut said = Vec::new();
        let ended = b.reader().read_to_end(&mut said);
        match goodbye {
            true => assert_eq!(ended.unwrap(), 0),
            false => assert_eq!(said, b"on"),
        }
        b.writer().write_all(b"and back").unwrap();
        while b.wants_write() {
            b.write_tls(&mut near_b).unwrap();
        }
        assert_eq!(patiently(&mut *a, 100), b"and back");
    }
}

#[test]
fn taken_is_what_may_arrive_and_nothing_else() {
    let (mut a, mut b, knobs) = ends(1 << 20);
    shake(&mut *a, &mut *b);
    let go = [Out::bytes(b"GO")];

    // A record that got out in part: its bytes count as taken, and flush brings the rest.
    knobs.room.store(5, SeqCst);
    assert_eq!(a.send(&go, Waits::No).unwrap(), 2);
    would_block(a.flush());
    // The next ones are not taken as long as it is not out.
    would_block(a.send(&[Out::bytes(b"more")], Waits::No));
    would_block(receive(&mut *b, 9));
    knobs.room.store(1000, SeqCst);
    a.flush().unwrap();
    assert_eq!(receive(&mut *b, 9).unwrap(), b"GO");

    // A socket that is full is asked before a record is made: nothing is taken, and nothing arrives later.
    let (mut a, mut b, knobs) = ends(1 << 20);
    shake(&mut *a, &mut *b);
    let filler = vec![0; 1 << 20];
    let mut filled = 0;
    let full = loop {
        match a.send(&[Out::bytes(&filler)], Waits::No) {
            Ok(count) => filled += count,
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    let before = knobs.taken.load(SeqCst);
    would_block(a.send(&go, Waits::No));
    assert_eq!(knobs.taken.load(SeqCst), before);
    let (mut arrived, mut steps) = (0, 0);
    while arrived < filled {
        arrived += receive(&mut *b, 1 << 20).unwrap_or_default().len();
        let _ = a.flush();
        steps += 1;
        assert!(steps < 100_000, "{arrived} of {filled} bytes have arrived");
    }
    would_block(receive(&mut *b, 9));

    // The socket refuses the first byte for good: an error, nothing taken, and nothing goes out ever after.
    knobs.broken.store(true, SeqCst);
    let refused = a.send(&go, Waits::No).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionReset);
    knobs.broken.store(false, SeqCst);
    let before = knobs.taken.load(SeqCst);
    assert_eq!(
        a.send(&go, Waits::No).unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
    assert_eq!(a.flush().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    a.shutdown(Shutdown::Both);
    drop(a);
    assert_eq!(knobs.taken.load(SeqCst), before);

    // It breaks behind the first byte: that may have arrived, for all this end can know.
    let (mut a, mut b, knobs) = ends(3);
    shake(&mut *a, &mut *b);
    knobs.room.store(3, SeqCst);
    assert_eq!(a.send(&go, Waits::No).unwrap(), 2);
    knobs.broken.store(true, SeqCst);
    assert!(a.flush().is_err());
}

#[test]
fn a_cut_is_not_an_end() {
    let (mut a, mut b, knobs) = ends(1 << 20);
    shake(&mut *a, &mut *b);
    a.send(&[Out::bytes(b"all that came")], Waits::No).unwrap();
    // Nothing can say goodbye any more.
    knobs.broken.store(true, SeqCst);
    drop(a);
    assert_eq!(receive(&mut *b, 100).unwrap(), b"all that came");
    let cut = receive(&mut *b, 100).unwrap_err();
    assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
    assert!(cut.to_string().contains("cut"), "{cut}");
    // The same without TLS's goodbye in order.
    let (mut a, mut b, _) = ends(1 << 20);
    shake(&mut *a, &mut *b);
    drop(a);
    assert_eq!(receive(&mut *b, 100).unwrap(), b"");
}

/// Carries what one end sends to the other's socket, one bit of it changed if asked for.
fn carry(from: &mut UnixStream, to: &mut UnixStream, flip: bool) {
    let Ok(mut bytes) = receive(from, 1 << 16) else {
        return;
    };
    if let (Some(last), true) = (bytes.last_mut(), flip) {
        *last ^= 1;
    }
    if !bytes.is_empty() {
        assert_eq!(
            to.send(&[Out::bytes(&bytes)], Waits::No).unwrap(),
            bytes.len()
        );
    }
}

#[test]
fn a_changed_bit_ends_the_session() {
    let [alpha, beta] = credentials(["alpha", "beta"]);
    let (a, mut near_a) = UnixStream::pair().unwrap();
    let (mut near_b, b) = UnixStream::pair().unwrap();
    for socket in [&a, &near_a, &near_b, &b] {
        socket.prepare(Duration::from_secs(1)).unwrap();
    }
    let demand = alpha.demand_name("beta").unwrap();
    let mut a = demand.secure(Box::new(a)).unwrap();
    let demand = beta.demand_any_of(&["alpha".into()]).unwrap();
    let mut b = demand.secure(Box::new(b)).unwrap();
    while (a.handshake().unwrap(), b.handshake().unwrap()) != (None, None) {
        carry(&mut near_a, &mut near_b, false);
        carry(&mut near_b, &mut near_a, false);
    }
    a.send(&[Out::bytes(b"as it was")], Waits::No).unwrap();
    carry(&mut near_a, &mut near_b, false);
    assert_eq!(receive(&mut *b, 100).unwrap(), b"as it was");
    a.send(&[Out::bytes(b"sound")], Waits::No).unwrap();
    a.send(&[Out::bytes(b"changed")], Waits::No).unwrap();
    carry(&mut near_a, &mut near_b, true);
    assert_eq!(receive(&mut *b, 100).unwrap(), b"sound");
    let changed = receive(&mut *b, 100).unwrap_err();
    assert!(
        changed.to_string().contains("changed on the way"),
        "{changed}"
    );
    // The other end hears of it.
    carry(&mut near_b, &mut near_a, false);
    let told = receive(&mut *a, 100).unwrap_err();
    assert!(told.to_string().contains("BadRecordMac"), "{told}");
}
