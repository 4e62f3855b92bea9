-- Verification: do the derived tables hold what they are meant to hold? Everything is read again and counted;
-- nothing that the backfill said of itself is believed, but the fingerprints, and those are compared.
--
-- One scan of a month's bars and one of each family's rows answer all questions about them; a few rows are recomputed
-- from the formulas by another method than the backfill's.

-- What one check found; the row type of verify().
CREATE TYPE bqx._finding AS (check_name text, family text, pair text, month date, ok boolean, detail text);

-- The bars of a month and those before it that its rows look back at, as _month_bars reads them.
CREATE TYPE bqx._bars_of_month AS (
    times timestamp with time zone[], rate_index double precision[], bars_before int, sound boolean,
    bad_closes bigint, bad_close_at timestamp with time zone, bad_indexes bigint, bad_index_at timestamp with time zone);

-- What the checks have to know of a derived table at every month; the catalogs are asked once. The columns are those of
-- _value_columns; `stored` is SQL after SELECT for the rows of [$1, $2), and `at` for their time; `index_at` is which of
-- the columns is rate_index, if its type is double precision. The bars are those of _first_bars.
CREATE TYPE bqx._verified_table AS (
    family text, pair text, m1 regclass, derived regclass, lookback int, shape text,
    names text[], lookbacks int[], roundings double precision[], relative_roundings double precision[],
    at text, doubles text, stored text, index_type text, index_at int,
    first_bars timestamp with time zone[]);

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

CREATE FUNCTION bqx._verified_table(family text, pair text, m1 regclass, derived regclass) RETURNS bqx._verified_table
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ROW(family, pair, m1, derived, own.lookback, own.shape,
               v.names, v.lookbacks, v.roundings, v.relative_roundings,
               format('(%s)::timestamptz', bqx._as_instant(derived, 'ts_utc')), v.doubles,
               format('FROM %s WHERE ts_utc >= %s AND ts_utc < %s', derived,
                      bqx._as_key(derived, 'ts_utc', '$1'), bqx._as_key(derived, 'ts_utc', '$2')),
               index_type, CASE index_type WHEN 'double precision' THEN array_position(v.names, 'rate_index') END,
               bqx._first_bars(m1, own.lookback + 1))::bqx._verified_table
      FROM bqx._own_columns(family, derived) AS own,
           bqx._column_type(derived, 'rate_index') AS index_type,
           (SELECT coalesce(array_agg(c.name ORDER BY c.i), '{}'), coalesce(array_agg(c.lookback ORDER BY c.i), '{}'),
                   array_agg(c.rounding ORDER BY c.i), array_agg(c.relative_rounding ORDER BY c.i),
                   string_agg(c.as_double, ', ' ORDER BY c.i)
              FROM bqx._value_columns(family, derived) WITH ORDINALITY
                   AS c (name, lookback, as_double, rounding, relative_rounding, i)
           ) AS v (names, lookbacks, roundings, relative_roundings, doubles)
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

-- SQL that is true for a bar whose rate_index is not that of its close; $3 is the baseline. NULL where M1 has no rate_index.
-- The quotient is taken only where it can neither overflow nor vanish.
CREATE FUNCTION bqx._index_fault(m1 regclass, baseline double precision) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN baseline BETWEEN 1e-100 AND 1e100
                THEN format('close::double precision BETWEEN 1e-100 AND 1e100 '
                            'AND rate_index IS DISTINCT FROM (close::double precision / $3 * 100)::%s', index_type)
                ELSE '(rate_index::double precision > 0 AND rate_index::double precision < ''Infinity'') IS NOT TRUE' END
      FROM bqx._column_type(m1, 'rate_index') AS index_type WHERE index_type IS NOT NULL
$$;

-- M1: is every close a price, and every rate_index that of its close?
CREATE FUNCTION bqx._verify_m1_index(
    pair text, m1 regclass, month date, bars bqx._bars_of_month, baseline double precision) RETURNS bqx._finding
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET extra_float_digits = 1
AS $$
DECLARE
    finding bqx._finding := ROW('index_range', NULL, pair, month, false, NULL);
