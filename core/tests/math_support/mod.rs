//! What the `math_` tests share: series, and the metrics as exact rationals straight from their definitions.
#![allow(dead_code)] // each test file uses its part

use std::cell::OnceCell;

use bqx_core::columns::{Column, RegMetric};
use bqx_core::window::Metric;
use num_bigint::BigInt;
use num_rational::Ratio;
use num_traits::{One, Signed, ToPrimitive, Zero};

pub type Rational = Ratio<BigInt>;

/// The value of a finite double, by its bits.
pub fn exact(value: f64) -> Rational {
    assert!(value.is_finite());
    let bits = value.to_bits();
    let (field, fraction) = ((bits >> 52) & 0x7ff, bits & ((1 << 52) - 1));
    let (significand, exponent) =
        if field == 0 { (fraction, -1074) } else { (fraction + (1 << 52), field as i64 - 1075) };
    let magnitude = Rational::from(BigInt::from(significand)) * power_of_two(exponent);
    if value < 0.0 { -magnitude } else { magnitude }
}

pub fn power_of_two(exponent: i64) -> Rational {
    let power = Rational::from(BigInt::one() << exponent.unsigned_abs());
    if exponent < 0 { power.recip() } else { power }
}

pub fn integer(n: i128) -> Rational {
    Rational::from(BigInt::from(n))
}

/// What the doubles beyond the greatest would be, if there were any: where overflow begins to round from.
fn beyond_max() -> Rational {
    power_of_two(1024)
}

/// Whether `value` is the double nearest to `target`, ties to even, overflow to ±∞, and not -0.
pub fn is_nearest(value: f64, target: &Rational) -> bool {
    if value.is_nan() || value.to_bits() == (-0.0f64).to_bits() {
        return false;
    }
    let as_exact = |v: f64| match v {
        f64::INFINITY => beyond_max(),
        f64::NEG_INFINITY => -beyond_max(),
        _ => exact(v),
    };
    let even = |v: f64| v.to_bits() & 1 == 0;
    let distance = (as_exact(value) - target).abs();
    if value.is_infinite() && target.abs() >= beyond_max() {
        return (value > 0.0) == target.is_positive();
    }
    [value.next_down(), value.next_up()].into_iter().filter(|&v| v != value).all(|neighbour| {
        let other = (as_exact(neighbour) - target).abs();
        distance < other || distance == other && even(value)
    })
}

/// `sqrt(rn(square))`, the documented sequence: rounded to 53 bits with an unbounded exponent, an even power of two
/// away from trouble, and scaled back.
pub fn root(square: &Rational) -> f64 {
    if square.is_zero() {
        return 0.0;
    }
    let size = square.numer().bits() as i64 - square.denom().bits() as i64;
    let shift = size.div_euclid(2) * 2;
    let scaled = square * power_of_two(-shift); // in [1/2, 4)
    let root = nearest_in_middle(&scaled).sqrt();
    scale(root, shift / 2)
}

/// The nearest double of a rational that is neither tiny nor huge, by bisection over the neighbours.
fn nearest_in_middle(target: &Rational) -> f64 {
    let guess = (target * power_of_two(60)).to_integer().to_f64().expect("middling") / 2f64.powi(60);
    [guess.next_down(), guess, guess.next_up()]
        .into_iter()
        .find(|&candidate| is_nearest(candidate, target))
        .expect("the guess is within an ulp")
}

/// `value * 2^exponent`, rounded once.
fn scale(value: f64, exponent: i64) -> f64 {
    let target = exact(value) * power_of_two(exponent);
    let guess = libm::ldexp(value, exponent as i32);
    assert!(is_nearest(guess, &target));
    guess
}

/// Σ values.
fn sum<'a>(values: impl IntoIterator<Item = &'a Rational>) -> Rational {
    values.into_iter().fold(Rational::zero(), |sum, value| sum + value)
}

/// A past, oldest value first, and a current value.
pub struct Frame {
    pub past: Vec<Rational>,
    pub now: Rational,
    pub now_double: f64,
    parabola: OnceCell<[Rational; 3]>,
}

/// What a result must be.
pub enum Expected {
    /// Nearest to this.
    Nearest(Rational),
    /// These bits.
    Bits(f64),
    /// NaN.
    Undefined,
}

impl Expected {
    pub fn is(&self, value: f64) -> bool {
        match self {
            Expected::Nearest(target) => is_nearest(value, target),
            Expected::Bits(bits) => bits.to_bits() == value.to_bits(),
            Expected::Undefined => value.is_nan(),
        }
    }
}

