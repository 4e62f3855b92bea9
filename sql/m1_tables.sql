-- M1 tables: one-minute bars, ours or an existing database's own. The helpers hide the difference.

-- What a domain is of in the end; other types are their own.
CREATE FUNCTION bqx._base_type(type_id oid) RETURNS oid
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    base oid := type_id;
BEGIN
    WHILE (SELECT t.typtype = 'd' FROM pg_type AS t WHERE t.oid = base) LOOP
        base := (SELECT t.typbasetype FROM pg_type AS t WHERE t.oid = base);
    END LOOP;
    RETURN base;
END
$$;

-- 42809 for a view or anything else that has the name of one of our tables; 42804 for a column of ours of a type that
-- somebody made: reading it would run that person's casts and operators, as whoever reads. (A domain is read as what it is of.)
CREATE FUNCTION bqx._check_is_table(rel regclass) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    stranger record;
BEGIN
    IF (SELECT c.relkind NOT IN ('r', 'p') FROM pg_class AS c WHERE c.oid = rel) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'wrong_object_type',
            MESSAGE = format('%s is not a table', rel),
            HINT = 'bqx keeps its rows in a table of this name: rename what has it.';
    END IF;
    SELECT a.attname, format_type(a.atttypid, a.atttypmod) AS type_name INTO stranger
      FROM pg_attribute AS a
     WHERE a.attrelid = rel AND NOT a.attisdropped
       AND a.attname IN ('time', 'open', 'high', 'low', 'close', 'volume', 'rate_index', 'ts_utc')
       -- for the usual types that is known
       AND a.atttypid NOT IN ('timestamptz'::regtype, 'float8'::regtype)
       AND (SELECT t.typnamespace FROM pg_type AS t WHERE t.oid = bqx._base_type(a.atttypid)) <> 'pg_catalog'::regnamespace
     LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING
            ERRCODE = 'datatype_mismatch',
            MESSAGE = format('column %I of %s has type %s, which is not PostgreSQL''s own', stranger.attname, rel, stranger.type_name),
            HINT = format('ALTER TABLE %s ALTER COLUMN %I TYPE %s USING …;', rel, stranger.attname,
                          CASE WHEN stranger.attname IN ('time', 'ts_utc') THEN 'timestamptz' ELSE 'double precision' END);
    END IF;
END
$$;

-- The M1 table of a pair; 42P01 where there is none.
CREATE FUNCTION bqx._m1_table(pair text) RETURNS regclass
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    m1 regclass := to_regclass(format('bqx.%I', 'm1_' || pair));
BEGIN
    IF m1 IS NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'undefined_table',
            MESSAGE = format('table bqx.m1_%s does not exist', pair),
            HINT = format('CALL bqx.load_m1(%L, ''/path/to/bars.csv'');  loads a file; '
                          'CALL bqx.create_m1(ARRAY[%L]);  makes an empty table.', pair, pair);
    END IF;
    PERFORM bqx._check_is_table(m1);
    RETURN m1;
END
$$;

