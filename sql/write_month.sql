-- Writing one month of a derived table. Two ways, same bits:
--   fast: a new or empty partition gets fresh storage, filled straight and its key built after;
--   plain: rows that differ are replaced by SQL, under MVCC, whatever triggers, rules or columns the table has.

-- Why rows can't be put straight into a table (for a partitioned one: into its partitions); NULL: they can. Whatever
-- the executor would have looked at for each row has to be absent.
CREATE FUNCTION bqx._why_not_fast(family text, rel regclass) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (SELECT CASE
        WHEN NOT pg_has_role(current_user, c.relowner, 'USAGE') THEN 'the caller does not own it'
        WHEN c.relrowsecurity THEN 'it has row-level security'
        WHEN c.relhasrules THEN 'it has rules'
        -- subscribers of the table don't get rows that were in a partition before it was attached
        WHEN EXISTS (SELECT FROM pg_publication AS p WHERE p.puballtables)
             OR EXISTS (SELECT FROM pg_publication_rel AS p WHERE p.prrelid = rel)
             OR EXISTS (SELECT FROM pg_publication_tables AS p
                         WHERE (p.schemaname, p.tablename) = (c.relnamespace::regnamespace::name, c.relname))
            THEN 'it is published'
        -- Whole pages in the log tell logical decoding nothing. From 16 on it may be at work on a standby, unseen from here.
        WHEN EXISTS (SELECT FROM pg_replication_slots AS s
                      WHERE s.slot_type = 'logical' AND s.database = current_database())
             OR current_setting('wal_level') = 'logical' AND current_setting('server_version_num')::int >= 160000
            THEN 'logical replication slots may follow this database'
        WHEN c.relkind = 'r' AND c.relam <> (SELECT a.oid FROM pg_am AS a WHERE a.amname = 'heap') THEN 'it is no heap'
        WHEN EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = rel) THEN 'it has triggers or foreign keys'
        WHEN EXISTS (SELECT FROM pg_constraint AS k
                      WHERE k.conrelid = rel AND k.contype NOT IN ('p', 'u', 'n')
                        AND NOT (k.conname = 'bqx_month_bounds' AND c.relkind = 'r' AND NOT c.relispartition))
            THEN 'it has constraints'
        WHEN EXISTS (SELECT FROM pg_attribute AS a
                      WHERE a.attrelid = rel AND a.attnum > 0 AND NOT a.attisdropped
                        AND (bqx._column_window(family, a.attname::text) IS NULL OR a.attgenerated <> ''
                             OR (a.attnotnull AND a.attname <> 'ts_utc')
                             OR a.atttypid <> CASE WHEN a.attname IN ('ts_utc', 'created_at')
                                              THEN 'timestamptz'::regtype ELSE 'float8'::regtype END))
            THEN 'it has columns of other kinds' END
      FROM pg_class AS c WHERE c.oid = rel);
END
$$;

-- Why rows of this range can't be put straight into this one table, which may be a partition; NULL: they can.
CREATE FUNCTION bqx._why_not_fillable(
    family text, rel regclass, from_ts timestamp with time zone, to_ts timestamp with time zone) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN coalesce(bqx._why_not_fast(family, rel), (
        SELECT 'its bounds are others'
          FROM pg_partition_ancestors(rel) AS a (relid) JOIN pg_inherits AS i ON i.inhrelid = a.relid
         WHERE NOT CASE WHEN bqx._is_partitioned_by(i.inhparent, 'ts_utc') THEN EXISTS (
                       SELECT FROM bqx._partitions(i.inhparent, a.relid) AS p
                        WHERE p.from_ts <= $3 AND p.to_ts >= $4)
                   ELSE false END
         LIMIT 1));
END
$$;

-- A month's partition, to be attached as the last act (_attach_if_new).
CREATE FUNCTION bqx._create_partition_aside(derived regclass, month date) RETURNS regclass
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    partition_name name := bqx._free_partition_name(derived, month);
BEGIN
    PERFORM bqx._create_table_aside(derived, partition_name, format(
        'CONSTRAINT bqx_month_bounds CHECK (ts_utc >= %s AND ts_utc < %s)',
        bqx._instant_literal(bqx._month_start(month)), bqx._instant_literal(bqx._month_start(bqx._next_month(month)))));
    RETURN to_regclass(format('bqx.%I', partition_name));
END
$$;

-- A partition that can be filled the fast way, in this transaction: a new one (not attached yet), or one that never
-- held a row, with fresh storage. NULL: the month has rows, a partition of another shape, or readers at this moment.
-- Empty is not enough: rows deleted lately are still there for older snapshots, which TRUNCATE would rob of them.
CREATE FUNCTION bqx._fresh_partition(family text, derived regclass, month date) RETURNS regclass
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    existing regclass;
    aside regclass;
    fits boolean;
