"""The usual gateway: FastAPI, an API key in the Authorization header, its SHA-256 looked up and compared in constant time."""

import hashlib
import hmac
import os

from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

# By the key's first characters, as an id; a real one asks a database or a cache, which costs more.
KEYS = {}
for line in open(os.environ["BENCH_KEYS"]):
    key = line.strip()
    KEYS[key[:8]] = (hashlib.sha256(key.encode()).digest(), "acme")

bearer = HTTPBearer()
app = FastAPI()


async def tenant(shown: HTTPAuthorizationCredentials = Depends(bearer)):
    digest, tenant = KEYS.get(shown.credentials[:8], (b"", ""))
    if not hmac.compare_digest(hashlib.sha256(shown.credentials.encode()).digest(), digest):
        raise HTTPException(status_code=401)
    return tenant


@app.get("/", response_class=PlainTextResponse)
async def check(tenant: str = Depends(tenant)):
    return "ok\n"
