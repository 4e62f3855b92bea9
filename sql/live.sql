-- Live mode: the derived rows are there when the transaction commits that changed the bars.

CREATE FUNCTION bqx._check_can_follow(pair text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM bqx._check_has_index(pair);
    PERFORM bqx._check_sees_all_rows(bqx._m1_table(pair));
    IF bqx._families_of(pair) = '{}' THEN
        PERFORM bqx._derived_table('bqx', pair);
    END IF;
    PERFORM bqx._tables_to_follow(pair);
END
$$;

CREATE PROCEDURE bqx.enable_live(pairs text[] DEFAULT NULL)
LANGUAGE plpgsql
AS $$
DECLARE
    chosen pg_catalog.text[];
    chosen_pair pg_catalog.text;
    m1 pg_catalog.regclass;
    was_live boolean;
BEGIN
    PERFORM bqx._require_top_level('enable_live'::pg_catalog.text);
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
    chosen := bqx._pairs_to_refresh(pairs);
    PERFORM bqx._check_can_follow(p) FROM unnest(chosen) AS p;
    FOREACH chosen_pair IN ARRAY chosen LOOP
        m1 := bqx._m1_table(chosen_pair);
        was_live := bqx._is_live(chosen_pair);
        IF NOT was_live THEN
            PERFORM bqx._drop_live_triggers(m1);  -- of another name that the table had
            PERFORM bqx._create_live_triggers(chosen_pair, m1);
        END IF;
        PERFORM bqx._note_changes_of(chosen_pair, m1);
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        SET LOCAL search_path TO pg_catalog, pg_temp;
        RAISE NOTICE '%: %', chosen_pair, CASE WHEN was_live THEN 'was live' ELSE 'live from now on' END;
    END LOOP;
    RAISE NOTICE USING
        MESSAGE = 'each statement on M1 now computes the rows that it affects: about a millisecond for a new bar',
        DETAIL = 'A bar corrected in the past rewrites the rows of up to 630 bars after it. Of one pair, only one transaction at a '
                 'time can change bars: others wait for its end.',
        HINT = 'SET LOCAL bqx.live = off;  for a transaction with very many bars, then CALL bqx.refresh();';
    CALL bqx.refresh(chosen);  -- whatever was missing before
END
$$;
COMMENT ON PROCEDURE bqx.enable_live(text[]) IS
    'From now on the derived rows are there when the transaction commits that changed the bars';

-- Whether a pair's M1 table has the triggers of live mode.
CREATE FUNCTION bqx._is_live(pair text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = to_regclass(format('bqx.%I', 'm1_' || pair))
                      AND t.tgname = 'bqx_live' AND bqx._is_trigger_for(t.tgargs, pair))
$$;

CREATE FUNCTION bqx._drop_live_triggers(m1 regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    live record;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = m1 AND t.tgname IN ('bqx_live', 'bqx_live_begin')) THEN
        RETURN;
    END IF;
    -- The parent first, as others lock; and as DROP TRIGGER will, lest a feed that has read bars waits to write some.
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', m1);
    FOR live IN
        SELECT t.rel, t.tgname FROM bqx._own_triggers(m1) AS t WHERE t.tgname IN ('bqx_live', 'bqx_live_begin')
         ORDER BY t.rel <> m1, t.rel::oid
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', live.tgname, live.rel);
    END LOOP;
END
$$;

CREATE PROCEDURE bqx.disable_live(pairs text[] DEFAULT NULL)
LANGUAGE plpgsql
AS $$
DECLARE
    chosen pg_catalog.text[];
    chosen_pair pg_catalog.text;
    m1 pg_catalog.regclass;
BEGIN
    PERFORM bqx._require_top_level('disable_live'::pg_catalog.text);
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
    chosen := bqx._check_pairs(pairs);
    IF chosen IS NULL THEN
        chosen := ARRAY(SELECT p.pair FROM bqx.pairs AS p WHERE bqx._is_live(p.pair) ORDER BY 1);
    END IF;
    PERFORM bqx._m1_table(p) FROM unnest(chosen) AS p;  -- all are checked before the first is touched
    FOREACH chosen_pair IN ARRAY chosen LOOP
        m1 := bqx._m1_table(chosen_pair);
        IF bqx._is_live(chosen_pair) THEN
            PERFORM bqx._drop_live_triggers(m1);
            RAISE NOTICE '%: not live any more; changes are noted for bqx.refresh', chosen_pair;
        ELSE
            RAISE NOTICE '%: was not live', chosen_pair;
        END IF;
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        SET LOCAL search_path TO pg_catalog, pg_temp;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE bqx.disable_live(text[]) IS
    'Ends live mode: changes of bars are noted again, for bqx.refresh';
