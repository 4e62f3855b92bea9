-- What src/live.rs and src/followed_tables.rs need to know and to do in SQL: the rows that changed bars affect, in the caller's transaction.

-- Why rows of a derived table can't follow changes of bars one by one; NULL: they can.
CREATE FUNCTION bqx._why_not_followed(derived regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN NOT EXISTS (
        SELECT FROM pg_index AS i
          JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
         WHERE i.indrelid = derived AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indnkeyatts = 1
           AND i.indpred IS NULL AND a.attname = 'ts_utc')
        THEN format('%s has no unique index on ts_utc', derived) END
$$;

-- Whether an M1 table is partitioned by its time, if at all, so that src/time_partitions.rs can tell its parts.
CREATE FUNCTION bqx._is_kept_by_time(m1 oid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT NOT EXISTS (SELECT FROM pg_partitioned_table AS p WHERE p.partrelid = m1) OR bqx._is_partitioned_by(m1, 'time')
$$;

-- The statement that stores the rows of _rows_to_store where they differ from what is there. What was changed gets the
-- created_at of a new row.
CREATE FUNCTION bqx._upsert_statement(family text, derived regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format(
        'INSERT INTO %s AS t (ts_utc%s) SELECT %s%s FROM bqx._rows_to_store() AS c (ts_utc timestamptz%s) '
        'ON CONFLICT (ts_utc) DO %s', derived,
        string_agg(format(', %I', n), '' ORDER BY i), bqx._as_key(derived, 'ts_utc', 'c.ts_utc'),
        string_agg(format(', c.%I::%s', n, bqx._column_type(derived, n)), '' ORDER BY i),
        string_agg(format(', %I double precision', n), '' ORDER BY i),
        CASE WHEN count(n) = 0 THEN 'NOTHING' ELSE format(
            'UPDATE SET (%s) = ROW(%s) WHERE ROW(%s) IS DISTINCT FROM ROW(%s)',
            string_agg(quote_ident(n), ', ' ORDER BY i) || max(t.created), string_agg(format('excluded.%I', n), ', ' ORDER BY i)
                || max(t.created_anew),
            string_agg(format('t.%I', n), ', ' ORDER BY i), string_agg(format('excluded.%I', n), ', ' ORDER BY i)) END)
      FROM bqx._own_columns(family, derived) AS own
     CROSS JOIN LATERAL (SELECT CASE WHEN 'created_at' = ANY (own.names) THEN ', created_at' ELSE '' END,
                                CASE WHEN 'created_at' = ANY (own.names) THEN ', excluded.created_at' ELSE '' END
                        ) AS t (created, created_anew)
      LEFT JOIN LATERAL unnest(own.names) WITH ORDINALITY AS u (n, i) ON n NOT IN ('ts_utc', 'created_at')
$$;

-- The statement that stores a new row, of these values, unless there is one.
CREATE FUNCTION bqx._insert_statement(family text, derived regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('INSERT INTO %s (ts_utc%s) VALUES (%s%s) ON CONFLICT (ts_utc) DO NOTHING', derived,
                  string_agg(format(', %I', n), '' ORDER BY i), bqx._as_key(derived, 'ts_utc', '$1'),
                  string_agg(format(', $%s::%s', i, bqx._column_type(derived, n)), '' ORDER BY i))
      FROM (SELECT n, row_number() OVER (ORDER BY u.i) + 1
              FROM unnest((bqx._own_columns(family, derived)).names) WITH ORDINALITY AS u (n, i)
             WHERE n NOT IN ('ts_utc', 'created_at')) AS own (n, i)
$$;

-- The derived tables that a pair has, and how their rows are stored.
CREATE FUNCTION bqx._tables_to_follow(pair text)
RETURNS TABLE (family text, derived regclass, column_names text[], insert_one text, upsert text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    reason text;
BEGIN
    FOREACH family IN ARRAY ARRAY['bqx', 'reg'] LOOP
        CONTINUE WHEN to_regclass(format('bqx.%I', bqx._derived_name(family, pair))) IS NULL;
        derived := bqx._derived_table(family, pair);
        reason := bqx._why_not_followed(derived);
        IF reason IS NOT NULL THEN
            RAISE EXCEPTION USING
                ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = format('rows cannot follow changes of bars of "%s": %s', pair, reason),
                HINT = format('ALTER TABLE %s ADD PRIMARY KEY (ts_utc);  or CALL bqx.disable_live(ARRAY[%L]);', derived, pair);
        END IF;
        PERFORM bqx._check_sees_all_rows(derived);
        column_names := (bqx._own_columns(family, derived)).names;
        insert_one := bqx._insert_statement(family, derived);
        upsert := bqx._upsert_statement(family, derived);
        RETURN NEXT;
    END LOOP;
END
$$;

-- A month's partition, for rows that are about to be stored. Only the table's owner can make it.
CREATE FUNCTION bqx._make_followed_partition(family text, pair text, month date) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    derived regclass := bqx._derived_table(family, pair);
BEGIN
    IF NOT pg_has_role(current_user, (SELECT c.relowner FROM pg_class AS c WHERE c.oid = derived), 'USAGE') THEN
        RAISE EXCEPTION USING
            ERRCODE = 'insufficient_privilege',
            MESSAGE = format('%s has no partition for %s, and role "%s" cannot make one', derived, to_char(month, 'YYYY-MM'), current_user),
            HINT = format('As its owner: CALL bqx.create_tables(pairs => ARRAY[%L], from_month => %L, to_month => %2$L);  '
                          'CALL bqx.refresh();  from time to time makes the coming month''s.', pair, month);
    END IF;
    PERFORM bqx._ensure_partition_to_write(derived, month);
END
$$;

-- Deletes the rows of a stretch of time, both ends included, that have no bar. As in _write_month_plainly, not where the
-- table has other columns, or other tables refer to its rows: those are for verify() to name.
CREATE FUNCTION bqx._remove_rows_without_bars(pair text, from_ts timestamp with time zone, to_ts timestamp with time zone)
RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    m1 regclass := bqx._m1_table(pair);
    one_family text;
    derived regclass;
    removed bigint;
    all_removed bigint := 0;
BEGIN
    FOREACH one_family IN ARRAY bqx._families_of(pair) LOOP
        derived := bqx._derived_table(one_family, pair);
        PERFORM bqx._check_sees_all_rows(derived);
        CONTINUE WHEN NOT bqx._holds_own_rows_alone(one_family, derived);
        EXECUTE format(
            'DELETE FROM %s AS t WHERE t.ts_utc >= %s AND t.ts_utc <= %s AND NOT EXISTS ('
            'SELECT FROM %s AS b WHERE b.time = %s AND b.time >= %s AND b.time <= %s)', derived,
            bqx._as_key(derived, 'ts_utc', '$1'), bqx._as_key(derived, 'ts_utc', '$2'), m1,
            bqx._as_key(m1, 'time', replace(bqx._as_instant(derived, 'ts_utc'), 'ts_utc', 't.ts_utc')),
            bqx._as_key(m1, 'time', '$1'), bqx._as_key(m1, 'time', '$2'))
          USING from_ts, to_ts;
        GET DIAGNOSTICS removed = ROW_COUNT;
        all_removed := all_removed + removed;
    END LOOP;
    RETURN all_removed;
END
$$;

-- Why a role can't have rows follow that may not read the bars, or not all of them.
CREATE FUNCTION bqx._refuse_to_follow(m1 regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM bqx._check_sees_all_rows(m1);
    RAISE EXCEPTION USING
        ERRCODE = 'insufficient_privilege',
        MESSAGE = format('permission denied for table %s', m1),
        DETAIL = 'Its derived rows are computed from the bars before and after those that changed.',
        HINT = format('GRANT SELECT ON %s TO %I;', m1, current_user);
END
$$;

-- The times of a derived table's rows in a stretch of time, both ends included, in short.
CREATE FUNCTION bqx._row_times(derived regclass, from_ts timestamp with time zone, to_ts timestamp with time zone) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC' SET DateStyle = 'ISO'
AS $$
DECLARE
    times text;
BEGIN
    EXECUTE format('SELECT md5(string_agg(ts_utc::text, '','' ORDER BY ts_utc)) FROM %s WHERE ts_utc >= %s AND ts_utc <= %s', derived,
                   bqx._as_key(derived, 'ts_utc', '$1'), bqx._as_key(derived, 'ts_utc', '$2'))
       INTO times USING from_ts, to_ts;
    RETURN times;
END
$$;

-- Whether a month has just so many bars.
CREATE FUNCTION bqx._has_bars(m1 regclass, month date, expected bigint) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_bars bigint;
BEGIN
    EXECUTE format('SELECT count(*) FROM (SELECT FROM %s WHERE time >= %s AND time < %s LIMIT $3) AS b', m1,
                   bqx._as_key(m1, 'time', '$1'), bqx._as_key(m1, 'time', '$2'))
       INTO found_bars USING bqx._month_start(month), bqx._month_start(bqx._next_month(month)), expected + 1;
    RETURN found_bars = expected;
END
$$;

-- Of a month that nothing was recorded of, as the coming one is, the rows that followed its first bars may be all there are.
-- Then its later changes are known. As everywhere, what bars are kept in is asked before they are looked at.
CREATE FUNCTION bqx._know_new_months(pair text, families text[], months date[], rows_followed bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    kept record;
BEGIN
    FOR kept IN
        SELECT k.month, k.identity, rows_followed[k.i] AS followed
          FROM bqx._m1_identities(pair, months) WITH ORDINALITY AS k (month, identity, i)
    LOOP
        CONTINUE WHEN kept.identity IS NULL OR NOT bqx._has_bars(bqx._m1_table(pair), kept.month, kept.followed);
        PERFORM bqx._record_followed_as(f, pair, kept.month, bqx._followed_as(f, pair, kept.month, kept.identity)) FROM unnest(families) AS f;
    END LOOP;
END
$$;

CREATE FUNCTION bqx._notify_bars(pair text, from_ts timestamp with time zone, to_ts timestamp with time zone) RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC'
AS $$
    SELECT pg_notify('bqx_bars', json_build_object('pair', pair, 'from', from_ts, 'to', to_ts)::text)
$$;
