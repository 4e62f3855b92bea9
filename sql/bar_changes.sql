-- Which bars changed, so that what they affect can be computed without reading all months: a trigger on M1 notes it.

SET LOCAL search_path TO pg_catalog, pg_temp;  -- for what is parsed here: see preflight.sql

-- Changes whose rows nobody has computed yet, as stretches of time, both ends included; `removed` where there may be a
-- bar less than before. Live pairs have none: their rows are computed with the change.
CREATE TABLE bqx.bar_changes (
    change_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pair text NOT NULL,
    from_ts timestamp with time zone NOT NULL,
    to_ts timestamp with time zone NOT NULL,
    removed boolean NOT NULL,
    noted_at timestamp with time zone NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
CREATE INDEX ON bqx.bar_changes (pair);

SELECT pg_catalog.pg_extension_config_dump('bqx.bar_changes', '');
SELECT pg_catalog.pg_extension_config_dump(
    pg_catalog.pg_get_serial_sequence('bqx.bar_changes', 'change_id')::pg_catalog.regclass, '');

-- The noted changes of a pair, for who may read its derived tables.
CREATE FUNCTION bqx._noted_changes(pair text, caller bigint DEFAULT bqx._caller())
RETURNS TABLE (change_id bigint, from_ts timestamp with time zone, to_ts timestamp with time zone, removed boolean,
               noted_at timestamp with time zone)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    role_name name := bqx._role_of($2);
BEGIN
    RETURN QUERY
    SELECT n.change_id, n.from_ts, n.to_ts, n.removed, n.noted_at FROM bqx.bar_changes AS n
     WHERE n.pair = $1 AND (bqx._may_read_derived(role_name, 'bqx', $1) OR bqx._may_read_derived(role_name, 'reg', $1))
     ORDER BY n.change_id;
END
$$;

-- Forgets changes whose rows are computed.
CREATE FUNCTION bqx._forget_changes(change_ids bigint[], caller bigint DEFAULT bqx._caller()) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    role_name name := bqx._role_of($2);
BEGIN
    PERFORM bqx._check_may_write(role_name, bqx._derived_name(f, p.pair))
       FROM (SELECT DISTINCT n.pair FROM bqx.bar_changes AS n WHERE n.change_id = ANY ($1)) AS p,
            unnest(ARRAY['bqx', 'reg']) AS f
      WHERE to_regclass(format('bqx.%I', bqx._derived_name(f, p.pair))) IS NOT NULL;
    DELETE FROM bqx.bar_changes AS n WHERE n.change_id = ANY ($1);
END
$$;

-- What a table's rows are kept in: its storage, and the trigger that notes changes, with the transaction that made or
-- altered it. Rows that came or went without being noted (TRUNCATE, a partition attached or detached, triggers that
-- were disabled) leave another one behind. NULL: not every change is noted.
CREATE FUNCTION bqx._table_identity(rel regclass) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    leaf regclass;
    storage oid;
    one_identity text;
    identity text := '';
BEGIN
    FOREACH leaf IN ARRAY CASE WHEN (SELECT c.relkind = 'r' FROM pg_class AS c WHERE c.oid = rel) THEN ARRAY[rel]
                               ELSE bqx._leaves(rel) END LOOP
        storage := (SELECT c.relfilenode FROM pg_class AS c WHERE c.oid = leaf);
        one_identity := (SELECT format('%s.%s.%s.%s', leaf::oid, storage, t.oid, t.xmin) FROM pg_trigger AS t
                          WHERE t.tgrelid = leaf AND t.tgname = 'bqx_note_change' AND t.tgenabled = 'A');
        identity := identity || one_identity || ' ';  -- NULL, once one is
    END LOOP;
    RETURN rtrim(identity);
END
$$;

-- The parts that an M1 table's bars are kept in, with their identities: its partitions by month, or else itself.
CREATE FUNCTION bqx._m1_parts(m1 regclass)
RETURNS TABLE (from_ts timestamp with time zone, to_ts timestamp with time zone, identity text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF bqx._is_partitioned_by(m1, 'time') AND NOT bqx._has_default_partition(m1) THEN
        RETURN QUERY
        SELECT p.from_ts, p.to_ts, bqx._table_identity(p.partition) FROM bqx._partitions(m1) AS p;
    ELSE
        RETURN QUERY
        SELECT '-infinity'::timestamptz, 'infinity'::timestamptz, bqx._table_identity(m1);
    END IF;
END
$$;

-- The time of the first bar that a row at this instant looks back at; -infinity where fewer bars precede it. It reads
-- partitions, and gives their locks back: see _has_a_row.
CREATE FUNCTION bqx._lookback_start(m1 regclass, instant timestamp with time zone, lookback int) RETURNS timestamp with time zone
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    since timestamptz;
    found_bar timestamptz;
BEGIN
    BEGIN
        -- a bound on time keeps the query off older partitions
        FOREACH since IN ARRAY ARRAY[instant - '60 days'::interval, '-infinity'] LOOP
            EXECUTE format('SELECT %s FROM (SELECT time FROM %s WHERE time < %s AND time >= %s ORDER BY time DESC OFFSET $3 LIMIT 1) AS b',
                           bqx._as_instant(m1, 'time'), m1, bqx._as_key(m1, 'time', '$1'), bqx._as_key(m1, 'time', '$2'))
               INTO found_bar USING instant, since, greatest(lookback, 1) - 1;
            EXIT WHEN found_bar IS NOT NULL;
        END LOOP;
        RAISE SQLSTATE 'BQX00';
    EXCEPTION
        WHEN SQLSTATE 'BQX00' THEN NULL;
    END;
    RETURN coalesce(found_bar, '-infinity');
END
$$;

-- How many bars a pair's rows look back at.
CREATE FUNCTION bqx._longest_lookback(pair text) RETURNS int
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (SELECT max(own.lookback) FROM unnest(bqx._families_of(pair)) AS f,
                   LATERAL bqx._own_columns(f, bqx._derived_table(f, pair)) AS own);
END
$$;

-- What the bars are kept in that a month's rows are computed from, of this month and those before that they look back at: the
-- identities of all parts that hold some. NULL: not every change is noted.
CREATE FUNCTION bqx._followed_as(pair text, month date) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    m1 regclass := bqx._m1_table(pair);
    since timestamptz;
BEGIN
    IF NOT bqx._is_partitioned_by(m1, 'time') OR bqx._has_default_partition(m1) THEN
        RETURN bqx._table_identity(m1);
    END IF;
    since := bqx._lookback_start(m1, bqx._month_start(month), bqx._longest_lookback(pair));
    RETURN (SELECT CASE WHEN count(*) = 0 THEN 'no partition'
                        WHEN count(*) = count(p.identity) THEN string_agg(p.identity, ' ' ORDER BY p.from_ts) END
              FROM (SELECT p.from_ts, bqx._table_identity(p.partition) AS identity FROM bqx._partitions(m1) AS p
                     WHERE p.from_ts < bqx._month_start(bqx._next_month(month)) AND p.to_ts > since) AS p);
END
$$;

-- The same for rows of a derived table, which depend on its columns, too.
CREATE FUNCTION bqx._followed_by(family text, pair text, followed_as text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN followed_as || ' ' || md5((bqx._own_columns(family, bqx._derived_table(family, pair))).shape);
END
$$;

-- Triggers of ours that a table lacks, or that a session as a replica would not fire. PostgreSQL copies the triggers on
-- rows to partitions, but ENABLE ALWAYS not on every major; those of statements are for us to make.
CREATE FUNCTION bqx._keep_triggers_everywhere(m1 regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    live bytea := (SELECT t.tgargs FROM pg_trigger AS t WHERE t.tgrelid = m1 AND t.tgname = 'bqx_live');
    pair text := convert_from(rtrim(live, decode('00', 'hex')), 'UTF8');
    lacking regclass;
    lax record;
BEGIN
    IF live IS NOT NULL THEN
        FOR lacking IN
            SELECT p.relid FROM pg_partition_tree(m1) AS p
             WHERE p.relid <> m1
               AND NOT EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = p.relid AND t.tgname = 'bqx_live')
        LOOP
            PERFORM bqx._create_live_triggers(pair, lacking);
        END LOOP;
    END IF;
    FOR lax IN
        SELECT t.tgrelid::regclass AS rel, t.tgname FROM pg_trigger AS t
         WHERE t.tgname IN ('bqx_set_rate_index', 'bqx_note_change', 'bqx_live_begin', 'bqx_live') AND t.tgenabled <> 'A'
           AND t.tgrelid IN (SELECT m1::oid UNION SELECT p.relid::oid FROM pg_partition_tree(m1) AS p)
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', lax.rel, lax.tgname);
    END LOOP;
END
$$;

-- The triggers of live mode, on one table: a statement fires those of the table that it names, and no others.
CREATE FUNCTION bqx._create_live_triggers(pair text, rel regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER bqx_live_begin BEFORE INSERT OR UPDATE OR DELETE ON %s '
                   'FOR EACH STATEMENT EXECUTE FUNCTION bqx._begin_live(%L)', rel, pair);
    EXECUTE format('CREATE TRIGGER bqx_live AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s '
                   'FOR EACH STATEMENT EXECUTE FUNCTION bqx._follow_live(%L)', rel, pair);
END
$$;

-- From now on, changes of the pair's bars are noted. Where that is new, all months are read once more.
CREATE FUNCTION bqx._note_changes_of(pair text, m1 regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = m1 AND t.tgname = 'bqx_note_change') THEN
        EXECUTE format('CREATE TRIGGER bqx_note_change AFTER INSERT OR UPDATE OR DELETE ON %s '
                       'FOR EACH ROW EXECUTE FUNCTION bqx._note_bar_change(%L)', m1, pair);
    END IF;
    PERFORM bqx._keep_triggers_everywhere(m1);
END
$$;

SET LOCAL search_path TO bqx, pg_temp;
