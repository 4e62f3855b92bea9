//! The base-100 index of a rate.

use pgrx::prelude::*;

use crate::errors::Failure;

fn is_rate(value: f64) -> bool {
    value.is_finite() && value > 0.0
}

/// `rate / baseline * 100`, two IEEE operations in this order: exactly 100 where rate = baseline.
/// 22003 where either is not finite or not positive, or the index would not be.
#[pg_extern(immutable, strict, parallel_safe)]
fn rate_index(rate: f64, baseline: f64) -> f64 {
    for (name, value) in [("rate", rate), ("baseline", baseline)] {
        if !is_rate(value) {
            Failure::new(
                PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
                format!("{name} must be a positive finite number, not {value}"),
            )
            .raise();
        }
    }
    let index = rate / baseline * 100.0;
    if !is_rate(index) {
        Failure::new(
            PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
            format!("the index of rate {rate:?} against baseline {baseline:?} is out of range"),
        )
        .raise();
    }
    index
}

/// The same, but NULL where there is no index: for the trigger, which must not stop a feed.
#[pg_extern(immutable, parallel_safe)]
pub fn _rate_index_or_null(rate: Option<f64>, baseline: Option<f64>) -> Option<f64> {
    match (rate, baseline) {
        (Some(rate), Some(baseline)) if is_rate(rate) && is_rate(baseline) => {
            Some(rate / baseline * 100.0).filter(|index| is_rate(*index))
        }
        _ => None,
    }
}

extension_sql!(
    r#"COMMENT ON FUNCTION bqx.rate_index(double precision, double precision) IS
    'Base-100 index of a rate: rate / baseline * 100';"#,
    name = "rate_index_comment",
    requires = [rate_index]
);

#[cfg(any(test, feature = "pg_test"))]
#[pg_schema]
mod tests {
    use pgrx::prelude::*;

    #[pg_test]
    fn test_rate_index_is_100_at_the_baseline() {
        let index = Spi::get_one::<f64>("SELECT bqx.rate_index(1.08453, 1.08453)").unwrap();
        assert_eq!(index, Some(100.0));
    }

    #[pg_test]
    fn test_rate_index_of_null_is_null() {
        assert_eq!(Spi::get_one::<f64>("SELECT bqx.rate_index(NULL, 1)").unwrap(), None);
    }

    #[pg_test(error = "rate must be a positive finite number, not NaN")]
    fn test_rate_index_refuses_nan() {
        Spi::run("SELECT bqx.rate_index('NaN', 1)").unwrap();
    }

    #[pg_test(error = "the index of rate 1e300 against baseline 1e-300 is out of range")]
    fn test_rate_index_refuses_overflow() {
        Spi::run("SELECT bqx.rate_index(1e300, 1e-300)").unwrap();
    }

    #[pg_test(error = "baseline must be a positive finite number, not -1")]
    fn test_rate_index_refuses_negative_baseline() {
        Spi::run("SELECT bqx.rate_index(1, -1)").unwrap();
    }
}
