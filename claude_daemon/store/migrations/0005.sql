-- Seals a record together with the one before, whose seal is in prev_hash. Records from before this have none.
ALTER TABLE audit ADD COLUMN hash BLOB;
