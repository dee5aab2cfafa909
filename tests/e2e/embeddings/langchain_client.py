"""LangChain's OpenAIEmbeddings against a gateway. Prints a JSON object.

usage: langchain_client.py URL KEY_FILE MODEL
"""

import json
import sys
from pathlib import Path

from langchain_openai import OpenAIEmbeddings

url, key_file, model = sys.argv[1:]
# By default it sends token ids of OpenAI's own vocabulary: another model's must have the text.
embeddings = OpenAIEmbeddings(base_url=url, api_key=Path(key_file).read_text().strip(), model=model, check_embedding_ctx_length=False)
print(json.dumps({"documents": embeddings.embed_documents(["tide river copper", "lamp queue lane"]), "query": embeddings.embed_query("tide river copper")}))
