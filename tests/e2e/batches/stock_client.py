"""Files and batches through OpenAI's own SDK, unchanged but for base_url and api_key, and results read back by pyarrow and
DuckDB. Prints a JSON object a step.

usage: stock_client.py URL KEY_FILE MODEL FOLDER
"""

import io
import json
import sys
import time
from array import array
from pathlib import Path

import duckdb
import openai
import pyarrow.parquet

url, key_file, model, folder = sys.argv[1:]
client = openai.OpenAI(base_url=url, api_key=Path(key_file).read_text().strip())
folder = Path(folder)
ENDED = ("completed", "failed", "expired", "cancelled")


def say(step, **facts):
    print(json.dumps({"step": step, **facts}), flush=True)


def line(number, **body):
    request = {"model": model, "input": f"text {number}: tide river copper", **body}
    return {"custom_id": f"c-{number}", "method": "POST", "url": "/v1/embeddings", "body": request}


def upload(name, lines):
    path = folder / name
    path.write_text("".join((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in lines))
    return client.files.create(file=path.open("rb"), purpose="batch")


def batch_of(file, window="24h", **more):
    return client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window=window, **more)


def wait(batch):
    seen = [batch.status]
    for _ in range(600):
        batch = client.batches.retrieve(batch.id)
        if batch.status != seen[-1]:
            seen.append(batch.status)
        if batch.status in ENDED:
            return batch, seen
        time.sleep(0.1)
    raise SystemExit(f"batch {batch.id} is still {batch.status}: {batch}")


def lines_of(file_id):
    return [json.loads(entry) for entry in client.files.content(file_id).text.splitlines()]


# A file goes up and comes back as it was.
numbers = list(range(30))
file = upload("good.jsonl", [line(number) for number in numbers])
again = client.files.retrieve(file.id)
say(
    "file",
    same=client.files.content(file.id).content == (folder / "good.jsonl").read_bytes(),
    object=[file.object, file.purpose, file.status, file.filename],
    bytes=[file.bytes, again.bytes, (folder / "good.jsonl").stat().st_size],
)

# From upload to content; the same numbers as at once.
batch = batch_of(file, metadata={"for": "a test"})
twice = batch_of(file, metadata={"for": "a test"})
batch, seen = wait(batch)
out = lines_of(batch.output_file_id)
direct = client.embeddings.create(model=model, input=[line(number)["body"]["input"] for number in numbers], encoding_format="float")
vectors = {entry["custom_id"]: entry["response"]["body"]["data"][0]["embedding"] for entry in out}
say(
    "batch",
    seen=seen,
    same_id=twice.id == batch.id,
    same=[array("f", vectors[f"c-{number}"]) for number in numbers] == [array("f", entry.embedding) for entry in direct.data],
    counts=batch.request_counts.to_dict(),
    tokens=[batch.usage.total_tokens, direct.usage.total_tokens, sum(entry["response"]["body"]["usage"]["total_tokens"] for entry in out)],
    status_codes=sorted({entry["response"]["status_code"] for entry in out}),
    times=[batch.created_at <= batch.in_progress_at <= batch.completed_at <= batch.expires_at],
    errors=[batch.errors, batch.error_file_id],
    metadata=batch.metadata,
    purpose=client.files.retrieve(batch.output_file_id).purpose,
    job=batch.to_dict()["job"],
)

# Beyond OpenAI: one Parquet file, 16 bits, fewer dimensions, an hour's window.
parquet, _ = wait(batch_of(file, window="1h", extra_body={"output": {"format": "parquet", "dtype": "f16", "dimensions": 32}, "chunk_rows": 7}))
(folder / "out.parquet").write_bytes(client.files.content(parquet.output_file_id).content)
table = pyarrow.parquet.read_table(io.BytesIO((folder / "out.parquet").read_bytes()))
rows = duckdb.sql(f"select count(*), count(distinct id), sum(tokens), min(len(embedding)) from '{folder}/out.parquet'").fetchall()[0]
say(
    "parquet",
    columns=table.column_names,
    ids=table.column("id").to_pylist() == [f"c-{number}" for number in numbers],
    type=str(table.schema.field("embedding").type),
    duckdb=[int(value) for value in rows],
    tokens=parquet.usage.total_tokens,
)

# What the lines ask for; an instruction for all; base64.
asked, _ = wait(batch_of(upload("asked.jsonl", [line(number, dimensions=48, encoding_format="base64") for number in range(3)]), extra_body={"instruction": "find it"}))
coded = lines_of(asked.output_file_id)
say("asked", kinds=[type(entry["response"]["body"]["data"][0]["embedding"]).__name__ for entry in coded], tokens=asked.usage.total_tokens)