BEGIN
    IF NOT bqx._is_partitioned_by(derived, 'ts_utc') OR bqx._why_not_fast(family, derived) IS NOT NULL
       OR (SELECT c.relispartition FROM pg_class AS c WHERE c.oid = derived) THEN  -- another table's bounds count, too
        RETURN NULL;
    END IF;
    existing := bqx._partition_of_month(derived, month);
    IF existing IS NULL THEN
        IF bqx._has_default_partition(derived) THEN
            RETURN NULL;
        END IF;
        aside := bqx._create_partition_aside(derived, month);
        IF bqx._why_not_fast(family, aside) IS NULL THEN
            RETURN aside;
        END IF;
        -- published with its schema, or changed by an event trigger
        PERFORM bqx._attach_if_new(derived, aside, month);
        RETURN NULL;
    END IF;

    SELECT p.from_ts = bqx._month_start(month) AND p.to_ts = bqx._month_start(bqx._next_month(month))
           AND c.relkind = 'r' AND bqx._why_not_fast(family, p.partition) IS NULL
      INTO fits
      FROM pg_class AS c, bqx._partitions(derived, existing) AS p WHERE c.oid = existing;
    IF fits IS NOT TRUE THEN
        RETURN NULL;
    END IF;
    IF pg_relation_size(existing) > 0 THEN
        RETURN NULL;
    END IF;
    BEGIN
        -- NOWAIT: rather the plain way than waiting behind a reader, with every later reader behind us.
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE NOWAIT', existing);
        IF pg_relation_size(existing) > 0 THEN  -- still none, now that it's locked?
            RAISE lock_not_available;  -- gives the lock back: the plain way begins with the parent, as others do
        END IF;
    EXCEPTION
        WHEN lock_not_available THEN RETURN NULL;
    END;
    EXECUTE format('TRUNCATE %s', existing);
    RETURN existing;
END
$$;

CREATE FUNCTION bqx._attach_if_new(derived regclass, partition regclass, month date) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF (SELECT c.relispartition FROM pg_class AS c WHERE c.oid = partition) THEN
        RETURN;
    END IF;
    EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES %s', derived, partition, bqx._month_bounds(month));
    -- The CHECK spared ATTACH a scan; the partition's bounds say the same.
    EXECUTE format('ALTER TABLE %s DROP CONSTRAINT bqx_month_bounds', partition);
END
$$;

-- Makes what is missing of the month's partition for the plain way: aside where that can be, so that workers that
-- have read the parent don't wait for each other's locks.
CREATE FUNCTION bqx._ensure_partition_to_write(derived regclass, month date) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF bqx._is_partitioned_by(derived, 'ts_utc') AND NOT bqx._has_default_partition(derived)
       AND bqx._partition_of_month(derived, month) IS NULL THEN
        PERFORM bqx._attach_if_new(derived, bqx._create_partition_aside(derived, month), month);
    ELSE
        PERFORM bqx._ensure_partitions(derived, 'ts_utc', ARRAY[month]);
    END IF;
END
$$;

-- Whether the table's rows are nobody's but ours, to be deleted if need be: no other columns, no other tables that refer to them.
CREATE FUNCTION bqx._holds_own_rows_alone(family text, derived regclass) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN cardinality((bqx._own_columns(family, derived)).foreign_names) = 0 AND NOT EXISTS (
        SELECT FROM pg_constraint AS k
         WHERE k.contype = 'f' AND (k.confrelid = derived OR k.confrelid IN (SELECT t.relid FROM pg_partition_tree(derived) AS t)));
END
$$;

-- The plain way. Rows and fingerprint come from one statement, so from one snapshot.
-- A table of our columns alone is made to hold exactly the computed rows: rows that differ are deleted and
-- inserted, equal ones are not touched. Where there are other columns, or foreign keys of other tables (which might
-- cascade), rows are only inserted, or updated in our columns; rows without a bar stay, and verify() names them.
CREATE FUNCTION bqx._write_month_plainly(
    family text, pair text, derived regclass, month date,
    OUT rows_written bigint, OUT rows_removed bigint, OUT input_fingerprint text, OUT bars bigint)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_nestloop = off  -- no statistics tell the planner how many rows are computed
