-- Stage 1.5.1: the close that stands for 100.

-- The first bar at or after an instant. As _has_a_row, it gives the partitions' locks back.
CREATE FUNCTION bqx._first_bar_from(m1 regclass, instant timestamp with time zone,
    OUT bar_time timestamp with time zone, OUT bar_close double precision)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('SELECT %s, close::double precision FROM %s WHERE time >= %s ORDER BY time LIMIT 1',
                   bqx._as_instant(m1, 'time'), m1, bqx._as_key(m1, 'time', '$1'))
       INTO bar_time, bar_close USING instant;
    RAISE SQLSTATE 'BQX00';
EXCEPTION
    WHEN SQLSTATE 'BQX00' THEN RETURN;
END
$$;

CREATE PROCEDURE bqx.set_baselines(
    baseline_date timestamp with time zone DEFAULT '2024-07-01 00:00:00+00', pairs text[] DEFAULT NULL)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    chosen_pair text;
    m1 regclass;
    bar record;
    first_bar timestamptz;
BEGIN
    IF baseline_date IS NULL OR NOT isfinite(baseline_date) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'baseline_date must be a finite time',
            HINT = 'CALL bqx.set_baselines(''2024-07-01 00:00+00'');';
    END IF;
    FOREACH chosen_pair IN ARRAY bqx._pairs_or_all(pairs) LOOP
        m1 := bqx._m1_table(chosen_pair);
        PERFORM bqx._check_sees_all_rows(m1);
        bar := bqx._first_bar_from(m1, baseline_date);
        IF bar.bar_time IS NULL THEN
            first_bar := (bqx._m1_span(m1)).first_bar;
            RAISE EXCEPTION USING
                ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = format('pair "%s" has no bar at or after %s', chosen_pair, baseline_date),
                DETAIL = CASE WHEN first_bar IS NULL THEN format('%s is empty.', m1)
                         ELSE format('Its bars run from %s to %s.', first_bar, (bqx._m1_span(m1)).last_bar) END,
                HINT = CASE WHEN first_bar IS NULL
                       THEN format('CALL bqx.load_m1(%L, ''/path/to/bars.csv'');', chosen_pair)
                       ELSE format('CALL bqx.set_baselines(%L, ARRAY[%L]);', first_bar, chosen_pair) END;
        END IF;
        IF bar.bar_close IS NULL OR NOT (bar.bar_close > 0 AND bar.bar_close < 'Infinity') THEN
            RAISE EXCEPTION USING
                ERRCODE = 'numeric_value_out_of_range',
                MESSAGE = format('the baseline bar of pair "%s" at %s has close %s', chosen_pair, bar.bar_time,
                                 coalesce(bar.bar_close::text, 'NULL')),
                DETAIL = 'A baseline must be a positive finite number.',
                HINT = format('Correct the bar, or CALL bqx.set_baselines(%L, ARRAY[%L]);',
                              bar.bar_time + interval '1 minute', chosen_pair);
        END IF;
        IF bar.bar_time > baseline_date + interval '168 hours' THEN
            RAISE WARNING USING
                MESSAGE = format('baseline of %s is taken at %s, more than 7 days after %s',
                                 chosen_pair, bar.bar_time, baseline_date),
                DETAIL = 'There is no earlier bar at or after the date asked for.';
        END IF;
        PERFORM bqx._record_baseline(chosen_pair, baseline_date, bar.bar_time, bar.bar_close);
        RAISE NOTICE '%: baseline % at %', chosen_pair, bar.bar_close, bar.bar_time;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE bqx.set_baselines(timestamp with time zone, text[]) IS
    'Stage 1.5.1: records as baseline the close of each pair''s first bar at or after baseline_date';
