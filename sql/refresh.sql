-- What of the derived tables is missing or stale, and bringing it up to date.
--
-- Changes that were noted are few: just the rows that they affect are computed, by _follow_changes. Whole months are jobs,
-- as in a backfill: those that were never written, those with more changes than that is good for, and those whose
-- changes were not noted, which first have to be read to know whether there are any.

-- Changes over a longer time are for a month's job: it takes some 0.1 s to find that nothing differs, and is faster
-- by the row.
CREATE FUNCTION bqx._longest_followed() RETURNS interval
LANGUAGE sql IMMUTABLE
RETURN '1 day'::interval;

-- The time of the last row that a change at this instant affects, for rows that look back over so many bars.
CREATE FUNCTION bqx._last_affected(m1 regclass, changed_at timestamp with time zone, lookback int) RETURNS timestamp with time zone
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    last_time timestamptz;
BEGIN
    EXECUTE format('SELECT max(%s) FROM (SELECT time FROM %s WHERE time > %s ORDER BY time LIMIT $2) AS after',
                   bqx._as_instant(m1, 'time'), m1, bqx._as_key(m1, 'time', '$1'))
       INTO last_time USING changed_at, lookback;
    RETURN greatest(last_time, changed_at);
END
$$;

-- The families that a pair has tables of.
CREATE FUNCTION bqx._families_of(pair text) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ARRAY(SELECT f FROM unnest(ARRAY['bqx', 'reg']) AS f
                  WHERE to_regclass(format('bqx.%I', bqx._derived_name(f, pair))) IS NOT NULL)
$$;

-- Months of a pair's derived tables that have to be read to know whether they are as they should be, and why.
CREATE FUNCTION bqx._months_to_check(pair text, families text[])
RETURNS TABLE (family text, month date, reason text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET jit = off  -- estimates of many small functions' rows add up: compiling would take longer than all of it
AS $$
DECLARE
    known_months date[] := bqx._months_to_fill(families, pair, NULL, NULL);
BEGIN
    RETURN QUERY
    WITH bars AS MATERIALIZED (
        SELECT i.* FROM bqx._m1_identities(pair, known_months) AS i
    ), kept AS MATERIALIZED (
        SELECT f AS family, d.month, bqx._kept_in(b.identity, d.identity) AS kept_in
          FROM unnest(families) AS f CROSS JOIN LATERAL bqx._derived_identities(f, pair, known_months) AS d
          JOIN bars AS b ON b.month = d.month
    ), recorded AS MATERIALIZED (
        SELECT r.* FROM bqx._recorded_states(pair) AS r
    ), stored AS MATERIALIZED (
        SELECT f AS family, s.* FROM unnest(families) AS f, LATERAL bqx._filled_parts(bqx._derived_table(f, pair)) AS s
    )
    SELECT k.family, k.month, CASE WHEN r.month IS NULL THEN 'never computed'
                                   WHEN g.rows_are_gone THEN 'rows are gone'
                                   ELSE 'changes are not known' END
      FROM kept AS k LEFT JOIN recorded AS r ON r.family = k.family AND r.month = k.month
     CROSS JOIN LATERAL (SELECT r.bars > 0 AND NOT EXISTS (
               SELECT FROM stored AS s
                WHERE s.family = k.family AND s.from_ts < bqx._month_start(bqx._next_month(k.month))
                  AND s.to_ts > bqx._month_start(k.month))) AS g (rows_are_gone)
     WHERE r.month IS NULL OR r.followed_as IS DISTINCT FROM k.kept_in OR k.kept_in IS NULL OR g.rows_are_gone
     ORDER BY k.month, k.family;
END
$$;

-- The parts of a derived table that have storage for rows: what was lost in a crash (unlogged) has none.
CREATE FUNCTION bqx._filled_parts(derived regclass) RETURNS TABLE (from_ts timestamp with time zone, to_ts timestamp with time zone)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF bqx._is_partitioned_by(derived, 'ts_utc') AND NOT bqx._has_default_partition(derived) THEN
        RETURN QUERY
        SELECT p.from_ts, p.to_ts FROM bqx._partitions(derived) AS p
         WHERE bqx._has_storage(p.partition);
    ELSIF bqx._has_storage(derived) THEN
        RETURN QUERY SELECT '-infinity'::timestamptz, 'infinity'::timestamptz;
    END IF;
END
$$;

-- Rows at the table's end that are missing, though no change was noted: somebody deleted them. They are found without
-- reading a month. Rows that are missing in the middle are for backfill() and verify() to find, which count them.
CREATE FUNCTION bqx._missing_tail(pair text, families text[], OUT from_ts timestamp with time zone, OUT to_ts timestamp with time zone)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    newest timestamptz := (bqx._m1_span(bqx._m1_table(pair))).last_bar;
    one_family text;
    derived regclass;
    is_there boolean;
    last_row timestamptz;
BEGIN
    FOREACH one_family IN ARRAY families LOOP
        derived := bqx._derived_table(one_family, pair);
        EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE ts_utc = %s)', derived, bqx._as_key(derived, 'ts_utc', '$1'))
           INTO is_there USING newest;
        IF newest IS NOT NULL AND NOT is_there THEN
            EXECUTE format('SELECT (SELECT %s FROM (SELECT max(ts_utc) AS ts_utc FROM %s) AS last)',
                           bqx._as_instant(derived, 'ts_utc'), derived)
               INTO last_row;
            from_ts := least(from_ts, coalesce(last_row, '-infinity'));
            to_ts := newest;
        END IF;
    END LOOP;
