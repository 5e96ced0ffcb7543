// The upload of a bundle: with progress, to be cancelled, and to be gone on with. The protocol is that of "coldrack bundle import".

import { send } from "./api.js";
import { data, fill, h, oneLine } from "./dom.js";
import { t } from "./i18n.js";
import { bytes } from "./model.js";
import { card } from "./parts.js";
import { may, session } from "./shell.js";

const path = "/coldrack/v1/bundles";
// longestHead is how far the server looks to know who signed a bundle; attempts is how often in a row no headway is borne.
const longestHead = (4 << 20) + (1 << 15), attempts = 5;

// One upload at a time, which goes on while its person looks at other pages.
let running = null, watcher = () => {};

/** uploadCard is where a bundle is chosen. What is shown of an upload stays when its person comes back to the page. */
export function uploadCard() {
	const state = h("div", { role: "status" });
	const file = h("input", { type: "file", name: "bundle", "aria-label": t("Bundle, a file") }), button = h("button", { class: "primary", data: { action: "upload" } }, t("Upload"));
	const form = h("form", { class: "row", on: { submit: (event) => { event.preventDefault(); if (file.files[0] && !running?.active) begin(file.files[0]); } } }, file, button);
	const draw = () => {
		const u = running;
		button.disabled = file.disabled = !!u?.active;
		if (!u) return fill(state);
		const bar = (value, max) => h("progress", { max: Math.max(1, max), value });
		const hasFocus = state.contains(document.activeElement);
		fill(state, h("p", {}, data(u.name), " \u00b7 ", u.step === "check" ? t("is it signed by a trusted key?") : u.step === "send" ? t("sending: {0} of {1}", bytes(u.done), bytes(u.total)) + (u.rate ? ", " + bytes(u.rate) + "/s" : "")
			: u.step === "import" ? t("the server verifies and imports it: {0} of {1}", bytes(u.done), bytes(u.total)) : ""),
		u.active ? [bar(u.done, u.total), h("p", {}, h("button", { type: "button", data: { action: "cancel-upload" }, on: { click: () => u.abort.abort() } }, t("Cancel")))] : null,
		u.active && u.note ? h("p", { class: "warn" }, oneLine(u.note)) : null,
		u.error ? h("p", { class: "ill" }, oneLine(u.error, 2000)) : null, u.said ? h("p", { class: "ok" }, oneLine(u.said)) : null, u.behind ? h("p", { class: "warn" }, oneLine(u.behind, 1000)) : null);
		if (hasFocus) state.querySelector("button")?.focus();
	};
	watcher = draw;
	draw();
	return card(t("Upload a bundle"), { class: "wide" }, may() ? [h("p", { class: "quiet" }, t("A bundle that is not signed by a key that this server trusts is refused before it is sent. An upload that was interrupted goes on when the same file is chosen again.")), form, state]
		: h("p", { class: "quiet" }, t("To upload a bundle needs role operator; you have role {0}.", t(session.me.role))));
}

/** nobodyWatches is called when the card goes away. */
export function nobodyWatches() { watcher = () => {}; }

async function begin(file) {
	const u = running = { name: file.name, active: true, step: "check", done: 0, total: file.size, error: "", said: "", note: "", behind: "", rate: 0, abort: new AbortController() };
	const leaving = (event) => event.preventDefault();
	addEventListener("beforeunload", leaving);
	watcher();
	try {
		const summary = await upload(u, file);
		u.said = t("{0} is imported.", summary.name ?? file.name);
		if (summary.behind?.length) u.behind = t("It is older than {0}, which is used on for what both have.", summary.behind.map((b) => b.name).join(", "));
	} catch (err) {
		u.error = u.abort.signal.aborted ? t("Cancelled. What has arrived is kept, and the upload goes on when the same file is chosen again.") : err.message;
	}
	u.active = false;
	u.step = "";
	removeEventListener("beforeunload", leaving);
	watcher();
}

/** uploadName is the same for the same file, so that the server finds what it has of it. */
async function uploadName(file) {
	const sum = new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(file.name + "\n" + file.size + "\n" + file.lastModified)));
	return "browser-" + [...sum.slice(0, 16)].map((b) => b.toString(16).padStart(2, "0")).join("") + ".tar";
}

