"""What grows is bounded: the sync log by month, old months of it as sums a day."""

from alembic import op

revision = "0006"
down_revision = "0004"

_TABLE = """
-- A table that is in use cannot become a partitioned one: its rows move to another of the same name.
ALTER TABLE nexhealth_sync_logs RENAME TO nexhealth_sync_logs_before;
ALTER TABLE nexhealth_sync_logs_before ALTER COLUMN id DROP IDENTITY;
ALTER TABLE nexhealth_sync_logs_before DROP CONSTRAINT nexhealth_sync_logs_pkey;
DROP INDEX nexhealth_sync_logs_run, nexhealth_sync_logs_open, nexhealth_sync_logs_recent;

-- Not an identity column: a table with one cannot be attached as a partition. Who may write a row may number it.
CREATE SEQUENCE nexhealth_sync_logs_id_seq;
GRANT USAGE ON SEQUENCE nexhealth_sync_logs_id_seq TO PUBLIC;
CREATE TABLE nexhealth_sync_logs (
    LIKE nexhealth_sync_logs_before INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
    PRIMARY KEY (id, started_at)
) PARTITION BY RANGE (started_at);
ALTER TABLE nexhealth_sync_logs ALTER COLUMN id SET DEFAULT nextval('nexhealth_sync_logs_id_seq');
ALTER SEQUENCE nexhealth_sync_logs_id_seq OWNED BY nexhealth_sync_logs.id;
CREATE INDEX nexhealth_sync_logs_run ON nexhealth_sync_logs (run_id);
CREATE INDEX nexhealth_sync_logs_open ON nexhealth_sync_logs (run_id) WHERE status = 'running';
CREATE INDEX nexhealth_sync_logs_recent ON nexhealth_sync_logs (collection, started_at DESC);
CREATE TABLE nexhealth_sync_logs_default PARTITION OF nexhealth_sync_logs DEFAULT;
COMMENT ON TABLE nexhealth_sync_logs IS
    'History by month (UTC) of started_at: one row per collection, slice and run, updated while it runs. Never read to '
    'decide anything. Of months that are over for long only nexhealth_sync_log_days tells.';
COMMENT ON TABLE nexhealth_sync_logs_default IS 'Rows whose month had no partition yet; they move when it is made.';

CREATE TABLE nexhealth_sync_log_days (
    day date NOT NULL,
    collection text NOT NULL,
    institution_id bigint NOT NULL,
    slices bigint NOT NULL,
    succeeded bigint NOT NULL,
    failed bigint NOT NULL,
    interrupted bigint NOT NULL,
    cancelled bigint NOT NULL,
    skipped bigint NOT NULL,
    seconds double precision NOT NULL,
    pages bigint NOT NULL,
    records_read bigint NOT NULL,
    inserted bigint NOT NULL,
    updated bigint NOT NULL,
    unchanged bigint NOT NULL,
    quarantined bigint NOT NULL,
    tombstoned bigint NOT NULL,
    requests bigint NOT NULL,
    retries bigint NOT NULL,
    throttled_seconds double precision NOT NULL,
    bytes bigint NOT NULL,
    PRIMARY KEY (day, collection, institution_id)
);
COMMENT ON TABLE nexhealth_sync_log_days IS
    'What nexhealth_sync_logs said of days (UTC) whose rows are gone: sums a collection and institution (0 = key-wide). '
    'slices = rows there were, seconds = their durations added up.';
"""

