// What machines can be installed with, and who decides about those that appear.

import { data, fill, h, oneLine, ref } from "./dom.js";
import { t } from "./i18n.js";
import { bytes, condition, quantity } from "./model.js";
import { images as containers } from "./images.js";
import { card, facts, grid, when } from "./parts.js";
import { keys } from "./shell.js";
import { store } from "./store.js";
import { nobodyWatches, uploadCard } from "./upload.js";

export function mount(main) {
	const end = new AbortController(), body = h("div", { class: "cards" }), nodes = containers(end.signal);
	fill(main, h("h1", {}, t("Content")), h("div", { class: "cards" }, uploadCard()), h("div", { class: "below" }, body), h("div", { class: "cards below" }, nodes.element));
	const none = (kind, text) => h("p", { class: "quiet" }, store.complete.has(kind) ? text : t("loading"));

	function draw() {
		const now = Date.now(), bundles = store.all("bundles"), images = store.all("images"), profiles = store.all("profiles"), policies = store.all("enrollmentpolicies");
		fill(body,
			card(t("Bundles"), { class: "wide" }, bundles.length ? bundles.map((b) => h("details", {}, h("summary", {}, h("b", {}, data(b.metadata.name)), " ", data([b.spec.version, bytes(quantity(b.spec.size)), b.spec.keyID ? t("signed by {0}", b.spec.keyID.slice(0, 16)) : t("not signed")].filter(Boolean).join(" \u00b7 "), { class: "quiet" }), " ", when(b.metadata.creationTimestamp, now)),
				grid([t("Kind"), t("Name"), t("Size"), t("Digest")], (b.spec.contents ?? []).map((c) => [c.kind, c.name, bytes(quantity(c.size)), c.digest])))) : none("bundles", [t("No bundle yet: machines cannot be discovered or installed."), " ", ref("/ui/start", {}, t("First steps"))])),
			card(t("Images"), { class: "wide" }, images.length ? grid([t("Name"), t("Family"), t("Version"), t("Size"), t("Kernel"), t("Available")], images.map((i) => {
				const available = condition(i, "Available");
				return { class: available?.status === "False" ? "ill" : null, cells: [i.metadata.name, i.spec.family, i.spec.version ?? "", bytes(quantity(i.spec.size)), i.spec.kernelVersion ?? "", available ? (available.status === "True" ? t("yes") : available.message || t("no")) : ""] };
			})) : none("images", t("none"))),
			card(t("Profiles"), { class: "wide" }, profiles.length ? grid([t("Name"), t("Image"), t("May overwrite"), t("Disk"), t("SSH keys")], profiles.map((p) => [p.metadata.name, p.spec.image, p.spec.wipe === "Always" ? t("everything on the disk") : t("only what Coldrack wrote"),
				Object.entries(p.spec.rootDisk ?? {}).map(([k, v]) => k + ": " + v).join(", "), (p.spec.sshKeys ?? []).length])) : none("profiles", t("none"))),
			card(t("Policies"), { class: "wide" }, h("p", { class: "quiet" }, t("Of those that match, the one with the highest priority decides.")), policies.length ? policies.sort((a, b) => (b.spec.priority ?? 0) - (a.spec.priority ?? 0)).map((p) => {
				const full = condition(p, "Exhausted"), match = Object.entries(p.spec.match ?? {}).map(([k, v]) => k + ": " + (typeof v === "object" ? JSON.stringify(v) : v)).join(", ");
				return h("section", {}, h("h3", {}, data(p.metadata.name)), full?.status === "True" ? h("p", { class: "warn" }, data(oneLine(full.message, 400))) : null,
					facts([t("Priority"), String(p.spec.priority ?? 0)], [t("Matches"), match || t("every machine")], [t("Approves"), p.spec.approve ? t("yes") : t("no")], [t("Profile"), p.spec.profile], [t("Subnet"), p.spec.subnet], [t("Host name"), p.spec.hostname], [t("Limit"), p.spec.limit || ""],
						[t("Matched"), String(p.status?.matched ?? 0)], [t("Enrolled"), String(p.status?.enrolled ?? 0)], [t("Nearly"), p.status?.missed ? String(p.status.missed) : ""]),
					(p.status?.nearMisses ?? []).length ? [h("p", { class: "quiet" }, t("These wait, and this policy comes nearest to taking them:")), grid([t("Machine"), t("What does not hold")], p.status.nearMisses.map((n) => [ref("/ui/machines/" + encodeURIComponent(n.machine), {}, data(n.machine)), n.why]))] : null);
			}) : none("enrollmentpolicies", t("none: each machine waits for a person"))));
	}
	const stop = store.on((changed) => {
		if (["bundles", "images", "profiles", "enrollmentpolicies"].some((k) => changed.has(k))) draw();
		if (changed.has("bundles")) nodes.read();
	});
	const endKeys = keys({});
	draw();
	return () => { nobodyWatches(); end.abort(); stop(); endKeys(); };
}
