-- What src/one_pair.rs asks.

-- The tables that features of a pair are read from, of those that there are.
CREATE FUNCTION bqx._tables_of_features(pair text) RETURNS regclass[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_agg(t ORDER BY i)
      FROM unnest(ARRAY['m1_' || pair, bqx._derived_name('bqx', pair), bqx._derived_name('reg', pair)]) WITH ORDINALITY AS u (n, i)
     CROSS JOIN LATERAL to_regclass(format('bqx.%I', n)) AS t
     WHERE t IS NOT NULL
$$;

-- The tables that the view of related pairs is of, or its rows as a function: that has columns for the builtin ones alone.
CREATE FUNCTION bqx._tables_of_related(pair text, only_builtin boolean) RETURNS regclass[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_agg(t ORDER BY i)
      FROM unnest(pair || bqx._related_pairs(pair)) WITH ORDINALITY AS u (p, i)
      JOIN bqx.pairs AS k ON k.pair = p AND (k.builtin OR i = 1 OR NOT only_builtin)
     CROSS JOIN LATERAL to_regclass(format('bqx.%I', bqx._derived_name('bqx', p))) AS t
     WHERE t IS NOT NULL
$$;

-- Whether a function with this comment is made of what would be asked now: of the same tables, and of their columns as they are. (By the query
-- itself where OIDs have changed, as after a restore.)
CREATE FUNCTION bqx._is_current(function oid, kind text, pair text, comment text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN kind = 'related'
                THEN bqx._reads_all('pg_proc', function, bqx._tables_of_related(pair, true)) AND bqx._is_made_of(comment, bqx._related_rows_query(pair))
                ELSE bqx._is_of_shape(comment, bqx._tables_of_features(pair))
                  OR bqx._reads_all('pg_proc', function, bqx._tables_of_features(pair)) AND bqx._is_made_of(comment, bqx._feature_rows_query(pair)) END
$$;

-- The function of one pair that may be called instead of a function over any pair (src/one_pair.rs); NULL: none. It will be run as
-- whoever asks, so it must be that role's own, a superuser's, or of who owns the schema; it must be made of what would be asked now,
-- the columns of tables included; and it opens nothing: both functions must be the role's to call.
CREATE FUNCTION bqx._function_of_pair(of_any oid, pair text) RETURNS oid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT p.oid
      FROM pg_proc AS g
      JOIN pg_namespace AS s ON s.oid = g.pronamespace
      JOIN pg_proc AS p ON p.oid = to_regprocedure(format('%I.%I(timestamptz, timestamptz)', s.nspname, g.proname || '_' || pair))
     WHERE g.oid = of_any AND p.prorettype = g.prorettype AND p.proretset AND NOT p.prosecdef AND p.prosqlbody IS NOT NULL
       AND (p.proowner IN (s.nspowner, quote_ident(current_user)::regrole) OR (SELECT r.rolsuper FROM pg_roles AS r WHERE r.oid = p.proowner))
       AND has_function_privilege(p.oid, 'EXECUTE') AND has_function_privilege(g.oid, 'EXECUTE')
       AND EXISTS (SELECT FROM bqx.pairs AS k WHERE k.pair = $2)
       AND bqx._is_current(p.oid, g.proname, pair, obj_description(p.oid, 'pg_proc'))
$$;
