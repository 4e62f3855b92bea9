-- The names that scripts rely on: procedures, functions, relations and their columns.
\pset format unaligned

-- stages and functions with their arguments
SELECT p.prokind AS kind, p.proname AS name, pg_get_function_arguments(p.oid) AS arguments
  FROM pg_proc AS p
 WHERE p.pronamespace = 'bqx'::regnamespace AND left(p.proname, 1) <> '_'
 ORDER BY p.prokind DESC, p.proname, arguments;

-- what they return
SELECT p.proname AS name, pg_get_function_result(p.oid) AS result
  FROM pg_proc AS p
 WHERE p.pronamespace = 'bqx'::regnamespace AND left(p.proname, 1) <> '_' AND p.prokind = 'f'
 ORDER BY p.proname;

-- every one has a comment
SELECT p.proname AS without_comment
  FROM pg_proc AS p
 WHERE p.pronamespace = 'bqx'::regnamespace AND left(p.proname, 1) <> '_'
   AND obj_description(p.oid, 'pg_proc') IS NULL;

-- relations and columns
SELECT c.relname AS relation, string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum) AS columns
  FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE c.relnamespace = 'bqx'::regnamespace AND c.relkind IN ('r', 'v') AND c.relname NOT LIKE '%\_ledger'
 GROUP BY c.relname ORDER BY c.relname;

-- the 28 pairs
SELECT string_agg(pair || ' ' || base || '/' || quote, ', ' ORDER BY pair) AS pairs FROM bqx.pairs WHERE builtin;

-- columns of the derived tables
SELECT string_agg(name, ' ' ORDER BY position) AS bqx FROM bqx._metric_columns('bqx', NULL);
SELECT string_agg(name, ' ' ORDER BY position) AS reg FROM bqx._metric_columns('reg', NULL);

