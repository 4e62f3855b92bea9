-- bqx_ml.training_set: features and target side by side, split by time without look-ahead.

SET LOCAL search_path TO pg_catalog, pg_temp;  -- for what is parsed here: see preflight.sql

DO $make$
BEGIN
    EXECUTE pg_catalog.format(
        'CREATE TYPE bqx.training_row AS (ts_utc timestamptz, %s, target double precision, forward_return double precision, split text)',
        (SELECT pg_catalog.string_agg(pg_catalog.format('%I double precision', n), ', ' ORDER BY i)
           FROM pg_catalog.unnest(bqx._feature_names()) WITH ORDINALITY AS u (n, i)));
END
$make$;
COMMENT ON TYPE bqx.training_row IS
    'Features of a bar, what is to be predicted, and train, validation or test, as bqx_ml.training_set returns them';

CREATE FUNCTION bqx._check_shares(shares double precision[]) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF (coalesce(cardinality(shares), 0) = 3 AND 0 <= ALL (shares) AND abs(shares[1] + shares[2] + shares[3] - 1) < 1e-9) IS NOT TRUE THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('shares %s are not those of train, validation and test', coalesce(shares::text, 'NULL')),
            HINT = 'Three shares of at least 0 that add up to 1, such as ''{0.8,0.1,0.1}''.';
    END IF;
END
$$;

-- The gap after a cut: what was asked for, but no less than a target looks ahead and back together.
CREATE FUNCTION bqx._check_embargo(embargo interval, horizon int, width int) RETURNS interval
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    least_embargo interval := make_interval(mins => horizon + width);
BEGIN
    IF embargo < least_embargo THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('an embargo of %s is too short', embargo),
            DETAIL = format('A target is about the %s bars before an instant %s minutes ahead.', width, horizon),
            HINT = format('At least %s minutes; NULL takes just that.', horizon + width);
    END IF;
    RETURN coalesce(embargo, least_embargo);
END
$$;

-- The first instants of validation and of test: so many of the rows that have a target come before. Infinity where no row is left.
CREATE FUNCTION bqx._split_at(times timestamp with time zone[], shares double precision[]) RETURNS timestamp with time zone[]
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ARRAY[coalesce(times[1 + round(shares[1] * n)::int], 'infinity'),
                 coalesce(times[1 + round((1 - shares[3]) * n)::int], 'infinity')]
      FROM cardinality(times) AS n
$$;

-- Where the rows after a cut begin: after the embargo, and where a target is about no bar before the cut. (Windows count bars, which over a
-- weekend are further apart than minutes.) At the cut, if nothing is before it.
CREATE FUNCTION bqx._start_after(
    pair text, cut timestamp with time zone, to_ts timestamp with time zone, share_before double precision, horizon int, width int,
    embargo interval) RETURNS timestamp with time zone
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC'
AS $$
DECLARE
    newest_of_first timestamptz;
BEGIN
    IF share_before = 0 OR NOT isfinite(cut) THEN
        RETURN cut;
    END IF;
    EXECUTE format('SELECT r.at FROM %s AS r ORDER BY r.at OFFSET %s LIMIT 1',
                   bqx._rows_by_time(bqx._derived_table('bqx', pair), 'ts_utc', '{}', '$1', '$2'), width - 1)
       INTO newest_of_first USING cut, to_ts;
    RETURN greatest(cut + embargo, coalesce(newest_of_first, 'infinity') - make_interval(mins => horizon) + interval '1 microsecond');
END
$$;

-- Which part a row is in, given when its label is known; NULL: in none, because its label reaches into the next part, or it is too close
-- after the cut.
CREATE FUNCTION bqx._part_of(
    at timestamp with time zone, known_at timestamp with time zone, cuts timestamp with time zone[], starts timestamp with time zone[])
RETURNS text
LANGUAGE sql IMMUTABLE
RETURN CASE WHEN known_at < cuts[1] THEN 'train'
            WHEN at >= starts[1] AND known_at < cuts[2] THEN 'validation'
            WHEN at >= starts[2] THEN 'test' END;

CREATE FUNCTION bqx_ml.training_set(
    pair text, from_ts timestamp with time zone, to_ts timestamp with time zone, horizon int DEFAULT 60,
    shares double precision[] DEFAULT '{0.8,0.1,0.1}', embargo interval DEFAULT NULL, width int DEFAULT 60)
RETURNS SETOF bqx.training_row
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED ROWS 30000 SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC' SET jit = off
AS $$
DECLARE
    known_pair text := bqx._check_pair(pair);
    bounds timestamptz[];
    until_known interval;
    times timestamptz[];
    cuts timestamptz[];
    starts timestamptz[];
    empty text;
BEGIN
    PERFORM bqx._check_time_range(from_ts, to_ts);
    PERFORM bqx._check_horizons(ARRAY[horizon]), bqx._check_target_widths(bqx._derived_table('bqx', known_pair), ARRAY[width]);
    PERFORM bqx._check_shares(shares);
    embargo := bqx._check_embargo(embargo, horizon, width);
    bounds := bqx._target_bounds(from_ts, to_ts, horizon);
    until_known := make_interval(mins => horizon + 1);

    EXECUTE format('SELECT coalesce(array_agg(t.at ORDER BY t.at), ''{}'') FROM (%s) AS t', bqx._targets_query(known_pair, horizon, width))
       INTO times USING bounds[1], bounds[2], bounds[3], bounds[4];
    cuts := bqx._split_at(times, shares);
    starts := ARRAY[bqx._start_after(known_pair, cuts[1], bounds[2], shares[1], horizon, width, embargo),
                    bqx._start_after(known_pair, cuts[2], bounds[2], shares[1] + shares[2], horizon, width, embargo)];
    SELECT string_agg(p.part, ', ' ORDER BY p.i) INTO empty
      FROM unnest(ARRAY['train', 'validation', 'test']) WITH ORDINALITY AS p (part, i)
     WHERE shares[i] > 0
       AND NOT EXISTS (SELECT FROM unnest(times) AS t WHERE bqx._part_of(t, t + until_known, cuts, starts) = p.part);
    IF empty IS NOT NULL THEN
        RAISE WARNING USING
            MESSAGE = format('no rows for %s', empty),
            DETAIL = format('%s rows have a target; after each cut, %s are left out.', cardinality(times), embargo),
            HINT = 'A longer time range, or other shares.';
    END IF;

    RETURN QUERY EXECUTE format(
        'SELECT s.* FROM (SELECT f.ts_utc, %s, t.target, t.forward_return, bqx._part_of(t.at, t.at + $5, $6, $7) AS split '
        'FROM (%s) AS f JOIN (%s) AS t ON t.at = f.ts_utc) AS s WHERE s.split IS NOT NULL ORDER BY s.ts_utc',
        (SELECT string_agg(format('f.%I', n), ', ' ORDER BY i)
           FROM unnest(bqx._feature_names()) WITH ORDINALITY AS u (n, i)),
        bqx._features_query(known_pair, bqx._metric_names('bqx'), bqx._metric_names('reg'), '$1', '$2'),
        bqx._targets_query(known_pair, horizon, width))
        USING bounds[1], bounds[2], bounds[3], bounds[4], until_known, cuts, starts;
END
$$;
COMMENT ON FUNCTION bqx_ml.training_set(text, timestamp with time zone, timestamp with time zone, int, double precision[], interval, int) IS
    'Features and target of the bars of a pair in [from_ts, to_ts), split by time into train, validation and test without look-ahead';

SET LOCAL search_path TO bqx, pg_temp;
