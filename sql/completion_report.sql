-- How far the derived tables have come: counted in the tables, one scan of each, not read from the ledger.

CREATE TYPE bqx._completion AS (
    family text, pair text, rows bigint, months int, months_total int,
    first_bar timestamp with time zone, last_bar timestamp with time zone, status text,
    mean_rate_index double precision, stdev_rate_index double precision);

-- Rows of each month of a table, whatever its type of time.
CREATE FUNCTION bqx._rows_per_month(rel regclass, time_column text, OUT months date[], OUT counts bigint[])
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('SELECT array_agg(month), array_agg(n) FROM ('
                   'SELECT date_trunc(''month'', %s AT TIME ZONE ''UTC'')::date AS month, count(*) AS n '
                   '  FROM %s GROUP BY 1) AS by_month', bqx._as_instant(rel, time_column), rel)
       INTO months, counts;
END
$$;

-- The same, with span, mean and deviation, in one scan.
CREATE FUNCTION bqx._table_contents(derived regclass, OUT months date[], OUT counts bigint[], OUT rows bigint,
    OUT first_row timestamp with time zone, OUT last_row timestamp with time zone,
    OUT mean double precision, OUT stdev double precision)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF bqx._column_type(derived, 'ts_utc') IS NULL THEN
        RETURN;
    END IF;
    -- Deviations of months join to that of all by the law of total variance.
    EXECUTE format(
        'WITH by_month AS ('
        '    SELECT date_trunc(''month'', at AT TIME ZONE ''UTC'')::date AS month, count(*) AS rows, count(p) AS n, '
        '           min(at) AS first_row, max(at) AS last_row, avg(p) AS mean, var_pop(p) AS variance '
        '      FROM (SELECT %s AS at, %s AS p FROM %s) AS stored GROUP BY 1), '
        'overall AS (SELECT sum(n * mean) / sum(n) AS mean FROM by_month WHERE n > 0) '
        'SELECT array_agg(m.month), array_agg(m.rows), coalesce(sum(m.rows), 0), min(m.first_row), max(m.last_row), '
        '       o.mean, sqrt(sum(m.n * (m.variance + (m.mean - o.mean) ^ 2)) / nullif(sum(m.n) - 1, 0)) '
        '  FROM overall AS o LEFT JOIN by_month AS m ON true GROUP BY o.mean',
        bqx._as_instant(derived, 'ts_utc'),
        CASE WHEN bqx._column_type(derived, 'rate_index') IS NULL THEN 'NULL::double precision'
             ELSE 'rate_index::double precision' END, derived)
       INTO months, counts, rows, first_row, last_row, mean, stdev;
END
$$;

-- The families of one pair; its bars are counted once for both.
CREATE FUNCTION bqx._completion_of_pair(pair text) RETURNS SETOF bqx._completion
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    bars record := bqx._rows_per_month(bqx._m1_table(pair), 'time');
    line bqx._completion;
    chosen_family text;
    derived regclass;
    contents record;
    has_failed boolean;
BEGIN
    FOREACH chosen_family IN ARRAY ARRAY['bqx', 'reg'] LOOP
        line := ROW(chosen_family, pair, 0, 0, cardinality(bars.months), NULL, NULL, 'not started', NULL, NULL);
        derived := to_regclass(format('bqx.%I', bqx._derived_name(chosen_family, pair)));
        IF derived IS NOT NULL THEN
            contents := bqx._table_contents(derived);
            line.rows := coalesce(contents.rows, 0);
            line.months := (SELECT count(*) FROM unnest(bars.months, bars.counts) AS b (month, n)
                              JOIN unnest(contents.months, contents.counts) AS t (month, n) USING (month)
                             WHERE t.n = b.n);
            line.first_bar := contents.first_row;
            line.last_bar := contents.last_row;
            line.mean_rate_index := contents.mean;
            line.stdev_rate_index := contents.stdev;
        END IF;
        -- as far as the caller may see who ran what: a month that isn't complete, and whose latest job failed
        has_failed := EXISTS (
            SELECT FROM (SELECT DISTINCT ON (j.month) j.month, j.state FROM bqx.jobs AS j
                          WHERE j.family = chosen_family AND j.pair = $1
                          ORDER BY j.month, j.run_id DESC) AS latest
             WHERE latest.state = 'failed');
        line.status := CASE
            WHEN line.months = line.months_total
                 AND line.rows = (SELECT sum(n) FROM unnest(bars.counts) AS n) THEN 'complete'
            WHEN has_failed THEN 'failed'
            WHEN line.rows > 0 THEN 'incomplete' ELSE 'not started' END;
        RETURN NEXT line;
    END LOOP;
END
$$;

CREATE FUNCTION bqx.completion_report()
RETURNS TABLE (family text, pair text, rows bigint, months int, months_total int,
    first_bar timestamp with time zone, last_bar timestamp with time zone, status text,
    mean_rate_index double precision, stdev_rate_index double precision)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    reported_pairs text[];
    reported_pair text;
    of_pair bqx._completion[];
    lines bqx._completion[] := '{}';
BEGIN
    -- Subtransactions are rolled back to give the partitions' locks back, as in verify().
    BEGIN
        reported_pairs := bqx._pairs_with_bars();
        RAISE SQLSTATE 'BQX00';
    EXCEPTION
        WHEN SQLSTATE 'BQX00' THEN NULL;
    END;
    FOREACH reported_pair IN ARRAY reported_pairs LOOP
        BEGIN
            of_pair := ARRAY(SELECT l FROM bqx._completion_of_pair(reported_pair) AS l);
            RAISE SQLSTATE 'BQX00';
        EXCEPTION
            WHEN SQLSTATE 'BQX00' THEN NULL;
        END;
        lines := lines || of_pair;
    END LOOP;
    RETURN QUERY
    SELECT r.family, r.pair, r.rows, r.months, r.months_total, r.first_bar, r.last_bar, r.status,
           r.mean_rate_index, r.stdev_rate_index
      FROM (SELECT false AS is_total, l.* FROM unnest(lines) AS l
            UNION ALL
            SELECT true, l.family, 'all', sum(l.rows)::bigint, sum(l.months)::int, sum(l.months_total)::int,
                   min(l.first_bar), max(l.last_bar),
                   CASE WHEN bool_and(l.status = 'complete') THEN 'complete'
                        WHEN bool_or(l.status = 'failed') THEN 'failed'
                        WHEN bool_and(l.status = 'not started') THEN 'not started' ELSE 'incomplete' END,
                   avg(l.mean_rate_index), stddev_samp(l.mean_rate_index)
              FROM unnest(lines) AS l GROUP BY l.family) AS r
     ORDER BY r.family, r.is_total, r.pair;
END
$$;
COMMENT ON FUNCTION bqx.completion_report() IS
    'Rows, months and status of every derived table; per family (pair "all") sums, and mean and deviation across pairs';
