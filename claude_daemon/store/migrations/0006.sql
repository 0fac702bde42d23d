-- A key's last use, its suspension, and its secret before the last rotation: good until previous_until.
ALTER TABLE keys ADD COLUMN used_at REAL;
ALTER TABLE keys ADD COLUMN suspended_at REAL;
ALTER TABLE keys ADD COLUMN previous_digest BLOB;
ALTER TABLE keys ADD COLUMN previous_until REAL;

CREATE UNIQUE INDEX keys_by_previous_digest ON keys (previous_digest) WHERE previous_digest IS NOT NULL;
