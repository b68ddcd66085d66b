"""The change feed: ids of what every transaction changed, so that a reader may follow the copy as it moves."""

from alembic import op

revision = "0004"
down_revision = "0003"

_TABLE = """
-- Not an identity column: a table with one cannot be attached as a partition.
CREATE SEQUENCE nexhealth_changes_position CACHE 100;
COMMENT ON SEQUENCE nexhealth_changes_position IS 'Order of the rows of nexhealth_changes within a transaction.';

CREATE TABLE nexhealth_changes (
    xid bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
    position bigint NOT NULL DEFAULT nextval('nexhealth_changes_position'),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    institution_id bigint NOT NULL,
    id bigint,
    version timestamptz,
    collection text NOT NULL,
    kind text NOT NULL,
    cause text NOT NULL,
    run_id text,
    key jsonb
) PARTITION BY RANGE (at);
ALTER SEQUENCE nexhealth_changes_position OWNED BY nexhealth_changes.position;
-- Rows lie in nearly this order. A btree made the feed half as dear again, in time and in WAL, for every load.
CREATE INDEX nexhealth_changes_order ON nexhealth_changes USING brin (xid) WITH (pages_per_range = 16, autosummarize = on);
CREATE TABLE nexhealth_changes_default PARTITION OF nexhealth_changes DEFAULT;

CREATE TABLE nexhealth_changes_pruned (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    xid bigint NOT NULL,
    position bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE nexhealth_changes IS
    'What every transaction changed, of all collections, by day (UTC): ids and times only. Written by triggers in that '
    'transaction, which also notifies channel nexhealth_changes. Read it with nexhealth_changes_since(): rows become '
    'visible in another order than position''s.';
COMMENT ON TABLE nexhealth_changes_default IS 'Changes whose day had no partition yet; they move when it is made.';
COMMENT ON TABLE nexhealth_changes_pruned IS
    'The last change that retention removed: who stopped reading before it has missed some.';
COMMENT ON COLUMN nexhealth_changes.xid IS 'Transaction that made the change. PHI class: none.';
COMMENT ON COLUMN nexhealth_changes.position IS 'Order within the transaction. PHI class: none.';
COMMENT ON COLUMN nexhealth_changes.at IS 'When it was written. PHI class: none.';
COMMENT ON COLUMN nexhealth_changes.institution_id IS 'Institution the record belongs to. PHI class: id.';
COMMENT ON COLUMN nexhealth_changes.id IS 'The record''s id, where it has one. PHI class: id.';
COMMENT ON COLUMN nexhealth_changes.version IS
    'The row''s updated_at, else when it was read, after the change. PHI class: none.';
COMMENT ON COLUMN nexhealth_changes.collection IS 'Collection; its table is nexhealth_<collection>. PHI class: none.';
COMMENT ON COLUMN nexhealth_changes.kind IS 'inserted, updated, deleted or revived. PHI class: none.';
COMMENT ON COLUMN nexhealth_changes.cause IS
    'What made it: page (a read of the API), webhook, replay (of a stored event), absence (a complete read lacked it), '
    'revival (it came back), manual (anything else, such as an UPDATE by hand). PHI class: none.';
COMMENT ON COLUMN nexhealth_changes.run_id IS 'Run that made it, where one did. PHI class: none.';
COMMENT ON COLUMN nexhealth_changes.key IS
    'The row''s primary key less institution_id, where that is not the id alone. PHI class: id.';
COMMENT ON COLUMN nexhealth_changes_pruned.xid IS 'Its transaction. PHI class: none.';
COMMENT ON COLUMN nexhealth_changes_pruned.position IS 'Its order within the transaction. PHI class: none.';
COMMENT ON COLUMN nexhealth_changes_pruned.at IS 'When it was removed. PHI class: none.';
"""

