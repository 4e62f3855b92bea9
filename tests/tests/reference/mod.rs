//! What the window aggregates must return: exact fractions, straight from the definitions and a frame's
//! contents.

#![allow(dead_code)] // each test program uses its part

pub mod fraction;

use num_bigint::BigInt;
use num_traits::{One, Zero};
use postgres::{Client, Row};

use crate::common::run;
use fraction::{Fraction, on_one_grid};

/// An aggregate. It has a twin of the same name in the schema `twins`, which lacks an inverse transition:
/// PostgreSQL computes each of the twin's frames anew.
pub struct Aggregate {
    pub name: &'static str,
    /// Its arguments: columns of the table.
    pub arguments: &'static str,
    /// The twin's transition function, in the schema `bqx`, and the function's argument types.
    transition: &'static str,
    argument_types: &'static str,
    final_function: &'static str,
    pub expected: fn(&Contents) -> ExpectedAnswer,
}

pub const AGGREGATES: [Aggregate; 4] = [
    Aggregate {
        name: "bqx_window_metrics",
        arguments: "v",
        transition: "_window_metrics_grow",
        argument_types: "double precision",
        final_function: "_window_metrics_final",
        expected: |contents| window_metrics(&contents.values),
    },
    Aggregate {
        name: "bqx_window_metrics",
        arguments: "v, width",
        transition: "_sized_window_metrics_grow",
        argument_types: "double precision, integer",
        final_function: "_window_metrics_final",
        expected: sized_window_metrics,
    },
    Aggregate {
        name: "quadratic_reg",
        arguments: "v",
        transition: "_quadratic_reg_grow",
        argument_types: "double precision",
        final_function: "_quadratic_reg_final",
        expected: |contents| quadratic_reg(&contents.values),
    },
    Aggregate {
        name: "quadratic_reg",
        arguments: "v, x",
        transition: "_quadratic_reg_xy_grow",
        argument_types: "double precision, double precision",
        final_function: "_quadratic_reg_xy_final",
        expected: |contents| quadratic_reg_xy(&contents.values, &contents.x),
    },
];

/// Creates the twins.
pub fn create_twins(session: &mut Client) {
    run(session, "CREATE SCHEMA twins");
    for Aggregate { name, transition, argument_types, final_function, .. } in AGGREGATES {
        run(
            session,
            &format!(
                "CREATE AGGREGATE twins.{name} ({argument_types}) (SFUNC = bqx.{transition}, STYPE = \
                 internal, FINALFUNC = bqx.{final_function})"
            ),
        );
    }
}

/// A frame's rows, in the order in which PostgreSQL has them.
#[derive(Debug)]
pub struct Contents {
    pub values: Vec<Option<f64>>,
    pub widths: Vec<Option<i32>>,
    pub x: Vec<Option<f64>>,
}

/// Metrics of an aggregate's result, beside n.
pub const METRICS: usize = 8;

/// A result as PostgreSQL returned it.
#[derive(Debug)]
pub struct Answer {
    pub n: i64,
    pub metrics: [Option<f64>; METRICS],
}

impl Answer {
    /// Columns that it takes in a row.
    pub const COLUMNS: usize = 1 + METRICS;

    pub fn read(row: &Row, first_column: usize) -> Answer {
        Answer {
            n: row.get(first_column),
            metrics: std::array::from_fn(|metric| row.get(first_column + 1 + metric)),
        }
    }

    /// All that can be told apart, NaN and -0 included.
    pub fn bits(&self) -> (i64, [Option<u64>; METRICS]) {
        (self.n, self.metrics.map(|metric| metric.map(f64::to_bits)))
    }
}

/// What a metric must be.
pub enum Expected {
    /// The double nearest to this.
    Nearest(Fraction),
    /// These bits.
    Bits(f64),
    Undefined,
}

impl Expected {
    /// `numerator / denominator * 2^exponent`, undefined where that divides by 0.
    fn quotient(numerator: BigInt, denominator: &BigInt, exponent: i64) -> Expected {
        if denominator.is_zero() {
            return Expected::Undefined;
        }
        Expected::Nearest(Fraction::new(numerator, denominator.clone(), exponent))
    }

