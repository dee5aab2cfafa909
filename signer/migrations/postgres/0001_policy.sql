-- The policy database: who may do what. Times are Unix seconds. The same tables as SQLite's; see there for what each is.

CREATE TABLE tenants (
    id                TEXT   PRIMARY KEY,
    ordinal           BIGINT NOT NULL UNIQUE CHECK (ordinal >= 0),
    status            TEXT   NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'suspended')),
    epoch             BIGINT NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    tokens_per_minute BIGINT NOT NULL CHECK (tokens_per_minute > 0),
    tokens_burst      BIGINT NOT NULL CHECK (tokens_burst > 0),
    tokens_per_day    BIGINT NOT NULL CHECK (tokens_per_day > 0),
    rows_per_job      BIGINT NOT NULL CHECK (rows_per_job > 0),
    window_s_max      BIGINT NOT NULL CHECK (window_s_max > 0),
    created_s         BIGINT NOT NULL
);

CREATE TABLE tenant_models (
    tenant TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    model  TEXT NOT NULL,
    PRIMARY KEY (tenant, model)
);

CREATE TABLE roles (
    name   TEXT PRIMARY KEY,
    scopes TEXT NOT NULL
);

INSERT INTO roles (name, scopes) VALUES
    ('admin',  'jobs:submit jobs:read vectors:read jobs:cancel jobs:delete embed admin'),
    ('writer', 'jobs:submit jobs:read vectors:read jobs:cancel embed'),
    ('reader', 'jobs:read vectors:read');

CREATE TABLE api_keys (
    id        TEXT   PRIMARY KEY,
    tenant    TEXT   NOT NULL REFERENCES tenants (id),
    role      TEXT   NOT NULL REFERENCES roles (name),
    digest    BYTEA  NOT NULL CHECK (length(digest) = 32),
    created_s BIGINT NOT NULL,
    expires_s BIGINT,
    revoked_s BIGINT
);

CREATE INDEX api_keys_by_tenant ON api_keys (tenant);

CREATE TABLE signing_keys (
    kid       TEXT   PRIMARY KEY,
    public    BYTEA  NOT NULL CHECK (length(public) = 32),
    sealed    BYTEA  NOT NULL,
    created_s BIGINT NOT NULL,
    retired_s BIGINT
);

CREATE TABLE events (
    seq     BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    at_s    BIGINT NOT NULL,
    actor   TEXT   NOT NULL,
    action  TEXT   NOT NULL,
    tenant  TEXT,
    subject TEXT   NOT NULL
);

CREATE FUNCTION events_are_only_added() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'events are only ever added';
END $$;

CREATE TRIGGER events_are_never_changed BEFORE UPDATE OR DELETE ON events
    FOR EACH ROW EXECUTE FUNCTION events_are_only_added();
CREATE TRIGGER events_are_never_emptied BEFORE TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION events_are_only_added();