_PARTITIONS = """
-- lock_timeout, here and below: half of the time after which PostgreSQL looks for a deadlock, so that these give way.
CREATE FUNCTION nexhealth_sync_logs_month(begins timestamp) RETURNS boolean
LANGUAGE plpgsql SET lock_timeout = '500ms' AS $function$
DECLARE
    name text := 'nexhealth_sync_logs_' || to_char(begins, 'YYYY_MM');
    since timestamptz := begins AT TIME ZONE 'UTC';
    until timestamptz := (begins + interval '1 month') AT TIME ZONE 'UTC';
BEGIN
    IF to_regclass('public.' || name) IS NOT NULL THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_xact_lock(x'4E480006'::integer); -- somebody else may be at it
    -- Not to_regclass, which remembers its first answer.
    IF EXISTS (SELECT FROM pg_class WHERE relname = name AND relnamespace = 'public'::regnamespace) THEN
        RETURN false;
    END IF;
    -- Attached, not made in place: that would wait for every transaction that writes the log.
    EXECUTE format('CREATE TABLE public.%I (LIKE public.nexhealth_sync_logs INCLUDING ALL)', name);
    LOCK TABLE public.nexhealth_sync_logs_default IN ACCESS EXCLUSIVE MODE;
    EXECUTE format(
        'WITH moved AS (DELETE FROM public.nexhealth_sync_logs_default'
        ' WHERE started_at >= $1 AND started_at < $2 RETURNING *) INSERT INTO public.%I SELECT * FROM moved', name)
        USING since, until;
    EXECUTE format(
        'ALTER TABLE public.nexhealth_sync_logs ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)',
        name, since, until);
    EXECUTE format('COMMENT ON TABLE public.%I IS %L', name, 'Slices begun in ' || to_char(begins, 'YYYY-MM') || ' (UTC).');
    RETURN true;
END
$function$;
COMMENT ON FUNCTION nexhealth_sync_logs_month IS 'Makes the partition of one month, unless it is there.';

CREATE FUNCTION nexhealth_sync_logs_ahead(months integer DEFAULT 3) RETURNS text[]
LANGUAGE plpgsql AS $function$
DECLARE
    first timestamp := date_trunc('month', now() AT TIME ZONE 'UTC');
    begins timestamp;
    made text[] := '{}';
BEGIN
    -- Who does not own the table cannot; until its owner comes, the default partition takes the rows.
    IF NOT (SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = 'public.nexhealth_sync_logs'::regclass) THEN
        RETURN made;
    END IF;
    FOR begins IN SELECT generate_series(first, first + months * interval '1 month', interval '1 month') LOOP
        BEGIN
            IF public.nexhealth_sync_logs_month(begins) THEN
                made := made || ('nexhealth_sync_logs_' || to_char(begins, 'YYYY_MM'));
            END IF;
        EXCEPTION WHEN lock_not_available THEN
            EXIT; -- a run holds the default partition: the next time will do
        END;
    END LOOP;
    RETURN made;
END
$function$;
COMMENT ON FUNCTION nexhealth_sync_logs_ahead IS
    'Makes the partitions of nexhealth_sync_logs for this month and those ahead, where they are missing.';
"""

