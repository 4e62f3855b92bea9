//! bqx: backward-window metrics and quadratic regressions of one-minute bars, inside PostgreSQL.
//!
//! The SQL surface is thin. Orchestration (stages, ledger, verification) is SQL, in `sql/`; the mathematics is the
//! crate `bqx-core`; here are the entry points that join them.
//!
//! | module | concept |
//! |---|---|
//! | `metric_columns` | names and windows of the derived columns, for DDL |
//! | `rate_index` | close / baseline * 100 |
//! | `rate_index_trigger` | the same for every bar that comes or changes |
//! | `aggregates` | the window aggregates |
//! | `bar_lines` | parsing vendors' files |
//! | `simulated_bars` | the simulated market |
//! | `series` | reading bars and fingerprinting them |
//! | `bar_changes` | which bars a transaction changed |
//! | `live`, `followed_tables` | their rows computed at once, and the tables that these go to |
//! | `m1_tables` | what is to be known about bars' tables |
//! | `bar_scan`, `time_partitions` | the bars for that, without a query |
//! | `computed_rows` | derived rows as a set, for `bqx_metrics`, `reg_metrics` and the plain way of writing |
//! | `month_writer` | derived rows straight into a partition |
//! | `heap_pages` | rows as finished pages of a table: with `month_writer` and `index_build` the only place that touches a table's internals |
//! | `index_build` | the indexes of such a table |
//! | `verification` | a month's bars as they are, and its stored rows beside them |
//! | `scoped` | roles, snapshots and settings for a while |
//! | `session` | what a session may do and how it is told from others |
//! | `workers` | background workers of a backfill |
//! | `live_progress` | how far a session's jobs are, for others to see |
//! | `correlations` | how many columns go with one |
//! | `one_pair` | what the planner makes of a function over several pairs |
//! | `ledger_retention` | the setting of that name |
//! | `rows`, `errors` | reading query results, returning sets, raising errors |
//! | `memory` | what happens where the system has none |

use pgrx::prelude::*;

mod aggregates;
mod bar_changes;
mod bar_lines;
mod bar_scan;
mod computed_rows;
mod correlations;
mod errors;
mod followed_tables;
mod heap_pages;
mod index_build;
mod ledger_retention;
mod live;
mod live_progress;
mod m1_tables;
mod memory;
mod metric_columns;
mod month_writer;
mod one_pair;
mod rate_index;
mod rate_index_trigger;
mod rows;
mod scoped;
mod series;
mod session;
mod simulated_bars;
mod time_partitions;
mod verification;
mod workers;

/// What `#[pg_guard]` wraps functions of PostgreSQL's in that the bindings leave out: their errors are Rust's panics.
mod ffi {
    pub(crate) use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
}

::pgrx::pg_module_magic!(name, version);

/// Called by PostgreSQL when a session first uses a function of the library.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    live::define_settings();
    ledger_retention::define_setting();
}

