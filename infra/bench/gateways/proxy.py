"""The usual gateway before an embedding server: FastAPI, an API key checked as in gateway.py, the request passed on."""

import os

import httpx
from fastapi import Depends, Request
from fastapi.responses import Response

from gateway import app, tenant

backend = httpx.AsyncClient(base_url=os.environ["BENCH_BACKEND"], trust_env=False, limits=httpx.Limits(max_connections=256))


@app.post("/v1/embeddings")
async def embeddings(request: Request, tenant: str = Depends(tenant)):
    answer = await backend.post("/v1/embeddings", content=await request.body(), headers={"content-type": "application/json"})
    return Response(answer.content, answer.status_code, media_type="application/json")
