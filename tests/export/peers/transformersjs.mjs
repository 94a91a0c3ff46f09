// What transformers.js makes of an exported folder: `node transformersjs.mjs FOLDER DTYPE` prints token ids as JSON.
// It runs in the folder that @huggingface/transformers is installed in.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import path from "node:path";

const library = createRequire(path.join(process.cwd(), "package.json")).resolve("@huggingface/transformers");
const { AutoModelForCausalLM, AutoTokenizer, Tensor, env } = await import(pathToFileURL(library));
const [folder, dtype] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder);
const name = path.basename(folder);
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForCausalLM.from_pretrained(name, { dtype, device: "cpu" });
const prompt = [1, 40, 300, 5, 17, 260, 44, 91, 350, 12].map(BigInt);
const shape = [1, prompt.length];
const input_ids = new Tensor("int64", BigInt64Array.from(prompt), shape);
const attention_mask = new Tensor("int64", new BigInt64Array(prompt.length).fill(1n), shape);
const written = await model.generate({ input_ids, attention_mask, max_new_tokens: 24, do_sample: false, eos_token_id: null });
const chat = tokenizer.apply_chat_template([{ role: "user", content: "hello world" }], { add_generation_prompt: true, return_dict: false });
console.log(
  JSON.stringify({
    written: written.tolist()[0].slice(prompt.length).map(Number),
    text: tokenizer.encode("def f(x):\n    return x", { add_special_tokens: false }),
    chat: Array.from(chat.tolist ? chat.tolist()[0] : chat, Number),
  }),
);
