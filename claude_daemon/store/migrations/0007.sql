-- day: of the entry, by the calendar of budget.timezone then (of older ones, UTC's). charged_micro_usd: what it takes out
-- of budgets; more than its cost where that could not be told, and the reservation was charged.
ALTER TABLE ledger ADD COLUMN day TEXT NOT NULL DEFAULT '';
ALTER TABLE ledger ADD COLUMN charged_micro_usd INTEGER NOT NULL DEFAULT 0;

UPDATE ledger SET day = strftime('%Y-%m-%d', at, 'unixepoch'), charged_micro_usd = coalesce(cost_micro_usd, 0);

CREATE INDEX ledger_by_day ON ledger (day);
CREATE INDEX ledger_by_key_and_day ON ledger (key_id, day);

-- What was charged, of all keys (purse 'all', its name empty), of each trust domain and of each key: a sum over the
-- ledger would cost every submission a walk through a month of it.
CREATE TABLE spending (
    purse TEXT NOT NULL,
    name TEXT NOT NULL,
    day TEXT NOT NULL,
    micro_usd INTEGER NOT NULL,
    PRIMARY KEY (purse, name, day)
) WITHOUT ROWID;

INSERT INTO spending SELECT 'all', '', day, sum(charged_micro_usd) FROM ledger WHERE charged_micro_usd > 0 GROUP BY day;
INSERT INTO spending SELECT 'domain', trust_domain, day, sum(charged_micro_usd) FROM ledger
    WHERE charged_micro_usd > 0 GROUP BY trust_domain, day;
INSERT INTO spending SELECT 'key', key_id, day, sum(charged_micro_usd) FROM ledger
    WHERE charged_micro_usd > 0 GROUP BY key_id, day;

CREATE TRIGGER ledger_charges AFTER INSERT ON ledger WHEN NEW.charged_micro_usd > 0 BEGIN
    INSERT OR IGNORE INTO spending VALUES ('all', '', NEW.day, 0);
    INSERT OR IGNORE INTO spending VALUES ('domain', NEW.trust_domain, NEW.day, 0);
    INSERT OR IGNORE INTO spending VALUES ('key', NEW.key_id, NEW.day, 0);
    UPDATE spending SET micro_usd = micro_usd + NEW.charged_micro_usd WHERE day = NEW.day AND (
        (purse = 'all' AND name = '') OR (purse = 'domain' AND name = NEW.trust_domain)
        OR (purse = 'key' AND name = NEW.key_id)
    );
END;

-- What is set aside: by every durable task from its submission to its end, by a chat while it is under way. A chat's
-- that is found at a start is one of a daemon that was killed.
CREATE TABLE reservations (
    task_id TEXT NOT NULL PRIMARY KEY,
    key_id TEXT NOT NULL,
    trust_domain TEXT NOT NULL,
    model TEXT NOT NULL,
    lane TEXT NOT NULL,
    micro_usd INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE reserved (
    purse TEXT NOT NULL,
    name TEXT NOT NULL,
    micro_usd INTEGER NOT NULL,
    PRIMARY KEY (purse, name)
) WITHOUT ROWID;

CREATE TRIGGER reservation_taken AFTER INSERT ON reservations BEGIN
    INSERT OR IGNORE INTO reserved VALUES ('all', '', 0);
    INSERT OR IGNORE INTO reserved VALUES ('domain', NEW.trust_domain, 0);
    INSERT OR IGNORE INTO reserved VALUES ('key', NEW.key_id, 0);
    UPDATE reserved SET micro_usd = micro_usd + NEW.micro_usd WHERE (purse = 'all' AND name = '')
        OR (purse = 'domain' AND name = NEW.trust_domain) OR (purse = 'key' AND name = NEW.key_id);
END;

CREATE TRIGGER reservation_given_back AFTER DELETE ON reservations BEGIN
    UPDATE reserved SET micro_usd = micro_usd - OLD.micro_usd WHERE (purse = 'all' AND name = '')
        OR (purse = 'domain' AND name = OLD.trust_domain) OR (purse = 'key' AND name = OLD.key_id);
    DELETE FROM reserved WHERE micro_usd = 0 AND ((purse = 'all' AND name = '')
        OR (purse = 'domain' AND name = OLD.trust_domain) OR (purse = 'key' AND name = OLD.key_id));
END;
