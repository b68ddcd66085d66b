"""History: superseded versions of rows, the trigger that keeps them, and the copy as it stood at a moment.

Also the schema of the views for analysts, and the function that tells a time zone PostgreSQL knows.
"""

from alembic import op

revision = "0002"
down_revision = "0001"

_TABLE = """
CREATE TABLE nexhealth_history (
    collection text NOT NULL,
    institution_id bigint NOT NULL,
    key jsonb NOT NULL,
    id bigint,
    version integer NOT NULL,
    valid_from timestamptz NOT NULL,
    valid_to timestamptz NOT NULL,
    recorded_from timestamptz NOT NULL,
    recorded_to timestamptz NOT NULL,
    cause text NOT NULL CHECK (cause IN ('page', 'webhook', 'replay', 'absence', 'revival', 'manual')),
    run_id text,
    event_id text,
    changed_fields text[] NOT NULL,
    raw jsonb,
    fields jsonb NOT NULL,
    PRIMARY KEY (collection, institution_id, key, version, recorded_to)
) PARTITION BY RANGE (recorded_to);
CREATE TABLE nexhealth_history_default PARTITION OF nexhealth_history DEFAULT;

COMMENT ON TABLE nexhealth_history IS
    'Superseded versions of the rows of every collection, by month (UTC) of recorded_to; the version that holds now '
    'is in the collection''s own table. Written by a trigger, in the transaction that superseded them. '
    'nexhealth_asof() reads it.';
COMMENT ON TABLE nexhealth_history_default IS
    'Versions whose month had no partition yet; they move when it is made.';
COMMENT ON COLUMN nexhealth_history.collection IS
    'Collection; its table is nexhealth_<collection>. PHI class: none.';
COMMENT ON COLUMN nexhealth_history.institution_id IS 'Institution the record belongs to. PHI class: id.';
COMMENT ON COLUMN nexhealth_history.key IS 'The row''s primary key less institution_id. PHI class: id.';
COMMENT ON COLUMN nexhealth_history.id IS 'The record''s id, where it has one. PHI class: id.';
COMMENT ON COLUMN nexhealth_history.version IS 'Counts the versions of a row that were superseded, from 1. PHI class: none.';
COMMENT ON COLUMN nexhealth_history.valid_from IS
    'Since when the source had this version: its updated_at, else when it was read; for the first version known, no '
    'later than when the row was first stored here. PHI class: none.';
COMMENT ON COLUMN nexhealth_history.valid_to IS
    'When the source superseded it: updated_at of the next version, else its deletion, else when it was read. '
    'PHI class: none.';
COMMENT ON COLUMN nexhealth_history.recorded_from IS 'Since when this copy had it. PHI class: none.';
COMMENT ON COLUMN nexhealth_history.recorded_to IS 'When this copy replaced it. PHI class: none.';
COMMENT ON COLUMN nexhealth_history.cause IS
    'What replaced it: page (a read of the API), webhook, replay (of a stored event), absence (a complete read lacked '
    'it), revival (it came back), manual (anything else, such as an UPDATE by hand). PHI class: none.';
COMMENT ON COLUMN nexhealth_history.run_id IS 'Run that replaced it, where one did. PHI class: none.';
COMMENT ON COLUMN nexhealth_history.event_id IS 'Webhook event that replaced it, where one did. PHI class: none.';
COMMENT ON COLUMN nexhealth_history.changed_fields IS
    'Columns in which the next version differs, times of synchronisation left out; {raw} = a key that has no column. '
    'PHI class: none.';
COMMENT ON COLUMN nexhealth_history.raw IS 'The superseded record as received. PHI class: clinical.';
COMMENT ON COLUMN nexhealth_history.fields IS
    'The superseded row''s columns but raw: jsonb_populate_record(NULL::nexhealth_<collection>, fields) makes it a row. '
    'PHI class: clinical.';
"""