impl Frame {
    /// Before and at `row`.
    pub fn of(values: &[f64], row: usize, window: usize) -> Frame {
        Frame {
            past: values[row - window..row].iter().map(|&value| exact(value)).collect(),
            now: exact(values[row]),
            now_double: values[row],
            parabola: OnceCell::new(),
        }
    }

    fn len(&self) -> Rational {
        integer(self.past.len() as i128)
    }

    fn over(&self, numerator: Rational, denominator: &Rational) -> Expected {
        if denominator.is_zero() { Expected::Undefined } else { Expected::Nearest(numerator / denominator) }
    }

    fn mean(&self) -> Rational {
        sum(&self.past) / self.len()
    }

    fn squared_deviations(&self) -> Rational {
        let mean = self.mean();
        sum(&self.past.iter().map(|value| (value - &mean) * (value - &mean)).collect::<Vec<_>>())
    }

    pub fn window(&self, metric: Metric) -> Expected {
        let (max, min) =
            (self.past.iter().max().expect("not empty"), self.past.iter().min().expect("not empty"));
        match metric {
            Metric::Return => {
                let differences: Vec<_> = self.past.iter().map(|value| value - &self.now).collect();
                self.over(sum(&differences), &self.now)
            }
            Metric::Max => Expected::Nearest(max.clone()),
            Metric::Min => Expected::Nearest(min.clone()),
            Metric::Avg => Expected::Nearest(self.mean()),
            Metric::Stdev => Expected::Bits(self.stdev()),
            Metric::Endpoint => self.over(&self.past[0] - &self.now, &self.now),
            Metric::Range => self.over(max - min, &self.now),
            Metric::Volatility if self.now.is_zero() => Expected::Undefined,
            Metric::Volatility => Expected::Bits(self.stdev() / self.now_double + 0.0),
        }
    }

    fn stdev(&self) -> f64 {
        root(&(self.squared_deviations() / (self.len() - Rational::one())))
    }

    /// (a, b, c) of the normal equations, solved with Cramer's rule: no orthogonal polynomials here.
    pub fn parabola(&self) -> &[Rational; 3] {
        self.parabola.get_or_init(|| self.solve())
    }

    fn solve(&self) -> [Rational; 3] {
        let points: Vec<_> = self.past.iter().zip(0i128..).map(|(y, x)| (integer(x), y.clone())).collect();
        solve_parabola(&points).expect("three values have three positions")
    }

    pub fn regression(&self, metric: RegMetric) -> Expected {
        let [a, b, c] = self.parabola();
        let fit = |x: i128| (a * integer(x) + b) * integer(x) + c;
        let end = self.past.len() as i128 - 1;
        let residuals = || {
            let squares = self.past.iter().zip(0i128..).map(|(y, x)| (y - fit(x)) * (y - fit(x)));
            sum(&squares.collect::<Vec<_>>())
        };
        match metric {
            RegMetric::A => Expected::Nearest(a.clone()),
            RegMetric::B => Expected::Nearest(b.clone()),
            RegMetric::C => Expected::Nearest(c.clone()),
            RegMetric::R2 => {
                let total = self.squared_deviations();
                Expected::Nearest(if total.is_zero() {
                    Rational::one()
                } else {
                    Rational::one() - residuals() / total
                })
            }
            RegMetric::Rmse => Expected::Bits(root(&(residuals() / self.len()))),
            RegMetric::YhatEnd => Expected::Nearest(fit(end)),
            RegMetric::ResidEnd => Expected::Nearest(&self.past[end as usize] - fit(end)),
            RegMetric::SlopeEnd => Expected::Nearest(integer(2 * end) * a + b),
            RegMetric::Endpoint => self.over(&self.now - &self.past[0], &self.past[0]),
        }
    }

    pub fn column(&self, column: Column) -> Expected {
        match column {
            Column::Window { metric, .. } => self.window(metric.into()),
            Column::Agg(metric) => self.window(metric.into()),
            Column::Reg { metric, .. } => self.regression(metric),
            _ => panic!("{column} has no window"),
        }
    }
}

/// (a, b, c) of the least-squares parabola through points (x, y), by Cramer's rule on the normal equations as they
/// are; `None` without three distinct x.
pub fn solve_parabola(points: &[(Rational, Rational)]) -> Option<[Rational; 3]> {
    let power = |x: &Rational, power: u32| (0..power).fold(Rational::one(), |product, _| product * x);
    let power_sum = |p: u32| sum(&points.iter().map(|(x, _)| power(x, p)).collect::<Vec<_>>());
    let moment = |p: u32| sum(&points.iter().map(|(x, y)| power(x, p) * y).collect::<Vec<_>>());
    let matrix: [[Rational; 3]; 3] =
        [2, 1, 0].map(|row: u32| [2, 1, 0].map(|column: u32| power_sum(row + column)));
    let right = [2, 1, 0].map(moment);
    let determinant = determinant(&matrix);
    (!determinant.is_zero()).then(|| {
        std::array::from_fn(|unknown| {
            let mut replaced = matrix.clone();
            replaced.iter_mut().zip(&right).for_each(|(row, value)| row[unknown] = value.clone());
            self::determinant(&replaced) / &determinant
        })
    })
}

