// All clusters, in a card each.

import { data, fill, h, oneLine, ref } from "./dom.js";
import { t } from "./i18n.js";
import { keys, go } from "./shell.js";
import { store } from "./store.js";

/** needsPerson says why a cluster will not get on without a person, or "". */
export function needsPerson(c) {
	const s = c.status ?? {};
	if (s.failure) return s.failure.node + ": " + s.failure.reason;
	if (s.phase === "Invalid" || s.phase === "Degraded") return s.message || s.phase;
	return s.work?.blocks?.[0] ?? "";
}

const signs = { Ready: "Ready", Degraded: "Failed", Invalid: "Failed", BringUp: "Installing", Rolling: "Rebooting", Releasing: "Releasing", Pending: "Waiting" };

export const clusterPhase = (c) => {
	const phase = c.status?.phase || "Pending";
	return h("span", { class: "phase" }, h("span", { class: "sign s-" + (signs[phase] ?? "Expected"), "aria-hidden": "true" }), t(phase), c.spec?.paused ? " (" + t("paused") + ")" : "");
};

/** quorum draws the members of a cluster's etcd: how many there are, how many are ready, how many may fail. */
export function quorum(c) {
	const members = (c.status?.nodes ?? []).filter((n) => n.etcd);
	if (!members.length) return h("p", { class: "quiet" }, t("No member of etcd is placed yet."));
	const up = members.filter((n) => n.ready).length, need = Math.trunc(members.length / 2) + 1, spare = up - need;
	const word = spare < 0 ? t("no quorum: {0} of {1} are ready, {2} are needed", up, members.length, need)
		: spare === 0 && members.length > 1 ? t("{0} of {1} are ready; one more that fails ends the quorum", up, members.length) : t("{0} of {1} are ready; {2} may fail", up, members.length, Math.max(0, spare));
	return [h("div", { class: "quorum", role: "img", "aria-label": word }, members.map((n) => h("span", { class: "member " + (n.ready ? "up" : "down") }, h("span", { class: "sign s-" + (n.ready ? "Ready" : "Failed") }), data(n.nodeName || n.machine)))),
		h("p", { class: spare < 0 ? "ill" : spare === 0 && members.length > 1 ? "warn" : "ok" }, word)];
}

export function mount(main) {
	const body = h("div", { class: "cards" });
	fill(main, h("h1", {}, t("Clusters")), body);
	function draw() {
		const all = store.all("clusters");
		if (!all.length) {
			fill(body, h("p", { class: "empty wide" }, store.complete.has("clusters") ? [t("No clusters yet. This writes one from a preset:"), h("pre", {}, "coldrack cluster init --preset production --name CLUSTER > cluster.yaml\ncoldrack plan -f cluster.yaml\ncoldrack apply -f cluster.yaml")] : t("loading")));
			return;
		}
		fill(body, all.map((c) => {
			const why = needsPerson(c);
			return h("section", { class: "card" }, h("h2", {}, ref("/ui/clusters/" + encodeURIComponent(c.metadata.name), {}, data(c.metadata.name))),
				h("p", { class: "row" }, clusterPhase(c), data(c.status?.version || c.spec.version, { class: "quiet" }), data(c.status?.nodesReady ? t("{0} nodes ready", c.status.nodesReady) : "", { class: "quiet" })),
				why || c.status?.message ? h("div", { class: "verdict" + (why ? " bad" : "") }, h("p", { class: "what" }, data(oneLine(why || c.status.message, 600)))) : null, quorum(c));
		}));
	}
	const stop = store.on((changed) => { if (changed.has("clusters")) draw(); });
	const endKeys = keys({ Enter: [t("the first cluster"), () => { const c = store.all("clusters")[0]; if (c) go("/ui/clusters/" + encodeURIComponent(c.metadata.name)); }] });
	draw();
	return () => { stop(); endKeys(); };
}