_PARTITIONS = """
CREATE FUNCTION nexhealth_history_ahead(months integer DEFAULT 3) RETURNS text[]
LANGUAGE plpgsql AS $function$
DECLARE
    first timestamp := date_trunc('month', now() AT TIME ZONE 'UTC');
    begins timestamp;
    name text;
    made text[] := '{}';
BEGIN
    -- Who does not own the table cannot; until its owner comes, the default partition takes the rows.
    IF NOT (SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = 'public.nexhealth_history'::regclass) THEN
        RETURN made;
    END IF;
    FOR begins IN SELECT generate_series(first, first + months * interval '1 month', interval '1 month') LOOP
        name := 'nexhealth_history_' || to_char(begins, 'YYYY_MM');
        CONTINUE WHEN to_regclass('public.' || name) IS NOT NULL;
        PERFORM pg_advisory_xact_lock(x'4E480003'::integer); -- somebody else may be at it
        -- Not to_regclass, which remembers its first answer.
        CONTINUE WHEN EXISTS (
            SELECT FROM pg_class WHERE relname = name AND relnamespace = 'public'::regnamespace);
        -- Attached, not made in place: that would wait for every transaction that reads or writes history.
        EXECUTE format('CREATE TABLE public.%I (LIKE public.nexhealth_history INCLUDING ALL)', name);
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
    END LOOP;
    RETURN made;
END
$function$;
COMMENT ON FUNCTION nexhealth_history_ahead IS
    'Makes the partitions of nexhealth_history for this month and those ahead, where they are missing.';
"""

_TRIGGER = r"""
CREATE FUNCTION nexhealth_less_times(value jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$function$ SELECT regexp_replace(value::text, '"(updated_at|last_sync_time)": ("[^"]*"|null)(, )?', '', 'g') $function$;
COMMENT ON FUNCTION nexhealth_less_times IS
    'A JSON value without the times of synchronisation inside it, to be compared with another.';

-- With its owner's rights: who may change a row must not be able to do so unseen.
CREATE FUNCTION nexhealth_keep_history() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $function$
DECLARE
    times CONSTANT text[] := '{updated_at,last_sync_time,synced_at,source_read_at,first_seen_at,row_hash}';
    said text := coalesce(current_setting('nexhealth.cause', true), '');
    id text;
    version text;
    key text;
    same_key text;
    kept text;
    differing text;
BEGIN
    IF NOT EXISTS (SELECT FROM history_old) THEN
        RETURN NULL;
    END IF;
    -- The statement is written for the table's own columns: three times as fast as comparing rows as JSON.
    SELECT coalesce(max('o.id') FILTER (WHERE a.attname = 'id'), 'NULL::bigint'),
        coalesce(max('updated_at') FILTER (WHERE a.attname = 'updated_at'), 'source_read_at'),
        string_agg(format('%1$L, o.%1$I', a.attname), ', ')
            FILTER (WHERE a.attnum = ANY (i.indkey) AND a.attname <> 'institution_id'),
        string_agg(format('o.%1$I = n.%1$I', a.attname), ' AND ') FILTER (WHERE a.attnum = ANY (i.indkey)),
        string_agg(format('o.%I', a.attname), ', ' ORDER BY a.attnum) FILTER (WHERE a.attname NOT IN ('raw', 'row_hash')),
        string_agg(format(
            CASE WHEN a.atttypid = 'jsonb'::regtype
                THEN 'CASE WHEN o.%1$I IS DISTINCT FROM n.%1$I AND nexhealth_less_times(o.%1$I)'
                    ' IS DISTINCT FROM nexhealth_less_times(n.%1$I) THEN %1$L END'
                ELSE 'CASE WHEN o.%1$I IS DISTINCT FROM n.%1$I THEN %1$L END' END, a.attname), ', ' ORDER BY a.attname)
            FILTER (WHERE a.attname <> ALL (times) AND a.attname <> 'raw')
    INTO id, version, key, same_key, kept, differing
    FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE i.indrelid = TG_RELID AND i.indisprimary;

    EXECUTE format($statement$
        WITH meant AS MATERIALIZED (
            SELECT o.institution_id, jsonb_build_object(%1$s) AS key, %2$s AS id, o.raw, d.names,
                   (SELECT to_jsonb(f) FROM (SELECT %3$s) f) AS fields, o.%4$I AS updated_at, n.%4$I AS new_updated_at,
                   o.synced_at, n.synced_at AS new_synced_at, o.source_read_at, n.source_read_at AS new_read_at,
                   o.deleted_at, n.deleted_at AS new_deleted_at, o.deleted_by, n.deleted_by AS new_deleted_by,
                   o.first_seen_at
            FROM history_old o LEFT JOIN history_new n ON %5$s
                CROSS JOIN LATERAL (SELECT array_remove(ARRAY[%6$s]::text[], NULL) AS names) d
            WHERE d.names <> '{}' OR (o.raw IS DISTINCT FROM n.raw
                AND nexhealth_less_times(o.raw - $2) IS DISTINCT FROM nexhealth_less_times(n.raw - $2))
        ), ended AS (
            SELECT m.*, coalesce(h.version, 0) + 1 AS version,
                   coalesce(h.valid_to, least(coalesce(m.updated_at, m.source_read_at), m.first_seen_at)) AS valid_from,
                   coalesce(h.recorded_to, least(m.synced_at, m.first_seen_at)) AS recorded_from,
                   CASE WHEN m.new_synced_at > m.synced_at THEN m.new_synced_at ELSE clock_timestamp() END AS recorded_to
            FROM meant m LEFT JOIN LATERAL (
                SELECT p.version, p.valid_to, p.recorded_to FROM nexhealth_history p
                WHERE p.collection = $1 AND p.institution_id = m.institution_id AND p.key = m.key
                ORDER BY p.version DESC LIMIT 1
            ) h ON true
        )
        INSERT INTO nexhealth_history (collection, institution_id, key, id, version, valid_from, valid_to,
            recorded_from, recorded_to, cause, run_id, event_id, changed_fields, raw, fields)
        SELECT $1, institution_id, key, id, version, valid_from,
               greatest(valid_from, CASE
                   WHEN new_updated_at > coalesce(updated_at, '-infinity') THEN new_updated_at
                   WHEN deleted_at IS NULL AND new_deleted_at IS NOT NULL THEN new_deleted_at
                   WHEN new_read_at > source_read_at THEN new_read_at
                   ELSE recorded_to END),
               recorded_from, greatest(recorded_from, recorded_to),
               CASE WHEN new_deleted_by = 'absence' AND deleted_by IS DISTINCT FROM 'absence' THEN 'absence'
                    WHEN deleted_by = 'absence' AND new_deleted_by IS DISTINCT FROM 'absence' THEN 'revival'
                    ELSE $3 END,
               $4, $5, CASE WHEN names = '{}' THEN '{raw}' ELSE names END, raw, fields
        FROM ended
        $statement$, key, id, kept, version, same_key, differing)
    USING substr(TG_TABLE_NAME, length('nexhealth_') + 1), times,
        CASE WHEN said IN ('page', 'webhook', 'replay') THEN said ELSE 'manual' END,
        nullif(current_setting('nexhealth.run_id', true), ''), nullif(current_setting('nexhealth.event_id', true), '');
    RETURN NULL;
END
$function$;
REVOKE EXECUTE ON FUNCTION nexhealth_keep_history FROM PUBLIC;
COMMENT ON FUNCTION nexhealth_keep_history IS
    'Trigger of every collection''s table: keeps the versions that an UPDATE superseded in nexhealth_history.';
"""

