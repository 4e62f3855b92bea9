//! The mathematics of bqx. It knows no PostgreSQL, does no I/O and keeps no globals: every result depends
//! on its arguments alone.
//!
//! | module | concept |
//! |---|---|
//! | [`columns`] | names, windows and order of the derived columns, written down once |
//! | [`fixed`] | doubles as integers on a common power-of-two grid |
//! | [`int256`] | integers of 256 bits |
//! | [`rounding`] | the double nearest to an exact quotient |
//! | [`ball`] | arithmetic that bounds its own error |
//! | [`extrema`] | sliding maximum and minimum |
//! | [`window`] | backward-window metrics (BQX) |
//! | [`quadratic`] | rolling quadratic regression (REG) |
//! | [`frame_rows`] | all columns of a family, row by row, for a run of bars |
//! | [`moving_sums`] | exact sums of a frame that is not known beforehand |
//! | [`scatter`] | quadratic regression with any x |
//! | [`window_aggregate`], [`quadratic_aggregate`], [`scatter_aggregate`] | the same metrics as states that values are added to and taken from |
//! | [`correlation`] | how many columns go with one |
//! | [`indicators`] | technical indicators, value by value |
//! | [`candlesticks`] | candlestick patterns, candle by candle |
//! | [`calendar`] | UTC months |
//! | [`changed_ranges`] | where a series changed, and which rows that affects |
//! | [`bar_file`] | vendors' one-minute bar files |
//! | [`market`] | the simulated market |
//!
//! **Numbers.** A metric is the double nearest to the exact value of its formula on the input doubles, ties to
//! even; roots are taken of such a double ([`rounding`] has the rule in full). Nearest doubles do not depend on how
//! they were found, so a row's metrics depend on the bars in its window and on nothing else.

pub mod ball;
pub mod bar_file;
pub mod calendar;
pub mod candlesticks;
pub mod changed_ranges;
pub mod columns;
pub mod correlation;
pub mod extrema;
pub mod fixed;
pub mod frame_rows;
pub mod indicators;
pub mod int256;
pub mod market;
pub mod moving_sums;
mod per_length;
pub mod quadratic;
pub mod quadratic_aggregate;
pub mod rounding;
pub mod scatter;
pub mod scatter_aggregate;
pub mod window;
pub mod window_aggregate;
