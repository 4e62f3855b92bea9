-- Monthly partitions. They are found by their bounds, never by their names.

-- What a month's job asks for is PL/pgSQL: it keeps its plans, where an SQL function is planned at each call.

-- Range partitions of `parent` (or, of those, only one) whose key is one time column, with their bounds as instants; a
-- `timestamp` key means UTC. The pinned TimeZone and DateStyle make the printed bounds read back as the same instants. (Given
-- the partition, pg_get_expr would lock it, and so wait for whoever fills another month; bounds have no columns that it
-- needs one for.)
CREATE FUNCTION bqx._partitions(parent regclass, only_one regclass DEFAULT NULL)
RETURNS TABLE (partition regclass, from_ts timestamp with time zone, to_ts timestamp with time zone)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC' SET DateStyle = 'ISO'
AS $$
BEGIN
    RETURN QUERY
    SELECT c.oid::regclass,
           CASE WHEN bound[1] = 'FOR VALUES FROM (' THEN bound[2] ELSE '-infinity' END::timestamptz,
           CASE WHEN bound[cardinality(bound)] = ')' THEN bound[cardinality(bound) - 1] ELSE 'infinity' END::timestamptz
      FROM pg_inherits AS i
      JOIN pg_class AS c ON c.oid = i.inhrelid
     -- what is between quotation marks, and around them; a regular expression would take five times as long
     CROSS JOIN LATERAL string_to_array(pg_get_expr(c.relpartbound, 0), '''') AS bound
     WHERE i.inhparent = parent AND (only_one IS NULL OR i.inhrelid = only_one)
       AND concat(bound[1], bound[3], bound[5]) IN (
           'FOR VALUES FROM () TO ()', 'FOR VALUES FROM (MINVALUE) TO ()',
           'FOR VALUES FROM () TO (MAXVALUE)', 'FOR VALUES FROM (MINVALUE) TO (MAXVALUE)');
END
$$;

-- Whether the table is partitioned by range over just this column, so that months can be added to it.
CREATE FUNCTION bqx._is_partitioned_by(rel regclass, column_name text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM pg_partitioned_table AS p
          JOIN pg_attribute AS a ON a.attrelid = p.partrelid AND a.attname = column_name
         WHERE p.partrelid = rel AND p.partstrat = 'r' AND p.partnatts = 1 AND p.partattrs[0] = a.attnum);
END
$$;

-- A DEFAULT partition takes the rows of months without one of their own: making such a partition would scan it
-- under an exclusive lock, and fail where it holds rows of the month.
CREATE FUNCTION bqx._has_default_partition(rel regclass) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT EXISTS (SELECT FROM pg_partitioned_table AS p WHERE p.partrelid = rel AND p.partdefid <> 0) $$;

-- Whether a table has storage for rows, in any of its partitions.
CREATE FUNCTION bqx._has_storage(rel regclass) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN pg_relation_size(rel) > 0 OR (SELECT c.relkind <> 'r' FROM pg_class AS c WHERE c.oid = rel)
       AND EXISTS (SELECT FROM pg_partition_tree(rel) AS t WHERE t.isleaf AND (pg_relation_size(t.relid) > 0
                     OR (SELECT c.relkind = 'f' FROM pg_class AS c WHERE c.oid = t.relid)));
END
$$;

-- The partition that holds (a part of) the month; NULL where none does.
CREATE FUNCTION bqx._partition_of_month(parent regclass, month date) RETURNS regclass
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    starts_at timestamptz := bqx._month_start(month);
    ends_at timestamptz := bqx._month_start(bqx._next_month(month));
    likely regclass := to_regclass(format('bqx.%I', bqx._partition_name(parent, month)));
BEGIN
    -- The one of the usual name, if its bounds say so: among many partitions that is found sooner.
    IF likely IS NOT NULL AND EXISTS (
        SELECT FROM bqx._partitions(parent, likely) AS p WHERE p.from_ts <= starts_at AND p.to_ts >= ends_at) THEN
        RETURN likely;
    END IF;
    RETURN (SELECT p.partition FROM bqx._partitions(parent) AS p
             WHERE p.from_ts < ends_at AND p.to_ts > starts_at ORDER BY p.from_ts LIMIT 1);
END
$$;

CREATE FUNCTION bqx._partition_name(parent regclass, month date) RETURNS name
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT (c.relname || to_char(month, '_YYYY_MM'))::name FROM pg_class AS c WHERE c.oid = parent $$;

-- An instant as a literal that means the same under every TimeZone and DateStyle, for timestamptz and (the offset is
-- ignored, so: UTC) timestamp columns.
CREATE FUNCTION bqx._instant_literal(instant timestamp with time zone) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT quote_literal(to_char(instant AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US"+00"')) $$;

CREATE FUNCTION bqx._bounds(from_ts timestamp with time zone, to_ts timestamp with time zone) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT format('FROM (%s) TO (%s)', bqx._instant_literal(from_ts), bqx._instant_literal(to_ts)) $$;

CREATE FUNCTION bqx._month_bounds(month date) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT bqx._bounds(bqx._month_start(month), bqx._month_start(bqx._next_month(month))) $$;

-- The name a new partition takes; an error where something else has it.
CREATE FUNCTION bqx._free_partition_name(parent regclass, month date) RETURNS name
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    partition_name name := bqx._partition_name(parent, month);
BEGIN
    IF to_regclass(format('bqx.%I', partition_name)) IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'duplicate_table',
            MESSAGE = format('bqx.%I is in the way: it is no partition of %s for %s',
                             partition_name, parent, to_char(month, 'YYYY-MM')),
            HINT = format('Attach it with its bounds (ALTER TABLE %s ATTACH PARTITION bqx.%I FOR VALUES %s;) or rename it.',
                          parent, partition_name, bqx._month_bounds(month));
    END IF;
    RETURN partition_name;
END
$$;

-- The parts of months that no partition holds: whole months, or what partitions with other bounds (weeks, months
-- of another time zone) leave out.
CREATE FUNCTION bqx._uncovered_parts(parent regclass, months date[])
RETURNS TABLE (month date, from_ts timestamp with time zone, to_ts timestamp with time zone, whole boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    WITH partitions AS MATERIALIZED (
        SELECT p.from_ts, p.to_ts FROM bqx._partitions(parent) AS p
    ), wanted AS MATERIALIZED (
        SELECT DISTINCT m AS month, bqx._month_start(m) AS starts_at, bqx._month_start(bqx._next_month(m)) AS ends_at
          FROM unnest(months) AS m
    )
    -- between the end of each covered stretch (the month's start first) and the start of the next (its end last)
    SELECT g.month, g.from_ts, g.to_ts, g.from_ts = w.starts_at AND g.to_ts = w.ends_at
      FROM (SELECT e.month, e.ends_at AS from_ts,
                   lead(e.starts_at) OVER (PARTITION BY e.month ORDER BY e.starts_at, e.ends_at) AS to_ts
              FROM (SELECT w.month, w.starts_at AS ends_at, '-infinity'::timestamptz AS starts_at FROM wanted AS w
                    UNION ALL
                    SELECT w.month, p.to_ts, p.from_ts
                      FROM wanted AS w JOIN partitions AS p ON p.from_ts < w.ends_at AND p.to_ts > w.starts_at
                    UNION ALL
                    SELECT w.month, 'infinity', w.ends_at FROM wanted AS w) AS e) AS g
      JOIN wanted AS w USING (month)
     WHERE g.from_ts < g.to_ts
$$;

-- A table for a partition, not attached yet: nobody can see it, and attaching it does not wait for readers and writers of
-- the parent, nor they for that, as CREATE TABLE … PARTITION OF has it.
CREATE FUNCTION bqx._create_table_aside(parent regclass, table_name name, constraint_clause text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('CREATE TABLE bqx.%I (%s)%s', table_name,
                   concat_ws(', ', format('LIKE %s INCLUDING ALL EXCLUDING IDENTITY', parent), constraint_clause),
                   (SELECT format(' TABLESPACE %I', s.spcname) FROM pg_class AS c
                      JOIN pg_tablespace AS s ON s.oid = c.reltablespace WHERE c.oid = parent));
END
$$;

-- Makes the missing partitions of the months, and says how many. Tables that are not partitioned, or have a DEFAULT
-- partition, need none.
CREATE FUNCTION bqx._ensure_partitions(parent regclass, key_column text, months date[]) RETURNS int
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET max_parallel_maintenance_workers = 0  -- planning to build an empty key takes longer than building it
AS $$
DECLARE
    missing record;
    partition_name name;
    made int := 0;
BEGIN
    IF NOT bqx._is_partitioned_by(parent, key_column) OR bqx._has_default_partition(parent) THEN
        RETURN 0;
    END IF;
    FOR missing IN
        SELECT u.* FROM bqx._uncovered_parts(parent, months) AS u ORDER BY u.from_ts
    LOOP
        partition_name := CASE WHEN missing.whole THEN bqx._free_partition_name(parent, missing.month)
            ELSE bqx._partition_name(parent, missing.month) || to_char(missing.from_ts AT TIME ZONE 'UTC', '"_from_"DD_HH24MI') END;
        PERFORM bqx._create_table_aside(parent, partition_name, NULL);
        EXECUTE format('ALTER TABLE %s ATTACH PARTITION bqx.%I FOR VALUES %s',
                       parent, partition_name, bqx._bounds(missing.from_ts, missing.to_ts));
        made := made + 1;
    END LOOP;
    RETURN made;
END
$$;
