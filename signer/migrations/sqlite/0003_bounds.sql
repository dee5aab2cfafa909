-- Bounds on what a tenant may have.

-- Bytes on S3; NULL is no limit, which is what tenants of before have.
ALTER TABLE tenants ADD COLUMN stored_bytes INTEGER CHECK (stored_bytes > 0);
-- Access and embed tokens issued at this second or before are void: what many revocations of them become.
ALTER TABLE tenants ADD COLUMN tokens_void_until_s INTEGER NOT NULL DEFAULT 0;
-- The same for submission tokens.
ALTER TABLE tenants ADD COLUMN submissions_void_until_s INTEGER NOT NULL DEFAULT 0;

-- From this moment no token that a verifier takes is concerned: then it is left out of the statement, and kept for the signer's
-- own checks until `until_s`. What was revoked before was told until its end.
ALTER TABLE revocations ADD COLUMN told_until_s INTEGER NOT NULL DEFAULT 9223372036854775807;

CREATE INDEX revocations_by_tenant ON revocations (tenant, kind, until_s);

-- The last second in which a grant was recorded, by the clock of whichever signer it was that is ahead: a revoked job's grants up to
-- there are void, also those of a signer whose clock is before that of the one that revokes.
ALTER TABLE state ADD COLUMN granted_s INTEGER NOT NULL DEFAULT 0;

CREATE INDEX api_keys_by_creation ON api_keys (tenant, created_s);
