//! Which codec pays on a link: numbers in, a codec out. No clock, no socket, no codec is in here.
//!
//! Pages go out at the speed of the slower of two: the compressor, and the link that carries what is left of
//! them. Without compression that is the link alone. So two things have to be known.
//!
//! *The link*, in bytes a second on the wire. Sending shows it while the connection's buffer is full, that is
//! while a good part of the time is spent in waiting for it. A compressor that is slower than the link never
//! fills that buffer: then only a lower bound is known, and now and then some pages go uncompressed to find out.
//! *The codecs*: the one in use shows itself, the others by small samples of what goes over, as long as these
//! take no more than a two-hundredth of the time, and not at all on a link that no codec keeps up with.

use std::time::Duration;

use super::Codec;

/// Bytes of pages after which the figures are looked at.
const WINDOW: u64 = 8 << 20;
/// Bytes on the wire that are ignored after a change: a socket's buffer takes up to 4 MiB at once, which
/// says nothing of the link.
const SETTLE: u64 = 4 << 20;
/// The link is what limits if waiting for it takes so much of the time.
const LIMITED: f64 = 0.25;
/// Another codec, or none, has to be better by so much: figures are never that exact, and a change costs.
const BETTER: f64 = 1.1;
/// Samples take at most this part of the time.
const SAMPLE_SHARE: u32 = 200;
/// So many windows in a row in which the compressor limits, and the link is measured without it; twice as many
/// each time that this changes nothing.
const PATIENCE: u32 = 64;

/// What a codec makes of the pages at hand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// Bytes of pages that it takes in a second.
    pub speed: f64,
    /// What is left of a byte.
    pub ratio: f64,
}

impl Figures {
    /// Bytes of pages a second over a link of so many bytes a second.
    fn rate(&self, link: f64) -> f64 {
        self.speed.min(link / self.ratio)
    }
}

/// The fastest that a codec is believed to be, in bytes a second. Above it there is no need to try.
pub fn plausible(codec: Codec) -> f64 {
    match codec {
        Codec::Lz4 => 2e9,
        Codec::Zstd => 1e9,
    }
}

/// The codec that moves most pages over a link of so many bytes a second; `None` for none. What is in use
/// stays unless something else is clearly better.
pub fn decide(
    link: f64,
    known: impl Fn(Codec) -> Option<Figures>,
    now: Option<Codec>,
) -> Option<Codec> {
    let rate = |codec: Option<Codec>| match codec {
        None => Some(link),
        Some(codec) => known(codec).map(|figures| figures.rate(link)),
    };
    let mut best = (now, rate(now).unwrap_or(0.0) * BETTER);
    for other in [None, Some(Codec::Lz4), Some(Codec::Zstd)] {
        if let Some(rate) = rate(other).filter(|&rate| other != now && rate > best.1) {
            best = (other, rate);
        }
    }
    best.0
}

/// What a window of sending showed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Window {
    pages: u64,
    wire: u64,
    packing: Duration,
    sending: Duration,
    /// Bytes on the wire that are still to be ignored.
    settling: u64,
}

impl Window {
    fn anew() -> Self {
        Self {
            settling: SETTLE,
            ..Self::default()
        }
    }
}

/// The meter of one stream: told what happens, asked what to do.
#[derive(Debug)]
pub struct Meter {
    codec: Option<Codec>,
    link: Option<f64>,
    figures: [Option<Figures>; Codec::ALL.len()],
    window: Window,
    /// Windows in a row in which the compressor was the limit.
    unlimited: u32,
    patience: u32,
    /// All time in which samples count, and theirs.
    time: Duration,
    sampling: Duration,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            codec: None,
            link: None,
            figures: [None; Codec::ALL.len()],
            window: Window::anew(),
            unlimited: 0,
            patience: PATIENCE,
            time: Duration::ZERO,
            sampling: Duration::ZERO,
        }
    }
}

