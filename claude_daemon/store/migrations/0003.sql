-- What an attempt is known to have used while it runs, as JSON: the ledger's word for it if the daemon is killed.
ALTER TABLE attempts ADD COLUMN usage BLOB;
