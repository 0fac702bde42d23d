-- The session that a task is a turn of, and the one that it is forked from: while a turn waits or runs, neither goes.
ALTER TABLE tasks ADD COLUMN session_id TEXT;
ALTER TABLE tasks ADD COLUMN fork_of TEXT;

CREATE INDEX tasks_by_session ON tasks (session_id, state) WHERE session_id IS NOT NULL;
CREATE INDEX tasks_by_fork ON tasks (fork_of, state) WHERE fork_of IS NOT NULL;
CREATE INDEX sessions_by_use ON sessions (used_at);
