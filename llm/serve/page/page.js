// The playground: one or two lanes, each a model and what was said with it. Text enters the page as text only.

import { Failure, models, parts, sendFeedback, takesFeedback } from "./api.js";

const byId = (id) => document.getElementById(id);
const [settings, composer, prompt] = ["settings", "composer", "prompt"].map(byId);
const lanes = [];
let served = [];
let feedback = false;

/** A lane: `exchanges` are what was said in it, `running` ends the answer that is being written. */
function addLane() {
  const element = byId("lane").content.cloneNode(true).firstElementChild;
  const lane = { element, select: element.querySelector("select"), log: element.querySelector(".log"), exchanges: [], running: null };
  lane.log.ariaLabel = `Answers ${lanes.length + 1}`;
  lane.log.dataset.blank = lanes.length ? "The same prompt, answered by another model." : "Nothing said yet. Answers appear here as they are written.";
  lane.select.onchange = () => showContext(lane);
  lanes.push(lane);
  byId("lanes").append(element);
}

const shown = () => lanes.filter((lane) => !lane.element.hidden);
const mode = () => document.querySelector("[name=mode]:checked").value;
const key = () => byId("key").value.trim();
const say = (text) => (byId("status").textContent = text);

/** An exchange: a prompt and its answer, `text`, with the element that shows both. */
function addExchange(lane, said) {
  const element = byId("exchange").content.cloneNode(true).firstElementChild;
  const part = (name) => element.querySelector(name);
  const exchange = { mode: mode(), said, text: new Text(), id: null, element, part };
  element.classList.add(exchange.mode);
  part(".said").textContent = said;
  part(".answer").append(exchange.text);
  part(".copy").onclick = () => copy(exchange);
  part(".again").onclick = () => regenerate(lane);
  for (const name of ["good", "bad"]) part(`.${name}`).onclick = () => rate(lane, exchange, name);
  lane.exchanges.push(exchange);
  lane.log.append(element);
  return exchange;
}

