-- bqx.time_features: what the clock alone says of an instant.

SET LOCAL search_path TO pg_catalog, pg_temp;  -- for what is parsed here: see preflight.sql

CREATE TYPE bqx.time_feature_row AS (
    hour_sin double precision,
    hour_cos double precision,
    weekday_sin double precision,
    weekday_cos double precision,
    asia boolean,
    europe boolean,
    us boolean,
    session text,
    minutes_since_open int,
    near_weekend boolean
);
COMMENT ON TYPE bqx.time_feature_row IS 'What the clock says of an instant, as bqx.time_features returns it';
COMMENT ON COLUMN bqx.time_feature_row.hour_sin IS 'sine of the time of day (UTC) as an angle';
COMMENT ON COLUMN bqx.time_feature_row.hour_cos IS 'its cosine';
COMMENT ON COLUMN bqx.time_feature_row.weekday_sin IS 'sine of the day of the week (UTC, Monday 0) as an angle';
COMMENT ON COLUMN bqx.time_feature_row.weekday_cos IS 'its cosine';
COMMENT ON COLUMN bqx.time_feature_row.asia IS 'the market is open, and it is 9:00 to 18:00 in Tokyo';
COMMENT ON COLUMN bqx.time_feature_row.europe IS 'the market is open, and it is 8:00 to 17:00 in London';
COMMENT ON COLUMN bqx.time_feature_row.us IS 'the market is open, and it is 8:00 to 17:00 in New York';
COMMENT ON COLUMN bqx.time_feature_row.session IS
    'asia, asia+europe, europe, europe+us, us; none between sessions, closed over the weekend';
COMMENT ON COLUMN bqx.time_feature_row.minutes_since_open IS 'since Sunday 17:00 in New York, when the market''s week begins';
COMMENT ON COLUMN bqx.time_feature_row.near_weekend IS 'four hours or less before the market closes, Friday 17:00 in New York, or closed';

-- Seconds of the day, local to a time zone.
CREATE FUNCTION bqx._second_of_day(ts timestamp with time zone, zone text) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN isfinite(ts) THEN extract(epoch FROM (ts AT TIME ZONE zone)::time)::double precision END;

CREATE FUNCTION bqx._day_of_week(ts timestamp with time zone) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN isfinite(ts) THEN (extract(isodow FROM ts AT TIME ZONE 'UTC') - 1)::double precision END;

-- Clocks change on Sunday nights, when the market is closed: within its week, minutes of the wall clock are minutes.
CREATE FUNCTION bqx._minutes_since_open(ts timestamp with time zone) RETURNS int
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN isfinite(ts) THEN floor(extract(epoch FROM ((ts AT TIME ZONE 'America/New_York' + interval '7 hours')
                                 - date_trunc('week', ts AT TIME ZONE 'America/New_York' + interval '7 hours'))) / 60)::int END;

CREATE FUNCTION bqx._in_session(ts timestamp with time zone, zone text, opens int) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN bqx._minutes_since_open(ts) < 7200
       AND bqx._second_of_day(ts, zone) >= opens * 3600 AND bqx._second_of_day(ts, zone) < (opens + 9) * 3600;

CREATE FUNCTION bqx._session(asia boolean, europe boolean, us boolean, is_open boolean) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN NOT is_open THEN 'closed'
            WHEN asia AND europe THEN 'asia+europe'
            WHEN europe AND us THEN 'europe+us'
            WHEN asia THEN 'asia'
            WHEN europe THEN 'europe'
            WHEN us THEN 'us'
            WHEN is_open THEN 'none' END;

CREATE FUNCTION bqx.time_features(ts timestamp with time zone) RETURNS bqx.time_feature_row
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ROW(
    sin(2 * pi() / 86400 * (bqx._second_of_day(ts, 'UTC'))),
    cos(2 * pi() / 86400 * (bqx._second_of_day(ts, 'UTC'))),
    sin(2 * pi() / 7 * bqx._day_of_week(ts)),
    cos(2 * pi() / 7 * bqx._day_of_week(ts)),
    bqx._in_session(ts, 'Asia/Tokyo', 9),
    bqx._in_session(ts, 'Europe/London', 8),
    bqx._in_session(ts, 'America/New_York', 8),
    bqx._session(bqx._in_session(ts, 'Asia/Tokyo', 9), bqx._in_session(ts, 'Europe/London', 8),
                 bqx._in_session(ts, 'America/New_York', 8), bqx._minutes_since_open(ts) < 7200),
    bqx._minutes_since_open(ts),
    bqx._minutes_since_open(ts) >= 7200 - 4 * 60
)::bqx.time_feature_row;
COMMENT ON FUNCTION bqx.time_features(timestamp with time zone) IS
    'What the clock says of an instant: hour and weekday as angles, sessions, minutes since the week''s open, near the weekend';

-- Where a table's times have no zone, they are UTC, as everywhere in bqx: the session's zone must not make others of them.
CREATE FUNCTION bqx.time_features(ts timestamp without time zone) RETURNS bqx.time_feature_row
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN bqx.time_features(ts AT TIME ZONE 'UTC');
COMMENT ON FUNCTION bqx.time_features(timestamp without time zone) IS 'The same of a time that is meant in UTC';

SET LOCAL search_path TO bqx, pg_temp;