BEGIN
    IF bqx._column_type(m1, 'rate_index') IS NULL THEN
        finding.detail := format('%s has no rate_index: CALL bqx.index_m1(ARRAY[%L]);', m1, pair);
        RETURN finding;
    END IF;
    finding.ok := bars.bad_closes = 0 AND bars.bad_indexes = 0;
    finding.detail := concat_ws('; ',
        CASE WHEN bars.bad_closes > 0 THEN format('close is not a positive finite number (bars: %s, first at %s)',
                                                  bars.bad_closes, bqx._utc_text(bars.bad_close_at)) END,
        CASE WHEN bars.bad_indexes > 0 THEN format('rate_index is not %s (bars: %s, first at %s)',
                  CASE WHEN baseline IS NULL THEN 'a positive finite number'
                       ELSE format('close / %s * 100', baseline) END,
                  bars.bad_indexes, bqx._utc_text(bars.bad_index_at)) END,
        CASE WHEN finding.ok THEN format('%s bars', cardinality(bars.times) - bars.bars_before) END);
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

-- One row's values: the first row at or after an instant, before another.
CREATE FUNCTION bqx._stored_row(
    checked bqx._verified_table, from_ts timestamp with time zone, to_ts timestamp with time zone,
    OUT at timestamp with time zone, OUT stored double precision[])
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('SELECT %s, ARRAY[%s]::double precision[] %s ORDER BY ts_utc LIMIT 1',
                   checked.at, checked.doubles, checked.stored)
       INTO at, stored USING from_ts, to_ts;
END
$$;

-- Names the columns of a row that are wrongly NULL or not (`about` null), or not finite.
CREATE FUNCTION bqx._faulty_columns(about text, checked bqx._verified_table, faulty_at timestamp with time zone) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT bqx._listed(array_agg(c.name ORDER BY c.i), 3)
      FROM bqx._stored_row(checked, faulty_at, timestamptz 'infinity') AS r,
           unnest((checked).names, (checked).lookbacks) WITH ORDINALITY AS c (name, lookback, i)
     WHERE CASE about
               WHEN 'null' THEN c.lookback > 0
                   AND (r.stored[c.i] IS NULL) <> (faulty_at < coalesce((checked).first_bars[c.lookback + 1], 'infinity'))
               ELSE NOT (r.stored[c.i] < 'Infinity' AND r.stored[c.i] > '-Infinity') END
$$;

-- Rows whose rate_index is not that of their bars, compared in the column's own type, whatever that is.
CREATE FUNCTION bqx._index_faults(
    checked bqx._verified_table, month date, bars bqx._bars_of_month,
    OUT faults bigint, OUT first_at timestamp with time zone)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('SELECT count(*), min(s.at) FROM (SELECT %s AS at, rate_index %s) AS s '
                   '  JOIN unnest($3, $4) AS b (at, rate_index) ON b.at = s.at '
                   ' WHERE s.rate_index IS DISTINCT FROM b.rate_index::%s',
                   checked.at, checked.stored, checked.index_type)
       INTO faults, first_at
      USING bqx._month_start(month), bqx._month_start(bqx._next_month(month)), bars.times, bars.rate_index;
END
$$;

-- The month's rows beside its bars, as _compared_with_bars says it.
CREATE FUNCTION bqx._month_seen(checked bqx._verified_table, month date, bars bqx._bars_of_month) RETURNS record
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    seen record;
BEGIN
    SELECT c.* INTO seen
      FROM bqx._compared_with_bars(
               format('SELECT %s %s', concat_ws(', ', checked.at, checked.doubles), checked.stored),
               bqx._month_start(month), bqx._month_start(bqx._next_month(month)), checked.lookbacks, checked.index_at,
               checked.first_bars, bars.times, bars.rate_index, bars.bars_before) AS c;
    IF checked.index_type IS NOT NULL AND checked.index_at IS NULL THEN
        SELECT f.faults, f.first_at INTO seen.index_faults, seen.index_fault_at
          FROM bqx._index_faults(checked, month, bars) AS f;
    END IF;
    RETURN seen;
END
$$;

