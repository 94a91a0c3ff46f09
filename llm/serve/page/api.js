// What the page asks the server, and what it says when that fails.

/** An answer that didn't come, in words for whoever reads the page. */
export class Failure extends Error {}

/** The models that are served. */
export async function models(key) {
  return (await (await call("v1/models", { key })).json()).data;
}

/** Whether the server collects feedback; without a document nobody knows, and the buttons stay away. */
export async function takesFeedback(key) {
  try {
    const { paths } = await (await call("openapi.json", { key })).json();
    return "/v1/feedback" in paths;
  } catch {
    return false;
  }
}

/** Tell the server what somebody thought of an answer. */
export async function sendFeedback(feedback, key) {
  await call("v1/feedback", { key, body: feedback });
}

/** The parts of a streamed answer, as they come. */
export async function* parts(path, body, key, signal) {
  const response = await call(path, { key, body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let held = ""; ; ) {
    const { value, done } = await read(reader);
    if (done) throw new Failure("The answer broke off: the server closed the connection.");
    const events = (held + value).split(/\r?\n\r?\n/);
    held = events.pop();
    for (const event of events) {
      const data = event.match(/^data: ?(.*)$/m)?.[1];
      if (data === "[DONE]") return;
      if (data) yield part(data);
    }
  }
}

function part(data) {
  const object = JSON.parse(data);
  if (object.error) throw new Failure(object.error.message);
  return object;
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    throw error.name === "AbortError" ? error : new Failure("The answer broke off: the connection was lost.");
  }
}

async function call(path, { key, body, signal }) {
  const headers = { ...(body && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Failure("The server can't be reached. Is it still running?");
  }
  if (!response.ok) throw new Failure(await refusal(response, key));
  return response;
}

async function refusal(response, key) {
  const { error } = await response.json().catch(() => ({}));
  const said = error?.message;
  const seconds = response.headers.get("Retry-After");
  switch (response.status) {
    case 401:
      return key ? "The server doesn't accept this key." : "This server wants a key: enter it under Settings.";
    case 429:
    case 503:
      return `The server can't answer now${said ? `: ${said}` : ""}.${seconds ? ` Wait ${seconds} s.` : ""}`;
    default:
      return said ? `The server refused: ${said}` : `The server failed (${response.status}).`;
  }
}
