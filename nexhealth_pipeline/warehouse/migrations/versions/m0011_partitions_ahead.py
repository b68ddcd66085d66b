"""Making partitions ahead of time loses no change, fails no run and keeps nobody waiting.

The feed's function took changes that were committed while it ran for another server's, and removed them. It failed
where an old day was just being removed. History's waited for whoever read its default partition, and every change of a
row waited behind it. And where the default partition held rows of a time that has begun, they went to the new one
unseen by who had looked at the list of partitions before: such a time's are moved while nobody uses the table.
"""

from alembic import op

revision = "0011"
down_revision = "0010"

_FEED = """
CREATE OR REPLACE FUNCTION nexhealth_changes_ahead(days integer DEFAULT 3) RETURNS text[]
LANGUAGE plpgsql SET lock_timeout = '500ms' SET enable_seqscan = off AS $function$
DECLARE
    first timestamp := date_trunc('day', now() AT TIME ZONE 'UTC');
    begins timestamp;
    name text;
    owner name; -- else what a superuser makes one day is nobody else's to remove
    made text[] := '{}';
BEGIN
    -- Who does not own the table cannot; until its owner comes, the default partition takes the rows.
    SELECT pg_get_userbyid(relowner) INTO owner FROM pg_class WHERE oid = 'public.nexhealth_changes'::regclass;
    IF NOT pg_has_role(owner, 'USAGE') THEN
        RETURN made;
    END IF;
    -- Of another server, whose dump was restored here: its transactions' numbers mean nothing on this one. Told by the
    -- statement's own snapshot, in which every transaction of this server that it sees has a smaller number.
    BEGIN
        DELETE FROM public.nexhealth_changes WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint;
        DELETE FROM public.nexhealth_changes_pruned WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint;
    EXCEPTION WHEN lock_not_available THEN
        NULL; -- an old day is just being removed: the next time will do
    END;
    FOR begins IN SELECT generate_series(first, first + days * interval '1 day', interval '1 day') LOOP
        name := 'nexhealth_changes_' || to_char(begins, 'YYYY_MM_DD');
        CONTINUE WHEN to_regclass('public.' || name) IS NOT NULL;
        BEGIN
            PERFORM pg_advisory_xact_lock(x'4E480004'::integer); -- somebody else may be at it
            -- Not to_regclass, which remembers its first answer.
            CONTINUE WHEN EXISTS (
                SELECT FROM pg_class WHERE relname = name AND relnamespace = 'public'::regnamespace);
            -- Attached, not made in place: that would wait for every transaction that changes a row.
            EXECUTE format('CREATE TABLE public.%I (LIKE public.nexhealth_changes INCLUDING ALL)', name);
            EXECUTE format('ALTER TABLE public.%I OWNER TO %I', name, owner);
            IF begins <= now() AT TIME ZONE 'UTC' THEN
                LOCK TABLE ONLY public.nexhealth_changes IN ACCESS EXCLUSIVE MODE;
            END IF;
            LOCK TABLE public.nexhealth_changes_default IN ACCESS EXCLUSIVE MODE;
            EXECUTE format(
                'WITH moved AS (DELETE FROM public.nexhealth_changes_default'
                ' WHERE at >= $1 AND at < $2 RETURNING *) INSERT INTO public.%I SELECT * FROM moved', name)
                USING begins AT TIME ZONE 'UTC', (begins + interval '1 day') AT TIME ZONE 'UTC';
            EXECUTE format(
                'ALTER TABLE public.nexhealth_changes ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)', name,
                begins AT TIME ZONE 'UTC', (begins + interval '1 day') AT TIME ZONE 'UTC');
            EXECUTE format('COMMENT ON TABLE public.%I IS %L', name, 'Changes of ' || to_char(begins, 'YYYY-MM-DD') || ' (UTC).');
            made := made || name;
        EXCEPTION WHEN lock_not_available OR insufficient_privilege THEN
            EXIT; -- a reader holds the default partition: the next time, or its owner's, will do
        END;
    END LOOP;
    RETURN made;
END
$function$;
"""

