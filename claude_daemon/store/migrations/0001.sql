-- Times are seconds since the epoch. JSON is written by store/rows.py. Old SQLite is in use: no STRICT, no RETURNING.
-- key_id and trust_domain stand on whatever somebody has done or spent.

-- n: the order in which tasks came here, and the second half of a list's cursor. What is large and never changes is in
-- specs, so that a small update rewrites a small row. outcome is written once, at the end.
CREATE TABLE tasks (
    n INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    key_id TEXT NOT NULL,
    trust_domain TEXT NOT NULL,
    request_id TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('chat', 'task')),
    lane TEXT NOT NULL,
    model TEXT NOT NULL,
    priority INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    attempt INTEGER NOT NULL,
    fence INTEGER NOT NULL,
    effects TEXT NOT NULL CHECK (effects IN ('none', 'possible')),
    last_seq INTEGER NOT NULL,
    created_at REAL NOT NULL,
    deadline_at REAL,
    started_at REAL,
    finished_at REAL,
    cancel_requested_at REAL,
    node TEXT,
    lease_until REAL,
    batch_id TEXT,
    webhook TEXT,
    idempotency_key TEXT,
    idempotency_digest BLOB,
    outcome BLOB
);

-- A list is merged from ranges of these two, one for each kind and state, newest first; the queue is one such range.
CREATE INDEX tasks_by_state ON tasks (kind, state, created_at);
CREATE INDEX tasks_by_key ON tasks (key_id, kind, state, created_at);
CREATE INDEX tasks_ended ON tasks (finished_at) WHERE finished_at IS NOT NULL;
CREATE UNIQUE INDEX tasks_idempotency ON tasks (key_id, idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE TABLE specs (
    n INTEGER PRIMARY KEY,
    spec BLOB NOT NULL
);

-- How many tasks are queued: of each key, and of all under the empty name. Counting them would cost every submission
-- a walk through the queue.
CREATE TABLE queue_depth (
    key_id TEXT NOT NULL PRIMARY KEY,
    tasks INTEGER NOT NULL
) WITHOUT ROWID;

INSERT INTO queue_depth VALUES ('', 0);

CREATE TRIGGER queue_grows AFTER INSERT ON tasks WHEN NEW.state = 'queued' BEGIN
    INSERT OR IGNORE INTO queue_depth VALUES (NEW.key_id, 0);
    UPDATE queue_depth SET tasks = tasks + 1 WHERE key_id IN ('', NEW.key_id);
END;

CREATE TRIGGER queue_grows_again AFTER UPDATE OF state ON tasks WHEN NEW.state = 'queued' AND OLD.state <> 'queued' BEGIN
    INSERT OR IGNORE INTO queue_depth VALUES (NEW.key_id, 0);
    UPDATE queue_depth SET tasks = tasks + 1 WHERE key_id IN ('', NEW.key_id);
END;

CREATE TRIGGER queue_shrinks AFTER UPDATE OF state ON tasks WHEN OLD.state = 'queued' AND NEW.state <> 'queued' BEGIN
    UPDATE queue_depth SET tasks = tasks - 1 WHERE key_id IN ('', NEW.key_id);
    DELETE FROM queue_depth WHERE key_id = NEW.key_id AND tasks = 0;
END;

-- Every claim: a task that is tried again after its end begins with attempt 1 again, its fence never does.
CREATE TABLE attempts (
    task_id TEXT NOT NULL,
    fence INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    node TEXT NOT NULL,
    effects TEXT NOT NULL DEFAULT 'none' CHECK (effects IN ('none', 'possible')),
    started_at REAL NOT NULL,
    ended TEXT,
    PRIMARY KEY (task_id, fence)
) WITHOUT ROWID;

CREATE TABLE events (
    task_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    type TEXT NOT NULL,
    encoded BLOB NOT NULL,
    PRIMARY KEY (task_id, seq)
) WITHOUT ROWID;

CREATE TABLE keys (
    id TEXT NOT NULL PRIMARY KEY,
    trust_domain TEXT NOT NULL,
    name TEXT NOT NULL,
    digest BLOB NOT NULL UNIQUE,
    role TEXT NOT NULL,
    scopes TEXT NOT NULL DEFAULT '[]',
    limits TEXT NOT NULL DEFAULT '{}',
    created_at REAL NOT NULL,
    expires_at REAL,
    revoked_at REAL
) WITHOUT ROWID;

CREATE TABLE ledger (
    n INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    task_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    key_id TEXT NOT NULL,
    trust_domain TEXT NOT NULL,
    model TEXT NOT NULL,
    lane TEXT NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cache_creation_input_tokens INTEGER NOT NULL,
    cache_read_input_tokens INTEGER NOT NULL,
    model_calls INTEGER NOT NULL,
    cost_micro_usd INTEGER
);

CREATE INDEX ledger_by_task ON ledger (task_id);
CREATE INDEX ledger_by_key ON ledger (key_id, at);

-- prev_hash: of the record before, once the audit is a chain.
CREATE TABLE audit (
    n INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    act TEXT NOT NULL,
    key_id TEXT,
    trust_domain TEXT,
    task_id TEXT,
    request_id TEXT,
    peer_uid INTEGER,
    details TEXT NOT NULL,
    prev_hash BLOB
);

CREATE TABLE sessions (
    id TEXT NOT NULL PRIMARY KEY,
    key_id TEXT NOT NULL,
    trust_domain TEXT NOT NULL,
    state TEXT NOT NULL,
    settings TEXT NOT NULL DEFAULT '{}',
    cli_session_id TEXT,
    created_at REAL NOT NULL,
    used_at REAL NOT NULL,
    closed_at REAL
);

CREATE INDEX sessions_by_key ON sessions (key_id, created_at);

CREATE TABLE approvals (
    id TEXT NOT NULL PRIMARY KEY,
    task_id TEXT NOT NULL,
    fence INTEGER NOT NULL,
    key_id TEXT NOT NULL,
    trust_domain TEXT NOT NULL,
    tool TEXT NOT NULL,
    details TEXT NOT NULL DEFAULT '{}',
    asked_at REAL NOT NULL,
    expires_at REAL,
    decided_at REAL,
    decision TEXT,
    decided_by TEXT
);

CREATE INDEX approvals_by_task ON approvals (task_id);
CREATE INDEX approvals_open ON approvals (asked_at) WHERE decided_at IS NULL;

CREATE TABLE nodes (
    id TEXT NOT NULL PRIMARY KEY,
    joined_at REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE batches (
    id TEXT NOT NULL PRIMARY KEY,
    key_id TEXT NOT NULL,
    created_at REAL NOT NULL,
    size INTEGER NOT NULL,
    refused TEXT NOT NULL
) WITHOUT ROWID;

CREATE INDEX batches_by_age ON batches (created_at);

CREATE TABLE batch_tasks (
    batch_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    task_id TEXT NOT NULL,
    PRIMARY KEY (batch_id, position)
) WITHOUT ROWID;

CREATE INDEX batch_tasks_by_task ON batch_tasks (task_id);

-- due_at is null once a delivery is over; error is the last one.
CREATE TABLE webhooks (
    n INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    task_id TEXT NOT NULL,
    url TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    due_at REAL,
    delivered_at REAL,
    given_up_at REAL,
    error TEXT
);

CREATE INDEX webhooks_due ON webhooks (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX webhooks_by_task ON webhooks (task_id);

CREATE TABLE meta (
    key TEXT NOT NULL PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