_ASOF = """
CREATE FUNCTION nexhealth_asof(collection text, at timestamptz, by text DEFAULT 'recorded') RETURNS TABLE (
    institution_id bigint, id bigint, key jsonb, version integer, raw jsonb, fields jsonb,
    deleted_at timestamptz, deleted_by text,
    valid_from timestamptz, valid_to timestamptz, recorded_from timestamptz, recorded_to timestamptz)
LANGUAGE plpgsql STABLE AS $function$
DECLARE
    target regclass := to_regclass('public.' || quote_ident('nexhealth_' || collection));
    keys text;
    kept text;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = target AND tgname = 'nexhealth_history') THEN
        RAISE EXCEPTION 'no collection %', quote_literal(collection)
            USING ERRCODE = 'undefined_table', HINT = 'Write its name without nexhealth_, for example patients.';
    END IF;
    IF by IS NULL OR by NOT IN ('recorded', 'source') THEN
        RAISE EXCEPTION 'by: %, not recorded or source', quote_nullable(by) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT string_agg(format('%1$L, t.%1$I', a.attname), ', ')
            FILTER (WHERE a.attnum = ANY (i.indkey) AND a.attname <> 'institution_id'),
        string_agg(format('t.%I', a.attname), ', ' ORDER BY a.attnum) FILTER (WHERE a.attname NOT IN ('raw', 'row_hash'))
    INTO keys, kept
    FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE i.indrelid = target AND i.indisprimary;

    RETURN QUERY EXECUTE format($statement$
        WITH past AS MATERIALIZED (
            -- Versions follow each other without a gap: the first that ended later is the one, if it had begun.
            SELECT DISTINCT ON (h.institution_id, h.key) h.* FROM nexhealth_history h
            WHERE h.collection = $1 AND h.%1$s_to > $2
            ORDER BY h.institution_id, h.key, h.version
        ), last AS (
            SELECT DISTINCT ON (h.institution_id, h.key) h.institution_id, h.key, h.version, h.valid_to, h.recorded_to
            FROM nexhealth_history h WHERE h.collection = $1
            ORDER BY h.institution_id, h.key, h.version DESC
        ), rows AS (
            SELECT t.institution_id, jsonb_build_object(%2$s) AS key, t.raw, t.deleted_at, t.deleted_by,
                   (SELECT to_jsonb(f) FROM (SELECT %5$s) f) AS fields, t.synced_at, t.source_read_at, t.first_seen_at
            FROM %3$s t
        ), present AS (
            SELECT r.*, coalesce(l.version, 0) + 1 AS version,
                   coalesce(l.valid_to, least(
                       coalesce((r.fields ->> 'updated_at')::timestamptz, r.source_read_at), r.first_seen_at)) AS valid_from,
                   coalesce(l.recorded_to, least(r.synced_at, r.first_seen_at)) AS recorded_from
            FROM rows r LEFT JOIN last l ON l.institution_id = r.institution_id AND l.key = r.key
        )
        SELECT p.institution_id, p.id, p.key, p.version, p.raw, p.fields, (p.fields ->> 'deleted_at')::timestamptz,
               p.fields ->> 'deleted_by', p.valid_from, p.valid_to, p.recorded_from, p.recorded_to
        FROM past p WHERE p.%4$s_from <= $2
        UNION ALL
        SELECT r.institution_id, (r.fields ->> 'id')::bigint, r.key, r.version, r.raw, r.fields, r.deleted_at,
               r.deleted_by, r.valid_from, NULL, r.recorded_from, NULL
        FROM present r WHERE r.%4$s_from <= $2
            AND NOT EXISTS (SELECT FROM past p WHERE p.institution_id = r.institution_id AND p.key = r.key)
        $statement$,
        CASE by WHEN 'source' THEN 'valid' ELSE 'recorded' END, keys, target,
        CASE by WHEN 'source' THEN 'valid' ELSE 'recorded' END, kept)
    USING collection, at;
END
$function$;
COMMENT ON FUNCTION nexhealth_asof IS
    'The rows of a collection as this copy had them at a moment (by ''recorded''), or as the source had them as far as '
    'it is known here (by ''source''). Deleted rows are given too, with deleted_at; valid_to and recorded_to are null '
    'for the version that still holds.';
"""

_VIEWS = """
DO $block$
BEGIN
    -- Asked first, since IF NOT EXISTS wants the right to create even where nothing is to be created.
    IF to_regnamespace('nexhealth_current') IS NULL THEN
        CREATE SCHEMA nexhealth_current;
        COMMENT ON SCHEMA nexhealth_current IS
            'One view per collection: what is there now, without deleted rows, with what analysts need. Read only.';
    END IF;
END
$block$;

CREATE FUNCTION nexhealth_zone(name text) RETURNS text
LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED AS $function$
BEGIN
    PERFORM now() AT TIME ZONE name;
    RETURN name;
EXCEPTION WHEN invalid_parameter_value THEN
    RETURN NULL;
END
$function$;
COMMENT ON FUNCTION nexhealth_zone IS
    'The name of a time zone that PostgreSQL knows, else null: one office''s odd zone must not fail a query of all.';
"""


def upgrade() -> None:
    """Create history with its functions, and the views' schema; tables and views follow from the catalog."""
    connection = op.get_bind()
    for ddl in (_TABLE, _PARTITIONS, _TRIGGER, _ASOF, _VIEWS):
        connection.exec_driver_sql(ddl.replace("%", "%%"))