SET jit = off  -- nor that compiling the statement would take longer than running it
AS $$
DECLARE
    own record := bqx._own_columns(family, derived);
    m1 regclass := bqx._m1_table(pair);
    from_ts timestamptz := bqx._month_start(month);
    to_ts timestamptz := bqx._month_start(bqx._next_month(month));
    value_names text[];
    computed_types text;   -- column definition list of _computed_rows
    computed_values text;  -- computed values in the table's types
    stored_values text;
    target_names text;
    in_month text;
    own_alone boolean := bqx._holds_own_rows_alone(family, derived);
    key text := bqx._as_key(derived, 'ts_utc', 'c.ts_utc');
BEGIN
    value_names := ARRAY(SELECT n FROM unnest(own.names) AS n WHERE n NOT IN ('ts_utc', 'created_at'));
    IF NOT 'ts_utc' = ANY (own.names) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'undefined_column',
            MESSAGE = format('table %s has no column ts_utc', derived),
            HINT = format('ALTER TABLE %s ADD COLUMN ts_utc timestamptz;  or rename its time column.', derived);
    END IF;
    SELECT 'ts_utc timestamptz' || coalesce(string_agg(format(', %I double precision', n), '' ORDER BY i), ''),
           bqx._as_key(derived, 'ts_utc', 'c.ts_utc') || coalesce(string_agg(
               format(', c.%I::%s', n, bqx._column_type(derived, n)), '' ORDER BY i), ''),
           't.ts_utc' || coalesce(string_agg(format(', t.%I', n), '' ORDER BY i), ''),
           'ts_utc' || coalesce(string_agg(format(', %I', n), '' ORDER BY i), '')
      INTO computed_types, computed_values, stored_values, target_names
      FROM unnest(value_names) WITH ORDINALITY AS u (n, i);
    in_month := format('t.ts_utc >= %s AND t.ts_utc < %s',
                       bqx._as_key(derived, 'ts_utc', '$3'), bqx._as_key(derived, 'ts_utc', '$4'));

    -- Which of two equal rows is kept, in a table without a key, is told by its place. The count over the changing CTE
    -- makes PostgreSQL finish it before the first row is inserted.
    EXECUTE format(
        'WITH computed AS MATERIALIZED (SELECT * FROM bqx._computed_rows($1, $2, $3, $4, $5) AS c (%1$s)), '
        'kept AS MATERIALIZED (SELECT DISTINCT ON (t.ts_utc) t.ts_utc, t.tableoid AS part, t.ctid AS place '
        '                        FROM %2$s AS t JOIN computed AS c ON t.ts_utc = %3$s '
        '                       WHERE %4$s AND ROW(%5$s) IS NOT DISTINCT FROM ROW(%6$s) ORDER BY t.ts_utc), '
        'changed AS (%7$s RETURNING t.ts_utc), '
        'inserted AS (INSERT INTO %2$s (%8$s) SELECT %6$s FROM computed AS c '
        '              WHERE NOT EXISTS (SELECT FROM kept AS k WHERE k.ts_utc = %3$s) '
        '                AND (SELECT count(*) FROM changed) >= 0 %9$s ORDER BY c.ts_utc RETURNING 1) '
        'SELECT (SELECT count(*) FROM inserted) + %10$s, '
        '       (SELECT count(*) FROM changed AS g WHERE NOT EXISTS (SELECT FROM computed AS c WHERE g.ts_utc = %3$s)), '
        '       f.input_fingerprint, f.bars '
        '  FROM bqx._input_fingerprint($2, $3, $4, $6, $7) AS f',
        computed_types, derived, key, in_month, stored_values, computed_values,
        CASE WHEN own_alone
             THEN format('DELETE FROM %s AS t WHERE %s AND NOT EXISTS ('
                         'SELECT FROM kept AS k WHERE k.part = t.tableoid AND k.place = t.ctid)', derived, in_month)
             ELSE format('UPDATE %s AS t SET (%s) = ROW(%s) FROM computed AS c WHERE %s AND t.ts_utc = %s '
                         'AND NOT EXISTS (SELECT FROM kept AS k WHERE k.ts_utc = t.ts_utc)',
                         derived, target_names, computed_values, in_month, key) END,
        target_names,
        CASE WHEN own_alone THEN ''
             ELSE format('AND NOT EXISTS (SELECT FROM changed AS u WHERE u.ts_utc = %s)', key) END,
        CASE WHEN own_alone THEN '0' ELSE '(SELECT count(*) FROM changed)' END)
       INTO rows_written, rows_removed, input_fingerprint, bars
      USING family, m1, from_ts, to_ts, value_names, own.lookback, own.shape;
END
$$;

