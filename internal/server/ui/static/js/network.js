// Subnets, how full their ranges are, and who has which address.

import { send } from "./api.js";
import { data, fill, h, oneLine, ref } from "./dom.js";
import { t } from "./i18n.js";
import { condition } from "./model.js";
import { card, facts, grid } from "./parts.js";
import { keys, query, setQuery } from "./shell.js";
import { store } from "./store.js";

/** metrics reads Prometheus' text: [{ name, labels, value }]. */
export async function metrics(signal) {
	const text = await (await send("GET", "/coldrack/v1/metrics", { signal, headers: { Accept: "text/plain" } })).text(), all = [];
	for (const line of text.split("\n")) {
		const match = /^([a-z_]+)(?:\{(.*)\})? ([^ ]+)$/.exec(line);
		if (match) all.push({ name: match[1], labels: Object.fromEntries([...(match[2] ?? "").matchAll(/([a-z_]+)="((?:[^"\\]|\\.)*)"/g)].map(([, k, v]) => [k, v.replace(/\\n/g, "\n").replace(/\\(.)/g, "$1")])), value: Number(match[3]) });
	}
	return all;
}

const states = ["leased", "reserved", "free"];
const most = 500;

export function mount(main) {
	const end = new AbortController(), body = h("div", { class: "cards" }), leases = h("div", { class: "cards below" });
	let pools = [];
	const field = h("input", { type: "search", value: query("q"), placeholder: t("Address, MAC, machine"), "aria-label": t("Search (/)"), spellcheck: "false", on: { input: () => { setQuery({ q: field.value }); draw(); } } });
	const table = h("div", {});
	fill(leases, card(t("Addresses of machines"), { class: "wide" }, h("div", { class: "tools" }, field), table));
	fill(main, h("h1", {}, t("Network")), body, leases);

	function draw() {
		const all = store.all("subnets");
		if (!all.length) fill(body, h("p", { class: "empty wide" }, store.complete.has("subnets") ? [t("No Subnet yet: nobody gets an address from here."), " ", ref("/ui/start", {}, t("First steps"))] : t("loading")));
		else fill(body, all.map((s) => {
			const ok = condition(s, "Ready"), worries = (s.status?.conditions ?? []).filter((c) => c.type !== "Ready" && c.status === "True");
			const pool = pools.filter((p) => p.labels.subnet === s.metadata.name), total = pool.reduce((n, p) => n + p.value, 0), free = pool.find((p) => p.labels.state === "free")?.value ?? 0;
			return h("section", { class: "card" }, h("h2", {}, data(s.metadata.name)),
				ok?.status === "False" ? h("div", { class: "verdict bad" }, h("p", { class: "what" }, data(oneLine(ok.message, 600)))) : null, worries.map((c) => h("div", { class: "verdict bad" }, h("p", { class: "what" }, data(oneLine(c.message || c.type, 600))))),
				facts(["CIDR", s.spec.cidr], ["DHCP", s.spec.dhcp], [t("Discovery range"), s.spec.discovery], [t("Static range"), s.spec.static], [t("Gateway"), s.spec.gateway], ["DNS", (s.spec.dns ?? []).join(", ")], ["NTP", (s.spec.ntp ?? []).join(", ")], [t("Relays"), (s.spec.relays ?? []).join(", ")]),
				total ? [h("p", { class: free / total < .1 ? "ill" : "quiet" }, t("{0} of {1} addresses for discovery are free", free, total)), h("div", { class: "gauge", role: "img", "aria-label": t("{0} of {1} addresses for discovery are free", free, total) }, h("span", { style: { width: 100 * (1 - free / total) + "%" } }))] : null);
		}));
		const wanted = field.value.trim().toLowerCase(), rows = [];
		let count = 0;
		for (const row of store.rows()) {
			if (!row.address && !row.lease) continue;
			const cells = [ref("/ui/machines/" + encodeURIComponent(row.name), {}, data(row.name)), row.address, row.lease, row.subnet, row.mac, t(row.phase)];
			if (wanted && ![row.name, row.address, row.lease, row.mac].some((x) => x.toLowerCase().includes(wanted))) continue;
			if (++count <= most) rows.push(cells);
		}
		fill(table, count ? grid([t("Machine"), t("Address"), t("Lease"), t("Subnet"), "MAC", t("Phase")], rows) : h("p", { class: "quiet" }, t("none")), count > most ? h("p", { class: "quiet" }, t("{0} more; search for one", count - most)) : null);
	}

	async function poll() {
		try {
			pools = (await metrics(end.signal)).filter((m) => m.name === "coldrack_dhcp_pool_addresses" && (states.includes(m.labels.state) || m.value > 0));
			draw();
		} catch { /* the frame says that the server does not answer */ }
	}
	poll();
	const clock = setInterval(poll, 10e3);
	let last = 0;
	const stop = store.on((changed) => { if (changed.has("subnets") || changed.has("machines") && Date.now() - last > 2e3) { last = Date.now(); draw(); } });
	const endKeys = keys({});
	draw();
	return () => { end.abort(); clearInterval(clock); stop(); endKeys(); };
}

