-- A reproducible simulated market, for trials and benchmarks.

-- Puts one simulated month into the pair's table; returns the bars inserted. Bars that are not the simulation's own
-- are never touched: it refuses a month that has any.
CREATE FUNCTION bqx._simulate_month(pair text, month date, seed bigint) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_nestloop = off  -- a table without statistics would be read once per bar
AS $$
DECLARE
    m1 regclass;
    currencies record;
    strangers bigint;
    inserted bigint;
BEGIN
    SELECT p.base, p.quote INTO currencies FROM bqx.pairs AS p WHERE p.pair = $1;
    IF currencies.base IS NULL OR currencies.quote IS NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('pair "%s" has no base or quote currency', pair),
            HINT = format('UPDATE bqx.pairs SET base = ''EUR'', quote = ''USD'' WHERE pair = %L;', pair);
    END IF;
    PERFORM pg_advisory_xact_lock(bqx._lock_key('m1', pair));
    m1 := bqx._ensure_m1(pair);
    PERFORM bqx._check_sees_all_rows(m1);
    PERFORM bqx._ensure_partitions(m1, 'time', ARRAY[month]);
    PERFORM bqx._keep_triggers_everywhere(m1);
    EXECUTE format(
        'SELECT count(*) FROM %1$s AS t WHERE t.time >= %2$s AND t.time < %3$s AND NOT EXISTS ('
        '  SELECT FROM bqx._simulated_bars($3, $4, $5, $6) AS s WHERE %4$s = t.time AND '
        '  (s.open, s.high, s.low, s.close) IS NOT DISTINCT FROM (t.open, t.high, t.low, t.close))',
        m1, bqx._as_key(m1, 'time', '$1'), bqx._as_key(m1, 'time', '$2'), bqx._as_key(m1, 'time', 's.time'))
       INTO strangers
      USING bqx._month_start(month), bqx._month_start(bqx._next_month(month)), currencies.base, currencies.quote, month, seed;
    IF strangers > 0 THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('%s has %s bars in %s that are not of this simulation', m1, strangers, to_char(month, 'YYYY-MM')),
            DETAIL = 'Simulated bars are never mixed with others.',
            HINT = format('Simulate another pair or month, or a fresh table: DROP TABLE %s;', m1);
    END IF;
    EXECUTE format(
        'INSERT INTO %1$s (time, open, high, low, close, volume) '
        'SELECT %4$s, s.open, s.high, s.low, s.close, s.volume FROM bqx._simulated_bars($3, $4, $5, $6) AS s '
        'WHERE NOT EXISTS (SELECT FROM %1$s AS t WHERE t.time = %4$s AND t.time >= %2$s AND t.time < %3$s)',
        m1, bqx._as_key(m1, 'time', '$1'), bqx._as_key(m1, 'time', '$2'), bqx._as_key(m1, 'time', 's.time'))
      USING bqx._month_start(month), bqx._month_start(bqx._next_month(month)), currencies.base, currencies.quote, month, seed;
    GET DIAGNOSTICS inserted = ROW_COUNT;
    RETURN inserted;
END
$$;

CREATE PROCEDURE bqx.simulate_m1(
    pairs text[] DEFAULT NULL, from_month date DEFAULT '2024-07-01', to_month date DEFAULT '2025-06-01', seed bigint DEFAULT 1)
LANGUAGE plpgsql
AS $$
DECLARE
    chosen pg_catalog.text[];
    chosen_pair pg_catalog.text;
    months pg_catalog.date[];
    chosen_month pg_catalog.date;
    inserted bigint;
BEGIN
    PERFORM bqx._require_top_level('simulate_m1'::pg_catalog.text);
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
    IF from_month IS NULL OR to_month IS NULL OR seed IS NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'from_month, to_month and seed must not be NULL',
            HINT = 'CALL bqx.simulate_m1(ARRAY[''eurusd''], ''2024-07-01'', ''2024-09-01'');';
    END IF;
    PERFORM bqx._check_month_range(from_month, to_month);
    chosen := coalesce(bqx._check_pairs(pairs),
        ARRAY(SELECT p.pair FROM bqx.pairs AS p WHERE p.base IS NOT NULL AND p.quote IS NOT NULL ORDER BY 1));
    months := ARRAY(SELECT bqx._months(from_month, to_month));

    FOREACH chosen_pair IN ARRAY chosen LOOP
        inserted := 0;
        FOREACH chosen_month IN ARRAY months LOOP
            inserted := inserted + bqx._simulate_month(chosen_pair, chosen_month, seed);
            COMMIT;
            SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
            SET LOCAL search_path TO pg_catalog, pg_temp;
        END LOOP;
        RAISE NOTICE 'm1_%: % simulated bars inserted', chosen_pair, inserted;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE bqx.simulate_m1(text[], date, date, bigint) IS
    'Fills M1 tables with a reproducible simulated market, for trials and benchmarks';
