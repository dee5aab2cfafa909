-- Limits of a tenant, roles of one's own, the life of keys, and what was revoked.

-- The operator's tenant: its admins administer every tenant, those of others only their own keys. The first is it.
ALTER TABLE tenants ADD COLUMN operator BIGINT NOT NULL DEFAULT 0 CHECK (operator IN (0, 1));
UPDATE tenants SET operator = 1 WHERE ordinal = 0;
ALTER TABLE tenants ADD COLUMN requests_per_minute BIGINT NOT NULL DEFAULT 6000 CHECK (requests_per_minute > 0);
ALTER TABLE tenants ADD COLUMN queued_tokens BIGINT NOT NULL DEFAULT 100000000000 CHECK (queued_tokens > 0);
ALTER TABLE tenants ADD COLUMN concurrent_jobs BIGINT NOT NULL DEFAULT 100 CHECK (concurrent_jobs > 0);
ALTER TABLE tenants ADD COLUMN dimensions_max BIGINT NOT NULL DEFAULT 4096 CHECK (dimensions_max > 0);
-- From this moment no token of an earlier epoch can be alive any more.
ALTER TABLE tenants ADD COLUMN epoch_matters_until_s BIGINT NOT NULL DEFAULT 0;

-- Where a tenant's requests may come from; without a row here, from anywhere.
CREATE TABLE tenant_sources (
    tenant TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    cidr   TEXT NOT NULL,
    PRIMARY KEY (tenant, cidr)
);

-- The three that everything else counts on are never changed.
ALTER TABLE roles ADD COLUMN builtin BIGINT NOT NULL DEFAULT 0 CHECK (builtin IN (0, 1));
UPDATE roles SET builtin = 1;

ALTER TABLE api_keys ADD COLUMN last_used_s BIGINT;
-- When the last grant asked for with this key expires.
ALTER TABLE api_keys ADD COLUMN grants_until_s BIGINT NOT NULL DEFAULT 0;

-- A key is published from the start, signs from here on until a newer one does, and is published until `retired_s`.
ALTER TABLE signing_keys ADD COLUMN signs_from_s BIGINT NOT NULL DEFAULT 0;
-- Compromised: nothing it ever signed is believed.
ALTER TABLE signing_keys ADD COLUMN withdrawn_s BIGINT;

CREATE TABLE revocations (
    kind      TEXT    NOT NULL CHECK (kind IN ('key', 'token', 'job')),
    tenant    TEXT    NOT NULL REFERENCES tenants (id),
    id        TEXT    NOT NULL,
    revoked_s BIGINT NOT NULL,
    -- From this moment every token it concerns has expired by itself.
    until_s   BIGINT NOT NULL,
    PRIMARY KEY (kind, tenant, id)
);

CREATE INDEX revocations_by_end ON revocations (until_s);

-- One row. `seq` grows with every change of policy: what a signer holds in memory is good while it stays.
CREATE TABLE state (
    id  BIGINT PRIMARY KEY CHECK (id = 1),
    seq BIGINT NOT NULL
);

INSERT INTO state (id, seq) VALUES (1, 0);

-- JSON, of what the deed changed. Never a secret.
ALTER TABLE events ADD COLUMN before TEXT;
ALTER TABLE events ADD COLUMN after TEXT;

CREATE INDEX events_by_tenant ON events (tenant, seq);
