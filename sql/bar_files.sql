-- Files of bars: load_m1 reads one on the server, ingest_m1 takes the lines that \copy put into m1_staging.

SET LOCAL search_path TO pg_catalog, pg_temp;  -- for what is parsed here: see preflight.sql

-- Lines of a session, numbered as they came. Roles may only insert lines; a session's lines are given out to
-- nobody but that session (_take_staged_lines). No row security here: COPY FROM refuses it.
CREATE UNLOGGED TABLE bqx.m1_staging (
    line text,
    line_id bigint GENERATED ALWAYS AS IDENTITY,
    session_id text NOT NULL DEFAULT bqx._session_id()
);
COMMENT ON TABLE bqx.m1_staging IS
    'Way in for client-side files: \copy bqx.m1_staging(line) from ''f'' with (format csv, delimiter E''\x01'', quote E''\x02''), then CALL bqx.ingest_m1(pair)';
GRANT INSERT (line) ON bqx.m1_staging TO PUBLIC;

-- Hands the calling session its lines and forgets them, with those of sessions that are gone.
CREATE FUNCTION bqx._take_staged_lines() RETURNS TABLE (line_no bigint, line text)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM bqx.m1_staging AS s WHERE s.session_id NOT IN (SELECT bqx._live_sessions());
    WITH taken AS (
        DELETE FROM bqx.m1_staging AS s WHERE s.session_id = bqx._session_id() RETURNING s.line_id, s.line)
    SELECT row_number() OVER (ORDER BY t.line_id), t.line FROM taken AS t
$$;

