-- Stages 1.5.4.1/2 and 1.5.5.1/2: the tables that backfill fills. Their columns come from _metric_columns.

CREATE FUNCTION bqx._derived_name(family text, pair text) RETURNS name
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT (family || '_' || pair)::name $$;

-- The table of a family and pair; 42P01 where there is none.
CREATE FUNCTION bqx._derived_table(family text, pair text) RETURNS regclass
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    derived regclass := to_regclass(format('bqx.%I', bqx._derived_name(family, pair)));
BEGIN
    IF derived IS NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'undefined_table',
            MESSAGE = format('table bqx.%s_%s does not exist', family, pair),
            HINT = format('CALL bqx.create_tables(ARRAY[%L], ARRAY[%L]);', family, pair);
    END IF;
    PERFORM bqx._check_is_table(derived);
    RETURN derived;
END
$$;

-- The columns of a derived table that are ours, in table order, and the longest window among them. The shape tells a
-- column from one that was dropped and made again under its name, or has another type.
CREATE FUNCTION bqx._own_columns(
    family text, derived regclass, OUT names text[], OUT foreign_names text[], OUT lookback int, OUT shape text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE w IS NOT NULL), '{}'),
           coalesce(array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE w IS NULL), '{}'),
           coalesce(max(w), 0),
           coalesce(string_agg(format('%s %s %s', a.attname, a.attnum, format_type(a.atttypid, a.atttypmod)), ', '
                               ORDER BY a.attnum) FILTER (WHERE w IS NOT NULL), '')
      FROM pg_attribute AS a
     CROSS JOIN LATERAL bqx._column_window(family, a.attname::text) AS w
     WHERE a.attrelid = derived AND a.attnum > 0 AND NOT a.attisdropped
$$;

CREATE FUNCTION bqx._create_derived_table(family text, pair text, windows int[]) RETURNS regclass
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    table_name name := bqx._derived_name(family, pair);
    definitions text := (SELECT string_agg(format('%I %s', c.name, c.sql_type)
                                || CASE c.name WHEN 'created_at' THEN ' DEFAULT now()' ELSE '' END,
                                ', ' ORDER BY c.position)
                           FROM bqx._metric_columns(family, windows) AS c);
BEGIN
    EXECUTE format('CREATE TABLE bqx.%I (%s, PRIMARY KEY (ts_utc)) PARTITION BY RANGE (ts_utc)', table_name, definitions);
    EXECUTE format('COMMENT ON TABLE bqx.%I IS %L', table_name, CASE family
        WHEN 'bqx' THEN format('Backward-window metrics of %s, one row per bar, filled by bqx.backfill', pair)
        ELSE format('Rolling quadratic regressions of %s, one row per bar, filled by bqx.backfill', pair) END);
    RETURN to_regclass(format('bqx.%I', table_name));
END
$$;

