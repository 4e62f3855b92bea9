-- bqx_metrics and reg_metrics: the default columns of the derived tables, computed on demand, not stored.

SET LOCAL search_path TO pg_catalog, pg_temp;  -- for what is parsed here: see preflight.sql

-- The M1 table that rows are to be computed from; NULL, which gives no rows, where the caller sees no bar.
CREATE FUNCTION bqx._m1_to_compute(
    pair text, from_ts timestamp with time zone, to_ts timestamp with time zone) RETURNS regclass
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    known_pair text := bqx._check_pair(pair);
    m1 regclass := bqx._m1_table(known_pair);
    has_bars boolean;
BEGIN
    PERFORM bqx._check_time_range(from_ts, to_ts);
    EXECUTE format('SELECT EXISTS (SELECT FROM %s)', m1) INTO has_bars;
    IF NOT has_bars THEN
        RETURN NULL;
    END IF;
    PERFORM bqx._check_has_index(known_pair);
    RETURN m1;
END
$$;

-- One function per family, made from _metric_columns. Their bodies are parsed here: they need no pinned
-- search_path, and can be inlined, so that rows are materialised once, by _computed_rows.
DO $make$
DECLARE
    chosen_family text;
    value_names text[];
    definitions text;
BEGIN
    FOREACH chosen_family IN ARRAY ARRAY['bqx', 'reg'] LOOP
        SELECT pg_catalog.array_agg(c.name ORDER BY c.position) FILTER (WHERE c.name <> 'ts_utc'),
               pg_catalog.string_agg(pg_catalog.format('%I %s', c.name, c.sql_type), ', ' ORDER BY c.position)
          INTO value_names, definitions
          FROM bqx._metric_columns(chosen_family, NULL::int[]) AS c
         WHERE c.name <> 'created_at';
        EXECUTE pg_catalog.format(
            'CREATE FUNCTION bqx.%I('
            '    pair text, from_ts timestamp with time zone DEFAULT NULL, '
            '    to_ts timestamp with time zone DEFAULT NULL) '
            'RETURNS TABLE (%s) LANGUAGE sql STABLE PARALLEL RESTRICTED ROWS 30000 '
            'BEGIN ATOMIC '
            '    SELECT c.* FROM bqx._computed_rows(%L::text, bqx._m1_to_compute($1, $2, $3), '
            '        coalesce($2, ''-infinity''), coalesce($3, ''infinity''), %L::text[]) AS c (%s); '
            'END', chosen_family || '_metrics', definitions, chosen_family, value_names, definitions);
    END LOOP;
END
$make$;

COMMENT ON FUNCTION bqx.bqx_metrics(text, timestamp with time zone, timestamp with time zone) IS
    'The rows of bqx_<pair> for the bars in [from_ts, to_ts), computed, not stored; NULL leaves an end open';
COMMENT ON FUNCTION bqx.reg_metrics(text, timestamp with time zone, timestamp with time zone) IS
    'The rows of reg_<pair> for the bars in [from_ts, to_ts), computed, not stored; NULL leaves an end open';

SET LOCAL search_path TO bqx, pg_temp;
