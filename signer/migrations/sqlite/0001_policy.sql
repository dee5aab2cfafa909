-- The policy database: who may do what. Times are Unix seconds. STRICT, so that a column holds what it says.

CREATE TABLE tenants (
    id                TEXT    PRIMARY KEY,
    -- Order of creation from 0: the tenant's lane while there are lanes enough.
    ordinal           INTEGER NOT NULL UNIQUE CHECK (ordinal >= 0),
    status            TEXT    NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'suspended')),
    -- Grants of an earlier epoch are void.
    epoch             INTEGER NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    tokens_per_minute INTEGER NOT NULL CHECK (tokens_per_minute > 0),
    tokens_burst      INTEGER NOT NULL CHECK (tokens_burst > 0),
    tokens_per_day    INTEGER NOT NULL CHECK (tokens_per_day > 0),
    rows_per_job      INTEGER NOT NULL CHECK (rows_per_job > 0),
    window_s_max      INTEGER NOT NULL CHECK (window_s_max > 0),
    created_s         INTEGER NOT NULL
) STRICT;

-- The allow-list: a tenant without a row here may use no model.
CREATE TABLE tenant_models (
    tenant TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    model  TEXT NOT NULL,
    PRIMARY KEY (tenant, model)
) STRICT, WITHOUT ROWID;

CREATE TABLE roles (
    name   TEXT PRIMARY KEY,
    -- Space-separated, as in a token.
    scopes TEXT NOT NULL
) STRICT;

INSERT INTO roles (name, scopes) VALUES
    ('admin',  'jobs:submit jobs:read vectors:read jobs:cancel jobs:delete embed admin'),
    ('writer', 'jobs:submit jobs:read vectors:read jobs:cancel embed'),
    ('reader', 'jobs:read vectors:read');

CREATE TABLE api_keys (
    id        TEXT    PRIMARY KEY,
    tenant    TEXT    NOT NULL REFERENCES tenants (id),
    role      TEXT    NOT NULL REFERENCES roles (name),
    -- HMAC-SHA-256 of the secret under the server's pepper. The secret itself is nowhere.
    digest    BLOB    NOT NULL CHECK (length(digest) = 32),
    created_s INTEGER NOT NULL,
    expires_s INTEGER,
    revoked_s INTEGER
) STRICT;

CREATE INDEX api_keys_by_tenant ON api_keys (tenant);

CREATE TABLE signing_keys (
    kid       TEXT    PRIMARY KEY,
    public    BLOB    NOT NULL CHECK (length(public) = 32),
    -- AES-256-GCM under a key derived from the master key; the kid is bound to it.
    sealed    BLOB    NOT NULL,
    created_s INTEGER NOT NULL,
    retired_s INTEGER
) STRICT;

-- Who did what. Rows are only ever added.
CREATE TABLE events (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    at_s    INTEGER NOT NULL,
    actor   TEXT    NOT NULL,
    action  TEXT    NOT NULL,
    tenant  TEXT,
    subject TEXT    NOT NULL
) STRICT;

CREATE TRIGGER events_are_never_changed BEFORE UPDATE ON events
BEGIN
    SELECT RAISE(ABORT, 'events are only ever added');
END;

CREATE TRIGGER events_are_never_deleted BEFORE DELETE ON events
BEGIN
    SELECT RAISE(ABORT, 'events are only ever added');
END;
