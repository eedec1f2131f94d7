// The service's routes. Addresses are relative, so that the page also works below a proxy's path.

const KEY = "aqe-api-key";

/** An answer that is an error, or none at all; `status` is 0 where no answer came. */
export class ServiceError extends Error {
  constructor(message, status = 0, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** For this tab only: nothing is left on the machine when it is closed. */
export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
};

async function call(path, signal, body) {
  const headers = {};
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: JSON.stringify(body), signal });
  } catch {
    signal.throwIfAborted();
    throw new ServiceError("The service cannot be reached. It may be starting, or the connection is down.");
  }
  if (response.ok) return response;
  // A proxy in between may answer with something that is not JSON.
  const answer = await response.json().catch(() => null);
  const seconds = parseInt(response.headers.get("Retry-After"), 10);
  throw new ServiceError(
    answer?.error?.message ?? `The service answered ${response.status} ${response.statusText}.`,
    response.status,
    Number.isNaN(seconds) ? null : seconds,
  );
}

const json = async (...args) => (await call(...args)).json();

export const getModel = async (signal) => (await json("v1/models", signal)).data[0];
export const getExamples = async (signal) => (await json("v1/examples", signal)).examples;
export const search = (query, gold, k, signal) => json("v1/search", signal, { query, gold, k });

/** Gives `onText` each piece of the expansion as it is written; returns the whole answer. */
export async function expand(query, onText, signal) {
  const response = await call("v1/expand", signal, { query, stream: true });
  for await (const { name, data } of events(response, signal)) {
    if (name === "token") onText(data.text);
    if (name === "done") return data;
    if (name === "error") throw new ServiceError(data.error.message, data.error.code);
  }
  throw new ServiceError("The connection broke off before the expansion was complete.");
}

// EventSource can neither POST nor send a key, so server-sent events are read by hand.
async function* events(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let name = "";
  let data = "";
  for (;;) {
    const { value, done } = await reader.read().catch(() => {
      signal.throwIfAborted();
      return { done: true };
    });
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines.map((text) => text.replace(/\r$/, ""))) {
      if (line.startsWith("event:")) name = line.slice(6).trim();
      else if (line.startsWith("data:")) data += line.slice(5);
      else if (line === "") {
        if (data) yield { name, data: JSON.parse(data) };
        name = data = "";
      }
    }
  }
}