# Every bad line is named, and the good ones go on, unless they shall not.
bad_lines = [
    line(0),
    "{not json",
    {**line(2), "url": "/v1/chat/completions"},
    line(3, model="other"),
    {**line(4), "body": {"model": model, "input": ""}},
    line(5, dimensions=48),
    line(6),
]
bad_file = upload("bad.jsonl", bad_lines)
bad, _ = wait(batch_of(bad_file))
say(
    "bad lines",
    status=bad.status,
    counts=bad.request_counts.to_dict(),
    errors=[[entry.line, entry.code] for entry in bad.errors.data],
    error_file=sorted([entry["line"], entry["error"]["code"]] for entry in lines_of(bad.error_file_id)),
    done=sorted(entry["custom_id"] for entry in lines_of(bad.output_file_id)),
)
strict, seen = wait(batch_of(bad_file, extra_body={"strict": True}))
say("strict", status=strict.status, seen=seen, job=strict.to_dict()["job"], errors=[[entry.line, entry.code] for entry in strict.errors.data])

# Lists, a page at a time.
ids = [entry.id for entry in client.batches.list(limit=2)]
say(
    "lists",
    batches=[len(ids), len(set(ids)), ids[0] == strict.id],
    files=len(list(client.files.list(purpose="batch", limit=2))),
    outputs=len(list(client.files.list(purpose="batch_output"))),
    oldest=next(iter(client.files.list(order="asc", limit=1))).id == file.id,
)

# The same key is the same batch, and not another.
first = batch_of(file, extra_headers={"Idempotency-Key": "a key"}, metadata={"n": "1"})
same = batch_of(file, extra_headers={"Idempotency-Key": "a key"}, metadata={"n": "1"})
try:
    batch_of(file, extra_headers={"Idempotency-Key": "a key"}, metadata={"n": "2"})
    other = None
except openai.ConflictError as error:
    other = error.code
say("idempotency", same=first.id == same.id, other=other)

# Cancelled in its middle: what is done stays, of the rest every line is named.
many = upload("many.jsonl", [line(number, input=f"{number} " + "tide river copper lamp queue " * 20) for number in range(3000)])
running = batch_of(many, extra_body={"chunk_rows": 50})
while True:
    running = client.batches.retrieve(running.id)
    if running.request_counts.completed > 0 or running.status in ENDED:
        break
    time.sleep(0.02)
cancelling = client.batches.cancel(running.id)
cancelled, _ = wait(cancelling)
done = lines_of(cancelled.output_file_id)
undone = lines_of(cancelled.error_file_id)
say(
    "cancel",
    was=running.status,
    at_once=cancelling.status,
    status=cancelled.status,
    counts=cancelled.request_counts.to_dict(),
    lines=[len(done), len(undone)],
    disjoint=not {entry["custom_id"] for entry in done} & {entry["custom_id"] for entry in undone},
    codes=sorted({entry["error"]["code"] for entry in undone}),
)

# Errors are of the SDK's own classes.
for name, kind, ask in [
    ("no such file", openai.NotFoundError, lambda: client.files.retrieve("file-none")),
    ("no such batch", openai.NotFoundError, lambda: client.batches.retrieve("batch_none")),
    ("input gone", openai.NotFoundError, lambda: client.batches.create(input_file_id="file-none", endpoint="/v1/embeddings", completion_window="24h")),
    ("endpoint", openai.BadRequestError, lambda: client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")),
    ("window", openai.BadRequestError, lambda: batch_of(file, window="30m")),
    ("purpose", openai.BadRequestError, lambda: client.files.create(file=b"x", purpose="fine-tune")),
    ("cancelled twice", openai.ConflictError, lambda: client.batches.cancel(cancelled.id)),
]:
    try:
        ask()
        say("error", name=name, raised=None)
    except openai.APIStatusError as error:
        say("error", name=name, raised=type(error).__name__, right=type(error) is kind, code=error.code, param=error.param)

# Deleted, it is gone; with the last output go the vectors.
gone = client.files.delete(file.id)
client.files.delete(batch.output_file_id)
# Where another batch has them, too, they stay for that one.
other, _ = wait(first)
shared = len(lines_of(other.output_file_id))
client.files.delete(other.output_file_id)
try:
    client.files.content(file.id)
    missing = None
except openai.NotFoundError as error:
    missing = error.code
say("delete", deleted=gone.deleted, missing=missing, shared=shared, job=batch.to_dict()["job"], still=client.batches.retrieve(batch.id).status)
