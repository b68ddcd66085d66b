"""Who has the views alone finds a location's patients by index: location_ids of patients is put together for each of them."""

from alembic import op

revision = "0017"
down_revision = "0016"

_VIEW = """
-- One of that name that somebody made for want of this gives way, as to any view of a new collection.
DROP VIEW IF EXISTS nexhealth_current.patient_locations;
CREATE VIEW nexhealth_current.patient_locations AS
    SELECT institution_id, patient_id, location_id, first_seen FROM nexhealth_patient_locations WHERE gone_at IS NULL;
COMMENT ON VIEW nexhealth_current.patient_locations IS
    'That a location lists a person: a patient, or a guarantor who is none. Quickly found by institution_id and location_id.';
COMMENT ON COLUMN nexhealth_current.patient_locations.institution_id IS
    'Institution the record belongs to. PHI class: id.';
COMMENT ON COLUMN nexhealth_current.patient_locations.patient_id IS
    'Who is listed; a row of patients or non_patients, once their record could be loaded. PHI class: id.';
COMMENT ON COLUMN nexhealth_current.patient_locations.location_id IS 'Location that lists them. PHI class: none.';
COMMENT ON COLUMN nexhealth_current.patient_locations.first_seen IS
    'Since when they are known to be listed there. PHI class: none.';
"""


def upgrade() -> None:
    """Create the view."""
    op.get_bind().exec_driver_sql(_VIEW)
