-- Checks the same access token as Vecmill does, the usual way: header, Ed25519 by libcrypto, then the claims.
local ffi = require "ffi"
local cjson = require "cjson"
ffi.cdef [[
typedef struct evp_pkey_st EVP_PKEY;
typedef struct evp_md_ctx_st EVP_MD_CTX;
EVP_PKEY *EVP_PKEY_new_raw_public_key(int type, void *engine, const unsigned char *key, size_t length);
EVP_MD_CTX *EVP_MD_CTX_new(void);
void EVP_MD_CTX_free(EVP_MD_CTX *ctx);
int EVP_DigestVerifyInit(EVP_MD_CTX *ctx, void *pctx, const void *type, void *engine, EVP_PKEY *key);
int EVP_DigestVerify(EVP_MD_CTX *ctx, const unsigned char *signature, size_t length, const unsigned char *text, size_t text_length);
]]
local crypto = ffi.load("libcrypto.so.3")
local ED25519, LEEWAY_S = 1087, 30

local _M = {}
local key, kid, issuer

function _M.set_up(hex, key_id, name)
    local public = hex:gsub("%x%x", function(pair) return string.char(tonumber(pair, 16)) end)
    key = crypto.EVP_PKEY_new_raw_public_key(ED25519, nil, public, #public)
    kid, issuer = key_id, name
end

local function decoded(part)
    return ngx.decode_base64((part:gsub("-", "+"):gsub("_", "/")) .. ("="):rep(-#part % 4))
end

function _M.check(authorization)
    if not authorization or #authorization > 8192 then return false end
    local message, head, body, coded = authorization:match("^Bearer (([%w_-]+)%.([%w_-]+))%.([%w_-]+)$")
    if not message then return false end
    local ok, header = pcall(cjson.decode, decoded(head))
    if not ok or header.alg ~= "EdDSA" or header.typ ~= "at+jwt" or header.kid ~= kid then return false end
    local signature = decoded(coded)
    if not signature or #signature ~= 64 then return false end
    local ctx = crypto.EVP_MD_CTX_new()
    local good = crypto.EVP_DigestVerifyInit(ctx, nil, nil, nil, key) == 1
        and crypto.EVP_DigestVerify(ctx, signature, 64, message, #message) == 1
    crypto.EVP_MD_CTX_free(ctx)
    if not good then return false end
    local read, claims = pcall(cjson.decode, decoded(body))
    if not read or claims.iss ~= issuer or claims.aud ~= "vecmill-api" then return false end
    local now = ngx.time()
    return type(claims.exp) == "number" and now < claims.exp + LEEWAY_S and now + LEEWAY_S >= claims.nbf
end

return _M
