-- The instruments bqx knows, the baseline of each, and the rows that loads refused.

SET LOCAL search_path TO pg_catalog, pg_temp;  -- for what is parsed here: see preflight.sql

CREATE TABLE bqx.pairs (
    pair text PRIMARY KEY CHECK (pair ~ '^[a-z][a-z0-9]{2,15}$' AND pair <> 'staging'),
    base text,
    quote text,
    builtin boolean NOT NULL DEFAULT false,
    added_at timestamp with time zone NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE bqx.pairs IS
    'Registered instruments. Add your own: INSERT INTO bqx.pairs (pair, base, quote) VALUES (''eurtry'', ''EUR'', ''TRY'')';

INSERT INTO bqx.pairs (pair, base, quote, builtin)
SELECT p, pg_catalog.upper(pg_catalog.left(p, 3)), pg_catalog.upper(pg_catalog.right(p, 3)), true
  FROM pg_catalog.unnest(ARRAY[
    'audcad', 'audchf', 'audjpy', 'audnzd', 'audusd', 'cadchf', 'cadjpy', 'chfjpy', 'euraud', 'eurcad',
    'eurchf', 'eurgbp', 'eurjpy', 'eurnzd', 'eurusd', 'gbpaud', 'gbpcad', 'gbpchf', 'gbpjpy', 'gbpnzd',
    'gbpusd', 'nzdcad', 'nzdchf', 'nzdjpy', 'nzdusd', 'usdcad', 'usdchf', 'usdjpy']) AS p;

CREATE TABLE bqx.baseline_rates (
    pair text PRIMARY KEY,
    baseline_date timestamp with time zone NOT NULL,
    baseline_time timestamp with time zone NOT NULL,
    baseline_rate double precision NOT NULL
        CHECK (baseline_rate > 0 AND baseline_rate < 'Infinity'::double precision),
    created_at timestamp with time zone NOT NULL DEFAULT pg_catalog.now(),
    applied_at timestamp with time zone
);
COMMENT ON TABLE bqx.baseline_rates IS
    'The close that makes rate_index 100, per pair: asked-for date, the bar taken, and when index_m1 applied it';

CREATE TABLE bqx.rejected_bars (
    rejected_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pair text NOT NULL,
    source text NOT NULL,
    line_no bigint NOT NULL,
    line text,
    reason text NOT NULL,
    loaded_by name NOT NULL,
    loaded_at timestamp with time zone NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE bqx.rejected_bars IS 'Lines that load_m1 and ingest_m1 left out under on_bad_row => ''skip''';

-- Builtin rows come with CREATE EXTENSION: dumping them too would make the restore collide with them.
SELECT pg_catalog.pg_extension_config_dump('bqx.pairs', 'WHERE NOT builtin');
SELECT pg_catalog.pg_extension_config_dump('bqx.baseline_rates', '');
SELECT pg_catalog.pg_extension_config_dump('bqx.rejected_bars', '');
SELECT pg_catalog.pg_extension_config_dump(
    pg_catalog.pg_get_serial_sequence('bqx.rejected_bars', 'rejected_id')::pg_catalog.regclass, '');

GRANT SELECT ON bqx.pairs, bqx.baseline_rates, bqx.rejected_bars TO PUBLIC;

-- Whether rows that this role left behind are the current user's to see. A role that is gone: superusers only.
CREATE FUNCTION bqx._may_see_rows_of(role_name name) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (SELECT FROM pg_catalog.pg_roles AS r
                    WHERE (r.rolname = role_name AND pg_catalog.pg_has_role(r.oid, 'MEMBER'))
                       OR (r.rolname = current_user AND r.rolsuper))
$$;

ALTER TABLE bqx.rejected_bars ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON bqx.rejected_bars FOR SELECT USING (bqx._may_see_rows_of(loaded_by));

-- What the functions below write is believed from who may write the table that it is about, and from nobody else.
CREATE FUNCTION bqx._check_may_write(role_name name, table_name name) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    rel regclass := to_regclass(format('bqx.%I', table_name));
BEGIN
    IF rel IS NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'undefined_table',
            MESSAGE = format('table bqx.%I does not exist', table_name);
    ELSIF has_table_privilege(role_name, rel, 'INSERT') IS NOT TRUE THEN
        RAISE EXCEPTION USING
            ERRCODE = 'insufficient_privilege',
            MESSAGE = format('role "%s" may not write %s', role_name, rel),
            HINT = format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO %I;', rel, role_name);
    END IF;
END
$$;

-- SECURITY DEFINER functions, here and in ledger.sql: their last parameter tells them who calls, see _caller().

-- Records a baseline; it counts as applied only while the rate stays the same.
CREATE FUNCTION bqx._record_baseline(
    pair text, baseline_date timestamp with time zone,
    baseline_time timestamp with time zone, baseline_rate double precision, caller bigint DEFAULT bqx._caller()
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    PERFORM bqx._check_may_write(bqx._role_of($5)::name, ('m1_' || $1)::name);
    INSERT INTO bqx.baseline_rates AS b (pair, baseline_date, baseline_time, baseline_rate)
    VALUES ($1, $2, $3, $4)
    ON CONFLICT (pair) DO UPDATE
       SET baseline_date = excluded.baseline_date,
           baseline_time = excluded.baseline_time,
           baseline_rate = excluded.baseline_rate,
           created_at = pg_catalog.now(),
           applied_at = CASE WHEN b.baseline_rate = excluded.baseline_rate THEN b.applied_at END;
END
$$;

-- Marks the baseline as applied that index_m1 worked with; false if another was recorded meanwhile.
CREATE FUNCTION bqx._mark_baseline_applied(
    pair text, rate double precision, caller bigint DEFAULT bqx._caller()) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM bqx._check_may_write(bqx._role_of($3)::name, ('m1_' || $1)::name);
    UPDATE bqx.baseline_rates AS b SET applied_at = pg_catalog.now() WHERE b.pair = $1 AND b.baseline_rate = $2;
    RETURN FOUND;
END
$$;

CREATE FUNCTION bqx._keep_reject(
    pair text, source text, line_no bigint, line text, reason text, caller bigint DEFAULT bqx._caller()) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    role_name name := bqx._role_of($6);
BEGIN
    PERFORM bqx._check_may_write(role_name, ('m1_' || $1)::name);
    INSERT INTO bqx.rejected_bars (pair, source, line_no, line, reason, loaded_by)
    VALUES ($1, $2, $3, $4, $5, role_name);
END
$$;

SET LOCAL search_path TO bqx, pg_temp;