_TRIGGER = r"""
-- With its owner's rights: who may change a row needs no right on the feed, and cannot stay out of it.
CREATE FUNCTION nexhealth_feed_changes() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $function$
DECLARE
    times CONSTANT text[] := '{synced_at,source_read_at,first_seen_at,row_hash}';
    said text := coalesce(current_setting('nexhealth.cause', true), '');
    id text;
    key text;
    version text;
    same_key text;
    differs text;
    changed text;
    written bigint;
BEGIN
    -- Most statements of a night write nothing.
    IF TG_OP = 'DELETE' THEN
        IF NOT EXISTS (SELECT FROM changes_old) THEN
            RETURN NULL;
        END IF;
    ELSIF NOT EXISTS (SELECT FROM changes_new) THEN
        RETURN NULL;
    END IF;
    SELECT coalesce(max('coalesce(n.id, o.id)') FILTER (WHERE a.attname = 'id'), 'NULL::bigint'),
        CASE WHEN array_agg(a.attname::text ORDER BY a.attname) FILTER (WHERE a.attnum = ANY (i.indkey))
                = '{id,institution_id}' THEN 'NULL::jsonb'
            ELSE format('jsonb_build_object(%s)', string_agg(format('%1$L, coalesce(n.%1$I, o.%1$I)', a.attname), ', ')
                FILTER (WHERE a.attnum = ANY (i.indkey) AND a.attname <> 'institution_id')) END,
        coalesce(max('coalesce(n.updated_at, n.source_read_at, o.updated_at, o.source_read_at)')
            FILTER (WHERE a.attname = 'updated_at'), 'coalesce(n.source_read_at, o.source_read_at)'),
        string_agg(format('o.%1$I = n.%1$I', a.attname), ' AND ') FILTER (WHERE a.attnum = ANY (i.indkey)),
        -- The version first: it differs nearly always, and then nothing else is compared.
        string_agg(format('o.%1$I IS DISTINCT FROM n.%1$I', a.attname), ' OR '
            ORDER BY a.attname <> 'updated_at', a.atttypid = 'jsonb'::regtype, a.attnum)
            FILTER (WHERE a.attname <> ALL (times))
    INTO id, key, version, same_key, differs
    FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE i.indrelid = TG_RELID AND i.indisprimary;

    changed := CASE TG_OP
        WHEN 'INSERT' THEN format('changes_new n LEFT JOIN (SELECT * FROM %s WHERE false) o ON true', TG_RELID::regclass)
        WHEN 'DELETE' THEN format('changes_old o LEFT JOIN (SELECT * FROM %s WHERE false) n ON true', TG_RELID::regclass)
        ELSE format('changes_new n FULL JOIN changes_old o ON %s WHERE %s', same_key, differs) END;
    EXECUTE format($statement$
        INSERT INTO nexhealth_changes (xid, at, institution_id, id, version, collection, kind, cause, run_id, key)
        SELECT $1, $2, coalesce(n.institution_id, o.institution_id), %1$s, %2$s, $3,
               CASE WHEN o.institution_id IS NULL THEN 'inserted'
                    WHEN n.institution_id IS NULL THEN 'deleted'
                    WHEN o.deleted_at IS NULL AND n.deleted_at IS NOT NULL THEN 'deleted'
                    WHEN o.deleted_at IS NOT NULL AND n.deleted_at IS NULL THEN 'revived'
                    ELSE 'updated' END,
               CASE WHEN n.deleted_by = 'absence' AND o.deleted_by IS DISTINCT FROM 'absence' THEN 'absence'
                    WHEN o.deleted_by = 'absence' AND n.institution_id IS NOT NULL
                        AND n.deleted_by IS DISTINCT FROM 'absence' THEN 'revival'
                    ELSE $4 END,
               $5, %3$s
        FROM %4$s
        $statement$, id, version, key, changed)
    USING pg_current_xact_id()::text::bigint, clock_timestamp(), substr(TG_TABLE_NAME, length('nexhealth_') + 1),
        CASE WHEN said IN ('page', 'webhook', 'replay') THEN said ELSE 'manual' END,
        nullif(current_setting('nexhealth.run_id', true), '');
    GET DIAGNOSTICS written = ROW_COUNT;
    IF written > 0 THEN
        PERFORM pg_notify('nexhealth_changes', substr(TG_TABLE_NAME, length('nexhealth_') + 1));
    END IF;
    RETURN NULL;
END
$function$;
REVOKE EXECUTE ON FUNCTION nexhealth_feed_changes FROM PUBLIC;
COMMENT ON FUNCTION nexhealth_feed_changes IS
    'Trigger of every collection''s table: writes what a statement changed to nexhealth_changes, and notifies.';
"""