    /// NULL stands for what is undefined and for what overflows.
    fn is(&self, metric: Option<f64>) -> bool {
        match (self, metric) {
            (_, Some(value)) if !value.is_finite() => false,
            (Expected::Nearest(exact), Some(value)) => exact.is_nearest(value),
            (Expected::Nearest(exact), None) => {
                exact.is_nearest(f64::INFINITY) || exact.is_nearest(f64::NEG_INFINITY)
            }
            (Expected::Bits(bits), Some(value)) => bits.to_bits() == value.to_bits(),
            (Expected::Bits(bits), None) => !bits.is_finite(),
            (Expected::Undefined, metric) => metric.is_none(),
        }
    }
}

/// A result as it must be.
pub struct ExpectedAnswer {
    n: usize,
    metrics: [Expected; METRICS],
}

impl ExpectedAnswer {
    /// All but n are NULL.
    fn nothing(n: usize) -> ExpectedAnswer {
        ExpectedAnswer { n, metrics: [const { Expected::Undefined }; METRICS] }
    }

    pub fn is(&self, answer: &Answer) -> bool {
        answer.n == self.n as i64 && self.metrics.iter().zip(answer.metrics).all(|(e, metric)| e.is(metric))
    }
}

/// `bqx_window_metrics(value)`.
fn window_metrics(values: &[Option<f64>]) -> ExpectedAnswer {
    let Some((&current, past)) = values.split_last() else { return ExpectedAnswer::nothing(0) };
    let past: Vec<f64> = past.iter().flatten().copied().collect();
    let n = past.len();
    match current {
        Some(p) if n > 0 && past.iter().chain([&p]).all(|value| value.is_finite()) => {
            ExpectedAnswer { n, metrics: metrics_of(&past, p) }
        }
        _ => ExpectedAnswer::nothing(n),
    }
}

/// The metrics of finite values, in the composite type's order.
fn metrics_of(past: &[f64], p: f64) -> [Expected; METRICS] {
    let (mut whole, exponent) = on_one_grid(&[past, &[p]].concat());
    let now = whole.pop().expect("p");
    let n = BigInt::from(whole.len());
    let (max, min) = (whole.iter().max().expect("n > 0"), whole.iter().min().expect("n > 0"));
    let sum: BigInt = whole.iter().sum();
    let excess: BigInt = whole.iter().map(|value| value - &now).sum();
    let stdev = (whole.len() > 1)
        .then(|| Fraction::new(squared_deviations(&whole), &n * &n * (&n - 1), 2 * exponent).root());
    let one = BigInt::one();
    [
        Expected::quotient(excess, &now, 0),
        Expected::quotient(max.clone(), &one, exponent),
        Expected::quotient(min.clone(), &one, exponent),
        Expected::quotient(sum, &n, exponent),
        stdev.map_or(Expected::Undefined, Expected::Bits),
        Expected::quotient(&whole[0] - &now, &now, 0),
        Expected::quotient(max - min, &now, 0),
        match stdev {
            Some(stdev) if p != 0.0 => Expected::Bits(stdev / p + 0.0),
            _ => Expected::Undefined,
        },
    ]
}

/// n² times the sum of the squared deviations from the mean.
fn squared_deviations(values: &[BigInt]) -> BigInt {
    let n = BigInt::from(values.len());
    let sum: BigInt = values.iter().sum();
    values.iter().map(|value| (value * &n - &sum).pow(2)).sum()
}

/// `bqx_window_metrics(value, width)`: the last row's width counts.
fn sized_window_metrics(contents: &Contents) -> ExpectedAnswer {
    let past = contents.values.len().saturating_sub(1);
    let n = contents.values[..past].iter().flatten().count();
    match contents.widths.last() {
        Some(&Some(width)) if width as usize == n => window_metrics(&contents.values),
        _ => ExpectedAnswer::nothing(n),
    }
}

