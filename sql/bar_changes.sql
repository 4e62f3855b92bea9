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
    transaction_id xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),
    noted_at timestamp with time zone NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
CREATE INDEX ON bqx.bar_changes (pair);

SELECT pg_catalog.pg_extension_config_dump('bqx.bar_changes', '');
SELECT pg_catalog.pg_extension_config_dump(
    pg_catalog.pg_get_serial_sequence('bqx.bar_changes', 'change_id')::pg_catalog.regclass, '');

-- The noted changes of a pair, for who may read its derived tables.
CREATE FUNCTION bqx._noted_changes(pair text, caller bigint DEFAULT bqx._caller())
RETURNS TABLE (change_id bigint, from_ts timestamp with time zone, to_ts timestamp with time zone, removed boolean,
               transaction_id xid8)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    role_name name := bqx._role_of($2);
BEGIN
    RETURN QUERY
    SELECT n.change_id, n.from_ts, n.to_ts, n.removed, n.transaction_id FROM bqx.bar_changes AS n
     WHERE n.pair = $1 AND (bqx._may_read_derived(role_name, 'bqx', $1) OR bqx._may_read_derived(role_name, 'reg', $1))
     ORDER BY n.change_id;
END
$$;

-- Forgets changes of a pair whose rows are computed.
CREATE FUNCTION bqx._forget_changes(pair text, change_ids bigint[], caller bigint DEFAULT bqx._caller()) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    role_name name := bqx._role_of($3);
BEGIN
    PERFORM bqx._check_may_write(role_name, bqx._derived_name(f, $1)) FROM unnest(bqx._families_of($1)) AS f;
    DELETE FROM bqx.bar_changes AS n WHERE n.pair = $1 AND n.change_id = ANY ($2);
END
$$;

