"""Columns of system tables that hold records, or ids of people, say so: a role built by the comments left them open."""

from alembic import op

revision = "0018"
down_revision = "0017"

_QUARANTINE = """
COMMENT ON COLUMN nexhealth_quarantine.collection IS 'Collection of the record. PHI class: none.';
COMMENT ON COLUMN nexhealth_quarantine.institution_id IS 'Institution the record belongs to. PHI class: id.';
COMMENT ON COLUMN nexhealth_quarantine.location_id IS 'Location it was read for; 0 = institution-wide. PHI class: none.';
COMMENT ON COLUMN nexhealth_quarantine.record_id IS 'The record''s id, or what names it; empty = not known. PHI class: id.';
COMMENT ON COLUMN nexhealth_quarantine.field IS 'Field that could not be loaded. PHI class: none.';
COMMENT ON COLUMN nexhealth_quarantine.rule IS 'What is wrong with it. PHI class: none.';
COMMENT ON COLUMN nexhealth_quarantine.loaded IS 'The record is in its table, without the field. PHI class: none.';
COMMENT ON COLUMN nexhealth_quarantine.raw IS 'The record as received. PHI class: clinical.';
COMMENT ON COLUMN nexhealth_quarantine.fingerprint IS 'Hash that tells one note from another. PHI class: none.';
COMMENT ON COLUMN nexhealth_quarantine.run_id IS 'Run that read it first. PHI class: none.';
COMMENT ON COLUMN nexhealth_quarantine.request IS
    'Ids that the request knew and the record does not, such as its patient''s. PHI class: id.';
COMMENT ON COLUMN nexhealth_quarantine.read_at IS 'When this content was last read. PHI class: none.';
COMMENT ON COLUMN nexhealth_quarantine.first_seen_at IS 'When it was first read, since it was last resolved. PHI class: none.';
COMMENT ON COLUMN nexhealth_quarantine.resolved_at IS
    'When a later read, or a retry, loaded the record; null = open. PHI class: none.';
"""

_PATIENTS = """
COMMENT ON COLUMN nexhealth_patient_locations.institution_id IS 'Institution the patient belongs to. PHI class: id.';
COMMENT ON COLUMN nexhealth_patient_locations.patient_id IS 'Who is listed. PHI class: id.';
COMMENT ON COLUMN nexhealth_patient_locations.location_id IS 'Location that lists them. PHI class: none.';
COMMENT ON COLUMN nexhealth_patient_locations.first_seen IS
    'Since when they are known to be listed there. PHI class: none.';
COMMENT ON COLUMN nexhealth_patient_locations.gone_at IS
    'When they were found to be listed no more; null = they are. PHI class: none.';

COMMENT ON COLUMN nexhealth_child_reads.collection IS 'Collection whose records are in the list. PHI class: none.';
COMMENT ON COLUMN nexhealth_child_reads.institution_id IS 'Institution the list belongs to. PHI class: id.';
COMMENT ON COLUMN nexhealth_child_reads.patient_id IS
    'Patient whose list it is; of lists under other rows (coverages), the row''s id. PHI class: id.';
COMMENT ON COLUMN nexhealth_child_reads.read_at IS 'When it was last read. PHI class: none.';
COMMENT ON COLUMN nexhealth_child_reads.patient_version IS 'Version of that row when it was read. PHI class: none.';
COMMENT ON COLUMN nexhealth_child_reads.rows IS 'Records that it held. PHI class: none.';

COMMENT ON COLUMN nexhealth_seen.key IS 'Key of a record that the pass met, such as a patient''s id. PHI class: id.';
COMMENT ON COLUMN nexhealth_schema_drift.sample_id IS 'Id of a record that shows it. PHI class: id.';
COMMENT ON COLUMN nexhealth_check_results.sample_ids IS 'Ids of some of the rows that were found. PHI class: id.';
"""

_PARTS = """
-- A default partition was made without the comments of its table, unlike those of months and days.
DO $block$
DECLARE
    one record;
BEGIN
    FOR one IN
        SELECT i.inhrelid::regclass AS part, a.attname, col_description(i.inhparent, w.attnum) AS words
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            JOIN pg_attribute a ON a.attrelid = i.inhrelid AND a.attnum > 0 AND NOT a.attisdropped
            JOIN pg_attribute w ON w.attrelid = i.inhparent AND w.attname = a.attname
        WHERE i.inhparent IN ('public.nexhealth_history'::regclass, 'public.nexhealth_changes'::regclass)
            -- Somebody else's partition is left to them.
            AND pg_has_role(c.relowner, 'USAGE') AND col_description(i.inhrelid, a.attnum) IS NULL
            AND col_description(i.inhparent, w.attnum) IS NOT NULL
    LOOP
        EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', one.part, one.attname, one.words);
    END LOOP;
END
$block$;
"""


def upgrade() -> None:
    """Write the comments, for which nobody who reads or writes rows has to wait."""
    for ddl in (_QUARANTINE, _PATIENTS, _PARTS):
        op.get_bind().exec_driver_sql(ddl.replace("%", "%%"))
