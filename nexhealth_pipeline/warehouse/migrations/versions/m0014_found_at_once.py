"""What is asked for a few rows reads no more than those: the last runs, and single records as they were."""

from alembic import op

revision = "0014"
down_revision = "0013"

_RUNS = "CREATE INDEX IF NOT EXISTS nexhealth_runs_started ON nexhealth_runs (started_at)"

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
        FROM past p WHERE p.%4$s_from <= $2
        UNION ALL
        SELECT r.institution_id, (r.fields ->> 'id')::bigint, r.key, r.version, r.raw, r.fields, r.deleted_at,
               r.deleted_by, r.valid_from, NULL, r.recorded_from, NULL
        FROM present r WHERE r.%4$s_from <= $2
            AND NOT EXISTS (SELECT FROM past p WHERE p.institution_id = r.institution_id AND p.key = r.key)
        $statement$,
        CASE by WHEN 'source' THEN 'valid' ELSE 'recorded' END, keys, target,
        CASE by WHEN 'source' THEN 'valid' ELSE 'recorded' END, kept,
        CASE WHEN ids IS NULL THEN 'true' ELSE 't.institution_id = ANY ($5) AND t.id = ANY ($3)' END,
        -- History is found by its key; where the id is not all of that, the collection's versions are passed over.
        CASE WHEN ids IS NULL THEN 'true'
            WHEN only_id THEN 'h.institution_id = ANY ($5) AND h.key = ANY ($4)' ELSE 'h.id = ANY ($3)' END)
    USING collection, at, ids, ARRAY(SELECT jsonb_build_object('id', one) FROM unnest(ids) one), institutions;
END
$function$;
COMMENT ON FUNCTION nexhealth_asof(text, timestamptz, text, bigint[]) IS
    'The rows of a collection as this copy had them at a moment (by ''recorded''), or as the source had them as far as '
    'it is known here (by ''source''). Deleted rows are given too, with deleted_at; valid_to and recorded_to are null '
    'for the version that still holds. With ids (of every institution) those alone are looked for: a condition on what '
    'this returns is applied when all has been put together.';
"""

_BEFORE = """
DO $block$
DECLARE
    before CONSTANT regprocedure := to_regprocedure('nexhealth_asof(text, timestamptz, text)');
    given record;
BEGIN
    IF before IS NULL THEN
        RETURN;
    END IF;
    -- Whoever was let in stays so, and nobody else is: rights that new functions get by default may differ from those.
    FOR given IN
        SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(r.rolname) END AS role
        FROM pg_proc p CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
            LEFT JOIN pg_roles r ON r.oid = a.grantee
        WHERE p.oid = to_regprocedure('nexhealth_asof(text, timestamptz, text, bigint[])')
            AND r.rolname IS DISTINCT FROM current_user
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION nexhealth_asof(text, timestamptz, text, bigint[]) FROM %s', given.role);
    END LOOP;
    FOR given IN
        SELECT privilege_type, is_grantable, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(rolname) END AS role
        FROM pg_proc p CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
            LEFT JOIN pg_roles r ON r.oid = a.grantee
        -- Not to a role that is no more.
        WHERE p.oid = before AND r.rolname IS DISTINCT FROM current_user AND (a.grantee = 0 OR r.oid IS NOT NULL)
    LOOP
        EXECUTE format('GRANT %s ON FUNCTION nexhealth_asof(text, timestamptz, text, bigint[]) TO %s %s',
            given.privilege_type, given.role, CASE WHEN given.is_grantable THEN 'WITH GRANT OPTION' ELSE '' END);
    END LOOP;
    -- Beside the new one, a call without ids would be ambiguous.
    BEGIN
        DROP FUNCTION nexhealth_asof(text, timestamptz, text);
    EXCEPTION WHEN dependent_objects_still_exist THEN
        -- Somebody's view is built on it, and goes on with it.
        ALTER FUNCTION nexhealth_asof(text, timestamptz, text) RENAME TO nexhealth_asof_before;
        COMMENT ON FUNCTION nexhealth_asof_before IS
            'nexhealth_asof as an earlier release had it, for views that were built on it then.';
    END;
END
$block$;
"""

_SUBSCRIPTIONS = """
COMMENT ON COLUMN nexhealth_webhooks.subscriptions IS
    'What it is subscribed to: [{id, subdomain, resource_type, event, active, since}]; without since: as long as it is '
    'registered. PHI class: none.';
"""

_SEEN = """
COMMENT ON TABLE nexhealth_seen_passes IS
    'Passes that keep the ids they meet, because absences are judged by them. begun_at is in the time of this database, '
    'started_at in that of the API; offline = locations whose practice system NexHealth did not reach when it began; '
    'unreadable = a record''s id could not be read; judged_at = when absences were judged by it. The ids are forgotten '
    'then; of lists of which only the request tells the location those stay that other locations may list as well.';
"""


def upgrade() -> None:
    """Create the index, and the function that takes ids in place of the one before."""
    for ddl in (_RUNS, _ASOF, _BEFORE, _SUBSCRIPTIONS, _SEEN):
        op.get_bind().exec_driver_sql(ddl.replace("%", "%%"))
