"""System tables: sync state and log, runs, freshness, capabilities, membership, quarantine, budget."""

from alembic import op

from nexhealth_pipeline.warehouse.budget import BUDGET_DDL

revision = "0001"
down_revision = None

_DDL = """
CREATE TABLE nexhealth_warehouse (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    kind text NOT NULL CHECK (kind IN ('sandbox', 'real')),
    since timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE nexhealth_warehouse IS 'Whether this warehouse holds sandbox or real data; it refuses the other.';

CREATE TABLE nexhealth_schema_changes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    change text NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE nexhealth_schema_changes IS 'Tables and columns added from the catalog.';

CREATE TABLE nexhealth_runs (
    run_id text PRIMARY KEY,
    host text NOT NULL,
    pid integer NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    status text NOT NULL DEFAULT 'running'
        CHECK (status IN ('running', 'succeeded', 'failed', 'interrupted', 'cancelled'))
);
CREATE INDEX nexhealth_runs_open ON nexhealth_runs (run_id) WHERE finished_at IS NULL;
COMMENT ON TABLE nexhealth_runs IS
    'Live runs: a row is written once the run holds its advisory lock; a free lock on an open row means it died.';

CREATE TABLE nexhealth_sweeps (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mode text NOT NULL,
    scope_hash text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz
);
CREATE INDEX nexhealth_sweeps_open ON nexhealth_sweeps (scope_hash, started_at) WHERE finished_at IS NULL;
COMMENT ON TABLE nexhealth_sweeps IS
    'Full reads of everything asked for; one that was killed is gone on with, not begun again.';

CREATE TABLE nexhealth_sync_state (
    collection text NOT NULL,
    institution_id bigint NOT NULL,
    location_id bigint NOT NULL,
    window_key text NOT NULL,
    pass text NOT NULL,
    watermark timestamptz,
    pass_started_at timestamptz,
    begun_at timestamptz,
    mode text NOT NULL,
    since timestamptz,
    filter_hash text NOT NULL,
    cursor text NOT NULL,
    page integer NOT NULL,
    page_hashes text[] NOT NULL DEFAULT '{}',
    records bigint NOT NULL,
    total bigint,
    absent_fields text[],
    complete_at timestamptz,
    last_full_at timestamptz,
    fresh_at timestamptz,
    full_at timestamptz,
    run_id text NOT NULL,
    PRIMARY KEY (collection, institution_id, location_id, window_key, pass)
);
COMMENT ON TABLE nexhealth_sync_state IS
    'What the next sync starts from. pass_started_at, mode, since, filter_hash, cursor, page and records are of the '
    'pass read last; it is unfinished while watermark differs from pass_started_at. watermark = start of the last '
    'complete pass, complete_at = its end, last_full_at = start of the last complete pass that read everything. '
    'Those are times of the API; begun_at, fresh_at and full_at are the same in the time of this database. '
    'total = what the API itself counted at the end of the last complete pass, null where it gives no count or the '
    'pass asked for changes only; absent_fields = declared fields that no record had since the last whole read began.';

CREATE TABLE nexhealth_sync_logs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id text NOT NULL,
    asset text NOT NULL,
    collection text NOT NULL,
    institution_id bigint,
    location_id bigint,
    partition_key text,
    mode text NOT NULL,
    status text NOT NULL
        CHECK (status IN ('running', 'succeeded', 'failed', 'interrupted', 'cancelled', 'skipped')),
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    watermark_from timestamptz,
    watermark_to timestamptz,
    resumed_at_page integer,
    pages integer NOT NULL DEFAULT 0,
    records_read bigint NOT NULL DEFAULT 0,
    inserted bigint NOT NULL DEFAULT 0,
    updated bigint NOT NULL DEFAULT 0,
    unchanged bigint NOT NULL DEFAULT 0,
    quarantined bigint NOT NULL DEFAULT 0,
    tombstoned bigint NOT NULL DEFAULT 0,
    requests bigint NOT NULL DEFAULT 0,
    retries bigint NOT NULL DEFAULT 0,
    throttled_seconds double precision NOT NULL DEFAULT 0,
    bytes bigint NOT NULL DEFAULT 0,
    error text
);
CREATE INDEX nexhealth_sync_logs_run ON nexhealth_sync_logs (run_id);
CREATE INDEX nexhealth_sync_logs_open ON nexhealth_sync_logs (run_id) WHERE status = 'running';
CREATE INDEX nexhealth_sync_logs_recent ON nexhealth_sync_logs (collection, started_at DESC);
COMMENT ON TABLE nexhealth_sync_logs IS
    'History: one row per collection, slice and run, updated while it runs. Never read to decide anything.';

CREATE TABLE nexhealth_child_reads (
    collection text NOT NULL,
    institution_id bigint NOT NULL,
    patient_id bigint NOT NULL,
    read_at timestamptz NOT NULL,
    patient_version timestamptz,
    rows integer NOT NULL,
    PRIMARY KEY (collection, institution_id, patient_id)
);
COMMENT ON TABLE nexhealth_child_reads IS
    'When a patient''s list was last read, at which version of the patient; of lists under other rows (coverages), the row''s.';

CREATE TABLE nexhealth_seen_passes (
    collection text NOT NULL,
    institution_id bigint NOT NULL,
    location_id bigint NOT NULL,
    window_key text NOT NULL,
    pass text NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    begun_at timestamptz NOT NULL,
    started_at timestamptz,
    offline bigint[] NOT NULL,
    unreadable boolean NOT NULL DEFAULT false,
    revived bigint NOT NULL DEFAULT 0,
    complete boolean NOT NULL DEFAULT false,
    judged_at timestamptz,
    PRIMARY KEY (collection, institution_id, location_id, window_key, pass)
);
COMMENT ON TABLE nexhealth_seen_passes IS
    'Passes that keep the ids they meet, because absences are judged by them. begun_at is in the time of this database, '
    'started_at in that of the API; offline = locations whose practice system NexHealth did not reach when it began; '
    'unreadable = a record''s id could not be read; judged_at = when absences were judged and the ids forgotten.';

CREATE TABLE nexhealth_seen (
    pass_id bigint NOT NULL,
    key text NOT NULL,
    PRIMARY KEY (pass_id, key)
);
COMMENT ON TABLE nexhealth_seen IS
    'Keys of the records that a pass of nexhealth_seen_passes met; of lists under one row also of <id>: that row''s '
    'list was answered.';

CREATE TABLE nexhealth_freshness (
    institution_id bigint NOT NULL,
    location_id bigint NOT NULL,
    collection text NOT NULL,
    complete_through timestamptz,
    last_full_at timestamptz,
    last_change_at timestamptz,
    source_read_status text,
    source_read_status_at timestamptz,
    PRIMARY KEY (institution_id, location_id, collection)
);
COMMENT ON TABLE nexhealth_freshness IS
    'How fresh the copy is: every change NexHealth had by complete_through is here. location_id 0 = institution-wide.';

CREATE TABLE nexhealth_capabilities (
    institution_id bigint NOT NULL,
    location_id bigint NOT NULL,
    collection text NOT NULL,
    status text NOT NULL CHECK (status IN ('supported', 'not_enabled', 'unsupported', 'empty')),
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    evidence text NOT NULL,
    enabled_at timestamptz,
    PRIMARY KEY (institution_id, location_id, collection)
);
COMMENT ON TABLE nexhealth_capabilities IS 'What each practice''s system offers, and how that is known.';
COMMENT ON COLUMN nexhealth_capabilities.enabled_at IS
    'When a collection that was not enabled became so: it is read in full then, and once more a day later.';

CREATE TABLE nexhealth_patient_locations (
    institution_id bigint NOT NULL,
    patient_id bigint NOT NULL,
    location_id bigint NOT NULL,
    first_seen timestamptz NOT NULL,
    gone_at timestamptz,
    PRIMARY KEY (institution_id, patient_id, location_id)
);
CREATE INDEX nexhealth_patient_locations_location ON nexhealth_patient_locations (institution_id, location_id);
COMMENT ON TABLE nexhealth_patient_locations IS 'Which locations list a patient; gone_at null = still listed.';

CREATE TABLE nexhealth_quarantine (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    collection text NOT NULL,
    institution_id bigint NOT NULL,
    location_id bigint NOT NULL,
    record_id text NOT NULL,
    field text NOT NULL,
    rule text NOT NULL,
    loaded boolean NOT NULL,
    raw bytea NOT NULL,
    fingerprint bytea NOT NULL,
    run_id text NOT NULL,
    request jsonb NOT NULL DEFAULT '{}',
    read_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    resolved_at timestamptz,
    UNIQUE (collection, institution_id, fingerprint)
);
CREATE INDEX nexhealth_quarantine_open ON nexhealth_quarantine (collection, institution_id, record_id)
    WHERE resolved_at IS NULL;
COMMENT ON TABLE nexhealth_quarantine IS
    'Records, or fields of records, that could not be loaded: why, and the bytes as received (PHI). '
    'loaded = the record is in its table without the field. request = ids that the request knew and the record does '
    'not; read_at = when this content was last read; resolved_at = when a later read, or a retry, loaded the record.';

CREATE TABLE nexhealth_schema_drift (
    collection text NOT NULL,
    institution_id bigint NOT NULL,
    field text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('new', 'missing', 'retyped')),
    first_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    sample_id bigint,
    PRIMARY KEY (collection, institution_id, field, kind)
);
COMMENT ON TABLE nexhealth_schema_drift IS
    'Fields that NexHealth delivers otherwise than declared: names and ids only. new = no column holds it, missing = no '
    'record of any complete read had it, retyped = a value of another type. institution_id 0 = key-wide lists.';

CREATE TABLE nexhealth_check_results (
    collection text NOT NULL,
    check_name text NOT NULL,
    institution_id bigint NOT NULL,
    severity text NOT NULL CHECK (severity IN ('error', 'warning')),
    faults bigint NOT NULL,
    acknowledged bigint NOT NULL DEFAULT 0,
    sample_ids text[] NOT NULL DEFAULT '{}',
    checked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    failing_since timestamptz,
    PRIMARY KEY (collection, check_name, institution_id)
);
COMMENT ON TABLE nexhealth_check_results IS
    'What the checks found last, by institution (0 = key-wide). faults above acknowledged are something new to look at.';
"""


def upgrade() -> None:
    """Create the system tables and the rate budget."""
    connection = op.get_bind()
    connection.exec_driver_sql(_DDL)
    connection.exec_driver_sql(BUDGET_DDL.replace("%", "%%"))