-- What a table's rows are kept in: its storage, and the trigger that notes changes, with the transaction that made or
-- altered it. Rows that came or went without being noted (TRUNCATE, a partition attached or detached, triggers that
-- were disabled) leave another one behind. NULL where not every change is noted: no such trigger, or one for another pair; rows that
-- a crash takes (unlogged), that are elsewhere, or in tables that inherit.
CREATE FUNCTION bqx._table_identity(leaf oid, pair text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (SELECT format('%s.%s.%s.%s', c.oid, c.relfilenode, t.oid, t.xmin)
              FROM pg_class AS c JOIN pg_trigger AS t ON t.tgrelid = c.oid AND t.tgname = 'bqx_note_change'
             WHERE c.oid = leaf AND c.relkind = 'r' AND c.relpersistence <> 'u' AND NOT c.relhassubclass
               AND t.tgenabled = 'A' AND bqx._is_trigger_for(t.tgargs, pair));
END
$$;

-- Whether a trigger of ours was made for this pair: a table may have been renamed.
CREATE FUNCTION bqx._is_trigger_for(arguments bytea, pair text) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN arguments = (pg_catalog.convert_to(pair, 'UTF8') || pg_catalog.decode('00', 'hex'));

-- How many bars a pair's rows look back at.
CREATE FUNCTION bqx._longest_lookback(pair text) RETURNS int
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (SELECT max(own.lookback) FROM unnest(bqx._families_of(pair)) AS f,
                   LATERAL bqx._own_columns(f, bqx._derived_table(f, pair)) AS own);
END
$$;

-- The tables that hold a month's rows, or a longer time's; all leaves where partitions don't tell the time.
CREATE FUNCTION bqx._tables_between(
    rel regclass, key_column text, from_ts timestamp with time zone, to_ts timestamp with time zone) RETURNS oid[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN coalesce(
        CASE WHEN (SELECT c.relkind <> 'p' FROM pg_class AS c WHERE c.oid = rel) OR bqx._is_partitioned_by(rel, key_column)
             THEN bqx._parts_between(rel, from_ts, to_ts) END,
        bqx._leaves(rel)::oid[]);
END
$$;

-- What the bars are kept in that months' rows are computed from, of each month and those before that its rows look back at: the
-- columns, and the identities of all tables that hold some. NULL: not every change is noted.
CREATE FUNCTION bqx._m1_identities(pair text, months date[]) RETURNS TABLE (month date, identity text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    m1 regclass := bqx._m1_table(pair);
    columns text := (SELECT string_agg(format('%s:%s:%s', a.attname, a.attnum, a.atttypid), ' ' ORDER BY a.attname) FROM pg_attribute AS a
                      WHERE a.attrelid = m1 AND a.attname IN ('time', 'close', 'rate_index') AND NOT a.attisdropped);
    starts timestamptz[] := bqx._lookback_starts(
        m1, ARRAY(SELECT bqx._month_start(m) FROM unnest(months) WITH ORDINALITY AS k (m, i) ORDER BY i), bqx._longest_lookback(pair));
BEGIN
    FOR i IN 1..cardinality(months) LOOP
        month := months[i];
        identity := (SELECT CASE WHEN count(*) = count(t.identity)
                            THEN columns || coalesce(' ' || string_agg(t.identity, ' ' ORDER BY t.oid), '') END
                       FROM (SELECT leaf, bqx._table_identity(leaf, pair)
                               FROM unnest(bqx._tables_between(m1, 'time', starts[i], bqx._month_start(bqx._next_month(month)))) AS leaf
                            ) AS t (oid, identity));
        RETURN NEXT;
    END LOOP;
END
$$;

-- What a derived table's rows of each month are kept in, and the table's columns.
CREATE FUNCTION bqx._derived_identities(family text, pair text, months date[]) RETURNS TABLE (month date, identity text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    derived regclass := bqx._derived_table(family, pair);
    shape text := md5((bqx._own_columns(family, derived)).shape);
BEGIN
    FOREACH month IN ARRAY months LOOP
        identity := concat_ws(' ', shape, (
            SELECT string_agg(format('%s.%s', c.oid, c.relfilenode), ' ' ORDER BY c.oid) FROM pg_class AS c
             WHERE c.oid = ANY (bqx._tables_between(derived, 'ts_utc', bqx._month_start(month), bqx._month_start(bqx._next_month(month))))));
        RETURN NEXT;
    END LOOP;
END
$$;

CREATE FUNCTION bqx._kept_in(m1_identity text, derived_identity text) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN m1_identity || ' / ' || derived_identity;

-- What is recorded of a month as followed_as, given what its bars were kept in before they were read.
CREATE FUNCTION bqx._followed_as(family text, pair text, month date, m1_identity text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN bqx._kept_in(m1_identity, (SELECT d.identity FROM bqx._derived_identities(family, pair, ARRAY[month]) AS d));
END
$$;

-- Our triggers on an M1 table and on its partitions.
CREATE FUNCTION bqx._own_triggers(m1 regclass) RETURNS TABLE (rel regclass, tgname name, tgenabled "char")
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT t.tgrelid::regclass, t.tgname, t.tgenabled FROM pg_trigger AS t
     WHERE t.tgname IN ('bqx_set_rate_index', 'bqx_note_change', 'bqx_live_begin', 'bqx_live')
       AND t.tgrelid IN (SELECT m1::oid UNION SELECT p.relid::oid FROM pg_partition_tree(m1) AS p)
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
        SELECT t.rel, t.tgname FROM bqx._own_triggers(m1) AS t WHERE t.tgenabled <> 'A'
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
DECLARE
    arguments bytea := (SELECT t.tgargs FROM pg_trigger AS t WHERE t.tgrelid = m1 AND t.tgname = 'bqx_note_change');
BEGIN
    IF arguments IS NULL OR NOT bqx._is_trigger_for(arguments, pair) THEN
        IF arguments IS NOT NULL THEN  -- the table had another name
            EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', m1);
            EXECUTE format('DROP TRIGGER bqx_note_change ON %s', m1);
        END IF;
        EXECUTE format('CREATE TRIGGER bqx_note_change AFTER INSERT OR UPDATE OR DELETE ON %s '
                       'FOR EACH ROW EXECUTE FUNCTION bqx._note_bar_change(%L)', m1, pair);
    END IF;
    PERFORM bqx._keep_triggers_everywhere(m1);
END
$$;

SET LOCAL search_path TO bqx, pg_temp;
