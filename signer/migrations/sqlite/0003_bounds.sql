-- Bounds on what a tenant may have.

-- Bytes on S3; NULL is no limit, which is what tenants of before have.
ALTER TABLE tenants ADD COLUMN stored_bytes INTEGER CHECK (stored_bytes > 0);
