// Calls to the service that this page came from.

/** The service's own address, whatever path a proxy puts it under. */
const ROOT = new URL("../", import.meta.url);

/** A call that the service refused, or that did not reach it; `message` is for people. */
export class ApiError extends Error {
  /**
   * @param {string} message what happened and what to do.
   * @param {object|null} problem the service's problem document (RFC 9457), where it sent one.
   */
  constructor(message, problem = null) {
    super(message);
    this.name = "ApiError";
    this.problem = problem;
  }
}

/** The caller's key: in memory only, gone with the page. */
const access = { key: "", ask: null };

/**
 * Says who is asked for a key when the service wants one.
 *
 * @param {(words: string) => Promise<string>} ask gives the key; rejects where none is given.
 */
export function onKeyNeeded(ask) {
  access.ask = ask;
}

/**
 * Calls the service, with the key where there is one, and waits for the whole answer.
 *
 * @param {string} path relative to the service, as in `v1/modules`.
 * @param {object} [options]
 * @param {BodyInit} [options.body] makes the call a POST.
 * @param {string} [options.contentType] of the body.
 * @param {string} [options.accept] the media type wanted.
 * @param {AbortSignal} [options.signal] ends the call.
 * @returns {Promise<Response>} an answer of 200 whose body has arrived.
 * @throws {ApiError} in words.
 */
export async function call(path, { body, contentType = "application/json", accept, signal } = {}) {
  for (;;) {
    const response = await send(path, { body, contentType, accept, signal });
    if (response.ok) return response;
    const problem = await problemOf(response);
    if (response.status !== 401 || access.ask === null) {
      throw new ApiError(words(problem, response), problem);
    }
    access.key = await access.ask(access.key ? problem.detail : "This service asks for a key.");
  }
}

async function send(path, { body, contentType, accept, signal }) {
  const headers = new Headers();
  if (body !== undefined) headers.set("Content-Type", contentType);
  if (accept) headers.set("Accept", accept);
  if (access.key) headers.set("Authorization", `Bearer ${access.key}`);
  const url = new URL(path.replace(/^\//, ""), ROOT);
  const method = body === undefined ? "GET" : "POST";
  try {
    const response = await fetch(url, { method, headers, body, signal, credentials: "omit" });
    const content = await response.arrayBuffer();
    performance.mark("answer");
    return new Response(content, { status: response.status, headers: response.headers });
  } catch (error) {
    if (signal?.aborted) throw error;
    const message = "The service cannot be reached. See whether it still runs, and try again.";
    throw new ApiError(message);
  }
}

async function problemOf(response) {
  const isProblem = (response.headers.get("Content-Type") ?? "").includes("json");
  return isProblem ? response.json() : { detail: "", errors: [] };
}

/** A problem in words: its detail, and the fields that it does not name itself. */
function words(problem, response) {
  const detail = problem.detail || `The service answered ${response.status}.`;
  const lines = (problem.errors ?? [])
    .filter(({ msg }) => !detail.includes(msg))
    .map(({ loc, msg }) => `${loc.join(".")}: ${msg}`);
  const wait = response.headers.get("Retry-After");
  if (wait) lines.push(`Try again in ${wait} s.`);
  return [detail, ...lines].join("\n");
}