// The order of the install script. Functions in Rust come before the SQL that calls them at creation time only;
// PL/pgSQL bodies are looked up when they run.
extension_sql_file!("../sql/preflight.sql", name = "preflight", bootstrap);
extension_sql_file!("../sql/aggregate_types.sql", name = "aggregate_types", requires = ["preflight"]);
extension_sql_file!(
    "../sql/aggregates.sql",
    name = "aggregates",
    requires = [
        aggregates::window_metrics::_window_metrics_grow,
        aggregates::window_metrics::_window_metrics_enter,
        aggregates::window_metrics::_window_metrics_leave,
        aggregates::window_metrics::_sized_window_metrics_grow,
        aggregates::window_metrics::_sized_window_metrics_enter,
        aggregates::window_metrics::_sized_window_metrics_leave,
        aggregates::window_metrics::_window_metrics_final,
        aggregates::quadratic_reg::_quadratic_reg_grow,
        aggregates::quadratic_reg::_quadratic_reg_enter,
        aggregates::quadratic_reg::_quadratic_reg_leave,
        aggregates::quadratic_reg::_quadratic_reg_final,
        aggregates::quadratic_reg_xy::_quadratic_reg_xy_grow,
        aggregates::quadratic_reg_xy::_quadratic_reg_xy_enter,
        aggregates::quadratic_reg_xy::_quadratic_reg_xy_leave,
        aggregates::quadratic_reg_xy::_quadratic_reg_xy_combine,
        aggregates::quadratic_reg_xy::_quadratic_reg_xy_serialize,
        aggregates::quadratic_reg_xy::_quadratic_reg_xy_deserialize,
        aggregates::quadratic_reg_xy::_quadratic_reg_xy_final,
        aggregates::rolling_corr::_rolling_corr_final,
        aggregates::rolling_corr::_vwap_final,
        aggregates::last_known::_last_known,
    ]
);
extension_sql_file!(
    "../sql/candle_patterns.sql",
    name = "candle_patterns",
    requires = ["preflight", aggregates::candlesticks::_candle_pattern_names]
);
extension_sql_file!(
    "../sql/indicators.sql",
    name = "indicators",
    requires = [
        aggregates::indicators::_sma,
        aggregates::indicators::_ema,
        aggregates::indicators::_wma,
        aggregates::indicators::_rsi,
        aggregates::indicators::_macd,
        aggregates::indicators::_bollinger,
        aggregates::indicators::_atr,
        aggregates::indicators::_stochastic,
        aggregates::indicators::_williams_r,
        aggregates::indicators::_cci,
        aggregates::indicators::_roc,
        aggregates::indicators::_momentum,
        aggregates::indicators::_obv,
        aggregates::indicators::_realized_volatility,
        aggregates::indicators::_indicator_final,
        aggregates::indicators::_macd_final,
        aggregates::indicators::_bollinger_final,
        aggregates::indicators::_stochastic_final,
        aggregates::candlesticks::_candlesticks,
        aggregates::candlesticks::_candlesticks_final,
    ]
);
extension_sql_file!("../sql/registry.sql", name = "registry", requires = ["preflight", session::_caller]);
extension_sql_file!("../sql/ledger.sql", name = "ledger", requires = ["registry"]);
extension_sql_file!(
    "../sql/arguments.sql",
    name = "arguments",
    requires = ["ledger", metric_columns::_min_window, metric_columns::_max_window]
);
extension_sql_file!("../sql/partitions.sql", name = "partitions", requires = ["arguments"]);
extension_sql_file!(
    "../sql/m1_tables.sql",
    name = "m1_tables",
    requires = ["partitions", m1_tables::_end_bar]
);
extension_sql_file!("../sql/baselines.sql", name = "baselines", requires = ["m1_tables"]);
extension_sql_file!(
    "../sql/bar_changes.sql",
    name = "bar_changes",
    requires =
        ["baselines", bar_changes::_note_bar_change, bar_changes::_begin_live, bar_changes::_follow_live]
);
extension_sql_file!(
    "../sql/index_m1.sql",
    name = "index_m1",
    requires = ["bar_changes", rate_index::_rate_index_or_null, rate_index_trigger::_set_rate_index]
);
extension_sql_file!(
    "../sql/bar_files.sql",
    name = "bar_files",
    requires = ["index_m1", session::_session_id, bar_lines::_check_bar_format]
);
extension_sql_file!("../sql/simulate_m1.sql", name = "simulate_m1", requires = ["bar_files"]);
extension_sql_file!(
    "../sql/derived_tables.sql",
    name = "derived_tables",
    requires = ["simulate_m1", metric_columns::_column_window, metric_columns::_metric_columns]
);
extension_sql_file!("../sql/write_month.sql", name = "write_month", requires = ["derived_tables"]);
extension_sql_file!(
    "../sql/metric_functions.sql",
    name = "metric_functions",
    requires = ["write_month", computed_rows::_computed_rows, metric_columns::_metric_columns]
);
extension_sql_file!("../sql/backfill.sql", name = "backfill", requires = ["metric_functions"]);
extension_sql_file!(
    "../sql/follow.sql",
    name = "follow",
    requires = [
        "backfill",
        followed_tables::_rows_to_store,
        live::_follow_changes,
        m1_tables::_lookback_starts,
        live::_months_ahead,
        live::_merged_gap,
        time_partitions::_parts_between
    ]
);
extension_sql_file!("../sql/refresh.sql", name = "refresh", requires = ["follow"]);
extension_sql_file!("../sql/live.sql", name = "live", requires = ["refresh"]);
extension_sql_file!("../sql/cancel.sql", name = "cancel", requires = ["live"]);
extension_sql_file!("../sql/monitoring.sql", name = "monitoring", requires = ["cancel"]);
extension_sql_file!(
    "../sql/verify.sql",
    name = "verify",
    requires = [
        "monitoring",
        verification::_month_bars,
        verification::_fingerprint_of_bars,
        verification::_compared_with_bars
    ]
);
extension_sql_file!("../sql/completion_report.sql", name = "completion_report", requires = ["verify"]);
extension_sql_file!(
    "../sql/training_views.sql",
    name = "training_views",
    requires = ["completion_report", one_pair::_shape_of]
);
extension_sql_file!(
    "../sql/features.sql",
    name = "features",
    requires = ["training_views", one_pair::_of_one_pair]
);
extension_sql_file!("../sql/related.sql", name = "related", requires = ["features"]);
extension_sql_file!("../sql/one_pair.sql", name = "one_pair", requires = ["related"]);
extension_sql_file!("../sql/targets.sql", name = "targets", requires = ["one_pair"]);
extension_sql_file!("../sql/training_set.sql", name = "training_set", requires = ["targets"]);
extension_sql_file!(
    "../sql/correlations.sql",
    name = "correlations",
    requires = ["training_set", correlations::_correlations]
);
extension_sql_file!(
    "../sql/cross_pair_correlation.sql",
    name = "cross_pair_correlation",
    requires = ["correlations", "aggregates"]
);
extension_sql_file!(
    "../sql/currency_strength.sql",
    name = "currency_strength",
    requires = ["cross_pair_correlation"]
);
extension_sql_file!("../sql/market_regime.sql", name = "market_regime", requires = ["currency_strength"]);
extension_sql_file!("../sql/time_features.sql", name = "time_features", requires = ["market_regime"]);
extension_sql_file!(
    "../sql/verify_causality.sql",
    name = "verify_causality",
    requires = ["time_features", "indicators"]
);
extension_sql_file!(
    "../sql/run_pipeline.sql",
    name = "run_pipeline",
    requires = ["verify_causality"],
    finalize
);

#[cfg(test)]
pub mod pg_test {
    pub fn setup(_options: Vec<&str>) {}

    #[must_use]
    pub fn postgresql_conf_options() -> Vec<&'static str> {
        vec![]
    }
}