END
$$;

-- The noted changes of a pair, in stretches: those that lie so near that rows in between are affected, too, are one.
CREATE FUNCTION bqx._noted_stretches(pair text)
RETURNS TABLE (change_ids bigint[], transaction_ids xid8[], from_ts timestamp with time zone, to_ts timestamp with time zone,
               removed boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_agg(n.change_id), array_agg(n.transaction_id), min(n.from_ts), max(n.to_ts), bool_or(n.removed)
      FROM (SELECT n.*, count(*) FILTER (WHERE n.from_ts > least(n.reached, '290000-01-01 00:00+00') + bqx._merged_gap())
                        OVER (ORDER BY n.from_ts, n.change_id) AS stretch
              FROM (SELECT n.*, max(n.to_ts) OVER (ORDER BY n.from_ts, n.change_id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS reached
                      FROM bqx._noted_changes(pair) AS n) AS n) AS n
     GROUP BY n.stretch
$$;

-- Changes of a pair's bars, or a tail of rows that is missing (without ids), with the months of the rows that they affect.
-- `by_month`: better computed by the month.
CREATE TYPE bqx._change AS (
    change_ids bigint[], transaction_ids xid8[], from_ts timestamp with time zone, to_ts timestamp with time zone,
    removed boolean, months date[], by_month boolean);

CREATE FUNCTION bqx._changes_to_follow(pair text, families text[]) RETURNS SETOF bqx._change
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    m1 regclass := bqx._m1_table(pair);
    change bqx._change;
    known_months date[];
    lookback int;
    tables_follow boolean;
    last_affected timestamptz;
BEGIN
    FOR change IN
        SELECT n.*, NULL::date[], NULL::boolean FROM bqx._noted_stretches(pair) AS n
        UNION ALL SELECT NULL, NULL, t.from_ts, t.to_ts, false, NULL, NULL FROM bqx._missing_tail(pair, families) AS t
                   WHERE t.to_ts IS NOT NULL
    LOOP
        IF known_months IS NULL THEN
            known_months := bqx._months_to_fill(families, pair, NULL, NULL);
            lookback := bqx._longest_lookback(pair);
            tables_follow := (SELECT bool_and(bqx._why_not_followed(bqx._derived_table(f, pair)) IS NULL) FROM unnest(families) AS f);
        END IF;
        last_affected := bqx._last_affected(m1, change.to_ts, lookback);
        change.months := ARRAY(SELECT m FROM unnest(known_months) AS m
                                WHERE bqx._month_start(bqx._next_month(m)) > change.from_ts AND bqx._month_start(m) <= last_affected);
        change.by_month := NOT tables_follow OR NOT isfinite(change.from_ts) OR NOT isfinite(change.to_ts)
                           OR change.to_ts - change.from_ts > bqx._longest_followed();
        RETURN NEXT change;
    END LOOP;
END
$$;

-- Forgets changes of a pair that every month saw, of both families, that they affect.
CREATE FUNCTION bqx._forget_answered(pair text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET jit = off
AS $$
DECLARE
    families text[] := bqx._families_of(pair);
    answered bigint[];
BEGIN
    IF families = '{}' OR NOT EXISTS (SELECT FROM bqx._noted_changes(pair)) THEN
        RETURN;
    END IF;
    answered := ARRAY(
        SELECT id FROM bqx._changes_to_follow(pair, families) AS c, unnest(c.change_ids) AS id
         WHERE NOT EXISTS (
             SELECT FROM unnest(c.months) AS m CROSS JOIN unnest(families) AS f
               LEFT JOIN bqx._recorded_states(pair) AS r ON r.family = f AND r.month = m
              WHERE r.seen IS NULL
                 OR EXISTS (SELECT FROM unnest(c.transaction_ids) AS x WHERE NOT pg_visible_in_snapshot(x, r.seen))));
    IF answered <> '{}' THEN
        PERFORM bqx._forget_changes(pair, answered);
    END IF;
END
$$;

-- What is known to be missing or stale. Months whose changes are not all noted are read, to know.
CREATE FUNCTION bqx.stale(pairs text[] DEFAULT NULL)
RETURNS TABLE (pair text, family text, month date, from_ts timestamp with time zone, to_ts timestamp with time zone, reason text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET jit = off
AS $$
DECLARE
    families text[];
BEGIN
    FOREACH pair IN ARRAY bqx._pairs_to_refresh(pairs) LOOP
        families := bqx._families_of(pair);
        RETURN QUERY
        SELECT stale.pair, c.family, c.month, NULL::timestamptz, NULL::timestamptz,
               CASE c.reason WHEN 'changes are not known' THEN 'bars have changed' ELSE c.reason END
          FROM bqx._months_to_check(pair, families) AS c
         WHERE NOT (c.reason = 'changes are not known' AND bqx._month_is_current(c.family, stale.pair, c.month));
        RETURN QUERY
        SELECT stale.pair, f, m, c.from_ts, c.to_ts, CASE WHEN c.change_ids IS NULL THEN 'rows are missing'
                                                          WHEN c.removed THEN 'bars were removed' ELSE 'bars came or changed' END
          FROM bqx._changes_to_follow(pair, families) AS c, unnest(families) AS f, unnest(c.months) AS m;
    END LOOP;
END
$$;
COMMENT ON FUNCTION bqx.stale(text[]) IS
    'Which months and rows of the derived tables are missing or stale; from_ts and to_ts where it is just some of a month';

-- The pairs that refresh works on: those named, which must have derived tables, or all that have.
CREATE FUNCTION bqx._pairs_to_refresh(pairs text[]) RETURNS text[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    chosen text[] := bqx._pairs_or_all(pairs);
BEGIN
    IF pairs IS NULL THEN
        RETURN ARRAY(SELECT p FROM unnest(chosen) AS p WHERE bqx._families_of(p) <> '{}');
    END IF;
    PERFORM bqx._derived_table('bqx', p) FROM unnest(chosen) AS p WHERE bqx._families_of(p) = '{}';
    RETURN chosen;
END
$$;

-- Those of a pair's tables, M1 too, that the caller owns and that lack partitions of some months.
CREATE FUNCTION bqx._tables_that_lack(pair text, months date[]) RETURNS TABLE (rel regclass, key_column text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT t.rel, t.key_column
      FROM (SELECT bqx._m1_table(pair), 'time'
            UNION ALL SELECT bqx._derived_table(f, pair), 'ts_utc' FROM unnest(bqx._families_of(pair)) AS f) AS t (rel, key_column)
     WHERE bqx._is_partitioned_by(t.rel, t.key_column) AND NOT bqx._has_default_partition(t.rel)
       AND pg_has_role(current_user, (SELECT c.relowner FROM pg_class AS c WHERE c.oid = t.rel), 'USAGE')
       AND EXISTS (SELECT FROM bqx._uncovered_parts(t.rel, months))
$$;

-- The partitions of the coming months, of M1 too, as far as the caller owns the tables; returns how many it made. What is in
-- the way of one (a partition that was detached, for instance, or a lock) keeps nobody from what there is to compute, and no
-- feed waiting.
CREATE FUNCTION bqx._ensure_coming_months(pair text) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms'
AS $$
DECLARE
    newest date;
    coming date[];
    lacking record;
    made int := 0;
    message text;
    hint text;
BEGIN
    newest := bqx._month_of((bqx._m1_span(bqx._m1_table(pair))).last_bar);
    coming := ARRAY(SELECT bqx._months(bqx._months_after(newest, 1), bqx._months_after(newest, greatest(bqx._months_ahead(), 1))));
    IF NOT EXISTS (SELECT FROM bqx._tables_that_lack(pair, coming)) THEN
        RETURN 0;
    END IF;
    PERFORM bqx._await_makers_of_partitions(pair);
    FOR lacking IN SELECT * FROM bqx._tables_that_lack(pair, coming) LOOP
        BEGIN
            made := made + bqx._ensure_partitions(lacking.rel, lacking.key_column, coming);
        EXCEPTION
            WHEN OTHERS THEN
                GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
                RAISE WARNING USING MESSAGE = format('%s has no partition for a coming month: %s', lacking.rel, message), HINT = hint;
        END;
    END LOOP;
    RETURN made;
EXCEPTION
    WHEN OTHERS THEN  -- no newest bar, or a lock: said by what comes after, or better luck next time
        RAISE WARNING '%: no partitions of coming months were made: %', pair, SQLERRM;
        RETURN 0;
END
$$;

-- New partitions get their triggers, and those that were enabled by hand fire for replicas again, if the caller owns M1.
CREATE FUNCTION bqx._mend_triggers(pair text, has_new_partitions boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms'
AS $$
DECLARE
    m1 regclass := bqx._m1_table(pair);
BEGIN
    IF pg_has_role(current_user, (SELECT c.relowner FROM pg_class AS c WHERE c.oid = m1), 'USAGE')
       AND (has_new_partitions
            OR EXISTS (SELECT FROM bqx._own_triggers(m1) AS t WHERE t.tgenabled IN ('O', 'R'))) THEN
        PERFORM bqx._keep_triggers_everywhere(m1);
    END IF;
EXCEPTION
    WHEN lock_not_available THEN
        RAISE WARNING '%: triggers of its partitions are left to the next refresh: %', pair, SQLERRM;
END
$$;

-- What refresh found to do for a pair: changes that it has followed, and months for jobs. Or what kept it from something.
CREATE TYPE bqx._refreshed AS (
    rows_followed bigint, changes_followed bigint, months date[], families text[], error text, error_code text, error_hint text);

-- Follows changes each on its own, and says which could not be followed.
CREATE FUNCTION bqx._follow_one_by_one(pair text, changes bqx._change[], done bqx._refreshed) RETURNS bqx._refreshed
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    change bqx._change;
    message text;
    detail text;
BEGIN
    FOREACH change IN ARRAY changes LOOP
        BEGIN
            done.rows_followed := done.rows_followed + bqx._follow_changes(
                pair, ARRAY[change.from_ts], ARRAY[change.to_ts], ARRAY[change.removed]);
            PERFORM bqx._forget_changes(pair, change.change_ids);
            done.changes_followed := done.changes_followed + 1;
        EXCEPTION
            WHEN OTHERS THEN
                GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
                GET STACKED DIAGNOSTICS done.error_code = RETURNED_SQLSTATE, done.error_hint = PG_EXCEPTION_HINT;
                done := bqx._with_error(pair, done, message, detail);
        END;
    END LOOP;
    RETURN done;
END
$$;

CREATE FUNCTION bqx._with_error(pair text, done bqx._refreshed, message text, detail text) RETURNS bqx._refreshed
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    done.error := pair || ': ' || bqx._with_detail(message, detail);
    done.error_hint := coalesce(nullif(done.error_hint, ''), bqx._hint_for(done.error_code));
    RETURN done;
END
$$;

-- Follows the changes of a pair that are few, and says what is left for jobs.
CREATE FUNCTION bqx._refresh_pair(pair text) RETURNS bqx._refreshed
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET jit = off
AS $$
DECLARE
    families text[] := bqx._families_of(pair);
    done bqx._refreshed := ROW(0, 0, '{}', '{}', NULL, NULL, NULL);
    changes bqx._change[];
    checked record;
BEGIN
    PERFORM bqx._check_ready_for_backfill(pair, families);
    PERFORM bqx._await_followers(pair, false);  -- what is asked from here on is later
    PERFORM bqx._forget_answered(pair);
    changes := ARRAY(SELECT c FROM bqx._changes_to_follow(pair, families) AS c);
    FOR checked IN
        SELECT c.family, c.month FROM bqx._months_to_check(pair, families) AS c
        UNION SELECT f, m FROM unnest(changes) AS c, unnest(c.months) AS m, unnest(families) AS f WHERE c.by_month
         ORDER BY month, family
    LOOP
        done.months := done.months || checked.month;
        done.families := done.families || checked.family;
    END LOOP;
    -- What affects just months that jobs will read is left to those.
    changes := ARRAY(
        SELECT c FROM unnest(changes) AS c
         WHERE NOT c.by_month AND (c.months = '{}' OR EXISTS (
             SELECT FROM unnest(c.months) AS m, unnest(families) AS f
              WHERE (m, f) NOT IN (SELECT j.m, j.f FROM unnest(done.months, done.families) AS j (m, f)))));
    IF changes <> '{}' THEN
        BEGIN
            done.rows_followed := (
                SELECT bqx._follow_changes(pair, array_agg(c.from_ts), array_agg(c.to_ts), array_agg(c.removed)) FROM unnest(changes) AS c);
            done.changes_followed := cardinality(changes);
            PERFORM bqx._forget_changes(pair, c.change_ids) FROM unnest(changes) AS c WHERE c.change_ids IS NOT NULL;
        EXCEPTION
            WHEN OTHERS THEN  -- one by one: a bad bar of the past is no reason to do without the newest
                done := bqx._follow_one_by_one(pair, changes, done);
        END;
    END IF;
    RETURN done;
END
$$;

-- One pair's trouble is not the others'.
CREATE FUNCTION bqx._try_to_refresh_pair(pair text) RETURNS bqx._refreshed
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    failed bqx._refreshed := ROW(0, 0, '{}', '{}', NULL, NULL, NULL);
    message text;
    detail text;
BEGIN
    RETURN bqx._refresh_pair(pair);
EXCEPTION
    WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
        GET STACKED DIAGNOSTICS failed.error_code = RETURNED_SQLSTATE, failed.error_hint = PG_EXCEPTION_HINT;
        RETURN bqx._with_error(pair, failed, message, detail);
END
$$;

-- What refresh says of a pair.
CREATE FUNCTION bqx._tell_refreshed(pair text, refreshed bqx._refreshed, partitions_made int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    months_to_read bigint := (SELECT count(DISTINCT m) FROM unnest(refreshed.months) AS m);
BEGIN
    IF refreshed.error IS NOT NULL THEN
        RAISE WARNING USING MESSAGE = refreshed.error, HINT = coalesce(refreshed.error_hint, '');
    END IF;
    RAISE NOTICE '%: %', pair, concat_ws(', ',
        CASE WHEN refreshed.changes_followed > 0
             THEN format('%s rows computed for %s changes', refreshed.rows_followed, refreshed.changes_followed) END,
        CASE WHEN months_to_read > 0 THEN format('%s months to read', months_to_read) END,
        CASE WHEN partitions_made > 0 THEN format('%s partition(s) made', partitions_made) END,
        CASE WHEN refreshed.error IS NOT NULL THEN 'not all of it'
             WHEN refreshed.changes_followed = 0 AND months_to_read = 0 THEN 'up to date' END);
    IF EXISTS (SELECT FROM bqx._m1_identities(pair, refreshed.months) AS i WHERE i.identity IS NULL) THEN
        RAISE NOTICE USING
            MESSAGE = format('%s: not all changes of its bars are noted, so every refresh reads these months', pair),
            HINT = format('CALL bqx.index_m1(ARRAY[%L]);  puts the triggers in order, unless the table is unlogged, foreign or inherited from.', pair);
    END IF;
END
$$;

-- Ends refresh with an error if pairs failed. One kind of trouble keeps its own code and hint.
CREATE FUNCTION bqx._report_refresh(failures bqx._refreshed[], pairs int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    common record;
BEGIN
    IF cardinality(failures) > 0 THEN
        SELECT CASE WHEN count(DISTINCT f.error_code) = 1 THEN min(f.error_code) ELSE 'P0001' END AS code,
               string_agg(DISTINCT f.error_hint, ' ') AS hint, string_agg(f.error, E'\n') AS detail
          INTO common FROM unnest(failures) AS f;
        RAISE EXCEPTION USING
            ERRCODE = common.code,
            MESSAGE = format('%s of %s pairs could not be refreshed completely', cardinality(failures), pairs),
            DETAIL = common.detail,
            HINT = concat_ws(' ', common.hint, 'CALL bqx.refresh();  again, when that is mended.');
    END IF;
END
$$;

-- Adds a pair's months to a run of jobs, and opens it before the first.
CREATE FUNCTION bqx._plan_refresh(run_id bigint, pairs text[], pair text, refreshed bqx._refreshed) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    run bigint := coalesce(run_id, bqx._open_run(jsonb_build_object('refresh', true, 'pairs', pairs, 'force', false)));
BEGIN
    PERFORM bqx._add_jobs(run, pair, ARRAY[f], ARRAY(
                SELECT j.m FROM unnest(refreshed.months, refreshed.families) AS j (m, f) WHERE j.f = one_family.f ORDER BY 1))
       FROM (SELECT DISTINCT f FROM unnest(refreshed.families) AS f) AS one_family (f);
    RETURN run;
END
$$;

CREATE PROCEDURE bqx.refresh(pairs text[] DEFAULT NULL)
LANGUAGE plpgsql
AS $$
DECLARE
    few_units CONSTANT pg_catalog.int8 := 4;  -- not worth a worker
    chosen pg_catalog.text[];
    chosen_pair pg_catalog.text;
    made pg_catalog.int4;
    refreshed bqx._refreshed;
    run pg_catalog.int8;
    units pg_catalog.int8 := 0;
    failures bqx._refreshed[] := '{}';
BEGIN
    PERFORM bqx._require_top_level('refresh'::pg_catalog.text);
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
    chosen := bqx._pairs_to_refresh(pairs);
    IF pairs IS NOT NULL THEN  -- of those that were asked for, all are checked before the first is touched
        PERFORM bqx._check_ready_for_backfill(p, bqx._families_of(p)) FROM unnest(chosen) AS p;
    END IF;
    FOREACH chosen_pair IN ARRAY chosen LOOP
        made := bqx._ensure_coming_months(chosen_pair);
        COMMIT;  -- so that no lock is held that who writes bars waits for
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        SET LOCAL search_path TO pg_catalog, pg_temp;
        PERFORM bqx._mend_triggers(chosen_pair, made > 0);
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        SET LOCAL search_path TO pg_catalog, pg_temp;
        refreshed := bqx._try_to_refresh_pair(chosen_pair);
        IF refreshed.error IS NOT NULL THEN
            failures := failures || refreshed;
        END IF;
        IF refreshed.months <> '{}' THEN
            run := bqx._plan_refresh(run, chosen, chosen_pair, refreshed);
            units := units + (SELECT count(DISTINCT m) FROM unnest(refreshed.months) AS m);
        END IF;
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        SET LOCAL search_path TO pg_catalog, pg_temp;
        PERFORM bqx._tell_refreshed(chosen_pair, refreshed, made);
    END LOOP;
    IF run IS NOT NULL THEN
        PERFORM bqx._enter_run(run);
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        SET LOCAL search_path TO pg_catalog, pg_temp;
        CALL bqx._work_off(run, CASE WHEN units <= few_units THEN 0 END, true);
        SET LOCAL search_path TO pg_catalog, pg_temp;
        PERFORM bqx._forget_answered(p) FROM unnest(chosen) AS p;
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        SET LOCAL search_path TO pg_catalog, pg_temp;
    END IF;
    PERFORM bqx._report_refresh(failures, cardinality(chosen));
END
$$;
COMMENT ON PROCEDURE bqx.refresh(text[]) IS
    'Brings the derived tables up to the newest bar, and computes anew exactly what corrected or deleted bars touch';
