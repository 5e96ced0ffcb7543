// The container images that nodes get here: where each is from, what keeps it, and how much room they take.

import { get, post } from "./api.js";
import { data, fill, h, oneLine, setText } from "./dom.js";
import { t } from "./i18n.js";
import { age, bytes } from "./model.js";
import { card, grid } from "./parts.js";
import { may, session } from "./shell.js";

const path = "/coldrack/v1/images", most = 300;

/** images is the card about container images. */
export function images(signal) {
	const room = h("div", {}), table = h("div", {}), said = h("p", { role: "status" });
	const field = h("input", { type: "search", placeholder: t("Name or digest"), "aria-label": t("Container images"), spellcheck: "false", on: { input: () => draw() } });
	const which = h("button", { data: { action: "image-users" }, on: { click: users } }, t("What keeps them?"));
	let all = null, kept = null;

	async function read() {
		try {
			all = await get(path, { signal });
			draw();
		} catch (err) {
			if (!signal.aborted) fill(table, h("p", { class: "ill" }, oneLine(err.message)));
		}
	}

	function draw() {
		if (!all) return fill(table, h("p", { class: "quiet" }, t("loading")));
		const now = Date.now(), wanted = field.value.trim().toLowerCase();
		const found = all.images.filter((i) => !wanted || i.name.toLowerCase().includes(wanted) || i.digest.startsWith(wanted));
		const gauge = (text, used, limit) => (limit > 0 ? h("div", {}, h("p", { class: used > .9 * limit ? "warn" : "quiet" }, text), h("div", { class: "gauge", role: "img", "aria-label": text }, h("span", { style: { width: Math.min(100, 100 * used / limit) + "%" } }))) : null);
		fill(room, gauge(t("Loaded images have {0} of {1}", bytes(all.loadedBytes), bytes(all.loadedLimit)), all.loadedBytes, all.loadedLimit), gauge(t("Images of other registries have {0} of {1}", bytes(all.cacheBytes), bytes(all.cacheLimit)), all.cacheBytes, all.cacheLimit));
		fill(table, found.length ? grid([t("Name"), t("Size"), t("From"), t("Last used"), t("Kept because"), ""], found.slice(0, most).map((i) => [
			h("span", {}, data(i.name), h("br"), data(i.digest.slice(0, 19), { class: "quiet mono" }), (i.platforms ?? []).length ? data(" " + i.platforms.join(", "), { class: "quiet" }) : null), bytes(i.size), t(i.source) + (i.bundle ? " " + oneLine(i.bundle) : "") + (i.by ? ", " + oneLine(i.by) : ""),
			i.lastUsed ? t("{0} ago", age(now - Date.parse(i.lastUsed))) : "", why(i), pinButton(i)])) : h("p", { class: "quiet" }, all.images.length ? t("Nothing matches. ") : t("none: a bundle brings them, or coldrack image load FILE")),
		found.length > most ? h("p", { class: "quiet" }, t("{0} more; search for one", found.length - most)) : null);
	}

	function why(i) {
		if (i.source === "bundle") return t("its bundle has it");
		if (i.pinned) return t("pinned");
		const one = kept?.get(i.name);
		return one === undefined ? "" : one || h("span", { class: "warn" }, t("nothing: coldrack image prune removes it"));
	}

	const pinButton = (i) => (may() && i.source !== "bundle" ? h("button", { data: { action: i.pinned ? "unpin" : "pin", image: i.name }, on: { click: (event) => pin(event.currentTarget, i) } }, i.pinned ? t("Unpin") : t("Pin")) : null);

	async function pin(button, i) {
		button.disabled = true;
		try {
			await post(path + "/pin", { name: i.name, pinned: !i.pinned }, { signal });
			setText(said, i.pinned ? t("{0} is not pinned any more", i.name) : t("{0} is pinned", i.name));
			await read();
			[...table.querySelectorAll("button[data-image]")].find((b) => b.dataset.image === i.name)?.focus();
		} catch (err) {
			button.disabled = false;
			if (!signal.aborted) fill(said, h("span", { class: "ill" }, oneLine(err.message, 1000)));
		}
	}

	// users asks what would be removed: the server looks into every cluster for that. Nothing is.
	async function users() {
		which.disabled = true;
		setText(said, t("asking the clusters what they run"));
		try {
			const answer = await post(path + "/prune", { unusedFor: 86400 }, { signal });
			kept = new Map(answer.images.map((i) => [i.name, i.kept ?? ""]));
			setText(said, t("{0} could be freed", bytes(answer.freedBytes)));
			draw();
		} catch (err) {
			if (!signal.aborted) fill(said, h("span", { class: "ill" }, oneLine(err.message, 1000)));
		}
		which.disabled = false;
	}

	draw();
	read();
	return { element: card(t("Container images"), { class: "wide" }, room, h("div", { class: "tools" }, field, may() ? which : null), may() ? null : h("p", { class: "quiet" }, t("To pin images needs role operator; you have role {0}.", t(session.me.role))), said, table), read };
}