/** headOf is the beginning of a bundle with its layout, its index and its signature: the first three files of the archive. */
async function headOf(file) {
	let end = 0;
	for (let i = 0; i < 3 && end < longestHead; i++) {
		const header = new Uint8Array(await file.slice(end, end + 512).arrayBuffer()), text = (from, to) => String.fromCharCode(...header.slice(from, to)).replace(/\0.*$/s, "");
		if (header.length < 512 || text(257, 262) !== "ustar") {
			if (i === 0) throw new Error(t("This file is no bundle: it is no tar archive. \"coldrack bundle build\" makes bundles."));
			break;
		}
		end += 512 + Math.ceil((parseInt(text(124, 136), 8) || 0) / 512) * 512;
	}
	return file.slice(0, Math.min(end, longestHead));
}

async function upload(u, file) {
	const { signal } = u.abort, query = "?name=" + await uploadName(file);
	if (!file.size) throw new Error(t("The file is empty."));
	await raw("POST", path + query, await headOf(file), signal, () => {});
	for (let attempt = 1, furthest = -1; ; attempt++) {
		let offset = 0;
		try {
			offset = Number((await send("HEAD", path + query, { signal })).headers.get("Coldrack-Offset")) || 0;
			if (offset > file.size) offset = 0;
			if (offset > furthest) [furthest, attempt] = [offset, 1];
			u.step = "send";
			u.done = offset;
			watcher();
			return await put(u, file, query, offset);
		} catch (err) {
			// What the server has refused, it will refuse again; 409 says that it has another part than was thought.
			if (signal.aborted || err.final || (err.status >= 400 && err.status < 500 && err.status !== 409 && err.status !== 429) || err.status === 507 || attempt >= attempts) throw err;
			u.note = t("connection lost, trying again: {0}", err.message);
			u.rate = 0;
			watcher();
			await new Promise((resolve) => { setTimeout(resolve, attempt * 1000); signal.addEventListener("abort", resolve, { once: true }); });
		}
	}
}

/** put sends the rest of a file and follows the import. */
async function put(u, file, query, offset) {
	let read = 0, summary = null, wrong = "", told = 0;
	const began = performance.now();
	// The answer is a line of JSON for each step.
	const take = (text, whole) => {
		const lines = text.slice(read).split("\n");
		if (!whole) lines.pop();
		for (const line of lines) {
			read += line.length + 1;
			if (!line) continue;
			const one = JSON.parse(line);
			if (one.error) wrong = one.error;
			if (one.bundle) summary = one.bundle;
			if (one.progress) [u.step, u.done, u.total] = ["import", one.progress.done ?? 0, one.progress.total ?? 0];
		}
		watcher();
	};
	const text = await raw("PUT", path + query + "&offset=" + offset, file.slice(offset), u.abort.signal, (sent) => {
		u.done = offset + sent;
		u.total = file.size;
		u.note = "";
		const now = performance.now();
		if (now - told < 200 && u.done < u.total) return;
		told = now;
		u.rate = now - began > 1000 ? Math.round(sent / (now - began) * 1000) : 0;
		watcher();
	}, take);
	take(text, true);
	if (wrong) throw Object.assign(new Error(wrong), { final: true });
	if (!summary) throw new Error(t("the server's answer ended before its outcome"));
	return summary;
}

/** raw sends bytes. fetch does not tell how many have been sent, so this is the older way. */
function raw(method, address, body, signal, sent, came) {
	return new Promise((resolve, reject) => {
		const x = new XMLHttpRequest();
		x.open(method, address);
		x.setRequestHeader("Coldrack-Page", "1");
		x.setRequestHeader("Content-Type", "application/x-tar");
		x.upload.addEventListener("progress", (event) => sent(event.loaded));
		if (came) x.addEventListener("progress", () => { if (x.status === 200) came(x.responseText, false); });
		x.addEventListener("load", () => {
			if (x.status >= 200 && x.status < 300) return resolve(x.responseText);
			let said = x.responseText.trim();
			try { said = JSON.parse(said).message || said; } catch { /* it is text */ }
			reject(Object.assign(new Error(said || t("the server answered {0}", x.status)), { status: x.status }));
		});
		x.addEventListener("error", () => reject(Object.assign(new Error(t("the server does not answer")), { status: 0 })));
		x.addEventListener("abort", () => reject(new Error(t("Cancelled."))));
		signal.addEventListener("abort", () => x.abort(), { once: true });
		if (signal.aborted) return reject(new Error(t("Cancelled.")));
		x.send(body);
	});
}