_HISTORY = """
-- lock_timeout: half of the time after which PostgreSQL looks for a deadlock, so that this gives way.
CREATE OR REPLACE FUNCTION nexhealth_history_ahead(months integer DEFAULT 3) RETURNS text[]
LANGUAGE plpgsql SET lock_timeout = '500ms' AS $function$
DECLARE
    first timestamp := date_trunc('month', now() AT TIME ZONE 'UTC');
    begins timestamp;
    name text;
    owner name; -- else what a superuser makes one day is nobody else's to remove
    made text[] := '{}';
BEGIN
    -- Who does not own the table cannot; until its owner comes, the default partition takes the rows.
    SELECT pg_get_userbyid(relowner) INTO owner FROM pg_class WHERE oid = 'public.nexhealth_history'::regclass;
    IF NOT pg_has_role(owner, 'USAGE') THEN
        RETURN made;
    END IF;
    FOR begins IN SELECT generate_series(first, first + months * interval '1 month', interval '1 month') LOOP
        name := 'nexhealth_history_' || to_char(begins, 'YYYY_MM');
        CONTINUE WHEN to_regclass('public.' || name) IS NOT NULL;
        BEGIN
            PERFORM pg_advisory_xact_lock(x'4E480003'::integer); -- somebody else may be at it
            -- Not to_regclass, which remembers its first answer.
            CONTINUE WHEN EXISTS (
                SELECT FROM pg_class WHERE relname = name AND relnamespace = 'public'::regnamespace);
            -- Attached, not made in place: that would wait for every transaction that reads or writes history.
            EXECUTE format('CREATE TABLE public.%I (LIKE public.nexhealth_history INCLUDING ALL)', name);
            EXECUTE format('ALTER TABLE public.%I OWNER TO %I', name, owner);
            IF begins <= now() AT TIME ZONE 'UTC' THEN
                LOCK TABLE ONLY public.nexhealth_history IN ACCESS EXCLUSIVE MODE;
            END IF;
            LOCK TABLE public.nexhealth_history_default IN ACCESS EXCLUSIVE MODE;
            EXECUTE format(
                'WITH moved AS (DELETE FROM public.nexhealth_history_default'
                ' WHERE recorded_to >= $1 AND recorded_to < $2 RETURNING *) INSERT INTO public.%I SELECT * FROM moved', name)
                USING begins AT TIME ZONE 'UTC', (begins + interval '1 month') AT TIME ZONE 'UTC';
            EXECUTE format(
                'ALTER TABLE public.nexhealth_history ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)', name,
                begins AT TIME ZONE 'UTC', (begins + interval '1 month') AT TIME ZONE 'UTC');
            EXECUTE format('COMMENT ON TABLE public.%I IS %L', name, 'Versions superseded in ' || to_char(begins, 'YYYY-MM') || ' (UTC).');
            made := made || name;
        EXCEPTION WHEN lock_not_available OR insufficient_privilege THEN
            EXIT; -- somebody reads or writes the default partition: the next time, or its owner's, will do
        END;
    END LOOP;
    RETURN made;
END
$function$;
"""

_SYNC_LOG = """
CREATE OR REPLACE FUNCTION nexhealth_sync_logs_month(begins timestamp) RETURNS boolean
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
    BEGIN
        EXECUTE format('ALTER TABLE public.%I OWNER TO %I', name,
            (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'public.nexhealth_sync_logs'::regclass));
    EXCEPTION WHEN insufficient_privilege THEN
        NULL; -- it serves as well, but whoever made it must remove it
    END;
    IF begins <= now() AT TIME ZONE 'UTC' THEN
        LOCK TABLE ONLY public.nexhealth_sync_logs IN ACCESS EXCLUSIVE MODE;
    END IF;
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
"""


def upgrade() -> None:
    """Replace the functions."""
    connection = op.get_bind()
    for ddl in (_FEED, _HISTORY, _SYNC_LOG):
        connection.exec_driver_sql(ddl.replace("%", "%%"))
