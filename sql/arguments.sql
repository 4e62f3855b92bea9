-- How the stages that commit begin, and go on after each COMMIT:
--   SET TRANSACTION ISOLATION LEVEL READ COMMITTED;   advisory locks order statements, so each must see what the
--                                                     former holder committed, whatever the database's default is
--   SET LOCAL search_path TO pg_catalog, pg_temp;     a SET clause would forbid COMMIT
-- The types of their variables are written with their schema, because those are looked up before.

SET LOCAL search_path TO pg_catalog, pg_temp;  -- for what is parsed here: see preflight.sql

-- Arguments of the stages, checked the same way everywhere: what is refused is refused before anything is done.

CREATE FUNCTION bqx._check_families(families text[]) RETURNS text[]
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    family text;
    checked text[] := '{}';
BEGIN
    IF families IS NULL THEN
        RETURN ARRAY['bqx', 'reg'];
    END IF;
    FOREACH family IN ARRAY families LOOP
        IF lower(family) IS DISTINCT FROM 'bqx' AND lower(family) IS DISTINCT FROM 'reg' THEN
            RAISE EXCEPTION USING
                ERRCODE = 'invalid_parameter_value',
                MESSAGE = format('unknown family %s', coalesce(quote_literal(family), 'NULL')),
                HINT = 'Families are ''bqx'' and ''reg''; NULL stands for both.';
        END IF;
        IF lower(family) <> ALL (checked) THEN
            checked := checked || lower(family);
        END IF;
    END LOOP;
    IF checked = '{}' THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'the list of families is empty',
            HINT = 'Families are ''bqx'' and ''reg''; NULL stands for both.';
    END IF;
    RETURN checked;
END
$$;

CREATE FUNCTION bqx._check_pair(pair text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM bqx.pairs AS p WHERE p.pair = lower($1)) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('unknown pair %s', coalesce(quote_literal($1), 'NULL')),
            HINT = CASE WHEN lower($1) ~ '^[a-z][a-z0-9]{2,15}$' AND lower($1) <> 'staging'
                THEN format('SELECT pair FROM bqx.pairs lists the known ones; to add this one: '
                            'INSERT INTO bqx.pairs (pair, base, quote) VALUES (%L, %L, %L);', lower($1),
                            upper(left($1, 3)), upper(substr($1, 4, 3)))
                ELSE 'SELECT pair FROM bqx.pairs lists the known ones. A pair''s name is 3 to 16 letters and digits, a letter first.' END;
    END IF;
    RETURN lower($1);
END
$$;

