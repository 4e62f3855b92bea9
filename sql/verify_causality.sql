-- bqx.verify_causality: whether anything that is computed of a bar knows of bars after it.

SET LOCAL search_path TO pg_catalog, pg_temp;  -- for what is parsed here: see preflight.sql

-- What can be computed of bars without looking ahead, one expression for each kind: over the columns of M1, in the window w.
CREATE FUNCTION bqx._indicator_expressions() RETURNS TABLE (name text, expression text)
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    VALUES ('sma', 'bqx.sma(close, 20) OVER w'),
           ('ema', 'bqx.ema(close, 12) OVER w'),
           ('wma', 'bqx.wma(close, 30) OVER w'),
           ('rsi', 'bqx.rsi(close, 14) OVER w'),
           ('macd', 'bqx.macd(close, 12, 26, 9) OVER w'),
           ('bollinger', 'bqx.bollinger(close, 20, 2) OVER w'),
           ('atr', 'bqx.atr(high, low, close, 14) OVER w'),
           ('stochastic', 'bqx.stochastic(high, low, close, 14, 3, 3) OVER w'),
           ('williams_r', 'bqx.williams_r(high, low, close, 14) OVER w'),
           ('cci', 'bqx.cci(high, low, close, 20) OVER w'),
           ('roc', 'bqx.roc(close, 10) OVER w'),
           ('momentum', 'bqx.momentum(close, 10) OVER w'),
           ('obv', 'bqx.obv(close, volume) OVER w'),
           ('vwap', 'bqx.vwap(close, volume) OVER w'),
           ('realized_volatility', 'bqx.realized_volatility(close, 60) OVER w'),
           ('last_known', 'bqx.last_known(close) OVER w'),
           ('candlesticks', 'bqx.candlesticks(open, high, low, close) OVER w'),
           ('rolling_corr', 'bqx.rolling_corr(high, low) OVER (w ROWS 59 PRECEDING)'),
           ('bqx_window_metrics', 'bqx.bqx_window_metrics(close, 60) OVER (w ROWS 60 PRECEDING)'),
           ('quadratic_reg', 'bqx.quadratic_reg(close) OVER (w ROWS 59 PRECEDING)'),
           ('quadratic_reg_xy', 'bqx.quadratic_reg(close, high) OVER (w ROWS 59 PRECEDING)');
END;

