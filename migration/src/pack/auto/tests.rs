//! The decision by table, and the meter on simulated links.

use super::*;
use Codec::{Lz4, Zstd};

const MB: f64 = 1e6;

fn figures(speed: f64, ratio: f64) -> Option<Figures> {
    Some(Figures {
        speed: speed * MB,
        ratio,
    })
}

#[test]
fn what_moves_most_pages_is_chosen() {
    let text = [figures(500.0, 0.5), figures(300.0, 0.3)];
    let noise = [figures(1500.0, 1.0), figures(1200.0, 1.0)];
    let unknown = [None, None];
    for (link, known, now, expected) in [
        // The tighter codec on a slow link, the quicker one on a faster one, none above both.
        (10.0, text, None, Some(Zstd)),
        (50.0, text, None, Some(Zstd)),
        (118.0, text, None, Some(Zstd)),
        (200.0, text, None, Some(Lz4)),
        (400.0, text, None, Some(Lz4)),
        (600.0, text, None, None),
        (600.0, text, Some(Lz4), None),
        // Less than a tenth better is not worth a change, neither way.
        (480.0, text, None, None),
        (480.0, text, Some(Lz4), Some(Lz4)),
        (160.0, text, Some(Zstd), Some(Zstd)),
        (160.0, text, Some(Lz4), Some(Lz4)),
        // What does not shrink is never compressed, and what turned out so is left.
        (10.0, noise, None, None),
        (10.0, noise, Some(Zstd), None),
        (3000.0, noise, Some(Zstd), None),
        (10.0, unknown, None, None),
    ] {
        let decided = decide(link * MB, |codec| known[place(codec)], now);
        assert_eq!(decided, expected, "{link} MB/s, {known:?}, now {now:?}");
    }
}

/// A link, two codecs, and a stream over them: batches of 1 MiB, with a socket buffer of 4 MiB.
struct Simulation {
    link: f64,
    /// Bytes of pages a second that the destination unpacks; what need not be unpacked it takes at once.
    unpacks: f64,
    codecs: [Figures; 2],
    meter: Meter,
    /// Bytes in the socket's buffer.
    queued: f64,
    pages: f64,
    seconds: f64,
    sampled: f64,
}

impl Simulation {
    fn new(link: f64, codecs: [Option<Figures>; 2]) -> Self {
        Self {
            link: link * MB,
            unpacks: f64::MAX,
            codecs: codecs.map(Option::unwrap),
            meter: Meter::default(),
            queued: 0.0,
            pages: 0.0,
            seconds: 0.0,
            sampled: 0.0,
        }
    }

    fn pass(&mut self, seconds: f64) {
        self.seconds += seconds;
        self.queued = (self.queued - seconds * self.link).max(0.0);
    }

    fn batch(&mut self) {
        let bytes = f64::from(1 << 20);
        // At most 1 MiB.
        #[expect(clippy::cast_possible_truncation)]
        let count = |bytes: f64| u64::from(bytes as u32);
        if let Some(codec) = self.meter.wanted() {
            let Figures { speed, ratio } = self.codecs[place(codec)];
            let sample = f64::from(64 << 10);
            let seconds = sample / speed;
            self.sampled += seconds;
            self.pass(seconds);
            let time = Duration::from_secs_f64(seconds);
            self.meter
                .sampled(codec, count(sample), count(sample * ratio), time);
        }
        let codec = self.meter.codec();
        let (packing, wire) = codec.map_or((0.0, bytes), |codec| {
            let Figures { speed, ratio } = self.codecs[place(codec)];
            (bytes / speed, bytes * ratio)
        });
        self.pass(packing);
        // Copied at 5 GB/s; what does not fit into the buffer is waited for.
        let waiting = (self.queued + wire - f64::from(4 << 20)).max(0.0) / self.link;
        let waiting = match codec {
            Some(_) => waiting.max(bytes / self.unpacks - packing),
            None => waiting,
        };
        let sending = waiting + wire / 5e9;
        self.pass(sending);
        self.queued += wire;
        self.pages += bytes;
        let time = Duration::from_secs_f64;
        self.meter.sent(
            codec,
            count(bytes),
            count(wire),
            time(packing),
            time(sending),
        );
    }