-- NULL stays NULL: each stage says what it stands for there.
CREATE FUNCTION bqx._check_pairs(pairs text[]) RETURNS text[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    checked text[];
BEGIN
    IF pairs = '{}' THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'the list of pairs is empty',
            HINT = 'Name pairs, or leave the argument out for all.';
    END IF;
    IF pairs IS NOT NULL THEN
        -- every name is checked, in the order given, before duplicates are dropped
        SELECT array_agg(bqx._check_pair(p) ORDER BY i) INTO checked
          FROM unnest(pairs) WITH ORDINALITY AS u (p, i);
        SELECT array_agg(p ORDER BY i) INTO checked
          FROM (SELECT p, min(i) AS i FROM unnest(checked) WITH ORDINALITY AS u (p, i) GROUP BY p) AS firsts;
    END IF;
    RETURN checked;
END
$$;

-- Functions with RETURN are parsed when they are made: they need no pinned search_path, and can be inlined.

CREATE FUNCTION bqx._first_of_month(day date) RETURNS date
LANGUAGE sql IMMUTABLE
RETURN pg_catalog.make_date(extract(year FROM day)::int, extract(month FROM day)::int, 1);

-- The UTC month that an instant lies in, as its first day.
CREATE FUNCTION bqx._month_of(instant timestamp with time zone) RETURNS date
LANGUAGE sql IMMUTABLE
RETURN bqx._first_of_month((instant AT TIME ZONE 'UTC')::date);

CREATE FUNCTION bqx._month_start(month date) RETURNS timestamp with time zone
LANGUAGE sql IMMUTABLE
RETURN month::timestamp AT TIME ZONE 'UTC';

CREATE FUNCTION bqx._next_month(month date) RETURNS date
LANGUAGE sql IMMUTABLE
RETURN (month + interval '1 month')::date;

CREATE FUNCTION bqx._months_after(month date, months int) RETURNS date
LANGUAGE sql IMMUTABLE
RETURN (month + pg_catalog.make_interval(months => months))::date;

-- First days of the months from_month … to_month, both included.
CREATE FUNCTION bqx._months(from_month date, to_month date) RETURNS SETOF date
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT m::date
      FROM generate_series(bqx._first_of_month(from_month)::timestamp,
                           bqx._first_of_month(to_month)::timestamp, interval '1 month') AS m
$$;

CREATE FUNCTION bqx._check_month_range(from_month date, to_month date) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    day date;
BEGIN
    FOREACH day IN ARRAY ARRAY[from_month, to_month] LOOP
        IF day NOT BETWEEN '1900-01-01' AND '2999-12-31' THEN  -- infinite dates, too
            RAISE EXCEPTION USING
                ERRCODE = 'invalid_parameter_value',
                MESSAGE = format('month %s is out of range', day),
                HINT = 'Months are dates from 1900-01-01 to 2999-12-31; any day of the month will do.';
        END IF;
    END LOOP;
    IF bqx._first_of_month(from_month) > bqx._first_of_month(to_month) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('from_month %s is after to_month %s',
                             to_char(from_month, 'YYYY-MM'), to_char(to_month, 'YYYY-MM')),
            HINT = 'Both months are inclusive, from_month first.';
    END IF;
END
$$;

-- The range [from_ts, to_ts); NULL leaves an end open. The settings pinned make the message the same in every
-- session.
CREATE FUNCTION bqx._check_time_range(
    from_ts timestamp with time zone, to_ts timestamp with time zone) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC' SET DateStyle = 'ISO'
AS $$
BEGIN
    IF from_ts > to_ts THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('from_ts %s is after to_ts %s', from_ts, to_ts),
            HINT = 'from_ts comes first and is included, to_ts is not; NULL leaves an end open.';
    END IF;
END
$$;

-- Windows asked for in create_tables: in range, sorted, once each; NULL: the family's own.
CREATE FUNCTION bqx._check_windows(families text[], windows int[]) RETURNS int[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    wrong int;
BEGIN
    IF windows IS NULL THEN
        RETURN NULL;
    END IF;
    IF cardinality(families) <> 1 OR cardinality(windows) = 0 THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'windows need exactly one family and at least one window',
            HINT = 'CALL bqx.create_tables(families => ''{bqx}'', windows => ''{20,40}'');';
    END IF;
    SELECT w INTO wrong FROM unnest(windows) AS w
     WHERE w IS NULL OR w NOT BETWEEN bqx._min_window(families[1]) AND bqx._max_window() LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('window %s is out of range for family %L', coalesce(wrong::text, 'NULL'), families[1]),
            HINT = format('Windows of this family are %s to %s bars long.',
                          bqx._min_window(families[1]), bqx._max_window());
    END IF;
    RETURN ARRAY(SELECT DISTINCT w FROM unnest(windows) AS w ORDER BY w);
END
$$;

CREATE FUNCTION bqx._check_workers(workers int) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF workers < 0 THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('workers is %s', workers),
            HINT = 'workers => 0 works in this session, N starts N background workers, NULL as many as useful.';
    END IF;
END
$$;

-- Lists in messages: the first few, then how many more.
CREATE FUNCTION bqx._listed(items text[], shown int) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_to_string(items[1:shown], ', ')
        || CASE WHEN cardinality(items) > shown THEN format(' and %s more', cardinality(items) - shown) ELSE '' END
$$;

-- Row-level security that applies to the caller would hide bars from windows, and rows from comparison, without a word.
CREATE FUNCTION bqx._check_sees_all_rows(rel regclass) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF row_security_active(rel) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'insufficient_privilege',
            MESSAGE = format('row-level security of %s applies to role "%s"', rel, current_user),
            DETAIL = 'What is computed from a part of the rows would be wrong.',
            HINT = 'Call as the table''s owner, or as a role with BYPASSRLS.';
    END IF;
END
$$;

SET LOCAL search_path TO bqx, pg_temp;
