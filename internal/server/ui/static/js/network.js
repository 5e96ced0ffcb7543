// Subnets, how full their ranges are, and who has which address.

import { send } from "./api.js";
import { data, fill, h, oneLine, ref } from "./dom.js";
import { t } from "./i18n.js";
import { condition } from "./model.js";
import { card, facts, grid, when } from "./parts.js";
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

// What an address of a pool may be, in the order in which it is drawn.
const states = ["leased", "held", "quarantined", "free"];
const foreignSeen = "coldrack_dhcp_foreign_server_seen_timestamp_seconds";
const most = 500;

export function mount(main) {
	const end = new AbortController(), body = h("div", { class: "cards" }), leases = h("div", { class: "cards below" });
	let pools = [], foreign = [];
	const field = h("input", { type: "search", value: query("q"), placeholder: t("Address, MAC, machine"), "aria-label": t("Search (/)"), spellcheck: "false", on: { input: () => { setQuery({ q: field.value }); draw(); } } });
	const table = h("div", {}), others = card(t("Other DHCP servers"), { class: "wide" }), strangers = h("div", {});
	others.append(strangers);
	fill(leases, card(t("Addresses of machines"), { class: "wide" }, h("div", { class: "tools" }, field), table));
	fill(main, h("h1", {}, t("Network")), body, h("div", { class: "cards below" }, others), leases);

	function draw() {
		const all = store.all("subnets");
		if (!all.length) fill(body, h("p", { class: "empty wide" }, store.complete.has("subnets") ? [t("No Subnet yet: nobody gets an address from here."), " ", ref("/ui/start", {}, t("First steps"))] : t("loading")));
		else fill(body, all.map((s) => {
			const ok = condition(s, "Ready"), worries = (s.status?.conditions ?? []).filter((c) => c.type !== "Ready" && c.status === "True");
			const pool = pools.filter((p) => p.labels.subnet === s.metadata.name), total = pool.reduce((n, p) => n + p.value, 0), free = pool.find((p) => p.labels.state === "free")?.value ?? 0;
			return h("section", { class: "card" }, h("h2", {}, data(s.metadata.name)),
				ok?.status === "False" ? h("div", { class: "verdict bad" }, h("p", { class: "what" }, data(oneLine(ok.message, 600)))) : null, worries.map((c) => h("div", { class: "verdict bad" }, h("p", { class: "what" }, data(oneLine(c.message || c.type, 600))))),
				facts(["CIDR", s.spec.cidr], ["DHCP", s.spec.dhcp], [t("Discovery range"), s.spec.discovery], [t("Static range"), s.spec.static], [t("Gateway"), s.spec.gateway], ["DNS", (s.spec.dns ?? []).join(", ")], ["NTP", (s.spec.ntp ?? []).join(", ")], [t("Relays"), (s.spec.relays ?? []).join(", ")]),
				total ? use(pool, free, total) : null);
		}));
		const now = Date.now();
		fill(strangers, foreign.length ? [h("p", { class: "warn" }, t("Machines may take their offers instead of ours. Switch them off, or keep our machines out of them.")),
			grid([t("Address"), t("On our interface"), t("Last seen")], foreign.map((f) => [f.labels.server, f.labels.interface, when(new Date(f.value * 1000).toISOString(), now)]))]
			: h("p", { class: "quiet" }, t("None was noticed since the server started. To look for some:"), h("br"), h("code", {}, "coldrack doctor --probe-dhcp")));
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

	// use draws how much of a pool is taken, and by what.
	function use(pool, free, total) {
		const text = t("{0} of {1} addresses for discovery are free", free, total), of = (state) => pool.find((p) => p.labels.state === state)?.value ?? 0;
		return [h("p", { class: free / total < .1 ? "ill" : "quiet" }, text),
			h("div", { class: "gauge", role: "img", "aria-label": text }, states.filter((s) => s !== "free").map((s) => h("span", { class: "use-" + s, style: { width: 100 * of(s) / total + "%" } }))),
			h("p", { class: "legend" }, states.map((s) => h("span", {}, h("span", { class: "swatch use-" + s, "aria-hidden": "true" }), t(s), " ", h("b", {}, String(of(s))))))];
	}

	async function poll() {
		try {
			const all = await metrics(end.signal);
			pools = all.filter((m) => m.name === "coldrack_dhcp_pool_addresses");
			foreign = all.filter((m) => m.name === foreignSeen).sort((a, b) => b.value - a.value);
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

