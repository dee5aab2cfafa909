"""A stock OAuth 2 client (Authlib on requests) against a signer: a token, a grant, and both refused after revocation.

Arguments: the signer's URL, a file with the API key, a file with the grant request. Prints a JSON line a step and waits
for a line on standard input before the last: the test revokes the key there.
"""

import json
import sys

from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.requests_client import OAuth2Session

url, key_file, request_file = sys.argv[1:]
key = open(key_file).read().strip()
request = json.load(open(request_file))
# The id stands in the key: vm_<id>_<secret>.
key_id = key.split("_")[1]


def say(**step):
    print(json.dumps(step), flush=True)


def session(method):
    return OAuth2Session(key_id, key, token_endpoint_auth_method=method, scope="jobs:submit")


for method in ["client_secret_basic", "client_secret_post"]:
    client = session(method)
    token = client.fetch_token(f"{url}/oauth/token", grant_type="client_credentials", timeout=10)
    answer = client.post(f"{url}/v1/grants", json=request, timeout=10)
    say(
        step=method,
        scope=token["scope"],
        token_type=token["token_type"],
        status=answer.status_code,
        tenant=answer.json().get("tenant"),
    )

sys.stdin.readline()
answer = client.post(f"{url}/v1/grants", json=request, timeout=10)
say(step="old token", status=answer.status_code, error=answer.json()["error"])
for method in ["client_secret_basic", "client_secret_post"]:
    try:
        session(method).fetch_token(f"{url}/oauth/token", grant_type="client_credentials", timeout=10)
        say(step=method, error=None)
    except OAuthError as error:
        say(step=method, error=error.error, description=error.description)