-- Copies of bars around an instant: so many up to it, and as many after; once as they are, and twice with all after it changed, once up and once
-- down, so that what goes by which way the next bar goes is found out, too. By turns, ten are moved by some per cent, each by others, and ten are
-- stairs back after one bar forth, so that there are candlestick patterns of every kind. What is NULL or 0 changes as well. Of those that go
-- down, the first and every seventh are left out: so what goes by when bars come, or how many, is found out.
CREATE FUNCTION bqx._copy_bars_around(m1 regclass, instant timestamp with time zone, bars int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    copied record;
BEGIN
    EXECUTE format(
        'CREATE TEMP TABLE bqx_bars_as_they_are AS '
        'SELECT b.at AS time, b.open, b.high, b.low, b.close, b.volume, b.rate_index '
        'FROM ((SELECT * FROM %1$s AS u WHERE u.at <= $1 ORDER BY u.at DESC LIMIT $2) UNION ALL '
              '(SELECT * FROM %1$s AS l WHERE l.at > $1 ORDER BY l.at LIMIT $2)) AS b',
        bqx._rows_by_time(m1, 'time', bqx._bar_columns(), NULL, NULL))
        USING instant, bars;
    FOR copied IN SELECT * FROM (VALUES ('bqx_bars_raised_after', 1), ('bqx_bars_lowered_after', -1)) AS v (name, way) LOOP
        EXECUTE format(
            'CREATE TEMP TABLE %I AS SELECT b.* FROM pg_temp.bqx_bars_as_they_are AS b WHERE b.time <= $1 UNION ALL '
            'SELECT c.time, CASE WHEN is_stair THEN opens ELSE coalesce(open, level) * share END, '
                   'CASE WHEN is_stair THEN greatest(opens, closes) ELSE coalesce(high, level) * share END, '
                   'CASE WHEN is_stair THEN least(opens, closes) ELSE coalesce(low, level) * share END, '
                   'CASE WHEN is_stair THEN closes ELSE coalesce(close, level) * share END, '
                   'CASE WHEN $2 > 0 THEN coalesce(volume, 0) + 1e6 * share ELSE 0 END, rate_index * share '
              'FROM (SELECT l.*, level, l.n / 10 %% 2 = 1 AS is_stair, 1 + $2 * (0.01 + 0.02 * abs(sin((l.n + 1) ^ 2))) AS share, '
                           'level * (1 + $2 * (0.02 - 0.001 * (l.n %% 10))) AS opens, '
                           'level * (1 + $2 * (0.02 - 0.001 * (l.n %% 10) + CASE l.n %% 10 WHEN 0 THEN 0.001 ELSE -0.0015 END)) AS closes '
                      'FROM (SELECT b.*, row_number() OVER (ORDER BY b.time) - 1 AS n FROM pg_temp.bqx_bars_as_they_are AS b WHERE b.time > $1) AS l '
                     'CROSS JOIN (SELECT avg(b.close) FROM pg_temp.bqx_bars_as_they_are AS b) AS a (level)) AS c '
             'WHERE $2 > 0 OR c.n %% 7 <> 0', copied.name)
            USING instant, copied.way;
        EXECUTE format('CREATE UNIQUE INDEX ON pg_temp.%I (time)', copied.name);
        EXECUTE format('ANALYZE pg_temp.%I', copied.name);
    END LOOP;
    CREATE UNIQUE INDEX ON pg_temp.bqx_bars_as_they_are (time);
    ANALYZE pg_temp.bqx_bars_as_they_are;
END
$$;

-- Expressions of the caller's: each must be one over the copy alone, since other tables stay as they are. Its own error is raised, but says
-- which one it is.
CREATE FUNCTION bqx._check_expressions(expressions text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC'
AS $$
DECLARE
    expression text;
    number int := 0;
    said text;
    hinted text;
BEGIN
    FOREACH expression IN ARRAY coalesce(expressions, '{}') LOOP
        number := number + 1;
        IF coalesce(expression, '') !~ '\S' OR expression ~* '\mselect\M' THEN
            RAISE EXCEPTION USING
                ERRCODE = 'invalid_parameter_value',
                MESSAGE = format('expression %s is not over bars alone: %s', number, coalesce(quote_literal(expression), 'NULL')),
                DETAIL = 'A query would read tables that stay as they are, whatever bars come.',
                HINT = 'Such as:  lag(close) OVER w  with columns of M1, in the window w (ORDER BY time).';
        END IF;
        BEGIN
            EXECUTE format(E'SELECT ROW(%s\n) FROM pg_temp.bqx_bars_as_they_are WINDOW w AS (ORDER BY time) LIMIT 0', expression);
        EXCEPTION
            WHEN OTHERS THEN
                GET STACKED DIAGNOSTICS said = MESSAGE_TEXT, hinted = PG_EXCEPTION_HINT;
                RAISE EXCEPTION USING
                    ERRCODE = SQLSTATE,
                    MESSAGE = format('expression %s cannot be computed: %s', number, quote_literal(expression)),
                    DETAIL = said,
                    HINT = coalesce(nullif(hinted, ''), 'Expressions have the columns of M1, and the window w (ORDER BY time).');
        END;
    END LOOP;
END
$$;

-- SQL for everything that is computed of a table's bars: columns time, and a jsonb object of values by name.
CREATE FUNCTION bqx._computed_of(bars regclass, expressions text[]) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('SELECT e.time, to_jsonb(e) || coalesce(to_jsonb(b), ''{}'') || coalesce(to_jsonb(r), ''{}'') AS computed '
                  'FROM (SELECT %s, time FROM %s WINDOW w AS (ORDER BY time)) AS e%s',
                  array_to_string(expressions, ', '), bars,
                  string_agg(format(' LEFT JOIN bqx._computed_rows(%L, %L, ''-infinity'', ''infinity'', %L) AS %I (at timestamptz%s) ON %4$I.at = e.time',
                                    family, bars, names, alias,
                                    (SELECT string_agg(format(', %I double precision', n), '' ORDER BY i)
                                       FROM unnest(names) WITH ORDINALITY AS u (n, i))), ''))
      FROM (VALUES ('bqx', 'b'), ('reg', 'r')) AS f (family, alias)
     CROSS JOIN LATERAL bqx._metric_names(family) AS names
$$;

-- The values of two such objects side by side, e1, e2 … under these names, those of composite ones under names of
-- their own. (How many rows a window has, their n, is no value.)
CREATE FUNCTION bqx._values_of(names text[], one jsonb, other jsonb) RETURNS TABLE (name text, a jsonb, b jsonb)
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT CASE WHEN v.key ~ '^e[0-9]+$' THEN names[substr(v.key, 2)::int] ELSE v.key END || coalesce('_' || c.key, ''),
           coalesce(c.value, v.value),
           CASE WHEN c.key IS NULL THEN other -> v.key ELSE other -> v.key -> c.key END
      FROM jsonb_each(one) AS v
      LEFT JOIN LATERAL jsonb_each(CASE jsonb_typeof(v.value) WHEN 'object' THEN v.value END) AS c ON true
     WHERE v.key NOT IN ('time', 'at') AND c.key IS DISTINCT FROM 'n';
END;

CREATE FUNCTION bqx.verify_causality(
    pair text, at timestamp with time zone DEFAULT NULL, bars int DEFAULT 1000, expressions text[] DEFAULT NULL)
RETURNS TABLE (
    feature text, is_causal boolean, rows_until bigint, changed_until bigint, rows_after bigint, changed_after bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC' SET jit = off
AS $$
DECLARE
    known_pair text := bqx._check_pair(pair);
    m1 regclass := bqx._m1_table(known_pair);
    names text[];
    computed text[];
    last_until timestamptz;
BEGIN
    IF (bars BETWEEN 2 AND 100000) IS NOT TRUE THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('bars must be between 2 and 100000, not %s', coalesce(bars::text, 'NULL')),
            DETAIL = 'So many bars until the instant are compared, and as many after it.';
    END IF;
    PERFORM bqx._check_has_index(known_pair);
    EXECUTE format('SELECT b.at FROM %s AS b ORDER BY b.at DESC OFFSET %s LIMIT 1', bqx._rows_by_time(m1, 'time', '{}', NULL, NULL), bars)
       INTO last_until;
    last_until := coalesce(at, last_until);
    IF last_until IS NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'no_data_found',
            MESSAGE = format('%s has fewer than %s bars', m1, bars + 1),
            HINT = 'SELECT * FROM bqx.verify_causality(pair, bars => …);  takes fewer.';
    END IF;
    PERFORM bqx._copy_bars_around(m1, last_until, bars);
    IF NOT EXISTS (SELECT FROM pg_temp.bqx_bars_as_they_are AS b WHERE b.time <= last_until)
       OR NOT EXISTS (SELECT FROM pg_temp.bqx_bars_as_they_are AS b WHERE b.time > last_until) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'no_data_found',
            MESSAGE = format('%s has no bars on both sides of %s', m1, last_until),
            HINT = 'NULL takes an instant near the end of the bars.';
    END IF;
    PERFORM bqx._check_expressions(expressions);

    -- Expressions are numbered: as names, long ones would be cut, and taken for each other.
    SELECT array_agg(e.name ORDER BY e.i), array_agg(format(E'(%s\n) AS e%s', e.expression, e.i) ORDER BY e.i) INTO names, computed
      FROM (SELECT row_number() OVER () AS i, u.*
              FROM (SELECT * FROM bqx._indicator_expressions() UNION ALL SELECT DISTINCT x, x FROM unnest(expressions) AS x) AS u) AS e;
    -- Materialized, or each value would be computed anew for each name.
    RETURN QUERY EXECUTE format(
        'WITH a AS MATERIALIZED (%s), b AS MATERIALIZED (%s), c AS MATERIALIZED (%s), compared AS ('
        'SELECT v.*, a.time <= $1 AS is_until, true AS raised '
          'FROM a JOIN b ON b.time = a.time CROSS JOIN LATERAL bqx._values_of($2, a.computed, b.computed) AS v UNION ALL '
        'SELECT v.*, a.time <= $1, false '
          'FROM a JOIN c ON c.time = a.time CROSS JOIN LATERAL bqx._values_of($2, a.computed, c.computed) AS v) '
        'SELECT s.name, CASE WHEN changed_until > 0 THEN false WHEN known_until > 0 AND changed_after > 0 THEN true END, '
               'known_until, changed_until, known_after, changed_after '
        'FROM (SELECT v.name, count(*) FILTER (WHERE is_until AND raised AND is_known), '
                     'greatest(count(*) FILTER (WHERE is_until AND raised AND differs), count(*) FILTER (WHERE is_until AND NOT raised AND differs)), '
                     'count(*) FILTER (WHERE NOT is_until AND raised AND is_known), '
                     'greatest(count(*) FILTER (WHERE NOT is_until AND raised AND differs), count(*) FILTER (WHERE NOT is_until AND NOT raised AND differs)) '
              'FROM compared AS v CROSS JOIN LATERAL (SELECT v.a <> ''null'' OR v.b <> ''null'', v.a IS DISTINCT FROM v.b) AS k (is_known, differs) '
              'GROUP BY v.name) AS s (name, known_until, changed_until, known_after, changed_after) ORDER BY s.name',
        bqx._computed_of('pg_temp.bqx_bars_as_they_are', computed), bqx._computed_of('pg_temp.bqx_bars_raised_after', computed),
        bqx._computed_of('pg_temp.bqx_bars_lowered_after', computed))
        USING last_until, names;
    DROP TABLE pg_temp.bqx_bars_as_they_are, pg_temp.bqx_bars_raised_after, pg_temp.bqx_bars_lowered_after;
END
$$;
COMMENT ON FUNCTION bqx.verify_causality(text, timestamp with time zone, int, text[]) IS
    'Changes bars after an instant, in copies, and compares everything that is computed of bars until then: is_causal unless something differs';

SET LOCAL search_path TO bqx, pg_temp;
