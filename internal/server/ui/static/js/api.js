// Requests to the API that kubectl and the command line use, too.

/** Failure is an answer that is no success, or none. status is 0 when the server was not reached. */
class Failure extends Error {
	constructor(status, text, body) {
		super(text);
		this.status = status;
		this.body = body;
	}
}

const group = "/apis/coldrack.dev/v1alpha1/";

/** kindPath is the path of objects of a kind (plural, lower case), or of one. */
export const kindPath = (kind, name) => group + kind + (name ? "/" + encodeURIComponent(name) : "");

// told hears of each answer 401, which ends what is shown.
let told = () => {};
export function onSignedOut(f) { told = f; }

/** send returns the response of a request that succeeded. */
export async function send(method, path, { body, type, signal, headers } = {}) {
	let response;
	try {
		response = await fetch(path, {
			method, signal, cache: "no-store", credentials: "same-origin", redirect: "error",
			headers: { "Coldrack-Page": "1", Accept: "application/json", ...(body === undefined ? {} : { "Content-Type": type ?? "application/json" }), ...headers },
			body: body === undefined ? undefined : JSON.stringify(body),
		});
	} catch (err) {
		if (signal?.aborted) throw err;
		throw new Failure(0, "the server does not answer");
	}
	if (response.ok) return response;
	const text = await response.text().catch(() => "");
	let said = text.trim(), parsed;
	try {
		parsed = JSON.parse(text);
		said = parsed.message || said;
	} catch { /* it is text */ }
	if (response.status === 401 && !headers?.Authorization && !headers?.["Coldrack-Link"]) told();
	throw new Failure(response.status, said || "the server answered " + response.status, parsed);
}

export const get = async (path, options) => (await send("GET", path, options)).json();
export const post = async (path, body, options) => (await send("POST", path, { body, ...options })).json();
export const patch = async (path, body) => (await send("PATCH", path + "?fieldManager=coldrack", { body, type: "application/merge-patch+json" })).json();

/** lines yields the lines of an answer as they come. */
export async function* lines(response) {
	const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
	let rest = "";
	try {
		for (;;) {
			const { value, done } = await reader.read();
			if (done) break;
			const parts = (rest + value).split("\n");
			rest = parts.pop();
			yield* parts;
		}
		if (rest) yield rest;
	} finally {
		reader.cancel().catch(() => {});
	}
}

export function pause(ms, signal) {
	return new Promise((resolve) => {
		const timer = setTimeout(resolve, ms);
		signal?.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
	});
}

const pageSize = 500;

/**
 * follow keeps a sink up to date with all objects of a path until signal aborts: it lists, watches from there, and begins anew when that ends.
 * sink: put(object), drop(name), listed(names) after each whole list, state("live" | "trouble", why), page() after each part of a list.
 * list(path, query, sink, signal, again) returns the version to watch from; again: what it returned before is forgotten there.
 */
export async function follow(path, query, sink, signal, list = listParts) {
	let wait = 500, again = false;
	while (!signal.aborted) {
		try {
			let version = await list(path, query, sink, signal, again);
			again = false;
			for (let live = false; ;) {
				version = await watch(path, query, version, sink, signal, () => {
					if (!live) sink.state("live");
					live = true;
					wait = 500;
				});
				if (signal.aborted) return;
			}
		} catch (err) {
			if (signal.aborted) return;
			if (err.status === 401) return;
			if (err.status === 410 && !again) {
				again = true;
				continue;
			}
			sink.state("trouble", err.message);
			await pause(wait, signal);
			wait = Math.min(wait * 2, 8000);
		}
	}
}

async function listParts(path, query, sink, signal) {
	const names = new Set();
	for (let next = "";;) {
		const part = await get(path + "?" + new URLSearchParams({ ...query, limit: pageSize, ...(next ? { continue: next } : {}) }), { signal });
		for (const object of part.items) {
			names.add(object.metadata.name);
			sink.put(object);
		}
		sink.page?.();
		next = part.metadata.continue ?? "";
		if (!next) {
			sink.listed(names);
			return part.metadata.resourceVersion;
		}
	}
}

/**
 * listMemory lists machines from the server's memory, which takes a thirtieth of the time, and returns the newest version among them: all
 * that happened up to it is in the list. Where nothing has happened for long, that version is forgotten (again). Then the store's present
 * version is asked for first, and the memory is read when it has surely come so far.
 */
export async function listMemory(path, query, sink, signal, again) {
	let version = "";
	const read = async () => {
		const names = new Set();
		let newest = 0;
		for (const object of (await get("/coldrack/v1/machines", { signal })).items) {
			names.add(object.metadata.name);
			newest = Math.max(newest, Number(object.metadata.resourceVersion));
			sink.put(object);
		}
		sink.listed(names);
		return newest ? String(newest) : "";
	};
	if (!again) version = await read();
	if (version) return version;
	version = (await get(path + "?limit=1", { signal })).metadata.resourceVersion;
	await pause(2000, signal);
	await read();
	return version;
}

async function watch(path, query, version, sink, signal, began) {
	const response = await send("GET", path + "?" + new URLSearchParams({ ...query, watch: 1, resourceVersion: version, allowWatchBookmarks: true }), { signal });
	began();
	for await (const line of lines(response)) {
		if (!line) continue;
		const { type, object } = JSON.parse(line);
		if (type === "ERROR") throw new Failure(object.code ?? 500, object.message ?? "the watch failed", object);
		version = object.metadata.resourceVersion;
		if (type === "DELETED") sink.drop(object.metadata.name);
		else if (type !== "BOOKMARK") sink.put(object);
	}
	return version;
}