-- Says how a table that was there before differs from the one asked for.
CREATE FUNCTION bqx._note_foreign_table(family text, derived regclass, windows int[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    own record := bqx._own_columns(family, derived);
    missing text[] := ARRAY(SELECT c.name FROM bqx._metric_columns(family, windows) AS c
                             WHERE c.name <> ALL (own.names) ORDER BY c.position);
BEGIN
    IF cardinality(missing) > 0 THEN
        RAISE NOTICE '% was there without column(s) %: the others are filled', derived, bqx._listed(missing, 5);
    END IF;
    IF cardinality(own.foreign_names) > 0 THEN
        RAISE NOTICE '% has column(s) that are not bqx''s and stay as they are: %', derived, bqx._listed(own.foreign_names, 5);
    END IF;
END
$$;

CREATE PROCEDURE bqx.create_tables(
    families text[] DEFAULT NULL, pairs text[] DEFAULT NULL, from_month date DEFAULT NULL,
    to_month date DEFAULT NULL, windows int[] DEFAULT NULL)
LANGUAGE plpgsql
AS $$
DECLARE
    chosen_families pg_catalog.text[];
    chosen_windows int[];
    chosen pg_catalog.text[];
    chosen_pair pg_catalog.text;
    chosen_family pg_catalog.text;
    m1 pg_catalog.regclass;
    derived pg_catalog.regclass;
    existed boolean;
    span record;
    first_month pg_catalog.date;
    last_month pg_catalog.date;
    made int;
BEGIN
    PERFORM bqx._require_top_level('create_tables'::pg_catalog.text);
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
    chosen_families := bqx._check_families(families);
    chosen_windows := bqx._check_windows(chosen_families, windows);
    PERFORM bqx._check_month_range(from_month, to_month);
    -- Both months given: no bars are needed to know the partitions.
    chosen := CASE WHEN pairs IS NOT NULL AND from_month IS NOT NULL AND to_month IS NOT NULL
              THEN bqx._check_pairs(pairs) ELSE bqx._pairs_or_all(pairs) END;

    FOREACH chosen_pair IN ARRAY chosen LOOP
        FOREACH chosen_family IN ARRAY chosen_families LOOP
            PERFORM bqx._await_followers(chosen_pair, false);  -- who may be making the same partition
            m1 := to_regclass(format('bqx.%I', 'm1_' || chosen_pair));
            first_month := from_month;
            last_month := to_month;
            IF first_month IS NULL OR last_month IS NULL THEN
                span := bqx._m1_span(m1);
                first_month := coalesce(first_month, least(bqx._month_of(span.first_bar), last_month));
                last_month := coalesce(last_month, greatest(bqx._months_after(bqx._month_of(span.last_bar), bqx._months_ahead()),
                                                            first_month));
            END IF;
            derived := to_regclass(format('bqx.%I', bqx._derived_name(chosen_family, chosen_pair)));
            existed := derived IS NOT NULL;
            IF existed THEN
                PERFORM bqx._check_is_table(derived);
                PERFORM bqx._note_foreign_table(chosen_family, derived, chosen_windows);
            ELSE
                derived := bqx._create_derived_table(chosen_family, chosen_pair, chosen_windows);
            END IF;
            made := CASE WHEN first_month IS NULL THEN 0
                    ELSE bqx._ensure_partitions(derived, 'ts_utc', ARRAY(SELECT bqx._months(first_month, last_month))) END;
            COMMIT;
            SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
            SET LOCAL search_path TO pg_catalog, pg_temp;
            RAISE NOTICE '%_%: %, % partition(s) made', chosen_family, chosen_pair,
                CASE WHEN existed THEN 'was there' ELSE 'table made' END, made;
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE bqx.create_tables(text[], text[], date, date, int[]) IS
    'Stages 1.5.4.2 and 1.5.5.2: makes the derived tables and their monthly partitions';

-- How something in bqx_ml is made again, if it is ours: that is at the end of its comment.
CREATE FUNCTION bqx._call_in(comment text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT substring(comment FROM 'Made by (CALL bqx\..*;)$') $$;

CREATE FUNCTION bqx._made_by(rel oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT bqx._call_in(obj_description(c.oid, 'pg_class'))
      FROM pg_class AS c
     WHERE c.oid = rel AND c.relkind IN ('v', 'm') AND c.relnamespace = to_regnamespace('bqx_ml')
$$;

-- What SQL calls a view of this pg_class.relkind.
CREATE FUNCTION bqx._view_kind(relkind "char") RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT CASE relkind WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE 'VIEW' END $$;

-- What depends on a table or its partitions and would go with it: views (views of views, too), materialized
-- views, functions whose bodies PostgreSQL knows, and foreign keys; with the statement that makes each again.
CREATE FUNCTION bqx._dependents(rel regclass) RETURNS TABLE (description text, definition text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    WITH RECURSIVE going (classid, objid) AS (
        SELECT 'pg_class'::regclass::oid, rel::oid
        UNION SELECT 'pg_class'::regclass, t.relid FROM pg_partition_tree(rel) AS t
        UNION SELECT CASE WHEN r.oid IS NULL THEN d.classid ELSE 'pg_class'::regclass END, coalesce(r.ev_class, d.objid)
          FROM going AS g
          JOIN pg_depend AS d ON d.refclassid = g.classid AND d.refobjid = g.objid
                             AND d.classid IN ('pg_rewrite'::regclass, 'pg_proc'::regclass)
          LEFT JOIN pg_rewrite AS r ON r.oid = d.objid AND d.classid = 'pg_rewrite'::regclass
    )
    SELECT format('%s %s', lower(bqx._view_kind(c.relkind)), c.oid::regclass),
           coalesce(bqx._made_by(c.oid),
                    format('CREATE %s %s AS %s', bqx._view_kind(c.relkind),
                           c.oid::regclass, pg_get_viewdef(c.oid)))
      FROM going AS g JOIN pg_class AS c ON c.oid = g.objid AND g.classid = 'pg_class'::regclass
     WHERE c.relkind IN ('v', 'm')
    UNION ALL
    SELECT format('function %s', p.oid::regprocedure),
           coalesce(bqx._call_in(obj_description(p.oid, 'pg_proc')), pg_get_functiondef(p.oid))
      FROM going AS g JOIN pg_proc AS p ON p.oid = g.objid AND g.classid = 'pg_proc'::regclass
    UNION ALL
    SELECT format('foreign key %I of %s', k.conname, k.conrelid::regclass),
           format('ALTER TABLE %s ADD CONSTRAINT %I %s', k.conrelid::regclass, k.conname, pg_get_constraintdef(k.oid))
      FROM pg_constraint AS k
     WHERE k.contype = 'f' AND k.confrelid = rel AND k.conparentid = 0 AND k.conrelid NOT IN (SELECT objid FROM going WHERE classid = 'pg_class'::regclass)
$$;

-- Tries what DROP would say and takes it back: what else may depend on a table (row types, functions, policies)
-- is PostgreSQL's to know. Undone at once, so that the locks of thousands of partitions don't add up.
CREATE FUNCTION bqx._check_droppable(derived regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('DROP TABLE %s RESTRICT', derived);
    RAISE EXCEPTION USING ERRCODE = 'BQX01', MESSAGE = 'it can be dropped';
EXCEPTION
    WHEN SQLSTATE 'BQX01' THEN
        RETURN;
END
$$;

CREATE PROCEDURE bqx.drop_tables(families text[], pairs text[] DEFAULT NULL, cascade boolean DEFAULT false)
LANGUAGE plpgsql
AS $$
DECLARE
    chosen_families pg_catalog.text[];
    chosen pg_catalog.text[];
    chosen_pair pg_catalog.text;
    chosen_family pg_catalog.text;
    doomed pg_catalog.regclass[];
    derived pg_catalog.regclass;
    table_name pg_catalog.text;
    dependents pg_catalog.text[];
    gone record;
BEGIN
    PERFORM bqx._require_top_level('drop_tables'::pg_catalog.text);
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
    chosen_families := bqx._check_families(families);
    chosen := coalesce(bqx._check_pairs(pairs), ARRAY(SELECT p.pair FROM bqx.pairs AS p ORDER BY 1));
    SELECT coalesce(array_agg(r), '{}') INTO doomed
      FROM unnest(chosen) AS p, unnest(chosen_families) AS f,
           LATERAL (SELECT to_regclass(format('bqx.%I', bqx._derived_name(f, p)))) AS t (r)
     WHERE r IS NOT NULL;
    PERFORM bqx._check_is_table(r) FROM unnest(doomed) AS r;

    IF NOT coalesce(cascade, false) THEN
        SELECT array_agg(DISTINCT format('%s (of %s)', d.description, r)) INTO dependents
          FROM unnest(doomed) AS r, bqx._dependents(r) AS d;
        IF dependents IS NOT NULL THEN
            RAISE EXCEPTION USING
                ERRCODE = 'dependent_objects_still_exist',
                MESSAGE = 'other objects depend on the tables; nothing was dropped',
                DETAIL = array_to_string(dependents, E'\n'),
                HINT = 'CALL bqx.drop_tables(…, cascade => true); drops them, too, and shows how to make them again.';
        END IF;
        PERFORM bqx._check_droppable(r) FROM unnest(doomed) AS r;
    END IF;

    IF doomed = '{}' THEN
        RAISE NOTICE 'there is no table to drop';
        RETURN;
    END IF;
    FOREACH chosen_pair IN ARRAY chosen LOOP
        FOREACH chosen_family IN ARRAY chosen_families LOOP
            derived := to_regclass(format('bqx.%I', bqx._derived_name(chosen_family, chosen_pair)));
            CONTINUE WHEN derived IS NULL;
            table_name := derived::text;
            FOR gone IN SELECT * FROM bqx._dependents(derived) LOOP
                RAISE NOTICE USING MESSAGE = format('%s goes with %s', gone.description, table_name),
                                   DETAIL = gone.definition;
            END LOOP;
            EXECUTE format('DROP TABLE %s %s', table_name, CASE WHEN cascade THEN 'CASCADE' ELSE 'RESTRICT' END);
            PERFORM bqx._forget_months(chosen_family, chosen_pair);
            COMMIT;
            SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
            SET LOCAL search_path TO pg_catalog, pg_temp;
            RAISE NOTICE '% dropped', table_name;
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE bqx.drop_tables(text[], text[], boolean) IS
    'Stages 1.5.4.1 and 1.5.5.1: drops derived tables; never M1';
