"""OpenAI's own SDK against a gateway, unchanged but for base_url and api_key. Prints a JSON object a step.

usage: stock_client.py URL KEY_FILE BAD_KEY_FILE OVER_QUOTA_KEY_FILE MODEL
"""

import asyncio
import json
import sys
import time
from array import array

import openai

url, key_file, bad_key_file, limited_key_file, model = sys.argv[1:]
key, bad_key, limited_key = (open(file).read().strip() for file in (key_file, bad_key_file, limited_key_file))


def say(step, **facts):
    print(json.dumps({"step": step, **facts}), flush=True)


client = openai.OpenAI(base_url=url, api_key=key)
texts = ["tide river copper", "lamp queue lane", "été naïve 東京"]

# Left to itself the SDK asks for base64; the caller sees lists of numbers all the same.
default = client.embeddings.create(model=model, input=texts)
floats = client.embeddings.create(model=model, input=texts, encoding_format="float")
say(
    "sync",
    # As the 32-bit numbers that they are: base64 carries those, decimals as many digits as name them.
    same=[array("f", entry.embedding) for entry in default.data] == [array("f", entry.embedding) for entry in floats.data],
    vectors=[entry.embedding for entry in default.data],
    indexes=[entry.index for entry in default.data],
    tokens=[default.usage.prompt_tokens, default.usage.total_tokens],
    model=default.model,
)
cut = client.embeddings.create(model=model, input=texts[0], dimensions=32, user="someone", extra_body={"instruction": "find it"})
say("options", lengths=[len(entry.embedding) for entry in cut.data])
say("models", ids=[entry.id for entry in client.models.list()], one=client.models.retrieve(model).id)


async def many():
    async with openai.AsyncOpenAI(base_url=url, api_key=key) as client:
        answers = await asyncio.gather(*(client.embeddings.create(model=model, input=[text]) for text in texts * 8))
        return [answer.data[0].embedding for answer in answers]


say("async", same=asyncio.run(many()) == [entry.embedding for entry in default.data] * 8)

# Each error is of the class that OpenAI's own API would raise.
for name, kind, ask in [
    ("bad key", openai.AuthenticationError, lambda: openai.OpenAI(base_url=url, api_key=bad_key).embeddings.create(model=model, input="a")),
    ("no such model", openai.NotFoundError, lambda: client.embeddings.create(model="other", input="a")),
    ("empty input", openai.BadRequestError, lambda: client.embeddings.create(model=model, input=["a", ""])),
    ("misspelt", openai.BadRequestError, lambda: client.embeddings.create(model=model, input="a", extra_body={"dimension": 3})),
]:
    try:
        ask()
        say("error", name=name, raised=None)
    except openai.APIStatusError as error:
        said = {"code": error.code, "param": error.param, "request": error.request_id}
        say("error", name=name, raised=type(error).__name__, right=type(error) is kind, **said)

# Over its quota for some seconds, the SDK waits as it is told and comes back by itself.
limited = openai.OpenAI(base_url=url, api_key=limited_key, max_retries=4)
begun = time.monotonic()
for _ in range(3):
    limited.embeddings.create(model=model, input="tide river copper lamp")
say("retries", seconds=time.monotonic() - begun)