_RETENTION = """
CREATE FUNCTION nexhealth_sync_logs_fold(part regclass, until timestamptz) RETURNS void
LANGUAGE plpgsql AS $function$
BEGIN
    EXECUTE format($statement$
        INSERT INTO public.nexhealth_sync_log_days AS d
        SELECT (started_at AT TIME ZONE 'UTC')::date, collection, coalesce(institution_id, 0),
               count(*),
               count(*) FILTER (WHERE status = 'succeeded'),
               count(*) FILTER (WHERE status = 'failed'),
               count(*) FILTER (WHERE status IN ('interrupted', 'running')),
               count(*) FILTER (WHERE status = 'cancelled'),
               count(*) FILTER (WHERE status = 'skipped'),
               coalesce(sum(extract(epoch FROM finished_at - started_at)), 0),
               sum(pages), sum(records_read), sum(inserted), sum(updated), sum(unchanged), sum(quarantined),
               sum(tombstoned), sum(requests), sum(retries), sum(throttled_seconds), sum(bytes)
        FROM %s WHERE started_at < $1 GROUP BY 1, 2, 3
        ON CONFLICT (day, collection, institution_id) DO UPDATE SET
            slices = d.slices + excluded.slices, succeeded = d.succeeded + excluded.succeeded,
            failed = d.failed + excluded.failed, interrupted = d.interrupted + excluded.interrupted,
            cancelled = d.cancelled + excluded.cancelled, skipped = d.skipped + excluded.skipped,
            seconds = d.seconds + excluded.seconds, pages = d.pages + excluded.pages,
            records_read = d.records_read + excluded.records_read, inserted = d.inserted + excluded.inserted,
            updated = d.updated + excluded.updated, unchanged = d.unchanged + excluded.unchanged,
            quarantined = d.quarantined + excluded.quarantined, tombstoned = d.tombstoned + excluded.tombstoned,
            requests = d.requests + excluded.requests, retries = d.retries + excluded.retries,
            throttled_seconds = d.throttled_seconds + excluded.throttled_seconds, bytes = d.bytes + excluded.bytes
        $statement$, part) USING until;
END
$function$;
COMMENT ON FUNCTION nexhealth_sync_logs_fold IS
    'Adds the rows of one partition that began before a time to the sums a day; whoever calls it removes them then.';

CREATE FUNCTION nexhealth_sync_logs_prune(months integer) RETURNS text[]
LANGUAGE plpgsql SET lock_timeout = '500ms' AS $function$
DECLARE
    oldest timestamptz;
    part text;
    old text[] := '{}';
BEGIN
    IF months IS NULL OR months < 1 THEN
        RAISE EXCEPTION 'months: %, not 1 or more', quote_nullable(months) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- Two at once would count the same rows twice.
    IF NOT (SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = 'public.nexhealth_sync_logs'::regclass)
        OR NOT pg_try_advisory_xact_lock(x'4E480007'::integer) THEN
        RETURN old;
    END IF;
    oldest := (date_trunc('month', now() AT TIME ZONE 'UTC') - months * interval '1 month') AT TIME ZONE 'UTC';
    -- Emptied first: only a reader can hinder that.
    FOR part IN
        SELECT c.relname FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid
        WHERE h.inhparent = 'public.nexhealth_sync_logs'::regclass AND c.relname ~ '^nexhealth_sync_logs_[0-9]{4}_[0-9]{2}$'
            AND (to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month') AT TIME ZONE 'UTC' <= oldest
        ORDER BY 1
    LOOP
        BEGIN
            EXECUTE format('LOCK TABLE public.%I IN ACCESS EXCLUSIVE MODE', part);
            PERFORM public.nexhealth_sync_logs_fold(('public.' || part)::regclass, 'infinity');
            EXECUTE format('TRUNCATE public.%I', part);
            old := old || part;
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
    END LOOP;
    PERFORM public.nexhealth_sync_logs_fold('public.nexhealth_sync_logs_default'::regclass, oldest);
    DELETE FROM public.nexhealth_sync_logs_default WHERE started_at < oldest;
    -- To drop them, all who write the log must be done, and others wait: if that takes long, the next time will do.
    IF old <> '{}' THEN
        BEGIN
            EXECUTE format('DROP TABLE public.%s', array_to_string(old, ', public.'));
        EXCEPTION WHEN lock_not_available THEN
            old := '{}';
        END;
    END IF;
    RETURN old;
END
$function$;
COMMENT ON FUNCTION nexhealth_sync_logs_prune IS
    'Replaces the rows of months that ended more than so many months ago by sums in nexhealth_sync_log_days; returns '
    'the partitions dropped.';

CREATE TABLE nexhealth_housekeeping (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    begun_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE nexhealth_housekeeping IS 'When what is old was last removed: whoever syncs does it once a day.';
"""

_MOVE = """
DO $block$
DECLARE
    given record;
BEGIN
    PERFORM nexhealth_sync_logs_month(begins) FROM (
        SELECT DISTINCT date_trunc('month', started_at AT TIME ZONE 'UTC') AS begins FROM nexhealth_sync_logs_before) months;
    PERFORM nexhealth_sync_logs_ahead();
    INSERT INTO nexhealth_sync_logs SELECT * FROM nexhealth_sync_logs_before;
    PERFORM setval('nexhealth_sync_logs_id_seq', greatest((SELECT max(id) FROM nexhealth_sync_logs), 1));
    -- Whoever was let in stays so.
    FOR given IN
        SELECT privilege_type, is_grantable, coalesce(quote_ident(rolname), 'PUBLIC') AS role
        FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee
        WHERE c.oid = 'nexhealth_sync_logs_before'::regclass AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('GRANT %s ON nexhealth_sync_logs TO %s %s', given.privilege_type, given.role,
            CASE WHEN given.is_grantable THEN 'WITH GRANT OPTION' ELSE '' END);
    END LOOP;
END
$block$;
DROP TABLE nexhealth_sync_logs_before;
"""


def upgrade() -> None:
    """Make the sync log a table by month with its sums a day, and move its rows there."""
    connection = op.get_bind()
    for ddl in (_TABLE, _PARTITIONS, _RETENTION, _MOVE):
        connection.exec_driver_sql(ddl.replace("%", "%%"))