_PARTITIONS = """
-- lock_timeout, here and below: half of the time after which PostgreSQL looks for a deadlock, so that these give way.
CREATE FUNCTION nexhealth_changes_ahead(days integer DEFAULT 3) RETURNS text[]
LANGUAGE plpgsql SET lock_timeout = '500ms' SET enable_seqscan = off AS $function$
DECLARE
    first timestamp := date_trunc('day', now() AT TIME ZONE 'UTC');
    newest bigint := pg_snapshot_xmax(pg_current_snapshot())::text::bigint;
    begins timestamp;
    name text;
    made text[] := '{}';
BEGIN
    -- Who does not own the table cannot; until its owner comes, the default partition takes the rows.
    IF NOT (SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = 'public.nexhealth_changes'::regclass) THEN
        RETURN made;
    END IF;
    -- Of another server, whose dump was restored here: its transactions' numbers mean nothing on this one.
    DELETE FROM public.nexhealth_changes WHERE xid > newest;
    DELETE FROM public.nexhealth_changes_pruned WHERE xid > newest;
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
        EXCEPTION WHEN lock_not_available THEN
            EXIT; -- a reader holds the default partition: the next time will do
        END;
    END LOOP;
    RETURN made;
END
$function$;
COMMENT ON FUNCTION nexhealth_changes_ahead IS
    'Makes the partitions of nexhealth_changes for today and the days ahead, where they are missing.';

CREATE FUNCTION nexhealth_changes_prune(days integer) RETURNS text[]
LANGUAGE plpgsql SET lock_timeout = '500ms' AS $function$
DECLARE
    oldest timestamptz := now() - days * interval '1 day';
    part text;
    last record;
    old text[] := '{}';
BEGIN
    IF days IS NULL OR days < 1 THEN
        RAISE EXCEPTION 'days: %, not 1 or more', quote_nullable(days) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF NOT (SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = 'public.nexhealth_changes'::regclass) THEN
        RETURN old;
    END IF;
    -- Emptied first: only a reader can hinder that.
    FOR part IN
        SELECT c.relname FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid
        WHERE h.inhparent = 'public.nexhealth_changes'::regclass AND c.relname ~ '^nexhealth_changes_[0-9_]{10}$'
            AND (to_date(right(c.relname, 10), 'YYYY_MM_DD') + 1)::timestamp AT TIME ZONE 'UTC' <= oldest
        ORDER BY 1
    LOOP
        BEGIN
            EXECUTE format('LOCK TABLE public.%I IN ACCESS EXCLUSIVE MODE', part);
            EXECUTE format('SELECT xid, position FROM public.%I ORDER BY xid DESC, position DESC LIMIT 1', part) INTO last;
            IF last.xid IS NOT NULL THEN
                EXECUTE format('TRUNCATE public.%I', part);
                PERFORM public.nexhealth_changes_forgot(last.xid, last.position);
            END IF;
            old := old || part;
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
    END LOOP;
    FOR last IN
        WITH gone AS (DELETE FROM public.nexhealth_changes_default WHERE at < oldest RETURNING xid, position)
        SELECT xid, position FROM gone ORDER BY xid DESC, position DESC LIMIT 1
    LOOP
        PERFORM public.nexhealth_changes_forgot(last.xid, last.position);
    END LOOP;
    -- To drop them, all who change rows must be done, and others wait: if that takes long, the next time will do.
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
COMMENT ON FUNCTION nexhealth_changes_prune IS
    'Removes changes of days that ended more than so many days ago; returns the partitions dropped.';
"""