/// `quadratic_reg(y)`.
fn quadratic_reg(values: &[Option<f64>]) -> ExpectedAnswer {
    let y: Vec<_> = values.iter().flatten().copied().map(Some).collect();
    let x: Vec<_> = (0..y.len()).map(|x| Some(x as f64)).collect();
    quadratic_reg_xy(&y, &x)
}

/// `quadratic_reg(y, x)`.
fn quadratic_reg_xy(y: &[Option<f64>], x: &[Option<f64>]) -> ExpectedAnswer {
    let (x, y): (Vec<f64>, Vec<f64>) =
        x.iter().zip(y).filter_map(|(x, y)| Some((x.as_ref()?, y.as_ref()?))).unzip();
    if x.iter().chain(&y).all(|value| value.is_finite())
        && let Some(metrics) = fit_of(&x, &y)
    {
        return ExpectedAnswer { n: y.len(), metrics };
    }
    ExpectedAnswer::nothing(y.len())
}

/// The least-squares parabola through finite points; None if no single one is best. The end is the point of
/// greatest x and, among those, of greatest y.
fn fit_of(x: &[f64], y: &[f64]) -> Option<[Expected; METRICS]> {
    let (x, x_exponent) = on_one_grid(x);
    let (y, y_exponent) = on_one_grid(y);
    // a, b and c are these over the determinant
    let ([a, b, c], determinant) = normal_equations(&x, &y)?;
    let fit = |x: &BigInt| (&a * x + &b) * x + &c;
    let residual = |x: &BigInt, y: &BigInt| y * &determinant - fit(x);
    let (x_end, y_end) = x.iter().zip(&y).max()?;
    let n = BigInt::from(y.len());
    let residuals: BigInt = x.iter().zip(&y).map(|(x, y)| residual(x, y).pow(2)).sum();
    let residuals = residuals * &n * &n;
    let total = squared_deviations(&y) * &determinant * &determinant;
    let mean_square = Fraction::new(residuals.clone(), (&determinant * &n).pow(2) * &n, 2 * y_exponent);
    let over_determinant = |numerator, exponent| Expected::quotient(numerator, &determinant, exponent);
    Some([
        over_determinant(a.clone(), y_exponent - 2 * x_exponent),
        over_determinant(b.clone(), y_exponent - x_exponent),
        over_determinant(c.clone(), y_exponent),
        if total.is_zero() { Expected::Bits(1.0) } else { Expected::quotient(&total - residuals, &total, 0) },
        Expected::Bits(mean_square.root()),
        over_determinant(fit(x_end), y_exponent),
        over_determinant(residual(x_end, y_end), y_exponent),
        over_determinant(&a * x_end * 2 + &b, y_exponent - x_exponent),
    ])
}

/// Cramer's rule on the normal equations of y = a·x² + b·x + c: the numerators of a, b and c, and their
/// common denominator; None if that is 0.
fn normal_equations(x: &[BigInt], y: &[BigInt]) -> Option<([BigInt; 3], BigInt)> {
    let power_sum = |power: u32| -> BigInt { x.iter().map(|x| x.pow(power)).sum() };
    let moment = |power: u32| -> BigInt { x.iter().zip(y).map(|(x, y)| x.pow(power) * y).sum() };
    let matrix = [2, 1, 0].map(|row: u32| [2, 1, 0].map(|column: u32| power_sum(row + column)));
    let right = [2, 1, 0].map(moment);
    let numerators = std::array::from_fn(|unknown| {
        let mut replaced = matrix.clone();
        replaced.iter_mut().zip(&right).for_each(|(row, value)| row[unknown] = value.clone());
        determinant(&replaced)
    });
    Some((numerators, determinant(&matrix))).filter(|(_, denominator)| !denominator.is_zero())
}

fn determinant(m: &[[BigInt; 3]; 3]) -> BigInt {
    let minor = |i: usize, j: usize| &m[1][i] * &m[2][j] - &m[1][j] * &m[2][i];
    &m[0][0] * minor(1, 2) - &m[0][1] * minor(0, 2) + &m[0][2] * minor(0, 1)
}
