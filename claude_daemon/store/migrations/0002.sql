-- When a task came back into the queue because it was tried again; null: it stands where its submission put it.
ALTER TABLE tasks ADD COLUMN queued_at REAL;

-- What a delivery sends, the same at every attempt, whatever becomes of its task; it goes when the delivery is over.
-- Apart from webhooks, so that an attempt rewrites a small row. Deliveries from before have none: they are told of the
-- task as it is.
CREATE TABLE webhook_bodies (
    n INTEGER PRIMARY KEY,
    body BLOB NOT NULL
);