/** The request for an exchange; a chat's holds what was said before. */
function request(lane, exchange) {
  const chat = exchange.mode === "chat";
  const before = lane.exchanges.slice(0, lane.exchanges.indexOf(exchange)).filter((other) => other.mode === "chat" && other.text.data);
  const turns = before.flatMap(({ said, text }) => [{ role: "user", content: said }, { role: "assistant", content: text.data }]);
  const system = byId("system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...turns, { role: "user", content: exchange.said }];
  return {
    path: chat ? "v1/chat/completions" : "v1/completions",
    body: {
      model: lane.select.value,
      ...(chat ? { messages } : { prompt: exchange.said }),
      ...parameters(),
      stream: true,
      stream_options: { include_usage: true },
    },
  };
}

/** What is set; what is left empty stays the server's choice. */
function parameters() {
  const numbers = ["temperature", "top_p", "top_k", "max_tokens", "seed"].map((name) => [name, byId(name).value]);
  const stop = byId("stop").value.split("\n").filter(Boolean);
  return { ...Object.fromEntries(numbers.filter(([, value]) => value !== "").map(([name, value]) => [name, Number(value)])), ...(stop.length && { stop }) };
}

async function answer(lane, exchange) {
  lane.running = new AbortController();
  refresh();
  exchange.element.classList.add("busy");
  lane.log.ariaBusy = "true"; // read aloud when whole, not token by token
  lane.log.scrollTop = lane.log.scrollHeight;
  const outcome = await write(lane, exchange).catch(failed);
  lane.log.ariaBusy = "false";
  exchange.element.classList.remove("busy");
  follow(lane, () => finish(exchange, outcome));
  lane.running = null;
  refresh();
}

/** Show the answer as it comes. */
async function write(lane, exchange) {
  const { path, body } = request(lane, exchange);
  const outcome = { began: performance.now(), first: 0, usage: null, reason: "", problem: "" };
  for await (const { id, choices, usage } of parts(path, body, key(), lane.running.signal)) {
    exchange.id ??= id;
    outcome.usage = usage ?? outcome.usage;
    const piece = choices.map((choice) => choice.delta?.content ?? choice.text ?? "").join("");
    if (piece) outcome.first ||= performance.now();
    follow(lane, () => exchange.text.appendData(piece));
    outcome.reason = choices[0]?.finish_reason ?? outcome.reason;
  }
  return { ...outcome, ended: performance.now() };
}

function failed(error) {
  if (error.name === "AbortError") return { reason: "stopped", problem: "" };
  return { reason: "", problem: error instanceof Failure ? error.message : `The page failed: ${error.message}` };
}

function finish(exchange, { problem, ...outcome }) {
  const line = exchange.part(":scope > .problem");
  line.textContent = problem;
  line.hidden = !problem;
  exchange.part(".figures").textContent = figures(outcome);
  exchange.part("footer").hidden = false;
  exchange.part(".copy").hidden = !exchange.text.data;
  for (const name of [".good", ".bad"]) exchange.part(name).hidden = !(feedback && exchange.id);
  say(problem || (outcome.reason === "stopped" ? "Stopped" : "Answered"));
}

function figures({ began, first, ended, usage, reason }) {
  const notes = { stopped: "stopped", length: "cut off", deadline: "out of time" };
  const tokens = usage?.completion_tokens;
  const rate = tokens ? `${((1000 * tokens) / (ended - began)).toFixed(0)}/s` : "";
  const wait = first ? `first after ${(first - began).toFixed(0)} ms` : "";
  const count = tokens && `${tokens} token${tokens === 1 ? "" : "s"}`;
  const silence = tokens && !first ? "no text" : "";
  return [count, rate, wait, silence, notes[reason]].filter(Boolean).join(" · ");
}

/** Change a lane and keep its end in sight, unless somebody scrolled away from it. */
function follow({ log }, change) {
  const near = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  change();
  if (near) log.scrollTop = log.scrollHeight;
}

function regenerate(lane) {
  if (lane.running || !valid()) return;
  const last = lane.exchanges.at(-1);
  last.text.data = "";
  last.id = null;
  last.part(":scope > .problem").hidden = last.part("footer").hidden = true;
  for (const name of [".good", ".bad"]) last.part(name).ariaPressed = "false";
  answer(lane, last);
}

/** Copy an answer; where the browser won't (it has no clipboard for a page over plain http), select it instead. */
async function copy(exchange) {
  try {
    await navigator.clipboard.writeText(exchange.text.data);
    notice("");
    say("Copied");
  } catch {
    getSelection().selectAllChildren(exchange.part(".answer"));
    notice("The browser lets this page copy nothing. The answer is selected: copy it as you copy other text.");
  }
}

async function rate(lane, exchange, name) {
  try {
    await sendFeedback({ id: exchange.id, rating: name === "good" ? "up" : "down" }, key());
    for (const other of ["good", "bad"]) exchange.part(`.${other}`).ariaPressed = String(other === name);
    say("Thank you");
  } catch (error) {
    notice(failed(error).problem);
  }
}

function send() {
  const said = mode() === "chat" ? prompt.value.trim() : prompt.value;
  if (!said.trim() || shown().some((lane) => lane.running) || !valid()) return;
  prompt.value = "";
  notice("");
  for (const lane of shown()) answer(lane, addExchange(lane, said));
}

/** Whether the settings can be sent; the first that can't is shown with the browser's words. */
function valid() {
  if (!settings.checkValidity()) openSettings(true);
  return settings.reportValidity();
}

function halt() {
  for (const lane of lanes) lane.running?.abort();
}

function clear() {
  halt();
  for (const lane of lanes) {
    lane.exchanges = [];
    lane.log.replaceChildren();
  }
  notice("");
  say("Cleared");
  prompt.focus();
}

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

/** Buttons as the state wants them; focus never falls from one that goes away. */
function refresh() {
  const busy = lanes.some((lane) => lane.running);
  const held = document.activeElement === byId("halt");
  byId("halt").hidden = !busy;
  byId("send").disabled = busy;
  if (held && !busy) prompt.focus();
}

async function load() {
  try {
    served = await models(key());
    notice(served.length ? "" : "No model is served yet.");
    lanes.forEach((lane, place) => offer(lane, lane.select.value || served[Math.min(place, served.length - 1)]?.id));
    feedback = await takesFeedback(key());
  } catch (error) {
    notice(failed(error).problem);
  }
}

function offer(lane, chosen) {
  lane.select.replaceChildren(...served.map(({ id }) => new Option(id, id, false, id === chosen)));
  showContext(lane);
}

function showContext(lane) {
  const tokens = served.find(({ id }) => id === lane.select.value)?.max_model_len;
  lane.element.querySelector(".context").textContent = tokens ? `context ${tokens.toLocaleString("en")} tokens` : "";
}

function showMode() {
  document.body.dataset.mode = mode();
  prompt.placeholder = mode() === "chat" ? "Say something" : "Text for the model to continue";
}

function openSettings(open) {
  settings.classList.toggle("open", open);
  byId("open-settings").ariaExpanded = String(open);
}

function showTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").ariaPressed = String(theme === "dark");
}

function theme() {
  return localStorage.getItem("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

function bind() {
  composer.onsubmit = (event) => {
    event.preventDefault();
    send();
  };
  settings.onsubmit = (event) => event.preventDefault();
  prompt.onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  };
  document.onkeydown = (event) => {
    if (event.key === "Escape") halt();
  };
  byId("halt").onclick = halt;
  byId("clear").onclick = clear;
  byId("compare").onchange = () => (lanes[1].element.hidden = !byId("compare").checked);
  byId("open-settings").onclick = () => openSettings(!settings.classList.contains("open"));
  byId("theme").onclick = () => {
    localStorage.setItem("theme", theme() === "dark" ? "light" : "dark");
    showTheme(theme());
  };
  byId("key").onchange = () => {
    sessionStorage.setItem("key", key());
    load();
  };
  for (const radio of document.querySelectorAll("[name=mode]")) radio.onchange = showMode;
  for (const output of document.querySelectorAll("output")) {
    const range = byId(output.htmlFor.value);
    range.oninput = () => (output.value = Number(range.value).toFixed(2));
    range.oninput();
  }
}

addLane();
addLane();
lanes[1].element.hidden = true;
byId("key").value = sessionStorage.getItem("key") ?? "";
bind();
showMode();
showTheme(theme());
load();
