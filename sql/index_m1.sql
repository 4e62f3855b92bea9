-- Stage 1.5.2: rate_index on every bar, and a trigger that keeps it so however a bar comes.

-- What the trigger function _set_rate_index does, where close and rate_index are not both double precision: it hands its
-- calls on.
CREATE FUNCTION bqx._set_rate_index_of_any_type() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.rate_index := bqx._rate_index_or_null(NEW.close::double precision, TG_ARGV[0]::double precision);
    RETURN NEW;
END
$$;

CREATE FUNCTION bqx._baseline_of(pair text) RETURNS double precision
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    rate double precision := (SELECT b.baseline_rate FROM bqx.baseline_rates AS b WHERE b.pair = $1);
BEGIN
    IF rate IS NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('pair "%s" has no baseline', pair),
            HINT = format('CALL bqx.set_baselines(pairs => ARRAY[%L]);', pair);
    END IF;
    RETURN rate;
END
$$;

-- (Re)makes the trigger where its baseline is not this one.
CREATE FUNCTION bqx._install_rate_index_trigger(m1 regclass, baseline double precision) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET extra_float_digits = 1  -- the argument is text: it must read back as the same double
AS $$
DECLARE
    argument bytea := (SELECT t.tgargs FROM pg_trigger AS t
                        WHERE t.tgrelid = m1 AND t.tgname = 'bqx_set_rate_index' AND NOT t.tgisinternal);
BEGIN
    IF argument IS DISTINCT FROM convert_to(baseline::text, 'UTF8') || decode('00', 'hex') THEN
        IF argument IS NOT NULL THEN
            -- the parent first, as readers lock: dropping the trigger would begin with the partitions
            EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', m1);
            EXECUTE format('DROP TRIGGER bqx_set_rate_index ON %s', m1);
        END IF;
        EXECUTE format('CREATE TRIGGER bqx_set_rate_index BEFORE INSERT OR UPDATE ON %s '
                       'FOR EACH ROW EXECUTE FUNCTION bqx._set_rate_index(%L)', m1, baseline::text);
    END IF;
END
$$;

-- Sets rate_index in one table (a partition or a plain table) where it differs; returns the rows changed.
-- A numeric column rounds on assignment: what is compared is what would be stored.
CREATE FUNCTION bqx._update_rate_index(rel regclass, baseline double precision) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    changed bigint;
BEGIN
    EXECUTE format('UPDATE %1$s SET rate_index = bqx._rate_index_or_null(close::double precision, $1)::%2$s '
                   'WHERE rate_index IS DISTINCT FROM bqx._rate_index_or_null(close::double precision, $1)::%2$s',
                   rel, bqx._column_type(rel, 'rate_index')) USING baseline;
    GET DIAGNOSTICS changed = ROW_COUNT;
    RETURN changed;
END
$$;

