// OpenAI's SDK for JavaScript against a gateway, unchanged but for baseURL and apiKey. Prints a JSON object a step.
//
// usage: node stock_client.mjs URL KEY_FILE MODEL NODE_FOLDER

import { createReadStream, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";

const [url, keyFile, model, folder] = process.argv.slice(2);
const OpenAI = createRequire(join(folder, "package.json"))("openai").OpenAI;
const client = new OpenAI({ baseURL: url, apiKey: readFileSync(keyFile, "utf8").trim() });
const say = (step, facts) => console.log(JSON.stringify({ step, ...facts }));

const texts = ["tide river copper", "lamp queue lane"];
const vectors = await client.embeddings.create({ model, input: texts });
say("embeddings", { vectors: vectors.data.map((entry) => entry.embedding), tokens: vectors.usage.total_tokens });

const path = join(tmpdir(), `vecmill-npm-${process.pid}.jsonl`);
writeFileSync(path, texts.map((input, n) => JSON.stringify({ custom_id: `c-${n}`, method: "POST", url: "/v1/embeddings", body: { model, input } }) + "\n").join(""));
const file = await client.files.create({ file: createReadStream(path), purpose: "batch" });
let batch = await client.batches.create({ input_file_id: file.id, endpoint: "/v1/embeddings", completion_window: "24h" });
while (!["completed", "failed", "expired", "cancelled"].includes(batch.status)) {
  await new Promise((done) => setTimeout(done, 100));
  batch = await client.batches.retrieve(batch.id);
}
const lines = (await (await client.files.content(batch.output_file_id)).text()).trim().split("\n").map((line) => JSON.parse(line));
say("batch", { status: batch.status, vectors: lines.map((line) => line.response.body.data[0].embedding), ids: lines.map((line) => line.custom_id) });

const listed = [];
for await (const entry of client.batches.list({ limit: 1 })) listed.push(entry.id);
say("lists", { batches: listed.length, mine: listed[0] === batch.id });

try {
  await client.embeddings.create({ model: "other", input: "a" });
} catch (error) {
  say("error", { right: error instanceof OpenAI.NotFoundError, code: error.code });
}
