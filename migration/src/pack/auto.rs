//! Which codec pays on a link: numbers in, a codec out. No clock, no socket, no codec is in here.
//!
//! Pages go out at the speed of the slower of two: the compressor, and the link that carries what is left of
//! them. Without compression that is the link alone. So two things have to be known.
//!
//! *The link*: what it carries shows while nothing is compressed. It begins like that, and comes back to it now and
//! then for some megabytes, more and more rarely. *The codecs*: the one in use shows itself, the others by small
//! samples of what goes over, as long as these take no more than a two-hundredth of the time, and not at all
//! on a link that no codec keeps up with.
//!
//! What follows from these is an expectation. A destination that is short of processor time, say, can make it wrong,
//! so it is held against what came of it: a codec that should have been faster than none and was slower is
//! left alone for a while, for longer each time.

use std::time::Duration;

use super::Codec;

/// Bytes of pages after which the figures are looked at.
const WINDOW: u64 = 8 << 20;
/// Bytes on the wire that are ignored where the link is measured anew: a socket's empty buffer takes up to 4 MiB
/// at once, which says nothing of the link.
const SETTLE: u64 = 4 << 20;
/// A codec has to be better by so much than what is in use: figures are never that exact, and a change costs.
const BETTER: f64 = 1.1;
/// One that is not better than none even by so much only wastes processor time.
const WORTH: f64 = 1.02;
/// Samples take at most this part of the time.
const SAMPLE_SHARE: u32 = 200;
/// After so many windows with a codec the link is measured again; twice as many the next time.
const PATIENCE: u32 = 64;
/// For so many windows nothing is compressed once a codec has disappointed; four times as many the next time.
const REST: u32 = 32;

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
/// stays unless something else is clearly better, or it is of no use.
pub fn decide(
    link: f64,
    known: impl Fn(Codec) -> Option<Figures>,
    now: Option<Codec>,
) -> Option<Codec> {
    let rate = |codec: Option<Codec>| match codec {
        None => Some(link),
        Some(codec) => known(codec).map(|figures| figures.rate(link)),
    };
    let in_use = rate(now).unwrap_or(0.0);
    let mut best = match now {
        Some(_) if in_use >= link * WORTH => (now, in_use * BETTER),
        _ => (None, link * BETTER),
    };
    for other in Codec::ALL.map(Some) {
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
    time: Duration,
    /// Bytes on the wire that are still to be ignored.
    settling: u64,
}

/// The meter of one stream: told what happens, asked what to do.
#[derive(Debug)]
pub struct Meter {
    codec: Option<Codec>,
    /// Bytes a second, when it was last measured.
    link: Option<f64>,
    figures: [Option<Figures>; Codec::ALL.len()],
    window: Window,
    /// Windows with a codec since then, and how many there may be.
    windows: u32,
    patience: u32,
    /// What a codec brought that seems to be no better than none.
    doubt: Option<f64>,
    /// Windows for which nothing is compressed, and how many it will be the next time.
    resting: u32,
    rest: u32,
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
            window: Window {
                settling: SETTLE,
                ..Window::default()
            },
            windows: 0,
            patience: PATIENCE,
            doubt: None,
            resting: 0,
            rest: REST,
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
        if self.resting > 0 || self.sampling * SAMPLE_SHARE > self.time {
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
        self.window.time += packing + sending;
        if self.window.pages >= WINDOW {
            let window = std::mem::take(&mut self.window);
            self.look(window.pages as f64 / window.time.as_secs_f64().max(1e-9));
        }
    }

    /// A window is full, with so many bytes of pages a second.
    fn look(&mut self, rate: f64) {
        let Some(codec) = self.codec else {
            self.link = Some(rate);
            self.resting = self.resting.saturating_sub(1);
            if self.doubt.take().is_some_and(|tried| tried < rate) {
                self.resting = self.rest;
                self.rest = self.rest.saturating_mul(4);
            }
            return self.choose();
        };
        let link = self.link.unwrap_or(0.0);
        let expected = self.figures[place(codec)].map_or(0.0, |figures| figures.rate(link));
        self.windows += 1;
        let disappoints = rate < link && expected > link * WORTH;
        if disappoints || self.windows >= self.patience {
            if disappoints {
                // Either the codec is at fault, or the link has changed.
                self.doubt = Some(rate);
            } else {
                self.patience = self.patience.saturating_mul(2);
            }
            // Nothing is decided until it is known.
            self.link = None;
            self.change(None);
        } else {
            self.choose();
        }
    }

    fn choose(&mut self) {
        if let Some(link) = self.link.filter(|_| self.resting == 0) {
            let figures = self.figures;
            self.change(decide(link, |codec| figures[place(codec)], self.codec));
        }
    }

    /// What was seen with another codec says nothing of this one.
    fn change(&mut self, codec: Option<Codec>) {
        if codec == self.codec {
            return;
        }
        self.codec = codec;
        self.window = Window::default();
        if codec.is_none() {
            self.windows = 0;
            self.window.settling = SETTLE;
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