-- Tables that hold the rows: the leaf partitions, or the table itself.
CREATE FUNCTION bqx._leaves(rel regclass) RETURNS regclass[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce((SELECT array_agg(t.relid ORDER BY t.relid::oid) FROM pg_partition_tree(rel) AS t WHERE t.isleaf),
                    CASE WHEN EXISTS (SELECT FROM pg_partitioned_table AS p WHERE p.partrelid = rel)
                         THEN '{}'::regclass[] ELSE ARRAY[rel] END)
$$;

CREATE PROCEDURE bqx.index_m1(pairs text[] DEFAULT NULL)
LANGUAGE plpgsql
AS $$
DECLARE
    chosen pg_catalog.text[];
    chosen_pair pg_catalog.text;
    baseline double precision;
    m1 pg_catalog.regclass;
    leaf pg_catalog.regclass;
    leaves pg_catalog.regclass[];
    changed bigint;
    generated boolean;
BEGIN
    PERFORM bqx._require_top_level('index_m1'::pg_catalog.text);
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
    chosen := bqx._pairs_or_all(pairs);
    PERFORM bqx._baseline_of(p) FROM unnest(chosen) AS p;  -- all are checked before the first is touched
    PERFORM bqx._check_sees_all_rows(bqx._m1_table(p)) FROM unnest(chosen) AS p;

    FOREACH chosen_pair IN ARRAY chosen LOOP
        m1 := bqx._m1_table(chosen_pair);
        baseline := bqx._baseline_of(chosen_pair);
        IF bqx._column_type(m1, 'rate_index') IS NULL THEN
            EXECUTE format('ALTER TABLE %s ADD COLUMN rate_index double precision', m1);
            RAISE NOTICE 'm1_%: column rate_index added', chosen_pair;
        END IF;
        generated := (SELECT a.attgenerated <> '' FROM pg_attribute AS a
                       WHERE a.attrelid = m1 AND a.attname = 'rate_index' AND NOT a.attisdropped);
        changed := 0;
        IF generated THEN
            RAISE NOTICE 'm1_%: rate_index is a generated column and stays as it is', chosen_pair;
            leaves := '{}';
            PERFORM bqx._note_changes_of(chosen_pair, m1);
        ELSE
            -- The trigger first: a bar that comes meanwhile has its index from the same baseline.
            PERFORM bqx._install_rate_index_trigger(m1, baseline);
            PERFORM bqx._note_changes_of(chosen_pair, m1);
            leaves := bqx._leaves(m1);
            PERFORM bqx._check_sees_all_rows(l) FROM unnest(leaves) AS l;  -- each is updated on its own
        END IF;
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        SET LOCAL search_path TO pg_catalog, pg_temp;
        FOREACH leaf IN ARRAY leaves LOOP
            SET LOCAL bqx.live = off;  -- all rows are stale then, and sooner made anew by the month
            changed := changed + bqx._update_rate_index(leaf, baseline);
            COMMIT;
            SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
            SET LOCAL search_path TO pg_catalog, pg_temp;
        END LOOP;
        IF NOT bqx._mark_baseline_applied(chosen_pair, baseline) THEN
            RAISE EXCEPTION USING
                ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = format('the baseline of pair "%s" has changed meanwhile', chosen_pair),
                HINT = format('CALL bqx.index_m1(ARRAY[%L]);', chosen_pair);
        END IF;
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        SET LOCAL search_path TO pg_catalog, pg_temp;
        RAISE NOTICE 'm1_%: baseline % applied, rate_index set on % bars', chosen_pair, baseline, changed;
        IF changed > 0 AND bqx._families_of(chosen_pair) <> '{}' THEN
            RAISE NOTICE USING
                MESSAGE = format('%s: rows of its derived tables are stale now', chosen_pair),
                HINT = format('CALL bqx.backfill(pairs => ARRAY[%L]);', chosen_pair);
        END IF;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE bqx.index_m1(text[]) IS
    'Stage 1.5.2: fills rate_index and keeps it filled for bars that come or change later';

-- 42P01 where the pair has no M1 table, 55000 where its bars have no rate_index from the baseline recorded.
CREATE FUNCTION bqx._check_has_index(pair text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    m1 regclass := bqx._m1_table(pair);
    has_index boolean := false;
    newest timestamptz;
    has_baseline boolean := EXISTS (SELECT FROM bqx.baseline_rates AS b WHERE b.pair = $1);
    is_applied boolean := EXISTS (SELECT FROM bqx.baseline_rates AS b
                                   WHERE b.pair = $1 AND b.applied_at IS NOT NULL);
BEGIN
    -- The table counts, not only the record: M1 may have been made anew, or bring a rate_index of its own.
    IF bqx._column_type(m1, 'rate_index') IS NOT NULL AND (is_applied OR NOT has_baseline) THEN
        -- one row says it, mostly the newest; a query for that one takes less time to plan
        newest := bqx._end_bar(m1, true);
        has_index := isfinite(newest) AND bqx._has_a_row(
            format('%s WHERE time = %s AND rate_index IS NOT NULL', m1, bqx._instant_literal(newest)));
        has_index := has_index IS TRUE OR bqx._has_a_row(format('%s WHERE rate_index IS NOT NULL', m1));
    END IF;
    IF NOT has_index THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = CASE WHEN has_baseline THEN format('pair "%s" has no rate_index yet', pair)
                      ELSE format('pair "%s" has no baseline', pair) END,
            HINT = CASE WHEN has_baseline THEN format('CALL bqx.index_m1(ARRAY[%L]);', pair)
                   ELSE format('CALL bqx.set_baselines(pairs => ARRAY[%L]);  then  '
                               'CALL bqx.index_m1(ARRAY[%1$L]);', pair) END;
    END IF;
END
$$;
