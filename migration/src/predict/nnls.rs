//! Least squares with coefficients that are not negative: how much of each of some columns adds up to the data.

/// Passes over all columns; by then nothing changes any more in the fourth figure.
pub(super) const PASSES: usize = 2000;
/// By then one fit can be told from another that is clearly better.
pub(super) const FEW: usize = 300;
/// The most multiplications, about, if that is fewer passes: 50 columns of 10 rows have them all.
const WORK: usize = 1_000_000;

/// The coefficients, none below 0, with which the sum of `columns` is nearest to `data`. Each coefficient in turn is
/// moved to its best value while the others stay ("coordinate descent"): the sum of squares is convex, so that ends at
/// the best there is, in so many `passes` at most.
pub(super) fn fit(columns: &[Vec<f64>], data: &[f64], passes: usize) -> Vec<f64> {
    let mut coefficients = vec![0.0; columns.len()];
    let mut rest = data.to_vec();
    let squares: Vec<f64> = columns.iter().map(|column| dot(column, column)).collect();
    let size = (columns.len() * data.len()).max(1);
    for _ in 0..passes.min(WORK / size) {
        let mut moved: f64 = 0.0;
        for ((column, coefficient), square) in columns.iter().zip(&mut coefficients).zip(&squares) {
            if *square <= 0.0 {
                continue;
            }
            let better = (*coefficient + dot(column, &rest) / square).max(0.0);
            let step = better - *coefficient;
            *coefficient = better;
            for (rest, value) in rest.iter_mut().zip(column) {
                *rest -= step * value;
            }
            moved = moved.max(step.abs() * square.sqrt());
        }
        if moved < 1e-9 {
            break;
        }
    }
    coefficients
}

/// What the sum of `columns` is with these coefficients.
pub(super) fn sum(columns: &[Vec<f64>], coefficients: &[f64], rows: usize) -> Vec<f64> {
    let mut sum = vec![0.0; rows];
    for (column, coefficient) in columns.iter().zip(coefficients) {
        for (sum, value) in sum.iter_mut().zip(column) {
            *sum += coefficient * value;
        }
    }
    sum
}

fn dot(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_the_data_were_made_of() {
        let columns = vec![
            vec![1.0, 0.0, 1.0],
            vec![0.0, 1.0, 1.0],
            vec![1.0, 1.0, 0.0],
        ];
        let made = [2.0, 0.0, 3.0];
        let data = sum(&columns, &made, 3);
        let found = fit(&columns, &data, PASSES);
        for (found, made) in found.iter().zip(made) {
            assert!((found - made).abs() < 1e-6, "{found} {made}");
        }
        // What could only be had with less than nothing of a column is left out.
        assert_eq!(fit(&columns[..1], &[-1.0, 0.0, -1.0], PASSES), [0.0]);
        assert_eq!(fit(&[vec![0.0; 3]], &[1.0; 3], PASSES), [0.0]);
        assert_eq!(fit(&[], &[1.0; 3], PASSES), [0.0; 0]);
    }
}
