// What transformers.js makes of a model that reads: `node transformersjs_readers.mjs FOLDER DTYPE CLASS` prints as JSON the token
// ids that an encoder–decoder writes, or the logits of an encoder. It runs in the folder that @huggingface/transformers is installed in.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import path from "node:path";

const library = createRequire(path.join(process.cwd(), "package.json")).resolve("@huggingface/transformers");
const transformers = await import(pathToFileURL(library));
const [folder, dtype, kind] = process.argv.slice(2);
transformers.env.allowRemoteModels = false;
transformers.env.localModelPath = path.dirname(folder);
const model = await transformers[kind].from_pretrained(path.basename(folder), { dtype, device: "cpu" });
const prompt = [1, 40, 300, 5, 17, 260, 44, 91, 350, 12].map(BigInt);
const filled = (value) => new transformers.Tensor("int64", new BigInt64Array(prompt.length).fill(value), [1, prompt.length]);
const input_ids = new transformers.Tensor("int64", BigInt64Array.from(prompt), [1, prompt.length]);
const inputs = { input_ids, attention_mask: filled(1n) };
if (kind === "AutoModelForSeq2SeqLM") {
  const written = await model.generate({ ...inputs, max_new_tokens: 24, do_sample: false, eos_token_id: null });
  console.log(JSON.stringify(written.tolist()[0].slice(1).map(Number)));
} else {
  const { logits } = await model({ ...inputs, token_type_ids: filled(0n) });
  console.log(JSON.stringify(logits.tolist()[0]));
}