CREATE FUNCTION bqx._check_on_bad_row(on_bad_row text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF on_bad_row IS NULL OR on_bad_row NOT IN ('error', 'skip') THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('on_bad_row is %s', coalesce(quote_literal(on_bad_row), 'NULL')),
            HINT = 'on_bad_row => ''error'' stops at a bad row, ''skip'' keeps bad rows in bqx.rejected_bars.';
    END IF;
    RETURN on_bad_row = 'skip';
END
$$;

-- The clock of a file without offsets: what was asked for, else what the format is known for. HistData's
-- measures as Europe/London wall time minus 5 hours (its own documentation says EST), so it gets a name of
-- its own, 'histdata', which other formats can use, too.
CREATE FUNCTION bqx._file_clock(format text, time_zone text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF time_zone IS NULL THEN
        IF format = 'metatrader' THEN
            RAISE EXCEPTION USING
                ERRCODE = 'invalid_parameter_value',
                MESSAGE = 'MetaTrader files do not say their time zone',
                DETAIL = 'Their times are the broker''s wall clock.',
                HINT = 'Add time_zone => ''Europe/Helsinki'' (or whatever the broker''s clock is; '
                       'time_zone => ''histdata'' for HistData''s MetaTrader files, ''UTC'' for UTC).';
        END IF;
        RETURN CASE format WHEN 'histdata' THEN 'histdata' ELSE 'UTC' END;
    END IF;
    IF lower(time_zone) = 'histdata' THEN
        RETURN 'histdata';
    END IF;
    PERFORM timestamp '2000-01-01' AT TIME ZONE time_zone;  -- raises 22023 for an unknown one
    RETURN time_zone;
EXCEPTION
    WHEN invalid_parameter_value THEN
        IF time_zone IS NULL THEN RAISE; END IF;
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('unknown time zone %L', time_zone),
            HINT = 'SELECT name FROM pg_timezone_names lists the known ones; ''histdata'' is HistData''s clock.';
END
$$;

-- A file's wall-clock time as an instant. RETURN, so that it is inlined: it runs for every line.
CREATE FUNCTION bqx._to_instant(local_time timestamp, utc_offset interval, clock text)
RETURNS timestamp with time zone
LANGUAGE sql STABLE
RETURN CASE WHEN utc_offset IS NOT NULL THEN (local_time - utc_offset) AT TIME ZONE 'UTC'
            WHEN clock = 'histdata' THEN (local_time + interval '5 hours') AT TIME ZONE 'Europe/London'
            ELSE local_time AT TIME ZONE clock END;

-- Parses the lines in pg_temp.bqx_lines into pg_temp.bqx_bars; returns the format.
CREATE FUNCTION bqx._parse_lines_into_bars(format text, time_zone text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    first_lines text[] := ARRAY(SELECT l.line FROM pg_temp.bqx_lines AS l
                                 WHERE l.line IS NOT NULL ORDER BY l.line_no LIMIT 100);
    found_format text := bqx._sniff_format(bqx._check_bar_format(format), first_lines);
    clock text := bqx._file_clock(found_format, time_zone);
BEGIN
    CREATE TEMP TABLE bqx_bars AS
    SELECT b.line_no, l.line, bqx._to_instant(b.local_time, b.utc_offset, clock) AS time,
           b.open, b.high, b.low, b.close, b.volume, b.reason
      FROM bqx._parse_lines(found_format) AS b
      JOIN pg_temp.bqx_lines AS l USING (line_no);
    RETURN found_format;
END
$$;

-- Drops exact repeats of a minute (returns how many) and marks later rows that contradict an earlier one.
CREATE FUNCTION bqx._settle_repeated_minutes() RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    repeats bigint;
BEGIN
    CREATE TEMP TABLE bqx_repeats AS
    SELECT r.line_no, r.first_line,
           (r.open, r.high, r.low, r.close, r.volume) IS NOT DISTINCT FROM
           (f.open, f.high, f.low, f.close, f.volume) AS is_equal
      FROM (SELECT b.*, first_value(b.line_no) OVER (PARTITION BY b.time ORDER BY b.line_no) AS first_line
              FROM pg_temp.bqx_bars AS b WHERE b.reason IS NULL) AS r
      JOIN pg_temp.bqx_bars AS f ON f.line_no = r.first_line
     WHERE r.line_no > r.first_line;
    DELETE FROM pg_temp.bqx_bars AS b USING pg_temp.bqx_repeats AS r WHERE r.line_no = b.line_no AND r.is_equal;
    GET DIAGNOSTICS repeats = ROW_COUNT;
    UPDATE pg_temp.bqx_bars AS b
       SET reason = format('the same minute with other values stands in line %s', r.first_line)
      FROM pg_temp.bqx_repeats AS r WHERE r.line_no = b.line_no;
    DROP TABLE pg_temp.bqx_repeats;
    RETURN repeats;
END
$$;

-- Bad rows either stop the load, or are kept in bqx.rejected_bars and taken out. Returns how many.
CREATE FUNCTION bqx._settle_bad_rows(pair text, source text, skip_bad boolean) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    first_bad record;
    bad bigint := (SELECT count(*) FROM pg_temp.bqx_bars AS b WHERE b.reason IS NOT NULL);
BEGIN
    IF bad > 0 AND NOT skip_bad THEN
        SELECT b.line_no, b.line, b.reason INTO first_bad
          FROM pg_temp.bqx_bars AS b WHERE b.reason IS NOT NULL ORDER BY b.line_no LIMIT 1;
        RAISE EXCEPTION USING
            ERRCODE = 'bad_copy_file_format',
            MESSAGE = format('%s, line %s: %s', source, first_bad.line_no, first_bad.reason),
            DETAIL = format('The line is: %s', left(first_bad.line, 200))
                     || format(E'\nBad rows in all: %s. Nothing was loaded.', bad),
            HINT = 'Correct the file and load it again, or load the rest of it with on_bad_row => ''skip'' '
                   'and look at bqx.rejected_bars.';
    END IF;
    PERFORM bqx._keep_reject(pair, source, b.line_no, b.line, b.reason)
       FROM pg_temp.bqx_bars AS b WHERE b.reason IS NOT NULL ORDER BY b.line_no;
    DELETE FROM pg_temp.bqx_bars AS b WHERE b.reason IS NOT NULL;
    RETURN bad;
END
$$;

-- Merges pg_temp.bqx_bars into an M1 table, whatever its key and types: equal bars are left alone, different
-- ones corrected, new ones inserted. Columns of ours that the table lacks are skipped.
CREATE FUNCTION bqx._merge_bars(m1 regclass, OUT inserted bigint, OUT corrected bigint, OUT equal bigint)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_nestloop = off  -- a table without statistics would be read once per bar
AS $$
DECLARE
    names text[];      -- value columns that the table has
    incoming text[];   -- the same as SQL over the bars, in the table's types
    given text[];      -- what a bar that is there is to become
    span record;
    in_span text;
BEGIN
    SELECT array_agg(format('%I', v) ORDER BY i),
           array_agg(format('b.%I::%s', v, bqx._column_type(m1, v)) ORDER BY i)
      INTO names, incoming
      FROM unnest(ARRAY['open', 'high', 'low', 'close', 'volume']) WITH ORDINALITY AS u (v, i)
     WHERE bqx._column_type(m1, v) IS NOT NULL;
    SELECT count(*) AS bars, min(time) AS first_bar, max(time) AS last_bar INTO span FROM pg_temp.bqx_bars;
    -- Bounds on the table's own column, so that only the months concerned are read.
    -- A file without volumes has nothing to say about the ones that are there.
    given := array_replace(incoming, format('b.%I::%s', 'volume', bqx._column_type(m1, 'volume')),
                           format('coalesce(b.volume::%s, t.volume)', bqx._column_type(m1, 'volume')));
    in_span := format('t.time >= %s AND t.time <= %s',
                      bqx._as_key(m1, 'time', '$1'), bqx._as_key(m1, 'time', '$2'));

    EXECUTE format('UPDATE %1$s AS t SET (%2$s) = ROW(%3$s) FROM pg_temp.bqx_bars AS b '
                   'WHERE %4$s AND t.time = %5$s AND (%6$s) IS DISTINCT FROM (%3$s)',
                   m1, array_to_string(names, ', '), array_to_string(given, ', '), in_span,
                   bqx._as_key(m1, 'time', 'b.time'), (SELECT string_agg('t.' || n, ', ') FROM unnest(names) AS n))
      USING span.first_bar, span.last_bar;
    GET DIAGNOSTICS corrected = ROW_COUNT;

    EXECUTE format('INSERT INTO %1$s (time, %2$s) SELECT %5$s, %3$s FROM pg_temp.bqx_bars AS b '
                   'WHERE NOT EXISTS (SELECT FROM %1$s AS t WHERE %4$s AND t.time = %5$s) ORDER BY b.time',
                   m1, array_to_string(names, ', '), array_to_string(incoming, ', '), in_span,
                   bqx._as_key(m1, 'time', 'b.time'))
      USING span.first_bar, span.last_bar;
    GET DIAGNOSTICS inserted = ROW_COUNT;
    equal := span.bars - inserted - corrected;
END
$$;

-- The session's working tables of an earlier load that failed after its first commit.
CREATE FUNCTION bqx._drop_load_tables() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    leftover name;
BEGIN
    FOREACH leftover IN ARRAY ARRAY['bqx_lines', 'bqx_bars', 'bqx_repeats']::name[] LOOP
        IF to_regclass(format('pg_temp.%I', leftover)) IS NOT NULL THEN
            EXECUTE format('DROP TABLE pg_temp.%I', leftover);
        END IF;
    END LOOP;
END
$$;

-- Stores the parsed bars in the M1 table, all or none, and says what it did.
CREATE FUNCTION bqx._store_bars(pair text, source text, format text, skip_bad boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    lines bigint := (SELECT count(*) FROM pg_temp.bqx_lines);
    repeats bigint := bqx._settle_repeated_minutes();
    bad bigint;
    span record;
    m1 regclass;
    merged record;
BEGIN
    -- Two loads of one pair take turns: each sees the other's bars, no minute comes twice.
    PERFORM pg_advisory_xact_lock(bqx._lock_key('m1', pair));
    m1 := bqx._ensure_m1(pair);
    PERFORM bqx._check_sees_all_rows(m1);
    bad := bqx._settle_bad_rows(pair, source, skip_bad);
    SELECT min(b.time) AS first_bar, max(b.time) AS last_bar INTO span FROM pg_temp.bqx_bars AS b;
    IF span.first_bar IS NULL THEN
        RAISE NOTICE 'm1_%: % holds no bars (% lines, % rejected)', pair, source, lines, bad;
        RETURN;
    END IF;
    PERFORM bqx._ensure_partitions(m1, 'time', ARRAY(SELECT DISTINCT bqx._month_of(b.time) FROM pg_temp.bqx_bars AS b));
    PERFORM bqx._keep_triggers_everywhere(m1);
    ANALYZE pg_temp.bqx_bars;
    merged := bqx._merge_bars(m1);
    RAISE NOTICE 'm1_%: % bars loaded, % corrected, % equal, % repeated minutes dropped, % rejected (% lines, format %, % to %)',
        pair, merged.inserted, merged.corrected, merged.equal, repeats, bad, lines, format,
        to_char(span.first_bar AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'),
        to_char(span.last_bar AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"');
END
$$;

-- Copies a server-side file into pg_temp.bqx_lines, each line as it stands: neither of the two characters occurs in a
-- text file, and every byte is something in LATIN1 (a stray one makes a bad row, not an unreadable file).
CREATE FUNCTION bqx._copy_lines(path text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
AS $$
DECLARE
    message text;
    context text;
BEGIN
    EXECUTE format('COPY pg_temp.bqx_lines (line) FROM %L WITH (FORMAT csv, DELIMITER E''\x01'', QUOTE E''\x02'', '
                   'ENCODING ''LATIN1'')', path);
EXCEPTION
    WHEN bad_copy_file_format OR character_not_in_repertoire THEN
        GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, context = PG_EXCEPTION_CONTEXT;
        RAISE EXCEPTION USING
            ERRCODE = 'bad_copy_file_format',
            MESSAGE = format('%s, line %s: %s', path, coalesce(substring(context FROM 'line ([0-9]+)'), '?'), message),
            DETAIL = 'Nothing was loaded.',
            HINT = 'A file of bars is plain text, all of its lines ended alike (dos2unix mends mixed ends).';
END
$$;

CREATE PROCEDURE bqx.load_m1(
    pair text, path text, format text DEFAULT 'auto', time_zone text DEFAULT NULL, on_bad_row text DEFAULT 'error')
LANGUAGE plpgsql
AS $$
DECLARE
    checked_pair pg_catalog.text;
    skip_bad boolean;
    found_format pg_catalog.text;
BEGIN
    PERFORM bqx._require_top_level('load_m1'::pg_catalog.text);
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
    checked_pair := bqx._check_pair(pair);
    skip_bad := bqx._check_on_bad_row(on_bad_row);
    PERFORM bqx._check_bar_format(format);
    IF path IS NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'path must not be NULL',
            HINT = pg_catalog.format('CALL bqx.load_m1(%L, ''/path/to/bars.csv'');', checked_pair);
    END IF;
    PERFORM bqx._drop_load_tables();
    CREATE TEMP TABLE bqx_lines (line text, line_no bigint GENERATED ALWAYS AS IDENTITY);
    PERFORM bqx._copy_lines(path);
    found_format := bqx._parse_lines_into_bars(format, time_zone);
    PERFORM bqx._store_bars(checked_pair, path, found_format, skip_bad);
    PERFORM bqx._drop_load_tables();
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
END
$$;
COMMENT ON PROCEDURE bqx.load_m1(text, text, text, text, text) IS
    'Loads a server-side file of one-minute bars (csv, histdata, metatrader, dukascopy), with the caller''s own COPY rights';

CREATE PROCEDURE bqx.ingest_m1(
    pair text, format text DEFAULT 'auto', time_zone text DEFAULT NULL, on_bad_row text DEFAULT 'error')
LANGUAGE plpgsql
AS $$
DECLARE
    checked_pair pg_catalog.text;
    skip_bad boolean;
    found_format pg_catalog.text;
BEGIN
    PERFORM bqx._require_top_level('ingest_m1'::pg_catalog.text);
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
    checked_pair := bqx._check_pair(pair);
    skip_bad := bqx._check_on_bad_row(on_bad_row);
    PERFORM bqx._check_bar_format(format);
    PERFORM bqx._drop_load_tables();
    CREATE TEMP TABLE bqx_lines AS SELECT t.line, t.line_no FROM bqx._take_staged_lines() AS t;
    IF NOT EXISTS (SELECT FROM pg_temp.bqx_lines) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'this session has put no lines into bqx.m1_staging',
            HINT = '\copy bqx.m1_staging(line) from ''bars.csv'' with (format csv, delimiter E''\x01'', quote E''\x02'')';
    END IF;
    -- A wrong argument leaves the lines staged, for another try. From here on they are taken, so that a file
    -- with bad rows can't get mixed up with the next one.
    found_format := bqx._parse_lines_into_bars(format, time_zone);
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
    PERFORM bqx._store_bars(checked_pair, 'm1_staging', found_format, skip_bad);
    PERFORM bqx._drop_load_tables();
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
END
$$;
COMMENT ON PROCEDURE bqx.ingest_m1(text, text, text, text) IS
    'Loads the lines that this session put into bqx.m1_staging with \copy';

SET LOCAL search_path TO bqx, pg_temp;
