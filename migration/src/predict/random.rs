//! Chance for simulations: the same for the same seed, on every machine.

/// A generator of numbers that look like chance (xorshift64: Marsaglia, "Xorshift RNGs", 2003; period 2^64 - 1).
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    /// Seeds that differ by little give series that have nothing to do with each other (the mixer is that of
    /// SplitMix64: Steele and others, "Fast splittable pseudorandom number generators", 2014).
    pub fn new(seed: u64) -> Self {
        let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        // Zero is the one state that never changes.
        Self((mixed ^ mixed >> 31).max(1))
    }

    /// The seed of another generator.
    pub fn seed(&mut self) -> u64 {
        self.next()
    }

    /// Anything below that, or 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Anywhere above 0, and at most 1.
    pub fn unit(&mut self) -> f64 {
        // 53 bits convert exactly.
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_and_the_same_again() {
        let (mut one, mut again, mut other) = (Random::new(7), Random::new(7), Random::new(8));
        let n = 100_000;
        let units: Vec<f64> = (0..n).map(|_| one.unit()).collect();
        assert!(units.iter().all(|unit| *unit > 0.0 && *unit <= 1.0));
        assert!(units.iter().all(|unit| *unit == again.unit()));
        assert!(units.iter().any(|unit| *unit != other.unit()));
        let mean = units.iter().sum::<f64>() / f64::from(n);
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        assert_ne!(one.seed(), one.seed());
    }
}