-- The checks that count rows.
CREATE FUNCTION bqx._verify_rows(checked bqx._verified_table, month date, seen record) RETURNS SETOF bqx._finding
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN NEXT ROW('row_count', checked.family, checked.pair, month,
        seen.n = seen.bars AND seen.without_bar = 0 AND seen.without_row = 0,
        format('%s rows, %s bars', seen.n, seen.bars)
        || CASE WHEN seen.unlike_at IS NULL THEN ''
           ELSE format('; rows without a bar: %s, bars without a row: %s, first at %s',
                       seen.without_bar, seen.without_row, bqx._utc_text(seen.unlike_at)) END)::bqx._finding;
    RETURN NEXT ROW('unique_timestamps', checked.family, checked.pair, month, seen.n = seen.different_times,
        format('%s rows, %s different ts_utc', seen.n, seen.different_times))::bqx._finding;
    RETURN NEXT ROW('null_distribution', checked.family, checked.pair, month, seen.null_faults = 0,
        CASE WHEN seen.null_faults = 0 THEN 'NULL exactly where fewer bars precede than the window has'
        ELSE format('wrongly NULL or not NULL (rows: %s, first at %s: %s)', seen.null_faults,
                    bqx._utc_text(seen.null_fault_at),
                    bqx._faulty_columns('null', checked, seen.null_fault_at)) END)::bqx._finding;
    RETURN NEXT ROW('finite', checked.family, checked.pair, month, seen.infinite = 0,
        CASE WHEN seen.infinite = 0 THEN 'no NaN and no infinity'
        ELSE format('NaN or infinity (rows: %s, first at %s: %s)', seen.infinite, bqx._utc_text(seen.infinite_at),
                    bqx._faulty_columns('finite', checked, seen.infinite_at)) END)::bqx._finding;
    RETURN NEXT ROW('index_range', checked.family, checked.pair, month, seen.index_faults = 0,
        CASE WHEN checked.index_type IS NULL THEN 'no column rate_index'
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
-- how far a right value may be from it. (PL/pgSQL keeps the plan, which takes longer to make than to run.)
CREATE FUNCTION bqx._recomputed_bqx(bars double precision[], windows int[])
RETURNS TABLE (name text, value double precision, tolerance double precision)
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH frame AS (
        SELECT cardinality(bars) AS n, bqx._units_per_one(bars) AS one
    ), points AS (
        SELECT w, i, (p * one)::bigint::numeric AS y, p
          FROM frame, unnest(windows) AS w, unnest(bars[n - w : n - 1]) WITH ORDINALITY AS b (p, i) WHERE w < n
    ), sums AS (
        SELECT w, sum(y) AS total, sum(y * y) AS squares, max(y) AS y_max, min(y) AS y_min,
               max(p) AS p_max, min(p) AS p_min, min(y) FILTER (WHERE i = 1) AS oldest
          FROM points GROUP BY w
    ), metrics AS (
        SELECT s.*, (bars[n] * one)::bigint::numeric AS current, one,
               sqrt(((w * squares - total * total) / (w::numeric * (w - 1)))::double precision) AS stdev_units
          FROM frame, sums AS s
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
     WHERE v.name IS NOT NULL;
END
$$;

-- Quadratic fits before the last bar of `bars` (oldest first), likewise: the normal equations of
-- y = a x^2 + b x + c over x = 0 .. W-1, solved by Cramer's rule in integers. The halves of y, 31 bits each, keep the
-- products within bigint, whose sums are as exact as numeric's, and faster.
CREATE FUNCTION bqx._recomputed_reg(bars double precision[], windows int[])
RETURNS TABLE (name text, value double precision, tolerance double precision)
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH frame AS (
        SELECT cardinality(bars) AS n, bqx._units_per_one(bars) AS one
    ), points AS MATERIALIZED (
        SELECT w, i - 1 AS x, (p * one)::bigint AS y, p
          FROM frame, unnest(windows) AS w, unnest(bars[n - w : n - 1]) WITH ORDINALITY AS b (p, i) WHERE w < n
    ), halves AS (
        SELECT *, y >> 31 AS high, y & 2147483647 AS low FROM points
    ), sums AS (  -- s0 … s4: sums of powers of x; t0 … t2: sums of y, x y, x^2 y
        SELECT w, count(*)::numeric AS s0, sum(x) AS s1, sum(x * x) AS s2, sum(x * x * x) AS s3,
               sum(x * x * x * x) AS s4, sum(y) AS t0,
               sum(x * high) * 2147483648 + sum(x * low) AS t1,
               sum(x * x * high) * 2147483648 + sum(x * x * low) AS t2,
               (sum(high * high) * 2147483648 + 2 * sum(high * low)) * 2147483648 + sum(low * low) AS squares,
               (min(y) FILTER (WHERE x = 0))::numeric AS oldest, (min(y) FILTER (WHERE x = w - 1))::numeric AS newest,
               max(p) AS p_max, max(p) - min(p) AS spread
          FROM halves GROUP BY w
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
               w * squares - t0 * t0 AS total_w, (bars[n] * one)::bigint::numeric AS current, one,
               1e-9 * spread + 2.0::double precision ^ -48 * p_max AS allowed
          FROM frame, determinants AS f
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
      ) AS v (metric, value, tolerance);
END
$$;

-- rate_index of the bar at an instant and of up to `lookback` bars before, oldest first; NULL where there is no such
-- bar, or where they are not all positive finite numbers that integers of one unit can stand for (_units_per_one).
CREATE FUNCTION bqx._bars_up_to(bars bqx._bars_of_month, instant timestamp with time zone, lookback int)
RETURNS double precision[]
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    newest int := width_bucket(instant, bars.times);  -- the last bar up to the instant: a search in sorted times
    found_bars double precision[];
BEGIN
    IF bars.times[newest] = instant THEN
        found_bars := bars.rate_index[greatest(newest - lookback, 1) : newest];
        IF (SELECT count(*) = count(p)
                   AND CASE WHEN min(p) > 1e-280 AND max(p) < 1e280 THEN ln(max(p)) - ln(min(p)) < 40 END
              FROM unnest(found_bars) AS p) THEN
            RETURN found_bars;
        END IF;
    END IF;
    RETURN NULL;
END
$$;

-- How one stored row differs from its recomputation; NULL where it doesn't. What is wrongly NULL or not finite is
-- other checks' business.
CREATE FUNCTION bqx._recomputed_difference(
    checked bqx._verified_table, at timestamp with time zone, stored double precision[], bars double precision[])
RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET extra_float_digits = 1
AS $$
DECLARE
    windows int[] := ARRAY(SELECT DISTINCT w FROM unnest(checked.lookbacks) AS w WHERE w > 0);
BEGIN
    RETURN (
        WITH recomputed AS (
            SELECT r.* FROM bqx._recomputed_bqx(bars, windows) AS r WHERE checked.family = 'bqx'
            UNION ALL
            SELECT r.* FROM bqx._recomputed_reg(bars, windows) AS r WHERE checked.family = 'reg'
        )
        SELECT format('row %s: %s', bqx._utc_text(at), bqx._listed(array_agg(
                   format('%s is %s, recomputed %s', c.name, c.stored, r.value) ORDER BY c.i), 2))
          FROM unnest(checked.names, checked.roundings, checked.relative_roundings, stored) WITH ORDINALITY
               AS c (name, rounding, relative_rounding, stored, i)
          JOIN recomputed AS r USING (name)
         WHERE c.stored < 'Infinity' AND c.stored > '-Infinity'
           AND NOT abs(c.stored - r.value) <= r.tolerance + c.rounding + c.relative_rounding * abs(r.value)
        HAVING count(*) > 0);
END
$$;

-- Recomputes random rows of a month from the formulas, and the first row of the series that has all metrics.
-- SELECT setseed(0.5) before makes the choice repeatable.
CREATE FUNCTION bqx._verify_sample(
    checked bqx._verified_table, month date, bars bqx._bars_of_month,
    first_row timestamp with time zone, last_row timestamp with time zone) RETURNS bqx._finding
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    sample_size CONSTANT int := 3;
    month_end timestamptz := bqx._month_start(bqx._next_month(month));
    first_complete timestamptz := checked.first_bars[checked.lookback + 1];
    instants timestamptz[];
    instant timestamptz;
    sampled record;
    window_bars double precision[];
    recomputed int := 0;
    differences text[] := '{}';
BEGIN
    IF first_row IS NOT NULL AND checked.lookback > 0 THEN
        instants := ARRAY(
            SELECT first_row + make_interval(
                       secs => random() * extract(epoch FROM last_row - first_row)::double precision)
              FROM generate_series(1, sample_size));
        IF bqx._month_of(first_complete) = month THEN
            instants := instants || first_complete;
        END IF;
        FOREACH instant IN ARRAY instants LOOP
            sampled := bqx._stored_row(checked, instant, month_end);
            window_bars := bqx._bars_up_to(bars, sampled.at, checked.lookback);
            CONTINUE WHEN window_bars IS NULL;
            recomputed := recomputed + 1;
            differences := array_remove(
                differences || bqx._recomputed_difference(checked, sampled.at, sampled.stored, window_bars), NULL);
        END LOOP;
    END IF;
    RETURN ROW('recomputed_sample', checked.family, checked.pair, month, differences = '{}',
               CASE WHEN differences = '{}' THEN format('%s rows recomputed', recomputed)
                    ELSE array_to_string(differences, '; ') END)::bqx._finding;
END
$$;

-- Of a month without a fingerprint, whose rows have followed single changes of their bars, all rows are computed once more:
-- how many of the bars have not just that row, and which is the first.
CREATE FUNCTION bqx._rows_astray(checked bqx._verified_table, month date, OUT bars bigint, OUT astray bigint, OUT first_at timestamp with time zone)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET enable_nestloop = off  -- as in _write_month_plainly
AS $$
DECLARE
    value_names text[] := ARRAY(SELECT n FROM unnest((bqx._own_columns(checked.family, checked.derived)).names) AS n
                                 WHERE n NOT IN ('ts_utc', 'created_at'));
BEGIN
    EXECUTE (SELECT format(
        'SELECT count(*), count(*) FILTER (WHERE t.ts_utc IS NULL), min(c.ts_utc) FILTER (WHERE t.ts_utc IS NULL) '
        '  FROM bqx._computed_rows($3, $4, $1, $2, $5) AS c (ts_utc timestamptz%1$s) '
        '  LEFT JOIN (SELECT * %2$s) AS t ON t.ts_utc = %3$s AND ROW(0%4$s) IS NOT DISTINCT FROM ROW(0%5$s)',
        string_agg(format(', %I double precision', n), '' ORDER BY i), checked.stored,
        bqx._as_key(checked.derived, 'ts_utc', 'c.ts_utc'), string_agg(format(', t.%I', n), '' ORDER BY i),
        string_agg(format(', c.%I::%s', n, bqx._column_type(checked.derived, n)), '' ORDER BY i))
        FROM unnest(value_names) WITH ORDINALITY AS u (n, i))
       INTO bars, astray, first_at
      USING bqx._month_start(month), bqx._month_start(bqx._next_month(month)), checked.family, checked.m1, value_names;
END
$$;

-- Is the month computed from the bars that are there now?
CREATE FUNCTION bqx._verify_fresh(checked bqx._verified_table, month date, bars bqx._bars_of_month) RETURNS bqx._finding
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    finding bqx._finding := ROW('stale', checked.family, checked.pair, month, false, NULL);
    recorded record;
    present record;
    followed record;
BEGIN
    SELECT r.* INTO recorded FROM bqx._recorded_month(checked.family, checked.pair, month) AS r;
    IF recorded.bars IS NOT NULL AND recorded.input_fingerprint IS NULL AND bars.sound THEN
        followed := bqx._rows_astray(checked, month);
        finding.ok := followed.astray = 0;
        finding.detail := CASE WHEN finding.ok THEN format('%s rows have followed their bars', followed.bars)
            ELSE format('%s of %s rows are not those of the bars, first at %s: CALL bqx.backfill();',
                        followed.astray, followed.bars, bqx._utc_text(followed.first_at)) END;
        RETURN finding;
    END IF;
    IF bars.sound THEN
        SELECT cardinality(bars.times) - bars.bars_before AS bars, bqx._fingerprint_of_bars(
                   bars.times, bars.rate_index, bars.bars_before, checked.lookback, checked.shape) AS input_fingerprint
          INTO present;
    ELSE
        BEGIN
            SELECT f.input_fingerprint, f.bars INTO present
              FROM bqx._input_fingerprint(checked.m1, bqx._month_start(month), bqx._month_start(bqx._next_month(month)),
                                          checked.lookback, checked.shape) AS f;
        EXCEPTION
            -- bars that no month could be computed from
            WHEN numeric_value_out_of_range OR unique_violation OR null_value_not_allowed OR undefined_column THEN
                finding.detail := 'M1 cannot be computed from: ' || SQLERRM;
                RETURN finding;
        END;
    END IF;
    finding.ok := coalesce(recorded.input_fingerprint = present.input_fingerprint,
                           recorded.input_fingerprint IS NULL AND present.bars = 0);
    finding.detail := CASE
        WHEN recorded.input_fingerprint IS NULL THEN CASE WHEN finding.ok THEN 'no bars' ELSE 'not computed yet' END
        WHEN finding.ok THEN 'computed from these bars'
        ELSE 'M1 or the table''s columns changed since: CALL bqx.backfill();' END;
    RETURN finding;
END
$$;

-- All checks of one month of one table.
CREATE FUNCTION bqx._verify_month(checked bqx._verified_table, month date, bars bqx._bars_of_month)
RETURNS SETOF bqx._finding
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    seen record := bqx._month_seen(checked, month, bars);
BEGIN
    RETURN QUERY SELECT * FROM bqx._verify_rows(checked, month, seen);
    RETURN NEXT bqx._verify_sample(checked, month, bars, seen.first_row, seen.last_row);
    RETURN NEXT bqx._verify_fresh(checked, month, bars);
END
$$;

-- All checks of one pair, of each family in order of the months. The bars of a month are read once for both.
CREATE FUNCTION bqx._verify_pair(families text[], pair text, from_month date, to_month date)
RETURNS SETOF bqx._finding
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    m1 regclass := bqx._m1_table(pair);
    data_months date[] := bqx._months_to_fill(ARRAY['bqx', 'reg'], pair, from_month, to_month);
    months date[] := bqx._months_to_verify(
        data_months, ARRAY(SELECT bqx._derived_table(f, pair) FROM unnest(families) AS f), from_month, to_month);
    baseline double precision := (SELECT b.baseline_rate FROM bqx.baseline_rates AS b WHERE b.pair = $2);
    index_fault text := bqx._index_fault(m1, baseline);
    family text;
    derived regclass;
    tables bqx._verified_table[] := '{}';
    one_table bqx._verified_table;
    lookback int;
    month date;
    bars bqx._bars_of_month;
    finding bqx._finding;
BEGIN
    PERFORM bqx._check_sees_all_rows(m1);
    RETURN NEXT bqx._verify_baseline(pair, m1);
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
        tables := tables || bqx._verified_table(family, pair, m1, derived);
    END LOOP;
    lookback := coalesce((SELECT max(t.lookback) FROM unnest(tables) AS t), 0);
    FOREACH month IN ARRAY months LOOP
        SELECT b.* INTO bars
          FROM bqx._month_bars(m1, bqx._month_start(month), bqx._month_start(bqx._next_month(month)), lookback,
                               index_fault, baseline) AS b;
        IF month = ANY (data_months) THEN
            RETURN NEXT bqx._verify_m1_index(pair, m1, month, bars, baseline);
        END IF;
        FOREACH one_table IN ARRAY tables LOOP
            RETURN QUERY SELECT f.* FROM bqx._verify_month(one_table, month, bars) AS f;
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
        RETURN QUERY
            SELECT f.c, f.f, f.p, f.m, f.o, f.d FROM unnest(findings) WITH ORDINALITY AS f (c, f, p, m, o, d, i)
             ORDER BY array_position(chosen_families, f.f) NULLS FIRST, f.i;
    END LOOP;
END
$$;
COMMENT ON FUNCTION bqx.verify(text[], text[], date, date) IS
    'Verifies the derived tables: one row per check, family, pair and month; SELECT * FROM bqx.verify() WHERE NOT ok';
