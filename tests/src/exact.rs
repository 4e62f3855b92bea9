//! Statistics in exact rational arithmetic, for computed ones to be compared with.

use num_rational::BigRational;
use num_traits::{ToPrimitive, Zero};

/// The value of a finite double.
pub fn of_double(value: f64) -> BigRational {
    BigRational::from_float(value).expect("a finite double")
}

/// The double nearest to a number, ties to even.
pub fn nearest(number: &BigRational) -> f64 {
    number.to_f64().expect("rationals are numbers")
}

/// A number as people write it, for example `-0.316081871345029E-14`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decimal {
    pub value: BigRational,
    /// What its last digit counts.
    unit: BigRational,
}

impl Decimal {
    pub fn parse(text: &str) -> Self {
        let (number, exponent) = text.split_once('E').unwrap_or((text, "0"));
        let places = number.split_once('.').map_or(0, |(_, fraction)| fraction.len());
        let exponent = exponent.parse::<i32>().expect("an exponent") - places as i32;
        let unit = integer(10).pow(exponent);
        let digits: BigRational = number.replace('.', "").parse().expect("a decimal number");
        Self { value: digits * &unit, unit }
    }

    /// Whether the positive root of `square` gives this, rounded to as many digits.
    pub fn is_rounded_root(&self, square: &BigRational) -> bool {
        let half = &self.unit / integer(2);
        let [low, high] = [&self.value - &half, &self.value + half].map(|bound| bound.pow(2));
        low <= *square && *square <= high
    }

    /// Whether a number gives this, rounded to as many digits.
    pub fn is_rounded(&self, number: &BigRational) -> bool {
        let twice_the_error = (number - &self.value) * integer(2);
        -&self.unit <= twice_the_error && twice_the_error <= self.unit
    }
}

pub fn mean(values: &[BigRational]) -> BigRational {
    values.iter().sum::<BigRational>() / size(values)
}

/// The sample variance, with denominator n - 1.
pub fn variance(values: &[BigRational]) -> BigRational {
    squared_deviations(values) / (size(values) - integer(1))
}

/// The polynomial of some degree with the least squares of residuals.
#[derive(Clone, Debug)]
pub struct Fit {
    /// Of 1, x, x², …
    pub coefficients: Vec<BigRational>,
    /// The sum of the squares of the residuals.
    pub residual: BigRational,
    pub r2: BigRational,
}

impl Fit {
    pub fn new(degree: usize, x: &[BigRational], y: &[BigRational]) -> Self {
        let coefficients = solve(normal_equations(degree, x, y));
        let at = |x: &BigRational| {
            coefficients.iter().rfold(BigRational::zero(), |value, coefficient| value * x + coefficient)
        };
        let residual: BigRational = x.iter().zip(y).map(|(x, y)| (y - at(x)).pow(2)).sum();
        let r2 = integer(1) - &residual / squared_deviations(y);
        Self { coefficients, residual, r2 }
    }
}

/// Row k is Σ xᵏ·(c₀ + c₁x + …) = Σ xᵏ·y, the right-hand side last.
fn normal_equations(degree: usize, x: &[BigRational], y: &[BigRational]) -> Vec<Vec<BigRational>> {
    let moment = |power: usize| x.iter().map(|x| x.pow(power as i32)).sum();
    let right = |power: usize| x.iter().zip(y).map(|(x, y)| x.pow(power as i32) * y).sum();
    (0..=degree).map(|k| (k..=k + degree).map(moment).chain([right(k)]).collect()).collect()
}

/// Gauss and Jordan's elimination. The matrix is positive definite, so no pivot is zero.
fn solve(mut equations: Vec<Vec<BigRational>>) -> Vec<BigRational> {
    for pivot in 0..equations.len() {
        let divisor = equations[pivot][pivot].clone();
        let row: Vec<BigRational> = equations[pivot].iter().map(|value| value / &divisor).collect();
        for equation in &mut equations {
            let factor = equation[pivot].clone();
            for (value, of_pivot) in equation.iter_mut().zip(&row) {
                *value -= &factor * of_pivot;
            }
        }
        equations[pivot] = row;
    }
    equations.into_iter().filter_map(|mut equation| equation.pop()).collect()
}

fn squared_deviations(values: &[BigRational]) -> BigRational {
    let mean = mean(values);
    values.iter().map(|value| (value - &mean).pow(2)).sum()
}

fn size(values: &[BigRational]) -> BigRational {
    integer(values.len() as i64)
}

fn integer(n: i64) -> BigRational {
    BigRational::from_integer(n.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(numbers: &[&str]) -> Vec<BigRational> {
        numbers.iter().map(|number| Decimal::parse(number).value).collect()
    }

    #[test]
    fn decimals_have_digits_places_and_exponents() {
        assert_eq!(Decimal::parse("-12.50").value, "-25/2".parse().unwrap());
        assert_eq!(Decimal::parse("0.3E-02").value, "3/1000".parse().unwrap());
        assert_eq!(nearest(&Decimal::parse("0.1").value), 0.1);
        assert_ne!(of_double(0.1), Decimal::parse("0.1").value);
    }

    #[test]
    fn rounding_is_to_the_digits_that_are_written() {
        let third = "1/3".parse().unwrap();
        assert!(Decimal::parse("0.33").is_rounded(&third) && !Decimal::parse("0.34").is_rounded(&third));
        assert!(!Decimal::parse("0.330").is_rounded(&third));
        let two = integer(2);
        assert!(
            Decimal::parse("1.414").is_rounded_root(&two) && !Decimal::parse("1.415").is_rounded_root(&two)
        );
    }

    #[test]
    fn moments_are_exact() {
        let sample = values(&["0.1", "0.2", "0.6"]);
        assert_eq!((mean(&sample), variance(&sample)), ("3/10".parse().unwrap(), "7/100".parse().unwrap()));
    }

    #[test]
    fn fits_are_exact() {
        let x = values(&["0", "1", "2", "3"]);
        let parabola = Fit::new(2, &x, &values(&["1", "2.5", "5", "8.5"]));
        assert_eq!(parabola.coefficients, values(&["1", "1", "0.5"]));
        assert_eq!((parabola.residual, parabola.r2), (integer(0), integer(1)));
        let line = Fit::new(1, &x, &values(&["0", "1", "1", "0"]));
        assert_eq!(line.coefficients, values(&["0.5", "0"]));
        assert_eq!((line.residual, line.r2), (integer(1), integer(0)));
    }
}
