-- bqx_ml.related_<pair> and bqx_ml.related: a pair's BQX metrics beside those of every pair that shares a currency with it.

SET LOCAL search_path TO pg_catalog, pg_temp;  -- for what is parsed here: see preflight.sql

-- What bqx_ml.related returns: the pair's own metrics, then those of each builtin pair, of which the unrelated stay NULL. A function's
-- columns cannot depend on its arguments.
DO $make$
BEGIN
    EXECUTE pg_catalog.format('CREATE TYPE bqx.related_row AS (ts_utc timestamptz, %s)',
        (SELECT pg_catalog.string_agg(pg_catalog.format('%I double precision', p.prefix || n), ', ' ORDER BY p.prefix <> 'target_', p.prefix, i)
           FROM (SELECT 'target_' UNION ALL SELECT b.pair || '_' FROM bqx.pairs AS b WHERE b.builtin) AS p (prefix)
          CROSS JOIN pg_catalog.unnest(bqx._metric_names('bqx')) WITH ORDINALITY AS u (n, i)));
END
$make$;
COMMENT ON TYPE bqx.related_row IS
    'BQX metrics of a pair (target_…) and of those that share a currency with it, as bqx_ml.related returns them';

-- The pairs that share a currency with a pair and have a table of BQX metrics, by name.
CREATE FUNCTION bqx._related_pairs(pair text) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(array_agg(o.pair ORDER BY o.pair), '{}')
      FROM bqx.pairs AS t
      JOIN bqx.pairs AS o ON o.pair <> t.pair
       AND (upper(o.base) IN (upper(t.base), upper(t.quote)) OR upper(o.quote) IN (upper(t.base), upper(t.quote)))
     WHERE t.pair = $1 AND to_regclass(format('bqx.%I', bqx._derived_name('bqx', o.pair))) IS NOT NULL
$$;

-- SQL for the metrics of one of the pairs, under its prefix.
CREATE FUNCTION bqx._prefixed(alias text, prefix text, names text[]) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(string_agg(format(', %I.%I AS %I', alias, n, prefix || n), '' ORDER BY i), '')
      FROM unnest(names) WITH ORDINALITY AS u (n, i)
$$;

-- SQL for the view.
CREATE FUNCTION bqx._related_view_query(pair text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    WITH tables AS (
        SELECT o, i, d AS derived, bqx._metrics_of('bqx', d) AS names
          FROM unnest(pair || bqx._related_pairs(pair)) WITH ORDINALITY AS u (o, i) CROSS JOIN LATERAL bqx._derived_table('bqx', o) AS d
    )
    SELECT format('SELECT target_rows.at AS ts_utc%s FROM %s',
                  string_agg(bqx._prefixed(alias, prefix, names), '' ORDER BY i),
                  string_agg(format(CASE i WHEN 1 THEN '%s AS %I' ELSE ' LEFT JOIN %s AS %2$I ON %2$I.at = target_rows.at' END,
                                    bqx._rows_by_time(derived, 'ts_utc', names, NULL, NULL), alias), '' ORDER BY i))
      FROM tables
     CROSS JOIN LATERAL (SELECT CASE i WHEN 1 THEN 'target' ELSE o END) AS n (name)
     CROSS JOIN LATERAL (SELECT name || CASE i WHEN 1 THEN '_rows' ELSE '_beside' END, name || '_') AS a (alias, prefix)
$$;

-- SQL for rows of bqx_ml.related, in [$1, $2).
CREATE FUNCTION bqx._related_rows_query(pair text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    WITH sources AS (
        SELECT 'target_' AS prefix, pair AS name
         UNION ALL SELECT b.pair || '_', CASE WHEN b.pair = ANY (bqx._related_pairs($1)) THEN b.pair END
          FROM bqx.pairs AS b WHERE b.builtin
    ), parts AS (
        SELECT s.prefix, s.prefix || 'rows' AS alias, s.name,
               CASE WHEN s.name IS NOT NULL THEN bqx._derived_table('bqx', s.name) END AS derived
          FROM sources AS s
    )
    SELECT format('SELECT target_rows.at, %s FROM %s ORDER BY target_rows.at',
        (SELECT string_agg(CASE WHEN p.name IS NULL THEN 'NULL::double precision' ELSE format('%I.%I', p.alias, n) END,
                           ', ' ORDER BY p.prefix <> 'target_', p.prefix, i)
           FROM parts AS p CROSS JOIN unnest(bqx._metric_names('bqx')) WITH ORDINALITY AS u (n, i)),
        (SELECT string_agg(
                    format(CASE p.prefix WHEN 'target_' THEN '%s AS %I' ELSE ' LEFT JOIN %s AS %2$I ON %2$I.at = target_rows.at' END,
                           bqx._rows_by_time(p.derived, 'ts_utc', bqx._metric_names('bqx'), 'coalesce($1, ''-infinity''::timestamptz)',
                                              'coalesce($2, ''infinity''::timestamptz)'), p.alias),
                    '' ORDER BY p.prefix <> 'target_', p.prefix)
           FROM parts AS p WHERE p.name IS NOT NULL))
$$;

CREATE FUNCTION bqx_ml.related(pair text, from_ts timestamp with time zone, to_ts timestamp with time zone)
RETURNS SETOF bqx.related_row
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED ROWS 30000 SUPPORT bqx._of_one_pair SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
BEGIN
    PERFORM bqx._check_time_range(from_ts, to_ts);
    RETURN QUERY EXECUTE bqx._related_rows_query(bqx._check_pair(pair)) USING from_ts, to_ts;
END
$$;
COMMENT ON FUNCTION bqx_ml.related(text, timestamp with time zone, timestamp with time zone) IS
    'BQX metrics of a pair in [from_ts, to_ts) beside those of the pairs that share a currency with it; NULL leaves an end open';

CREATE PROCEDURE bqx.create_related(pair text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    known_pair text := bqx._check_pair(pair);
    others text[] := bqx._related_pairs(known_pair);
    call text := format('CALL bqx.create_related(%L);', known_pair);
    done text := bqx._make_ml_view(
        'related_' || known_pair, false, bqx._related_view_query(known_pair),
        format('BQX metrics of %s beside those of %s related pairs', known_pair, cardinality(others)), call,
        bqx._tables_of_related(known_pair, false));
BEGIN
    PERFORM bqx._make_ml_function('related_' || known_pair, 'related_row', bqx._related_rows_query(known_pair),
                                  format('Rows of bqx_ml.related for %s', known_pair), call, bqx._tables_of_related(known_pair, true));
    RAISE NOTICE 'bqx_ml.related_%: %, beside % pair(s) that share a currency with it', known_pair, done, cardinality(others);
END
$$;
COMMENT ON PROCEDURE bqx.create_related(text) IS
    'Makes bqx_ml.related_<pair>: its BQX metrics beside those of every pair that shares a currency with it';

SET LOCAL search_path TO bqx, pg_temp;
