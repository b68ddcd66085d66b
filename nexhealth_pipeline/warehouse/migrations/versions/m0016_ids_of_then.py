"""A row whose id changed is shown to whoever asks for the one that it had at that moment, and to nobody else.

Who holds a coverage may change. Of the versions of such a row only those with the id that was asked for were looked at,
so that the one of a moment before, which has another, did not stand in the way of the one of now.
"""

from alembic import op

revision = "0016"
down_revision = "0015"

_ASOF = """
CREATE OR REPLACE FUNCTION nexhealth_asof(
    collection text, at timestamptz, by text DEFAULT 'recorded', ids bigint[] DEFAULT NULL) RETURNS TABLE (
    institution_id bigint, id bigint, key jsonb, version integer, raw jsonb, fields jsonb,
    deleted_at timestamptz, deleted_by text,
    valid_from timestamptz, valid_to timestamptz, recorded_from timestamptz, recorded_to timestamptz)
LANGUAGE plpgsql STABLE AS $function$
DECLARE
    target regclass := to_regclass('public.' || quote_ident('nexhealth_' || collection));
    keys text;
    kept text;
    has_id boolean;
    only_id boolean;
    institutions bigint[];
    named jsonb[];
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
        string_agg(format('t.%I', a.attname), ', ' ORDER BY a.attnum) FILTER (WHERE a.attname NOT IN ('raw', 'row_hash')),
        bool_or(a.attname = 'id'),
        array_agg(a.attname::text ORDER BY a.attname) FILTER (WHERE a.attnum = ANY (i.indkey)) = '{id,institution_id}'
    INTO keys, kept, has_id, only_id
    FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE i.indrelid = target AND i.indisprimary;
    IF ids IS NOT NULL AND NOT has_id THEN
        RAISE EXCEPTION 'ids: rows of collection % have none', quote_literal(collection)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Leave ids out, and choose rows by their key.';
    END IF;

    IF ids IS NOT NULL THEN
        -- Keys begin with the institution: asked for ids alone, PostgreSQL before 18 reads indexes from end to end. Each
        -- is found by a look at the next one.
        EXECUTE format($statement$
            WITH RECURSIVE place (one) AS (
                SELECT -1::bigint
                UNION ALL
                SELECT least(
                    (SELECT t.institution_id FROM %1$s t WHERE t.institution_id > p.one ORDER BY 1 LIMIT 1),
                    (SELECT h.institution_id FROM nexhealth_history h
                     WHERE h.collection = $1 AND h.institution_id > p.one ORDER BY 1 LIMIT 1))
                FROM place p WHERE p.one IS NOT NULL)
            SELECT array_agg(one) FROM place WHERE one IS NOT NULL
            $statement$, target) INTO institutions USING collection;
    END IF;
    IF only_id THEN
        named := ARRAY(SELECT jsonb_build_object('id', one) FROM unnest(ids) one);
    ELSIF ids IS NOT NULL THEN
        -- Where the id may change within a row, the version that held at the moment may have another than the one asked
        -- for: all versions are looked at of every row that ever had it. For that the collection's are passed over.
        EXECUTE format($statement$
            SELECT array_agg(k.key) FROM (
                SELECT jsonb_build_object(%1$s) AS key FROM %2$s t WHERE t.institution_id = ANY ($3) AND t.id = ANY ($2)
                UNION
                SELECT h.key FROM nexhealth_history h WHERE h.collection = $1 AND h.id = ANY ($2)) k
            $statement$, keys, target) INTO named USING collection, ids, institutions;
    END IF;
    RETURN QUERY EXECUTE format($statement$
        WITH past AS MATERIALIZED (
            -- Versions follow each other without a gap: the first that ended later is the one, if it had begun.
            SELECT DISTINCT ON (h.institution_id, h.key) h.* FROM nexhealth_history h
            WHERE h.collection = $1 AND h.%1$s_to > $2 AND %7$s
            ORDER BY h.institution_id, h.key, h.version
        ), last AS (
            SELECT DISTINCT ON (h.institution_id, h.key) h.institution_id, h.key, h.version, h.valid_to, h.recorded_to
            FROM nexhealth_history h WHERE h.collection = $1 AND %7$s
            ORDER BY h.institution_id, h.key, h.version DESC
        ), rows AS (
            SELECT t.institution_id, jsonb_build_object(%2$s) AS key, t.raw, t.deleted_at, t.deleted_by,
                   (SELECT to_jsonb(f) FROM (SELECT %5$s) f) AS fields, t.synced_at, t.source_read_at, t.first_seen_at
            FROM %3$s t WHERE %6$s
        ), present AS (
            SELECT r.*, coalesce(l.version, 0) + 1 AS version,
                   coalesce(l.valid_to, least(
                       coalesce((r.fields ->> 'updated_at')::timestamptz, r.source_read_at), r.first_seen_at)) AS valid_from,
                   coalesce(l.recorded_to, least(r.synced_at, r.first_seen_at)) AS recorded_from
            FROM rows r LEFT JOIN last l ON l.institution_id = r.institution_id AND l.key = r.key
        )
        SELECT p.institution_id, p.id, p.key, p.version, p.raw, p.fields, (p.fields ->> 'deleted_at')::timestamptz,
               p.fields ->> 'deleted_by', p.valid_from, p.valid_to, p.recorded_from, p.recorded_to
        FROM past p WHERE p.%4$s_from <= $2 AND %8$s
        UNION ALL
        SELECT r.institution_id, (r.fields ->> 'id')::bigint, r.key, r.version, r.raw, r.fields, r.deleted_at,
               r.deleted_by, r.valid_from, NULL, r.recorded_from, NULL
        FROM present r WHERE r.%4$s_from <= $2
            AND NOT EXISTS (SELECT FROM past p WHERE p.institution_id = r.institution_id AND p.key = r.key)
        $statement$,
        CASE by WHEN 'source' THEN 'valid' ELSE 'recorded' END, keys, target,
        CASE by WHEN 'source' THEN 'valid' ELSE 'recorded' END, kept,
        CASE WHEN ids IS NULL THEN 'true' ELSE 't.institution_id = ANY ($5) AND t.id = ANY ($3)' END,
        CASE WHEN ids IS NULL THEN 'true' ELSE 'h.institution_id = ANY ($5) AND h.key = ANY ($4)' END,
        CASE WHEN ids IS NULL THEN 'true' ELSE 'p.id = ANY ($3)' END)
    USING collection, at, ids, named, institutions;
END
$function$;
"""


def upgrade() -> None:
    """Replace the function; rights on it stay, and so do views."""
    op.get_bind().exec_driver_sql(_ASOF.replace("%", "%%"))
