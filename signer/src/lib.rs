//! The signer: who may do what. Token claims, minting, verifying, keys, tenants, API keys and limits.
