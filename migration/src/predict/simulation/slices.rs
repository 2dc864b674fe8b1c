//! A throttled vCPU runs for a while and sleeps for a slice. A long round sees the average; one that is shorter than
//! both sees the one or the other, and what it leaves hangs on which.

/// Where a vCPU is between two slices.
#[derive(Debug, Clone, Copy)]
pub struct Slices {
    /// The part of running and sleeping once that is over, 0 to 1.
    at: f64,
}

impl Slices {
    /// So much of it is over when it begins.
    pub fn new(at: f64) -> Self {
        Self {
            at: at.rem_euclid(1.0),
        }
    }

    /// Lets seconds pass in which a vCPU runs for that `share`, asleep for `slice` seconds at a time. Says for what
    /// share of these it ran.
    pub fn pass(&mut self, seconds: f64, share: f64, slice: f64) -> f64 {
        let turn = slice / (1.0 - share);
        // At full speed there are no slices, and at none nothing else.
        if seconds <= 0.0 || share <= 0.0 || !(turn.is_finite() && turn > 0.0) {
            return share;
        }
        let ran_until = |time: f64| {
            let turns = (time / turn).floor();
            let into = time - turns * turn;
            turns * turn * share + into.min(turn * share)
        };
        let from = self.at * turn;
        let to = from + seconds;
        self.at = (to / turn).fract();
        ((ran_until(to) - ran_until(from)) / seconds).clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_times_are_all_running_or_all_sleep_and_long_ones_neither() {
        // Runs for 1 ms, sleeps for 3.
        let mut slices = Slices::new(0.0);
        let each: Vec<f64> = (0..8).map(|_| slices.pass(0.0005, 0.25, 0.003)).collect();
        let expected = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        assert!(
            each.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9),
            "{each:?}"
        );
        assert!((slices.pass(0.002, 0.25, 0.003) - 0.5).abs() < 1e-9);
        assert!((slices.pass(10.0, 0.25, 0.003) - 0.25).abs() < 1e-3);
        // Begun asleep.
        assert!(Slices::new(0.5).pass(0.001, 0.25, 0.003).abs() < 1e-9);
    }

    #[test]
    fn without_a_throttle_or_without_slices_all_is_even() {
        let mut slices = Slices::new(0.7);
        for (seconds, share, slice) in [
            (0.1, 1.0, 0.003),
            (0.1, 0.25, 0.0),
            (0.1, 0.0, 0.003),
            (0.0, 0.25, 0.003),
        ] {
            assert_eq!(slices.pass(seconds, share, slice), share);
        }
    }
}