-- How many bars a month has.
CREATE FUNCTION bqx._count_bars(m1 regclass, month date) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    bars bigint;
BEGIN
    EXECUTE format('SELECT count(*) FROM %s AS t WHERE t.time >= %s AND t.time < %s', m1,
                   bqx._as_key(m1, 'time', '$1'), bqx._as_key(m1, 'time', '$2'))
       INTO bars USING bqx._month_start(month), bqx._month_start(bqx._next_month(month));
    RETURN bars;
END
$$;

-- Keeps a pair's tables as they are, until the transaction ends: whoever drops or alters them waits for the month, or
-- the month for them, before it has looked at anything. The derived tables as for writing at once, since a lock that
-- is raised later can be in somebody's way. What is not there is named by those who ask for it.
CREATE FUNCTION bqx._lock_tables(pair text, families text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT bqx._derived_name(f, pair) AS table_name, 'ROW EXCLUSIVE' AS mode, 1 AS turn
          FROM unnest(families) AS f
        UNION ALL SELECT 'm1_' || pair, 'ACCESS SHARE', 2
         ORDER BY turn, table_name
    LOOP
        BEGIN
            EXECUTE format('LOCK TABLE ONLY bqx.%I IN %s MODE', wanted.table_name, wanted.mode);
        EXCEPTION
            WHEN undefined_table THEN NULL;
        END;
    END LOOP;
END
$$;

-- Locks the month's partition as for writing, before anything is planned that reads it: planning locks its indexes, too, and
-- REINDEX has the table before it asks for those. A role that has rights on the parent alone can't.
CREATE FUNCTION bqx._lock_partition_to_write(derived regclass, month date) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    partition regclass := CASE WHEN bqx._is_partitioned_by(derived, 'ts_utc') THEN bqx._partition_of_month(derived, month) END;
BEGIN
    IF has_table_privilege(partition, 'INSERT, UPDATE, DELETE') THEN
        EXECUTE format('LOCK TABLE %s IN ROW EXCLUSIVE MODE', partition);
    END IF;
END
$$;

-- Writes one month of the families, whose tables are locked (_lock_tables), in the caller's transaction, reading the
-- bars once for all that can be written the fast way. One row per family.
CREATE FUNCTION bqx._write_month(pair text, families text[], month date)
RETURNS TABLE (family text, bars bigint, rows_written bigint, rows_removed bigint, input_fingerprint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET max_parallel_maintenance_workers = 0  -- a month's key is built sooner than a helper process starts
AS $$
DECLARE
    m1 regclass;
    from_ts timestamptz := bqx._month_start(month);
    to_ts timestamptz := bqx._month_start(bqx._next_month(month));
    expected_bars bigint;
    derived regclass;
    partition regclass;
    fast_families text[] := '{}';
    fast_derived regclass[] := '{}';
    fast_partitions regclass[] := '{}';
    fast_shapes text[] := '{}';
BEGIN
    m1 := bqx._m1_table(pair);
    PERFORM bqx._check_sees_all_rows(m1);
    expected_bars := bqx._count_bars(m1, month);
    FOREACH family IN ARRAY families LOOP
        derived := bqx._derived_table(family, pair);
        PERFORM bqx._check_sees_all_rows(derived);
        -- a month without bars has no rows, and needs no partition
        partition := CASE WHEN expected_bars > 0 THEN bqx._fresh_partition(family, derived, month) END;
        PERFORM bqx._show_job(family, expected_bars, partition IS NOT NULL);
        IF partition IS NOT NULL THEN
            fast_families := fast_families || family;
            fast_derived := fast_derived || derived;
            fast_partitions := fast_partitions || partition;
            fast_shapes := fast_shapes || (bqx._own_columns(family, derived)).shape;
        ELSE
            IF expected_bars > 0 THEN
                PERFORM bqx._ensure_partition_to_write(derived, month);
            END IF;
            SELECT w.rows_written, w.rows_removed, w.input_fingerprint, w.bars
              INTO rows_written, rows_removed, input_fingerprint, bars
              FROM bqx._write_month_plainly(family, pair, derived, month) AS w;
            RETURN NEXT;
        END IF;
    END LOOP;
    IF fast_families <> '{}' THEN
        FOR family, bars, input_fingerprint IN
            SELECT f.family, f.bars, f.input_fingerprint
              FROM bqx._fill_partitions(fast_families, m1, from_ts, to_ts, fast_partitions, fast_shapes) AS f
        LOOP
            rows_written := bars;
            rows_removed := 0;
            RETURN NEXT;
        END LOOP;
        PERFORM bqx._attach_if_new(fast_derived[i], fast_partitions[i], month)
           FROM generate_subscripts(fast_families, 1) AS i;
    END IF;
END
$$;
