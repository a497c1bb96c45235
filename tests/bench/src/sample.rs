//! Samples over runs: medians, spread, ratios round by round.

/// The median; NaN of nothing.
#[must_use]
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The smallest sample that at least this share of all, 0 to 1, does not exceed; NaN of nothing.
#[must_use]
pub fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    let place = rank.clamp(1, sorted.len().max(1)) - 1;
    sorted.get(place).copied().unwrap_or(f64::NAN)
}

/// The indexes of `count` peers in the order of this round: each round begins with another one, so that what
/// grows or shrinks during a run falls on all of them alike.
pub fn rotated(count: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |i| (i + round) % count.max(1))
}

/// What one thing measured, over the rounds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figure {
    samples: Vec<f64>,
}

impl From<Vec<f64>> for Figure {
    fn from(samples: Vec<f64>) -> Self {
        Self { samples }
    }
}

impl Figure {
    /// Adds a round's sample.
    pub fn push(&mut self, sample: f64) {
        self.samples.push(sample);
    }

    /// Number of samples.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.samples.len()
    }

    /// The median; NaN without samples.
    #[must_use]
    pub fn median(&self) -> f64 {
        median(&self.samples)
    }

    /// (largest − smallest) / median; 0 for fewer than two samples, or where the median is 0.
    #[must_use]
    pub fn spread(&self) -> f64 {
        let largest = self.samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let smallest = self.samples.iter().copied().fold(f64::INFINITY, f64::min);
        let middle = self.median();
        if self.samples.len() < 2 || middle == 0.0 {
            return 0.0;
        }
        (largest - smallest) / middle
    }

    /// How this compares to a peer: the median of the ratios of the same rounds, where both have as many; the
    /// ratio of the medians otherwise. None without samples, or if the peer's are 0.
    #[must_use]
    pub fn ratio(&self, peer: &Self) -> Option<f64> {
        let ratio = if self.runs() == peer.runs() {
            let ratios: Vec<_> = self
                .samples
                .iter()
                .zip(&peer.samples)
                .map(|(mine, other)| mine / other)
                .collect();
            median(&ratios)
        } else {
            self.median() / peer.median()
        };
        ratio.is_finite().then_some(ratio)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn quantiles() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(quantile(&hundred, 0.99), 99.0);
        assert_eq!((quantile(&hundred, 0.0), quantile(&hundred, 1.0)), (1.0, 100.0));
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn every_peer_has_its_turn_first() {
        let rounds: Vec<Vec<_>> = (0..3).map(|round| rotated(3, round).collect()).collect();
        assert_eq!(rounds, [[0, 1, 2], [1, 2, 0], [2, 0, 1]]);
        assert_eq!(rotated(0, 5).count(), 0);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // The second round was disturbed for both.
        let mine = Figure::from(vec![8.0, 4.0, 8.0]);
        let peer = Figure::from(vec![10.0, 5.0, 10.0]);
        assert_eq!(mine.ratio(&peer), Some(0.8));
        assert_eq!(mine.ratio(&Figure::from(vec![16.0])), Some(0.5));
        assert_eq!(mine.ratio(&Figure::default()), None);
        assert_eq!(Figure::default().ratio(&Figure::default()), None);
    }

    #[test]
    fn spread_is_relative_to_the_median() {
        assert_eq!(Figure::from(vec![8.0, 10.0, 12.0]).spread(), 0.4);
        assert_eq!(Figure::from(vec![8.0]).spread(), 0.0);
        assert_eq!(Figure::default().spread(), 0.0);
    }
}