_READING = r"""
CREATE FUNCTION nexhealth_changes_forgot(xid bigint, "position" bigint) RETURNS void
LANGUAGE sql AS $function$
    INSERT INTO public.nexhealth_changes_pruned AS p (xid, position) VALUES ($1, $2)
    ON CONFLICT (only_row) DO UPDATE SET xid = excluded.xid, position = excluded.position, at = excluded.at
    WHERE (p.xid, p.position) < (excluded.xid, excluded.position)
$function$;
REVOKE EXECUTE ON FUNCTION nexhealth_changes_forgot FROM PUBLIC;
COMMENT ON FUNCTION nexhealth_changes_forgot IS 'Notes the last change that retention removed.';

CREATE FUNCTION nexhealth_changes_now() RETURNS text
LANGUAGE sql STABLE AS $function$ SELECT pg_snapshot_xmin(pg_current_snapshot())::text || ':0' $function$;
COMMENT ON FUNCTION nexhealth_changes_now IS
    'A cursor for nexhealth_changes_since: whoever takes it and reads the tables afterwards misses no change.';

-- Volatile, so that each statement has a snapshot of its own and the last one sees what was removed meanwhile.
-- The index is the way whatever PostgreSQL knows of a table that was filled a moment ago.
CREATE FUNCTION nexhealth_changes_since(since text DEFAULT NULL, most integer DEFAULT 1000) RETURNS TABLE (
    cursor text, collection text, institution_id bigint, id bigint, key jsonb, version timestamptz,
    at timestamptz, kind text, cause text, run_id text)
LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $function$
#variable_conflict use_column
DECLARE
    given_xid bigint := 0;
    given_position bigint := 0;
    -- A transaction with a smaller number may commit later than one with a greater: below the oldest that runs
    -- nothing can come any more.
    stop bigint := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
    last_xid bigint;
    last_position bigint;
    upto bigint;
    width bigint := 8;
    found integer;
BEGIN
    IF since !~ '^\d{1,18}:\d{1,18}$' THEN
        RAISE EXCEPTION 'since: %, not a cursor such as 4711:12', quote_literal(since)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF since IS NOT NULL THEN
        given_xid := split_part(since, ':', 1);
        given_position := split_part(since, ':', 2);
    END IF;
    last_xid := given_xid;
    last_position := given_position;
    -- In steps, so that whoever is far behind does not sort all of it for every thousand.
    LOOP
        upto := least(last_xid + width, stop);
        RETURN QUERY
            SELECT c.xid || ':' || c.position, c.collection, c.institution_id, c.id, c.key, c.version, c.at, c.kind,
                   c.cause, c.run_id
            FROM public.nexhealth_changes c
            WHERE c.xid >= last_xid AND c.xid < upto AND (c.xid, c.position) > (last_xid, last_position)
            ORDER BY c.xid, c.position LIMIT most;
        GET DIAGNOSTICS found = ROW_COUNT;
        most := most - found;
        EXIT WHEN most <= 0 OR upto >= stop;
        last_xid := upto;
        last_position := 0;
        width := 2 * width;
    END LOOP;
    IF since IS NOT NULL AND (given_xid > stop
        OR EXISTS (SELECT FROM public.nexhealth_changes_pruned p
            WHERE (p.xid, p.position) > (given_xid, given_position))) THEN
        RAISE EXCEPTION 'nexhealth_changes does not go back to cursor %', since
            USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = 'Take nexhealth_changes_now(), read the tables anew, and go on from there.';
    END IF;
END
$function$;
COMMENT ON FUNCTION nexhealth_changes_since IS
    'Changes after a cursor (null: from the oldest kept), in an order to which no late commit adds before it. The '
    'last row''s cursor is the next one to give; no row: nothing new, keep the cursor. An entry says that a record '
    'changed: of two changes of one record the older may come last, so read the row for how it stands. A change is '
    'handed out once every older transaction of the server has ended. Raises where changes after the cursor have been '
    'removed.';
"""


def upgrade() -> None:
    """Create the feed with its functions; the tables get their triggers from :mod:`..tables`."""
    connection = op.get_bind()
    for ddl in (_TABLE, _TRIGGER, _PARTITIONS, _READING):
        connection.exec_driver_sql(ddl.replace("%", "%%"))
