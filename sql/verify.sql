-- Verification: do the derived tables hold what they are meant to hold? Everything is read again and counted;
-- nothing that the backfill said of itself is believed, but the fingerprints, and those are compared.
--
-- One scan per family and month answers all questions about its rows; a few rows are recomputed from the formulas
-- by another method than the backfill's.

-- What one check found; the row type of verify().
CREATE TYPE bqx._finding AS (check_name text, family text, pair text, month date, ok boolean, detail text);

-- An instant as details show it, the same in every session.
CREATE FUNCTION bqx._utc_text(instant timestamp with time zone) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT to_char(instant AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')
        || rtrim(rtrim(to_char(instant AT TIME ZONE 'UTC', '.US'), '0'), '.') || ' UTC'
$$;

-- The columns that hold computed values, with SQL that reads them as doubles. A column's own type may round what
-- was computed: by how much, in its own units (numeric with a scale) or relative to the value (real). Columns
-- of types that hold no fractions are left to _verify_schema.
CREATE FUNCTION bqx._value_columns(family text, derived regclass)
RETURNS TABLE (name text, lookback int, as_double text, rounding double precision, relative_rounding double precision)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT a.attname::text, w,
           CASE a.atttypid WHEN 'float8'::regtype THEN quote_ident(a.attname)
                           ELSE format('%I::double precision', a.attname) END,
           CASE WHEN base = 'numeric'::regtype AND typmod >= 4
                THEN 10.0::double precision ^ -((typmod - 4) & 2047) ELSE 0 END,
           CASE base WHEN 'float4'::regtype THEN 2.0::double precision ^ -23 ELSE 0 END
      FROM pg_attribute AS a
      JOIN pg_type AS t ON t.oid = a.atttypid
     CROSS JOIN LATERAL (SELECT CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END,
                                CASE t.typtype WHEN 'd' THEN t.typtypmod ELSE a.atttypmod END) AS b (base, typmod)
     CROSS JOIN LATERAL bqx._column_window(family, a.attname::text) AS w
     WHERE a.attrelid = derived AND a.attnum > 0 AND NOT a.attisdropped
       AND base IN ('float8'::regtype, 'float4'::regtype, 'numeric'::regtype)
       AND w IS NOT NULL AND a.attname NOT IN ('ts_utc', 'created_at')
     ORDER BY a.attnum
$$;

-- Times of the series' first n bars: element W + 1 is the first bar that W bars precede, and NULL if none is.
CREATE FUNCTION bqx._first_bars(m1 regclass, n int) RETURNS timestamp with time zone[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    times timestamptz[];
BEGIN
    EXECUTE format('SELECT coalesce(array_agg(%s ORDER BY time), ''{}'') '
                   'FROM (SELECT time FROM %s ORDER BY time LIMIT $1) AS first_bars', bqx._as_instant(m1, 'time'), m1)
       INTO times USING n;
    RETURN times;
END
$$;

-- Months to look at: those of the pair's data, and those in which a derived table has rows though M1 has no data.
CREATE FUNCTION bqx._months_to_verify(data_months date[], derived regclass[], from_month date, to_month date)
RETURNS date[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    months date[] := data_months;
    rel regclass;
    first_row timestamptz;
    last_row timestamptz;
BEGIN
    FOREACH rel IN ARRAY derived LOOP
        CONTINUE WHEN bqx._column_type(rel, 'ts_utc') IS NULL;
        EXECUTE format('SELECT (SELECT %1$s FROM (SELECT min(ts_utc) AS ts_utc FROM %2$s) AS first), '
                       '(SELECT %1$s FROM (SELECT max(ts_utc) AS ts_utc FROM %2$s) AS last)',
                       bqx._as_instant(rel, 'ts_utc'), rel)
           INTO first_row, last_row;
        months := months || ARRAY(
            SELECT bqx._months(greatest(bqx._month_of(first_row), bqx._first_of_month(from_month)),
                               least(bqx._month_of(last_row), bqx._first_of_month(to_month)))
             WHERE first_row IS NOT NULL);
    END LOOP;
    RETURN ARRAY(SELECT DISTINCT m FROM unnest(months) AS m ORDER BY m);
END
$$;

-- M1: is the recorded baseline the one in force?
CREATE FUNCTION bqx._verify_baseline(pair text, m1 regclass) RETURNS bqx._finding
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET extra_float_digits = 1
AS $$
DECLARE
    finding bqx._finding := ROW('baseline', NULL, pair, NULL, true, NULL);
    recorded record;
    bars bigint;
    found_index double precision;
BEGIN
    SELECT b.baseline_time, b.baseline_rate, b.applied_at INTO recorded FROM bqx.baseline_rates AS b WHERE b.pair = $1;
    IF recorded.baseline_time IS NULL THEN
        finding.ok := bqx._column_type(m1, 'rate_index') IS NOT NULL;
        finding.detail := CASE WHEN finding.ok THEN 'no baseline recorded: the table has its own rate_index'
                          ELSE format('no baseline and no rate_index: CALL bqx.set_baselines(pairs => ARRAY[%L]);',
                                      pair) END;
        RETURN finding;
    END IF;
    finding.month := bqx._month_of(recorded.baseline_time);
    IF recorded.applied_at IS NULL OR bqx._column_type(m1, 'rate_index') IS NULL THEN
        finding.ok := false;
        finding.detail := format('baseline %s is recorded, not applied: CALL bqx.index_m1(ARRAY[%L]);',
                                 recorded.baseline_rate, pair);
        RETURN finding;
    END IF;
    EXECUTE format('SELECT count(*), min(rate_index::double precision) FROM %s WHERE time = %s',
                   m1, bqx._as_key(m1, 'time', '$1'))
       INTO bars, found_index USING recorded.baseline_time;
    finding.ok := coalesce(found_index = 100, false);
    finding.detail := CASE WHEN bars = 0
        THEN format('the baseline bar at %s is gone', bqx._utc_text(recorded.baseline_time))
        ELSE format('rate_index is %s at %s, baseline %s', coalesce(found_index::text, 'NULL'),
                    bqx._utc_text(recorded.baseline_time), recorded.baseline_rate) END;
    RETURN finding;
END
$$;

-- M1: is every close a price, and every rate_index that of its close?
CREATE FUNCTION bqx._verify_m1_index(pair text, m1 regclass, month date) RETURNS bqx._finding
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET extra_float_digits = 1
AS $$
DECLARE
    finding bqx._finding := ROW('index_range', NULL, pair, month, false, NULL);
    baseline double precision := (SELECT b.baseline_rate FROM bqx.baseline_rates AS b WHERE b.pair = $1);
    seen record;
BEGIN
    IF bqx._column_type(m1, 'rate_index') IS NULL THEN
        finding.detail := format('%s has no rate_index: CALL bqx.index_m1(ARRAY[%L]);', m1, pair);
        RETURN finding;
    END IF;
    -- The quotient is taken only where it can neither overflow nor vanish.
    EXECUTE format(
        'SELECT count(*) AS bars, '
        '       count(*) FILTER (WHERE bad_close) AS bad_closes, min(at) FILTER (WHERE bad_close) AS bad_close_at, '
        '       count(*) FILTER (WHERE bad_index) AS bad_indexes, min(at) FILTER (WHERE bad_index) AS bad_index_at '
        '  FROM (SELECT at, (close > 0 AND close < ''Infinity'') IS NOT TRUE AS bad_close, %1$s AS bad_index '
        '          FROM (SELECT %2$s AS at, close::double precision AS close, rate_index FROM %3$s '
        '                 WHERE time >= %4$s AND time < %5$s) AS bars) AS judged',
        CASE WHEN baseline BETWEEN 1e-100 AND 1e100
             THEN format('close BETWEEN 1e-100 AND 1e100 AND rate_index IS DISTINCT FROM (close / $3 * 100)::%s',
                         bqx._column_type(m1, 'rate_index'))
             ELSE '(rate_index::double precision > 0 AND rate_index::double precision < ''Infinity'') IS NOT TRUE' END,
        bqx._as_instant(m1, 'time'), m1, bqx._as_key(m1, 'time', '$1'), bqx._as_key(m1, 'time', '$2'))
       INTO seen USING bqx._month_start(month), bqx._month_start(bqx._next_month(month)), baseline;
    finding.ok := seen.bad_closes = 0 AND seen.bad_indexes = 0;
    finding.detail := concat_ws('; ',
        CASE WHEN seen.bad_closes > 0 THEN format('close is not a positive finite number (bars: %s, first at %s)',
                                                  seen.bad_closes, bqx._utc_text(seen.bad_close_at)) END,
        CASE WHEN seen.bad_indexes > 0 THEN format('rate_index is not %s (bars: %s, first at %s)',
                  coalesce(format('close / %s * 100', baseline), 'a positive finite number'),
                  seen.bad_indexes, bqx._utc_text(seen.bad_index_at)) END,
        CASE WHEN finding.ok THEN format('%s bars', seen.bars) END);
    RETURN finding;
END
$$;

-- Can two rows of one minute come into the table, or into any of its partitions?
CREATE FUNCTION bqx._verify_indexes(family text, pair text, derived regclass) RETURNS bqx._finding
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ROW('indexes', family, pair, NULL, lacking IS NULL,
               CASE WHEN lacking IS NULL THEN format('%s tables with a unique index on ts_utc', relations)
                    ELSE format('no valid unique index on (ts_utc): %s', bqx._listed(lacking, 5)) END)::bqx._finding
      FROM (SELECT count(*), array_agg(rel::regclass::text ORDER BY rel::regclass::text)
                   FILTER (WHERE NOT EXISTS (
                       SELECT FROM pg_index AS i
                         JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                        WHERE i.indrelid = rel AND i.indisunique AND i.indisvalid AND i.indnkeyatts = 1
                          AND i.indpred IS NULL AND a.attname = 'ts_utc'))
              FROM (SELECT t.relid::oid FROM pg_partition_tree(derived) AS t
                    UNION SELECT derived::oid) AS family_of (rel)) AS counted (relations, lacking)
$$;

-- Columns, their types, and partitions for those of these months that have bars. A table that lacks columns is as good as one that
-- has them all: it is filled for the columns it has.
CREATE FUNCTION bqx._verify_schema(family text, pair text, derived regclass, months date[]) RETURNS bqx._finding
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    own record := bqx._own_columns(family, derived);
    values_of_ours text[] := ARRAY(SELECT c.name FROM bqx._value_columns(family, derived) AS c);
    windows int[];
    lacking text[];
    wrong_types text[];
    gaps text[] := '{}';
BEGIN
    -- The windows it has; with none, those that it could have.
    windows := ARRAY(SELECT DISTINCT bqx._column_window(family, n) FROM unnest(own.names) AS n
                      WHERE n LIKE 'w%' ORDER BY 1);
    lacking := ARRAY(SELECT c.name FROM bqx._metric_columns(family, nullif(windows, '{}')) AS c
                      WHERE c.name <> ALL (own.names) ORDER BY c.position);
    wrong_types := ARRAY(
        SELECT format('%s %s', n, bqx._column_type(derived, n)) FROM unnest(own.names) AS n
         WHERE CASE WHEN n IN ('ts_utc', 'created_at') THEN bqx._column_type(derived, n) NOT LIKE 'timestamp%'
                    ELSE n <> ALL (values_of_ours) END);
    IF bqx._is_partitioned_by(derived, 'ts_utc') THEN
        gaps := ARRAY(
            SELECT to_char(m, 'YYYY-MM') FROM unnest(months) AS m
             WHERE CASE WHEN tstzrange(bqx._month_start(m), bqx._month_start(bqx._next_month(m)))
                             <@ coalesce((SELECT range_agg(tstzrange(p.from_ts, p.to_ts))
                                            FROM bqx._partitions(derived) AS p), '{}'::tstzmultirange)
                        THEN false
                        ELSE bqx._count_bars(bqx._m1_table(pair), m) > 0 END  -- without bars there are no rows
             ORDER BY m);
    END IF;
    RETURN ROW('schema', family, pair, NULL,
        'ts_utc' = ANY (own.names) AND wrong_types = '{}' AND gaps = '{}',
        concat_ws('; ',
            CASE WHEN 'ts_utc' = ANY (own.names) THEN format('%s columns', cardinality(own.names))
                 ELSE 'no column ts_utc: nothing else can be verified' END,
            CASE WHEN wrong_types <> '{}' THEN 'of another type: ' || bqx._listed(wrong_types, 5) END,
            CASE WHEN gaps <> '{}' THEN 'no partition for ' || bqx._listed(gaps, 12) END,
            CASE WHEN lacking <> '{}' THEN 'lacks ' || bqx._listed(lacking, 5) END,
            CASE WHEN own.foreign_names <> '{}' THEN 'not of bqx: ' || bqx._listed(own.foreign_names, 5) END)
        )::bqx._finding;
END
$$;

-- Rows without a time are in no month. NULL where the column takes none.
CREATE FUNCTION bqx._verify_no_null_times(family text, pair text, derived regclass) RETURNS bqx._finding
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    nulls bigint;
BEGIN
    IF (SELECT a.attnotnull FROM pg_attribute AS a WHERE a.attrelid = derived AND a.attname = 'ts_utc') THEN
        RETURN NULL;
    END IF;
    EXECUTE format('SELECT count(*) FROM %s WHERE ts_utc IS NULL', derived) INTO nulls;
    RETURN ROW('unique_timestamps', family, pair, NULL, nulls = 0,
               format('%s rows without ts_utc', nulls))::bqx._finding;
END
$$;

-- SQL that is true for a row (with its time in `at`) whose metrics are NULL elsewhere than where fewer bars
-- precede than their window has; $3 are the series' first bars.
CREATE FUNCTION bqx._null_fault(family text, derived regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(string_agg(format(
               'num_nulls(%s) <> CASE WHEN at < coalesce($3[%s], ''infinity'') THEN %s ELSE 0 END',
               columns, lookback + 1, n), ' OR '), 'false')
      FROM (SELECT c.lookback, count(*) AS n, string_agg(quote_ident(c.name), ', ') AS columns
              FROM bqx._value_columns(family, derived) AS c
             WHERE c.lookback > 0 GROUP BY c.lookback) AS by_window
$$;

-- SQL that is true for a row with a NaN or an infinity; NaN sorts above all, and NULLs are no fault here.
CREATE FUNCTION bqx._finite_fault(family text, derived regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(format('(greatest(%1$s) >= ''Infinity'' OR least(%1$s) = ''-Infinity'')',
                           string_agg(c.as_double, ', ')), 'false')
      FROM bqx._value_columns(family, derived) AS c
$$;

-- One row's values, in the order of _value_columns: the first row at or after an instant, before another.
CREATE FUNCTION bqx._stored_row(family text, derived regclass, from_ts timestamp with time zone,
    to_ts timestamp with time zone, OUT at timestamp with time zone, OUT stored double precision[])
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('SELECT %s, ARRAY[%s]::double precision[] FROM %s WHERE ts_utc >= %s AND ts_utc < %s '
                   'ORDER BY ts_utc LIMIT 1',
                   bqx._as_instant(derived, 'ts_utc'),
                   (SELECT string_agg(c.as_double, ', ') FROM bqx._value_columns(family, derived) AS c),
                   derived, bqx._as_key(derived, 'ts_utc', '$1'), bqx._as_key(derived, 'ts_utc', '$2'))
       INTO at, stored USING from_ts, to_ts;
END
$$;

-- Names the columns of a row that are wrongly NULL or not (`about` null), or not finite.
CREATE FUNCTION bqx._faulty_columns(
    about text, family text, derived regclass, faulty_at timestamp with time zone,
    first_bars timestamp with time zone[]) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT bqx._listed(array_agg(c.name ORDER BY c.i), 3)
      FROM bqx._stored_row(family, derived, faulty_at, timestamptz 'infinity') AS r,
           bqx._value_columns(family, derived) WITH ORDINALITY AS c (name, lookback, as_double, rounding, relative, i)
     WHERE CASE about
               WHEN 'null' THEN c.lookback > 0
                   AND (r.stored[c.i] IS NULL) <> (faulty_at < coalesce(first_bars[c.lookback + 1], 'infinity'))
               ELSE NOT (r.stored[c.i] < 'Infinity' AND r.stored[c.i] > '-Infinity') END
$$;

-- Rows of one month beside its bars: all that one scan of both can tell.
CREATE FUNCTION bqx._compared_with_bars(
    family text, m1 regclass, derived regclass, month date, first_bars timestamp with time zone[],
    OUT n bigint, OUT bars bigint, OUT without_bar bigint, OUT without_row bigint,
    OUT unlike_at timestamp with time zone, OUT different_times bigint,
    OUT null_faults bigint, OUT null_fault_at timestamp with time zone,
    OUT infinite bigint, OUT infinite_at timestamp with time zone,
    OUT index_faults bigint, OUT index_fault_at timestamp with time zone,
    OUT first_row timestamp with time zone, OUT last_row timestamp with time zone)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    index_type text := bqx._column_type(derived, 'rate_index');
    m1_index text := CASE WHEN bqx._column_type(m1, 'rate_index') IS NULL THEN 'NULL' ELSE 'rate_index' END;
BEGIN
    -- Null faults are those of rows with a bar: a row without one has no place in the series that could say what is to
    -- be NULL.
    EXECUTE format(
        'WITH bars AS MATERIALIZED ('
        '    SELECT %1$s AS at, %2$s::double precision AS rate_index FROM %3$s WHERE time >= %4$s AND time < %5$s), '
        'stored AS ('
        '    SELECT at, %6$s AS rate_index, %7$s AS null_fault, %8$s AS infinite '
        '      FROM (SELECT *, %9$s AS at FROM %10$s WHERE ts_utc >= %11$s AND ts_utc < %12$s) AS t OFFSET 0), '
        'compared AS ('
        '    SELECT coalesce(s.at, b.at) AS at, s.at AS row_at, b.at AS bar_at, null_fault, infinite, '
        '           s.at IS NOT NULL AND b.at IS NOT NULL AND %13$s AS index_fault '
        '      FROM stored AS s FULL JOIN bars AS b ON b.at = s.at) '
        'SELECT count(row_at), (SELECT count(*) FROM bars), '
        '       count(*) FILTER (WHERE bar_at IS NULL), count(*) FILTER (WHERE row_at IS NULL), '
        '       min(at) FILTER (WHERE bar_at IS NULL OR row_at IS NULL), '
        '       count(DISTINCT row_at), '
        '       count(*) FILTER (WHERE null_fault AND bar_at IS NOT NULL), '
        '       min(at) FILTER (WHERE null_fault AND bar_at IS NOT NULL), '
        '       count(*) FILTER (WHERE infinite), min(at) FILTER (WHERE infinite), '
        '       count(*) FILTER (WHERE index_fault), min(at) FILTER (WHERE index_fault), '
        '       min(row_at), max(row_at) FROM compared',
        bqx._as_instant(m1, 'time'), m1_index, m1, bqx._as_key(m1, 'time', '$1'), bqx._as_key(m1, 'time', '$2'),
        CASE WHEN index_type IS NULL THEN 'NULL' ELSE 'rate_index' END,
        bqx._null_fault(family, derived), bqx._finite_fault(family, derived),
        bqx._as_instant(derived, 'ts_utc'), derived,
        bqx._as_key(derived, 'ts_utc', '$1'), bqx._as_key(derived, 'ts_utc', '$2'),
        CASE WHEN index_type IS NULL THEN 'false'
             ELSE format('s.rate_index IS DISTINCT FROM b.rate_index::%s', index_type) END)
       INTO n, bars, without_bar, without_row, unlike_at, different_times, null_faults, null_fault_at,
            infinite, infinite_at, index_faults, index_fault_at, first_row, last_row
      USING bqx._month_start(month), bqx._month_start(bqx._next_month(month)), first_bars;
END
$$;

-- The checks that count rows.
CREATE FUNCTION bqx._verify_rows(
    family text, pair text, m1 regclass, derived regclass, month date, first_bars timestamp with time zone[],
    seen record) RETURNS SETOF bqx._finding
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN NEXT ROW('row_count', family, pair, month,
        seen.n = seen.bars AND seen.without_bar = 0 AND seen.without_row = 0,
        format('%s rows, %s bars', seen.n, seen.bars)
        || CASE WHEN seen.unlike_at IS NULL THEN ''
           ELSE format('; rows without a bar: %s, bars without a row: %s, first at %s',
                       seen.without_bar, seen.without_row, bqx._utc_text(seen.unlike_at)) END)::bqx._finding;
    RETURN NEXT ROW('unique_timestamps', family, pair, month, seen.n = seen.different_times,
        format('%s rows, %s different ts_utc', seen.n, seen.different_times))::bqx._finding;
    RETURN NEXT ROW('null_distribution', family, pair, month, seen.null_faults = 0,
        CASE WHEN seen.null_faults = 0 THEN 'NULL exactly where fewer bars precede than the window has'
        ELSE format('wrongly NULL or not NULL (rows: %s, first at %s: %s)', seen.null_faults,
                    bqx._utc_text(seen.null_fault_at),
                    bqx._faulty_columns('null', family, derived, seen.null_fault_at, first_bars)) END)::bqx._finding;
    RETURN NEXT ROW('finite', family, pair, month, seen.infinite = 0,
        CASE WHEN seen.infinite = 0 THEN 'no NaN and no infinity'
        ELSE format('NaN or infinity (rows: %s, first at %s: %s)', seen.infinite, bqx._utc_text(seen.infinite_at),
                    bqx._faulty_columns('finite', family, derived, seen.infinite_at, first_bars)) END)::bqx._finding;
    RETURN NEXT ROW('index_range', family, pair, month, seen.index_faults = 0,
        CASE WHEN bqx._column_type(derived, 'rate_index') IS NULL THEN 'no column rate_index'
             WHEN seen.index_faults = 0 THEN 'rate_index is that of M1'
        ELSE format('rate_index is not that of M1 (rows: %s, first at %s)', seen.index_faults,
                    bqx._utc_text(seen.index_fault_at)) END)::bqx._finding;
END
$$;

-- The recomputation is exact up to its last division: a frame's doubles are integers of one unit, 1 / 2^k, and sums
-- of integers are exact in numeric. (A cast from double to numeric would keep 15 digits only.) Where the frame's
-- values differ so much in size that 2^62 would not hold them, the smallest lose bits that no metric can show.
CREATE FUNCTION bqx._units_per_one(bars double precision[]) RETURNS double precision
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT power(2.0::double precision, least(53 - floor(ln(min(p)) / ln(2.0::double precision)),
                                              61 - floor(ln(max(p)) / ln(2.0::double precision)), 1000))
      FROM unnest(bars) AS p
$$;

-- Backward-window metrics of the last bar of `bars` (oldest first), for the windows that fit, by name, each with
-- how far a right value may be from it.
CREATE FUNCTION bqx._recomputed_bqx(bars double precision[], windows int[])
RETURNS TABLE (name text, value double precision, tolerance double precision)
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
    WITH frame AS (
        SELECT cardinality(bars) AS n, bqx._units_per_one(bars) AS one
    ), series AS (
        SELECT i, p, (p * f.one)::bigint::numeric AS y FROM frame AS f, unnest(bars) WITH ORDINALITY AS b (p, i)
    ), sums AS (
        SELECT w, sum(y) AS total, sum(y * y) AS squares, max(y) AS y_max, min(y) AS y_min,
               max(p) AS p_max, min(p) AS p_min, min(y) FILTER (WHERE i = n - w) AS oldest
          FROM frame, unnest(windows) AS w JOIN series ON i BETWEEN cardinality(bars) - w AND cardinality(bars) - 1
         WHERE w < n GROUP BY w
    ), metrics AS (
        SELECT s.*, c.y AS current, one,
               sqrt(((w * squares - total * total) / (w::numeric * (w - 1)))::double precision) AS stdev_units
          FROM frame, sums AS s, series AS c WHERE c.i = n
    )
    SELECT v.name, v.value, 1e-9 * abs(v.value) + 2.0::double precision ^ -48 * CASE v.ratio
               WHEN 0 THEN p_max ELSE v.ratio * (y_max / current)::double precision END
      FROM metrics CROSS JOIN LATERAL (VALUES
        (format('w%s_bqx_return', w), ((total - w * current) / current)::double precision, w),
        (format('w%s_bqx_max_index', w), p_max, 0),
        (format('w%s_bqx_min_index', w), p_min, 0),
        (format('w%s_bqx_avg_index', w), (total / w)::double precision / one, 0),
        (format('w%s_bqx_stdev_index', w), stdev_units / one, 0),
        (format('w%s_bqx_endpoint', w), ((oldest - current) / current)::double precision, 1),
        (CASE w WHEN 75 THEN 'agg_bqx_return' END, ((total - w * current) / current)::double precision, w),
        (CASE w WHEN 75 THEN 'agg_bqx_max_index' END, p_max, 0),
        (CASE w WHEN 75 THEN 'agg_bqx_min_index' END, p_min, 0),
        (CASE w WHEN 75 THEN 'agg_bqx_avg_index' END, (total / w)::double precision / one, 0),
        (CASE w WHEN 75 THEN 'agg_bqx_stdev_index' END, stdev_units / one, 0),
        (CASE w WHEN 75 THEN 'agg_bqx_range' END, ((y_max - y_min) / current)::double precision, 1),
        (CASE w WHEN 75 THEN 'agg_bqx_volatility' END, stdev_units / current::double precision, 1)
      ) AS v (name, value, ratio)
     WHERE v.name IS NOT NULL
$$;

-- Quadratic fits before the last bar of `bars` (oldest first), likewise: the normal equations of
-- y = a x^2 + b x + c over x = 0 .. W-1, solved by Cramer's rule in integers.
CREATE FUNCTION bqx._recomputed_reg(bars double precision[], windows int[])
RETURNS TABLE (name text, value double precision, tolerance double precision)
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
    WITH frame AS (
        SELECT cardinality(bars) AS n, bqx._units_per_one(bars) AS one
    ), series AS (
        SELECT i, p, (p * f.one)::bigint::numeric AS y FROM frame AS f, unnest(bars) WITH ORDINALITY AS b (p, i)
    ), points AS (
        SELECT w, i - (n - w) AS x, y, p
          FROM frame, unnest(windows) AS w JOIN series ON i BETWEEN cardinality(bars) - w AND cardinality(bars) - 1
         WHERE w < n
    ), sums AS (  -- s0 … s4: sums of powers of x; t0 … t2: sums of y, x y, x^2 y
        SELECT w, count(*)::numeric AS s0, sum(x) AS s1, sum(x * x) AS s2, sum(x * x * x) AS s3,
               sum(x * x * x * x) AS s4, sum(y) AS t0, sum(x * y) AS t1, sum(x * x * y) AS t2, sum(y * y) AS squares,
               min(y) FILTER (WHERE x = 0) AS oldest, min(y) FILTER (WHERE x = w - 1) AS newest,
               max(p) AS p_max, max(p) - min(p) AS spread
          FROM points GROUP BY w
    ), determinants AS (
        SELECT s.*, (w - 1)::numeric AS x_end,
               s4 * (s2 * s0 - s1 * s1) - s3 * (s3 * s0 - s1 * s2) + s2 * (s3 * s1 - s2 * s2) AS d,
               t2 * (s2 * s0 - s1 * s1) - s3 * (t1 * s0 - s1 * t0) + s2 * (t1 * s1 - s2 * t0) AS da,
               s4 * (t1 * s0 - s1 * t0) - t2 * (s3 * s0 - s1 * s2) + s2 * (s3 * t0 - t1 * s2) AS db,
               s4 * (s2 * t0 - t1 * s1) - s3 * (s3 * t0 - t1 * s2) + t2 * (s3 * s1 - s2 * s2) AS dc
          FROM sums AS s
    ), fits AS (  -- times d, so still integers
        SELECT f.*, da * x_end * x_end + db * x_end + dc AS yhat_d,
               squares * d - (da * t2 + db * t1 + dc * t0) AS residuals_d,
               w * squares - t0 * t0 AS total_w, c.y AS current, one,
               1e-9 * spread + 2.0::double precision ^ -48 * p_max AS allowed
          FROM frame, determinants AS f, series AS c WHERE c.i = n
    )
    SELECT format('w%s_reg_%s', w, v.metric), v.value, v.tolerance
      FROM fits CROSS JOIN LATERAL (VALUES
        ('a', (da / d)::double precision / one, allowed / w / w),
        ('b', (db / d)::double precision / one, allowed / w),
        ('c', (dc / d)::double precision / one, allowed),
        ('r2', CASE total_w WHEN 0 THEN 1 ELSE (1 - residuals_d * w / (d * total_w))::double precision END, 1e-9),
        ('rmse', sqrt((residuals_d / (d * w))::double precision) / one, allowed),
        ('yhat_end', (yhat_d / d)::double precision / one, allowed),
        ('resid_end', ((newest * d - yhat_d) / d)::double precision / one, allowed),
        ('slope_end', ((2 * da * x_end + db) / d)::double precision / one, allowed / w),
        ('endpoint', ((current - oldest) / oldest)::double precision,
                     1e-9 * abs((current - oldest) / oldest)::double precision + 2.0::double precision ^ -48)
      ) AS v (metric, value, tolerance)
$$;

-- rate_index of the bar at an instant and of up to `lookback` bars before, oldest first; NULL where there is no such
-- bar, or where they are not all positive finite numbers that integers of one unit can stand for (_units_per_one).
CREATE FUNCTION bqx._bars_up_to(m1 regclass, instant timestamp with time zone, lookback int) RETURNS double precision[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    newest timestamptz;
    sound boolean;
    bars double precision[];
    since timestamptz;
BEGIN
    -- The last weeks will do, except after long gaps; the bound keeps the query off older partitions.
    FOREACH since IN ARRAY ARRAY[instant - make_interval(mins => 2 * lookback, hours => 96), '-infinity'] LOOP
        EXECUTE format(
            'SELECT max(at), array_agg(p ORDER BY at), count(*) = count(p) '
            '           AND CASE WHEN min(p) > 1e-280 AND max(p) < 1e280 THEN ln(max(p)) - ln(min(p)) < 40 END '
            '  FROM (SELECT %1$s AS at, rate_index::double precision AS p FROM %2$s '
            '         WHERE time >= %3$s AND time <= %4$s ORDER BY time DESC LIMIT $3) AS bars',
            bqx._as_instant(m1, 'time'), m1, bqx._as_key(m1, 'time', '$1'), bqx._as_key(m1, 'time', '$2'))
           INTO newest, bars, sound USING since, instant, lookback + 1;
        EXIT WHEN cardinality(bars) > lookback;
    END LOOP;
    RETURN CASE WHEN newest = instant AND sound THEN bars END;
END
$$;

-- How one stored row differs from its recomputation; NULL where it doesn't. What is wrongly NULL or not finite is
-- other checks' business.
CREATE FUNCTION bqx._recomputed_difference(
    family text, derived regclass, at timestamp with time zone, stored double precision[], bars double precision[])
RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET extra_float_digits = 1
AS $$
    WITH columns AS MATERIALIZED (
        SELECT c.* FROM bqx._value_columns(family, derived) WITH ORDINALITY
            AS c (name, lookback, as_double, rounding, relative_rounding, i)
    ), windows AS (
        SELECT array_agg(DISTINCT c.lookback) AS lengths FROM columns AS c WHERE c.lookback > 0
    ), recomputed AS (
        SELECT r.* FROM windows AS w, bqx._recomputed_bqx(bars, w.lengths) AS r WHERE family = 'bqx'
        UNION ALL
        SELECT r.* FROM windows AS w, bqx._recomputed_reg(bars, w.lengths) AS r WHERE family = 'reg'
    )
    SELECT format('row %s: %s', bqx._utc_text(at), bqx._listed(array_agg(
               format('%s is %s, recomputed %s', c.name, stored[c.i], r.value) ORDER BY c.i), 2))
      FROM columns AS c JOIN recomputed AS r USING (name)
     WHERE stored[c.i] < 'Infinity' AND stored[c.i] > '-Infinity'
       AND NOT abs(stored[c.i] - r.value) <= r.tolerance + c.rounding + c.relative_rounding * abs(r.value)
    HAVING count(*) > 0
$$;

-- Recomputes random rows of a month from the formulas, and the first row of the series that has all metrics.
-- SELECT setseed(0.5) before makes the choice repeatable.
CREATE FUNCTION bqx._verify_sample(
    family text, pair text, m1 regclass, derived regclass, month date, first_bars timestamp with time zone[],
    lookback int, first_row timestamp with time zone, last_row timestamp with time zone) RETURNS bqx._finding
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    sample_size CONSTANT int := 3;
    month_end timestamptz := bqx._month_start(bqx._next_month(month));
    first_complete timestamptz := first_bars[lookback + 1];
    instants timestamptz[];
    instant timestamptz;
    sampled record;
    bars double precision[];
    recomputed int := 0;
    differences text[] := '{}';
BEGIN
    IF first_row IS NOT NULL AND lookback > 0 AND bqx._column_type(m1, 'rate_index') IS NOT NULL THEN
        instants := ARRAY(
            SELECT first_row + make_interval(
                       secs => random() * extract(epoch FROM last_row - first_row)::double precision)
              FROM generate_series(1, sample_size));
        IF bqx._month_of(first_complete) = month THEN
            instants := instants || first_complete;
        END IF;
        FOREACH instant IN ARRAY instants LOOP
            sampled := bqx._stored_row(family, derived, instant, month_end);
            bars := bqx._bars_up_to(m1, sampled.at, lookback);
            CONTINUE WHEN bars IS NULL;
            recomputed := recomputed + 1;
            differences := array_remove(
                differences || bqx._recomputed_difference(family, derived, sampled.at, sampled.stored, bars), NULL);
        END LOOP;
    END IF;
    RETURN ROW('recomputed_sample', family, pair, month, differences = '{}',
               CASE WHEN differences = '{}' THEN format('%s rows recomputed', recomputed)
                    ELSE array_to_string(differences, '; ') END)::bqx._finding;
END
$$;

-- Is the month computed from the bars that are there now?
CREATE FUNCTION bqx._verify_fresh(family text, pair text, m1 regclass, derived regclass, month date)
RETURNS bqx._finding
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    finding bqx._finding := ROW('stale', family, pair, month, false, NULL);
    recorded record;
    present record;
BEGIN
    SELECT r.* INTO recorded FROM bqx._recorded_month(family, pair, month) AS r;
    BEGIN
        SELECT f.input_fingerprint, f.bars INTO present
          FROM bqx._own_columns(family, derived) AS own,
               bqx._input_fingerprint(m1, bqx._month_start(month), bqx._month_start(bqx._next_month(month)),
                                      own.lookback, own.shape) AS f;
    EXCEPTION
        -- bars that no month could be computed from
        WHEN numeric_value_out_of_range OR unique_violation OR null_value_not_allowed OR undefined_column THEN
            finding.detail := 'M1 cannot be computed from: ' || SQLERRM;
            RETURN finding;
    END;
    finding.ok := coalesce(recorded.input_fingerprint = present.input_fingerprint,
                           recorded.input_fingerprint IS NULL AND present.bars = 0);
    finding.detail := CASE
        WHEN recorded.input_fingerprint IS NULL THEN CASE WHEN finding.ok THEN 'no bars' ELSE 'not computed yet' END
        WHEN finding.ok THEN 'computed from these bars'
        ELSE 'M1 or the table''s columns changed since: CALL bqx.backfill();' END;
    RETURN finding;
END
$$;

-- All checks of one pair.
CREATE FUNCTION bqx._verify_pair(families text[], pair text, from_month date, to_month date)
RETURNS SETOF bqx._finding
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    m1 regclass := bqx._m1_table(pair);
    data_months date[] := bqx._months_to_fill(ARRAY['bqx', 'reg'], pair, from_month, to_month);
    months date[] := bqx._months_to_verify(
        data_months, ARRAY(SELECT bqx._derived_table(f, pair) FROM unnest(families) AS f), from_month, to_month);
    family text;
    derived regclass;
    lookback int;
    first_bars timestamptz[];
    month date;
    finding bqx._finding;
    seen record;
BEGIN
    PERFORM bqx._check_sees_all_rows(m1);
    RETURN NEXT bqx._verify_baseline(pair, m1);
    RETURN QUERY SELECT f.* FROM unnest(data_months) AS m, bqx._verify_m1_index(pair, m1, m) AS f;
    FOREACH family IN ARRAY families LOOP
        derived := bqx._derived_table(family, pair);
        PERFORM bqx._check_sees_all_rows(derived);
        RETURN NEXT bqx._verify_schema(family, pair, derived, data_months);
        RETURN NEXT bqx._verify_indexes(family, pair, derived);
        CONTINUE WHEN bqx._column_type(derived, 'ts_utc') IS NULL;
        finding := bqx._verify_no_null_times(family, pair, derived);
        IF finding.check_name IS NOT NULL THEN
            RETURN NEXT finding;
        END IF;
        lookback := (bqx._own_columns(family, derived)).lookback;
        first_bars := bqx._first_bars(m1, lookback + 1);
        FOREACH month IN ARRAY months LOOP
            seen := bqx._compared_with_bars(family, m1, derived, month, first_bars);
            RETURN QUERY SELECT * FROM bqx._verify_rows(family, pair, m1, derived, month, first_bars, seen);
            RETURN NEXT bqx._verify_sample(family, pair, m1, derived, month, first_bars, lookback,
                                           seen.first_row, seen.last_row);
            RETURN NEXT bqx._verify_fresh(family, pair, m1, derived, month);
        END LOOP;
    END LOOP;
END
$$;

-- STABLE: one snapshot for all, so that a month that is written meanwhile is seen as it was before.
CREATE FUNCTION bqx.verify(
    families text[] DEFAULT NULL, pairs text[] DEFAULT NULL, from_month date DEFAULT NULL, to_month date DEFAULT NULL)
RETURNS TABLE (check_name text, family text, pair text, month date, ok boolean, detail text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET jit = off  -- many queries of some 50 ms each: compiling one costs more than running it
AS $$
DECLARE
    chosen_families text[] := bqx._check_families(families);
    chosen text[];
    chosen_pair text;
    findings bqx._finding[];
BEGIN
    PERFORM bqx._check_month_range(from_month, to_month);
    -- A transaction that reads thousands of partitions runs out of lock memory. Locks that a subtransaction took
    -- are given back when it is rolled back; variables keep what it found.
    BEGIN
        chosen := bqx._pairs_or_all(pairs);
        RAISE SQLSTATE 'BQX00';
    EXCEPTION
        WHEN SQLSTATE 'BQX00' THEN NULL;
    END;
    PERFORM bqx._derived_table(f, p) FROM unnest(chosen) AS p, unnest(chosen_families) AS f;
    FOREACH chosen_pair IN ARRAY chosen LOOP
        BEGIN
            findings := ARRAY(SELECT f FROM bqx._verify_pair(chosen_families, chosen_pair, from_month, to_month) AS f);
            RAISE SQLSTATE 'BQX00';
        EXCEPTION
            WHEN SQLSTATE 'BQX00' THEN NULL;
        END;
        RETURN QUERY SELECT f.* FROM unnest(findings) AS f;
    END LOOP;
END
$$;
COMMENT ON FUNCTION bqx.verify(text[], text[], date, date) IS
    'Verifies the derived tables: one row per check, family, pair and month; SELECT * FROM bqx.verify() WHERE NOT ok';
