// Creates a private repository, uploads a small and a large file, lists and downloads them: prints what it saw as JSON.
import { createRepo, downloadFile, listFiles, uploadFiles, whoAmI } from "@huggingface/hub";

const [, , hubUrl, accessToken] = process.argv;
const repo = { type: "model", name: "me/from-javascript" };
const hub = { repo, hubUrl, accessToken };
const user = await whoAmI(hub);
await createRepo({ ...hub, private: true });
const weights = new Blob([new Uint8Array(30000).fill(7)]);
const config = new Blob(["{}"]);
const files = [
  { path: "config.json", content: config },
  { path: "model.safetensors", content: weights },
];
await uploadFiles({ ...hub, files });
const listed = [];
for await (const file of listFiles(hub)) listed.push(file.path);
const fetched = new Uint8Array(await (await downloadFile({ ...hub, path: "model.safetensors" })).arrayBuffer());
let hidden = 0;
try {
  await downloadFile({ repo, hubUrl, path: "config.json" });
} catch (error) {
  hidden = error.statusCode;
}
console.log(JSON.stringify({ user: user.name, listed, right: fetched.length === 30000 && fetched.every((one) => one === 7), hidden }));