impl Meter {
    /// The codec to use; `None` for none.
    pub fn codec(&self) -> Option<Codec> {
        self.codec
    }

    /// A codec to be tried on a sample now, if there is one whose figures are wanted.
    pub fn wanted(&self) -> Option<Codec> {
        let link = self.link?;
        if self.sampling * SAMPLE_SHARE > self.time {
            return None;
        }
        let useful = |&codec: &Codec| Some(codec) != self.codec && link < plausible(codec);
        let unknown = |codec: &Codec| self.figures[place(*codec)].is_none();
        let mut candidates = Codec::ALL.into_iter().filter(useful);
        // Those of which nothing is known first, then in turn as time allows.
        candidates.clone().find(unknown).or_else(|| {
            let turn = self.time.as_millis() / 50 % 2;
            match turn {
                0 => candidates.next(),
                _ => candidates.next_back(),
            }
        })
    }

    /// A codec was tried on a sample.
    pub fn sampled(&mut self, codec: Codec, bytes: u64, packed: u64, time: Duration) {
        self.sampling += time;
        self.learn(codec, bytes, packed, time, 0.5);
        self.choose();
    }

    /// A batch was sent: so many bytes of pages as so many on the wire, `packing` spent in the codec, if one
    /// was used, and `sending` in handing them to the connection.
    pub fn sent(
        &mut self,
        codec: Option<Codec>,
        pages: u64,
        wire: u64,
        packing: Duration,
        sending: Duration,
    ) {
        self.time += packing + sending;
        if let Some(codec) = codec {
            self.learn(codec, pages, wire, packing, 0.25);
        }
        if self.window.settling > 0 {
            self.window.settling = self.window.settling.saturating_sub(wire);
            return;
        }
        self.window.pages += pages;
        self.window.wire += wire;
        self.window.packing += packing;
        self.window.sending += sending;
        if self.window.pages >= WINDOW {
            let window = std::mem::take(&mut self.window);
            self.look(&window);
        }
    }

    /// Learns of the link from a whole window, and decides anew.
    fn look(&mut self, window: &Window) {
        let time = (window.packing + window.sending).as_secs_f64().max(1e-9);
        let seen = window.wire as f64 / time;
        let limited = self.codec.is_none() || window.sending.as_secs_f64() > LIMITED * time;
        let known = self.link.unwrap_or(seen);
        self.link = Some(if limited { seen } else { known.max(seen) });
        self.unlimited = if limited { 0 } else { self.unlimited + 1 };
        if self.unlimited >= self.patience {
            self.unlimited = 0;
            self.patience = self.patience.saturating_mul(2);
            // Nothing is decided until it is known.
            self.link = None;
            self.change(None);
        } else {
            self.choose();
        }
    }

    fn choose(&mut self) {
        if let Some(link) = self.link {
            let figures = self.figures;
            self.change(decide(link, |codec| figures[place(codec)], self.codec));
        }
    }

    /// What was seen with another codec says nothing of this one.
    fn change(&mut self, codec: Option<Codec>) {
        if codec != self.codec {
            self.codec = codec;
            self.window = Window::anew();
        }
    }

    fn learn(&mut self, codec: Codec, bytes: u64, packed: u64, time: Duration, weight: f64) {
        let seen = Figures {
            speed: bytes as f64 / time.as_secs_f64().max(1e-9),
            ratio: (packed as f64 / bytes.max(1) as f64).clamp(1e-3, 1.0),
        };
        let known = &mut self.figures[place(codec)];
        *known = Some(known.map_or(seen, |known| Figures {
            speed: known.speed + weight * (seen.speed - known.speed),
            ratio: known.ratio + weight * (seen.ratio - known.ratio),
        }));
    }
}

fn place(codec: Codec) -> usize {
    match codec {
        Codec::Lz4 => 0,
        Codec::Zstd => 1,
    }
}

#[cfg(test)]
mod tests;
