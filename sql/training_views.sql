-- How views and functions of one pair come into bqx_ml, are known again, and are taken by the planner. They are the caller's, not the
-- extension's.

-- What the comment of something in bqx_ml says, so that it can be told what it was made from, and by which call. The shape of its tables, if
-- given, tells sooner.
CREATE FUNCTION bqx._ml_comment(description text, query text, call text, tables regclass[] DEFAULT NULL) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT format('%s (query %s%s). Made by %s', description, md5(query), ', tables ' || bqx._shape_of(tables), call) $$;

CREATE FUNCTION bqx._is_made_of(comment text, query text) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT coalesce(bqx._call_in(comment) IS NOT NULL AND strpos(comment, format(' (query %s', md5(query))) > 0, false) $$;

-- Whether a function, or a view's rule, reads all of these tables, and not others that had their names before.
CREATE FUNCTION bqx._reads_all(class regclass, object oid, tables regclass[]) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT NOT EXISTS (
        SELECT FROM unnest(tables) AS t
         WHERE NOT EXISTS (SELECT FROM pg_depend AS d
                            WHERE d.classid = class AND d.objid = object AND d.refclassid = 'pg_class'::regclass AND d.refobjid = t))
$$;

CREATE FUNCTION bqx._is_of_shape(comment text, tables regclass[]) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT coalesce(strpos(comment, format(', tables %s). Made by CALL bqx.', bqx._shape_of(tables))) > 0, false) $$;

-- Gives a relation the rights that its predecessor's ACL has, but for its owner's.
CREATE FUNCTION bqx._grant_as_before(rel regclass, acl aclitem[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    had record;
BEGIN
    FOR had IN
        SELECT a.privilege_type, a.is_grantable, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee
          FROM aclexplode(acl) AS a WHERE a.grantee <> (SELECT c.relowner FROM pg_class AS c WHERE c.oid = rel)
    LOOP
        EXECUTE format('GRANT %s ON %s TO %s%s', had.privilege_type, rel, had.grantee,
                       CASE WHEN had.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
    END LOOP;
END
$$;

-- The same for a function. NULL is what a new one has: everyone may call it.
CREATE FUNCTION bqx._allow_as_before(function regprocedure, acl aclitem[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    had record;
BEGIN
    IF acl IS NOT NULL THEN
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', function);
    END IF;
    FOR had IN
        SELECT a.is_grantable, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee
          FROM aclexplode(acl) AS a WHERE a.grantee <> (SELECT p.proowner FROM pg_proc AS p WHERE p.oid = function)
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s%s', function, had.grantee, CASE WHEN had.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
    END LOOP;
END
$$;

-- Makes a view in bqx_ml of these tables, anew if there is one of ours that is another query's, of other tables, or of the other kind. Returns
-- what it did.
CREATE FUNCTION bqx._make_ml_view(
    view_name text, materialized boolean, query text, description text, call text, tables regclass[]) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    kind text := CASE WHEN materialized THEN 'MATERIALIZED VIEW' ELSE 'VIEW' END;
    existing record;
BEGIN
    SELECT c.oid::regclass AS rel, c.relacl, bqx._view_kind(c.relkind) AS kind, obj_description(c.oid, 'pg_class') AS comment,
           bqx._reads_all('pg_rewrite', (SELECT r.oid FROM pg_rewrite AS r WHERE r.ev_class = c.oid AND r.rulename = '_RETURN'), tables) AS reads_all
      INTO existing FROM pg_class AS c WHERE c.oid = to_regclass(format('bqx_ml.%I', view_name));
    IF existing.rel IS NOT NULL AND bqx._made_by(existing.rel) IS NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'duplicate_table',
            MESSAGE = format('relation %s exists already, and was not made by bqx', existing.rel),
            HINT = 'Rename it or drop it, then call again.';
    END IF;
    IF existing.kind = kind AND existing.reads_all AND bqx._is_made_of(existing.comment, query) THEN
        RETURN 'was there';
    END IF;
    IF existing.rel IS NOT NULL THEN
        EXECUTE format('DROP %s %s', existing.kind, existing.rel);
    END IF;
    EXECUTE format('CREATE %s bqx_ml.%I AS %s', kind, view_name, query);
    EXECUTE format('COMMENT ON %s bqx_ml.%I IS %L', kind, view_name, bqx._ml_comment(description, query, call));
    IF materialized THEN
        EXECUTE format('CREATE UNIQUE INDEX ON bqx_ml.%I (ts_utc)', view_name);
    END IF;
    PERFORM bqx._grant_as_before(to_regclass(format('bqx_ml.%I', view_name)), existing.relacl);
    RETURN CASE WHEN existing.rel IS NULL THEN 'made' ELSE 'made anew' END;
END
$$;

-- Makes, or makes anew, the function in bqx_ml of one pair that the planner may take for the one of all.
CREATE FUNCTION bqx._make_ml_function(
    function_name text, row_type text, query text, description text, call text, tables regclass[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    signature text := format('bqx_ml.%I(timestamp with time zone, timestamp with time zone)', function_name);
    comment text := obj_description(to_regprocedure(signature), 'pg_proc');
    acl aclitem[] := (SELECT p.proacl FROM pg_proc AS p WHERE p.oid = to_regprocedure(signature));
BEGIN
    IF to_regprocedure(signature) IS NOT NULL AND bqx._call_in(comment) IS NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'duplicate_function',
            MESSAGE = format('function %s exists already, and was not made by bqx', signature),
            HINT = 'Rename it or drop it, then call again.';
    END IF;
    IF comment IS NOT NULL AND NOT (bqx._is_made_of(comment, query) AND bqx._is_of_shape(comment, tables)
                                    AND bqx._reads_all('pg_proc', to_regprocedure(signature), tables) AND EXISTS (
        SELECT FROM pg_proc AS p JOIN pg_roles AS r ON r.oid = p.proowner
         WHERE p.oid = to_regprocedure(signature) AND r.rolname = current_user)) THEN
        EXECUTE format('DROP FUNCTION %s', signature);
        comment := NULL;
    END IF;
    IF comment IS NULL THEN
        EXECUTE format('CREATE FUNCTION bqx_ml.%I(from_ts timestamp with time zone, to_ts timestamp with time zone) '
                       'RETURNS SETOF bqx.%I LANGUAGE sql STABLE PARALLEL SAFE ROWS 30000 BEGIN ATOMIC %s; END',
                       function_name, row_type, query);
        EXECUTE format('COMMENT ON FUNCTION %s IS %L', signature, bqx._ml_comment(description, query, call, tables));
        PERFORM bqx._allow_as_before(to_regprocedure(signature), acl);
    END IF;
END
$$;