-- Type of a column; NULL where the table has none of that name.
CREATE FUNCTION bqx._column_type(rel regclass, column_name text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format_type(a.atttypid, a.atttypmod) FROM pg_attribute AS a
     WHERE a.attrelid = rel AND a.attname = column_name AND a.attnum > 0 AND NOT a.attisdropped
$$;

-- SQL for a table's time column as timestamptz.
CREATE FUNCTION bqx._as_instant(rel regclass, column_name text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN bqx._column_type(rel, column_name) LIKE 'timestamp%without time zone'
                THEN format('(%I AT TIME ZONE ''UTC'')', column_name) ELSE quote_ident(column_name) END
$$;

-- SQL for an instant, given as SQL of type timestamptz, in the type of the table's time column: bounds on the raw
-- column keep indexes and partition pruning usable.
CREATE FUNCTION bqx._as_key(rel regclass, column_name text, instant text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN bqx._column_type(rel, column_name) LIKE 'timestamp%without time zone'
                THEN format('(%s AT TIME ZONE ''UTC'')', instant) ELSE instant END
$$;

-- What _end_bar does where an index can't be asked (src/m1_tables.rs). Partitions are asked one by one, from that end: a query over all of
-- them takes long to plan, and its locks for many pairs and years, in one transaction, would not fit into the lock table
-- (max_locks_per_transaction).
CREATE FUNCTION bqx._end_bar_by_query(m1 regclass, newest boolean) RETURNS timestamp with time zone
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    query text := format('SELECT %s FROM %s WHERE time >= %s AND time <= %s ORDER BY time %s LIMIT 1', bqx._as_instant(m1, 'time'), m1,
                         bqx._as_key(m1, 'time', '$1'), bqx._as_key(m1, 'time', '$2'), CASE WHEN newest THEN 'DESC' ELSE 'ASC' END);
    part record;
    found_bar timestamptz;
BEGIN
    IF bqx._is_partitioned_by(m1, 'time') AND NOT bqx._has_default_partition(m1) THEN
        FOR part IN
            SELECT p.from_ts, p.to_ts FROM bqx._partitions(m1) AS p
             WHERE bqx._has_storage(p.partition)
             ORDER BY CASE WHEN newest THEN p.to_ts END DESC, p.from_ts
        LOOP
            EXECUTE query INTO found_bar USING part.from_ts, part.to_ts;
            EXIT WHEN found_bar IS NOT NULL;
        END LOOP;
        RETURN found_bar;
    END IF;
    BEGIN
        EXECUTE query INTO found_bar USING timestamptz '-infinity', timestamptz 'infinity';
        RAISE SQLSTATE 'BQX00';  -- undoes nothing but the locks
    EXCEPTION
        WHEN SQLSTATE 'BQX00' THEN RETURN found_bar;
    END;
END
$$;

-- First and last bar of a table; NULLs where it is empty.
CREATE FUNCTION bqx._m1_span(m1 regclass, OUT first_bar timestamp with time zone, OUT last_bar timestamp with time zone)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    first_bar := bqx._end_bar(m1, false);
    last_bar := bqx._end_bar(m1, true);
    IF NOT isfinite(first_bar) OR NOT isfinite(last_bar) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'numeric_value_out_of_range',
            MESSAGE = format('%s has a bar whose time is infinite', m1),
            HINT = format('DELETE FROM %s WHERE NOT isfinite(time);', m1);
    END IF;
END
$$;

-- Whether a table (with a WHERE clause after it, or none) has a row. It gives the partitions' locks back.
CREATE FUNCTION bqx._has_a_row(from_clause text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_one boolean;
BEGIN
    BEGIN
        EXECUTE format('SELECT EXISTS (SELECT FROM %s)', from_clause) INTO found_one;
        RAISE SQLSTATE 'BQX00';
    EXCEPTION
        WHEN SQLSTATE 'BQX00' THEN NULL;
    END;
    RETURN found_one;
END
$$;

-- Pairs that have M1 data, in name order.
CREATE FUNCTION bqx._pairs_with_bars() RETURNS text[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    candidate text;
    found_pairs text[] := '{}';
BEGIN
    FOR candidate IN
        SELECT p.pair FROM bqx.pairs AS p
          JOIN pg_class AS c ON c.oid = to_regclass(format('bqx.%I', 'm1_' || p.pair))
         WHERE c.relkind IN ('r', 'p')  -- no view: reading it would run its owner's functions
         ORDER BY 1
    LOOP
        IF bqx._end_bar(to_regclass(format('bqx.%I', 'm1_' || candidate)), true) IS NOT NULL THEN
            found_pairs := found_pairs || candidate;
        END IF;
    END LOOP;
    RETURN found_pairs;
END
$$;

-- The pairs a stage works on: the ones named, or all that have M1 data. No M1 data at all: 42P01.
CREATE FUNCTION bqx._pairs_or_all(pairs text[]) RETURNS text[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    chosen text[] := bqx._check_pairs(pairs);
BEGIN
    IF chosen IS NOT NULL THEN
        PERFORM bqx._m1_table(p) FROM unnest(chosen) AS p;
        RETURN chosen;
    END IF;
    chosen := bqx._pairs_with_bars();
    IF chosen = '{}' THEN
        RAISE EXCEPTION USING
            ERRCODE = 'undefined_table',
            MESSAGE = 'no pair has M1 data',
            HINT = 'CALL bqx.load_m1(''eurusd'', ''/path/to/bars.csv'');  loads a file; '
                   'CALL bqx.simulate_m1();  makes a trial market.';
    END IF;
    RETURN chosen;
END
$$;

-- A pair's own M1 table, partitioned by month, where it has none yet; what was there is used as it is.
CREATE FUNCTION bqx._ensure_m1(pair text) RETURNS regclass
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    m1_name name := 'm1_' || pair;
BEGIN
    IF to_regclass(format('bqx.%I', m1_name)) IS NULL THEN
        EXECUTE format('CREATE TABLE bqx.%I (time timestamp with time zone PRIMARY KEY, open double precision, '
                       'high double precision, low double precision, close double precision, '
                       'volume double precision, rate_index double precision) PARTITION BY RANGE (time)', m1_name);
        EXECUTE format('COMMENT ON TABLE bqx.%I IS %L', m1_name,
                       format('One-minute bars of %s; time is the bar''s open, rate_index = close / baseline * 100', pair));
    END IF;
    RETURN to_regclass(format('bqx.%I', m1_name));
END
$$;

CREATE PROCEDURE bqx.create_m1(pairs text[] DEFAULT NULL, from_month date DEFAULT NULL, to_month date DEFAULT NULL)
LANGUAGE plpgsql
AS $$
DECLARE
    chosen pg_catalog.text[];
    chosen_pair pg_catalog.text;
    existed boolean;
    m1 pg_catalog.regclass;
    span record;
    made int;
BEGIN
    PERFORM bqx._require_top_level('create_m1'::pg_catalog.text);
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
    PERFORM bqx._check_month_range(from_month, to_month);
    chosen := coalesce(bqx._check_pairs(pairs), ARRAY(SELECT p.pair FROM bqx.pairs AS p ORDER BY 1));

    FOREACH chosen_pair IN ARRAY chosen LOOP
        PERFORM pg_advisory_xact_lock(bqx._lock_key('m1', chosen_pair));
        existed := to_regclass(format('bqx.%I', 'm1_' || chosen_pair)) IS NOT NULL;
        m1 := bqx._ensure_m1(chosen_pair);
        span := bqx._m1_span(m1);
        made := 0;
        -- With one bound only, the data's own end is the other; without data, that one month.
        IF coalesce(from_month, to_month) IS NOT NULL THEN
            made := bqx._ensure_partitions(m1, 'time', ARRAY(SELECT bqx._months(
                coalesce(from_month, least(bqx._month_of(span.first_bar), bqx._first_of_month(to_month))),
                coalesce(to_month, greatest(bqx._month_of(span.last_bar), bqx._first_of_month(from_month))))));
        END IF;
        PERFORM bqx._keep_triggers_everywhere(m1);
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        SET LOCAL search_path TO pg_catalog, pg_temp;
        RAISE NOTICE 'm1_%: %, % partition(s) made', chosen_pair,
            CASE WHEN existed THEN 'was there' ELSE 'table made' END, made;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE bqx.create_m1(text[], date, date) IS
    'Makes empty M1 tables for the pairs (NULL: all registered), with partitions for the months given';