    /// Bytes of pages a second, over `mib`.
    fn run(&mut self, mib: u32) -> f64 {
        let (pages, seconds) = (self.pages, self.seconds);
        for _ in 0..mib {
            self.batch();
        }
        (self.pages - pages) / (self.seconds - seconds) / MB
    }
}

#[test]
fn a_stream_finds_what_pays_on_its_link() {
    for (link, codecs, expected) in [
        (
            118.0,
            [figures(500.0, 0.5), figures(350.0, 0.33)],
            Some(Zstd),
        ),
        (
            118.0,
            [figures(500.0, 0.2), figures(300.0, 0.19)],
            Some(Lz4),
        ),
        (118.0, [figures(1500.0, 1.0), figures(900.0, 1.0)], None),
        (1150.0, [figures(500.0, 0.5), figures(350.0, 0.33)], None),
        (5000.0, [figures(500.0, 0.1), figures(350.0, 0.1)], None),
        (4.0, [figures(40.0, 0.6), figures(30.0, 0.3)], Some(Zstd)),
    ] {
        let mut stream = Simulation::new(link, codecs);
        stream.run(256);
        let rate = stream.run(512);
        assert_eq!(stream.meter.codec(), expected, "{link}");
        let best = (codecs.iter().flatten())
            .map(|figures| figures.rate(link * MB) / MB)
            .fold(link, f64::max);
        // Where the codec is the limit, the link was measured once meanwhile.
        assert!(rate > 0.92 * best, "{link}: {rate} of {best} MB/s");
        assert!(stream.sampled < 0.011 * stream.seconds, "{link}");
    }
}

/// The destination unpacks far more slowly than the link would carry pages as they are. Nothing but trying
/// can tell.
#[test]
fn a_codec_that_disappoints_is_left_alone() {
    let text = [figures(500.0, 0.4), figures(400.0, 0.25)];
    let mut stream = Simulation::new(250.0, text);
    stream.unpacks = 100.0 * MB;
    let rate = stream.run(2048);
    assert!(rate > 0.93 * 250.0, "{rate}");
    assert_eq!(stream.meter.codec(), None);
    // It recovers, and is tried again in the end.
    stream.unpacks = f64::MAX;
    stream.run(4096);
    assert_eq!(stream.meter.codec(), Some(Lz4));
}

#[test]
fn incompressible_pages_cost_next_to_nothing() {
    for link in [10.0, 118.0, 590.0, 1150.0, 5000.0] {
        let mut stream = Simulation::new(link, [figures(1500.0, 1.0), figures(1200.0, 1.0)]);
        let rate = stream.run(1024);
        // The first 4 MiB go into the buffer alone.
        assert!(rate > 0.99 * link.min(5000.0 * 0.9), "{link}: {rate}");
    }
}

#[test]
fn a_stream_follows_its_pages_and_its_link() {
    let text = [figures(500.0, 0.5), figures(350.0, 0.33)];
    let noise = [figures(1500.0, 1.0), figures(1200.0, 1.0)];
    let mut stream = Simulation::new(118.0, text);
    stream.run(128);
    assert_eq!(stream.meter.codec(), Some(Zstd));
    stream.codecs = noise.map(Option::unwrap);
    stream.run(64);
    assert!(stream.run(64) > 115.0);
    stream.codecs = text.map(Option::unwrap);
    stream.run(64);
    assert!(stream.run(64) > 300.0);
    // A link that got faster than the codec: seen only without it, so after a while.
    stream.link = 4000.0 * MB;
    stream.run(1024);
    assert_eq!(stream.meter.codec(), None);
    stream.link = 20.0 * MB;
    stream.run(64);
    assert_eq!(stream.meter.codec(), Some(Zstd));
}