fn determinant(m: &[[Rational; 3]; 3]) -> Rational {
    let minor = |i: usize, j: usize| &m[1][i] * &m[2][j] - &m[1][j] * &m[2][i];
    &m[0][0] * minor(1, 2) - &m[0][1] * minor(0, 2) + &m[0][2] * minor(0, 1)
}

/// A small deterministic generator, so that a series is a name and a seed.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.bits() % n
    }
}

/// Kinds of series, each with its own trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Series {
    /// Pip-rounded prices against a baseline, about 100, 60 and 140.
    Ordinary,
    Near60,
    Near140,
    /// 50 to 200 within one series.
    FiftyToTwoHundred,
    /// One value, then another.
    Flat,
    /// Mostly flat, with jumps.
    Jumping,
    /// Neighbouring doubles only.
    TinyVariance,
    /// Around 1e-5 and 1e9, mixed or not.
    Small,
    Large,
    HugeRange,
    /// Small integers, also 0 and negative: many ties and exact parabolas.
    Integers,
    /// Around 0, both signs, all digits: beyond the products of machine integers.
    Returns,
    /// An exact parabola.
    Parabola,
    /// Subnormal, smallest normal, -0.
    Subnormal,
    /// Any finite bits.
    AnyBits,
}

impl Series {
    pub const ALL: [Series; 15] = [
        Series::Ordinary,
        Series::Near60,
        Series::Near140,
        Series::FiftyToTwoHundred,
        Series::Flat,
        Series::Jumping,
        Series::TinyVariance,
        Series::Small,
        Series::Large,
        Series::HugeRange,
        Series::Integers,
        Series::Returns,
        Series::Parabola,
        Series::Subnormal,
        Series::AnyBits,
    ];

    pub fn values(self, seed: u64, len: usize) -> Vec<f64> {
        let mut random = Random(seed);
        let mut walk = |level: f64, step: f64| -> Vec<f64> {
            let baseline = 1.07316;
            let mut price = baseline * level / 100.0;
            let mut next = || {
                price *= 1.0 + (random.unit() - 0.5) * step;
                (price * 1e5).round() / 1e5 / baseline * 100.0
            };
            (0..len).map(|_| next()).collect()
        };
        match self {
            Series::Ordinary => walk(100.0, 3e-4),
            Series::Near60 => walk(63.99, 1e-3),
            Series::Near140 => walk(128.01, 1e-3),
            Series::FiftyToTwoHundred => (0..len).map(|_| 50.0 + 150.0 * random.unit()).collect(),
            Series::Flat => (0..len).map(|i| if i < len / 2 { 100.0 / 3.0 } else { 99.9 }).collect(),
            Series::Jumping => {
                let mut level = 100.1;
                let mut next = || {
                    if random.below(8) == 0 {
                        level = 90.0 + random.unit() * 20.0;
                    }
                    level
                };
                (0..len).map(|_| next()).collect()
            }
            Series::TinyVariance => {
                (0..len).map(|_| f64::from_bits(100.3f64.to_bits() + random.below(3))).collect()
            }
            Series::Small => (0..len).map(|_| 1e-5 * (1.0 + random.unit())).collect(),
            Series::Large => (0..len).map(|_| 1e9 * (1.0 + random.unit())).collect(),
            Series::HugeRange => {
                (0..len).map(|_| [1e-5, 1e9][random.below(2) as usize] * (1.0 + random.unit())).collect()
            }
            Series::Integers => (0..len).map(|_| random.below(9) as f64 - 4.0).collect(),
            Series::Returns => (0..len).map(|_| libm::log(1.0 + (random.unit() - 0.5) * 1e-3)).collect(),
            Series::Parabola => (0..len).map(|x| 80.0 + 0.5 * x as f64 + (x * x) as f64 / 1024.0).collect(),
            Series::Subnormal => (0..len)
                .map(|_| match random.below(4) {
                    0 => -0.0,
                    1 => f64::from_bits(random.below(1000)),
                    2 => -f64::MIN_POSITIVE,
                    _ => f64::from_bits(random.bits() >> 11),
                })
                .collect(),
            Series::AnyBits => {
                let finite =
                    std::iter::repeat_with(|| f64::from_bits(random.bits())).filter(|v| v.is_finite());
                finite.take(len).collect()
            }
        }
    }
}
