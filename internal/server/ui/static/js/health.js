// The server itself, as far as its API tells: what coldrack doctor knows of the host is only on the host.

import { get, send } from "./api.js";
import { ownBackups } from "./clusterparts.js";
import { fill, h, oneLine } from "./dom.js";
import { t } from "./i18n.js";
import { bytes } from "./model.js";
import { card, facts, grid, when } from "./parts.js";
import { metrics } from "./network.js";
import { keys } from "./shell.js";

// What is judged of the metrics: bad is what needs a person now, warn what somebody should look at.
const rules = [
	{ name: "coldrack_store_full", bad: (v) => v > 0, text: "The store is full and refuses writes. Delete what is not needed." },
	{ name: "coldrack_store_lost", bad: (v) => v > 0, text: "The store is not there; machines are answered from a copy." },
	{ name: "coldrack_disk_reserve_bytes", bad: (v) => v === 0, text: "The disk is full and the reserve was given up. The next full disk ends the store." },
	{ name: "coldrack_audit_waiting_bytes", bad: (v) => v > 0, text: "Audit records wait for a disk that takes them; writes may be refused." },
	{ name: "coldrack_audit_lost_records_total", warn: (v) => v > 0, text: "Audit records were lost since the start." },
	{ name: "coldrack_audit_export_dropped_total", warn: (v) => v > 0, text: "Audit records were not sent on since the start; the file has them." },
	{ name: "coldrack_dhcp_foreign_servers_total", warn: (v) => v > 0, text: "Another DHCP server answers on a segment." },
	{ name: "coldrack_dhcp_conflicts_total", warn: (v) => v > 0, text: "Addresses were found in use by somebody they were not given to." },
	{ name: "coldrack_dhcp_store_failures_total", bad: (v) => v > 0, text: "Leases could not be written: look at the disk." },
	{ name: "coldrack_boot_http_refused_connections_total", warn: (v) => v > 0, text: "Connections to boot HTTP were closed because their client had too many." },
];

export function mount(main) {
	const end = new AbortController();
	const found = h("div", {}), ends = h("div", {}), store = h("div", {}), traffic = h("div", {});
	fill(main, h("h1", {}, t("Health")), h("div", { class: "cards" },
		card(t("What needs somebody"), { class: "wide" }, found), card(t("Certificates"), { class: "wide" }, ends), card(t("Store and disk"), {}, store), card(t("Boots and transfers"), {}, traffic), ownBackups(end.signal),
		card(t("On the server's machine"), {}, h("p", {}, t("Ports, interfaces, clock, disk and other DHCP servers are looked at by:")), h("pre", {}, "coldrack doctor\ncoldrack doctor --probe-dhcp"))));

	async function look() {
		const now = Date.now();
		try {
			const [values, expiry, ready] = await Promise.all([metrics(end.signal), get("/coldrack/v1/expiry", { signal: end.signal }),
				send("GET", "/readyz?verbose", { signal: end.signal, headers: { Accept: "text/plain" } }).then((r) => r.text(), (err) => err.message)]);
			const one = (name) => values.find((v) => v.name === name)?.value, sum = (name) => values.filter((v) => v.name === name).reduce((n, v) => n + v.value, 0);
			const worries = rules.flatMap((r) => values.filter((v) => v.name === r.name).map((v) => ({ ...r, value: v.value }))).filter((r) => r.bad?.(r.value) || r.warn?.(r.value));
			const unready = ready.split("\n").filter((l) => l.startsWith("[-]")), overdue = expiry.filter((e) => e.overdue);
			fill(found, worries.map((r) => h("p", { class: r.bad?.(r.value) ? "ill" : "warn" }, t(r.text), r.value > 1 ? " (" + r.value + ")" : "")), unready.map((l) => h("p", { class: "ill" }, oneLine(l))), overdue.map((e) => h("p", { class: "ill" }, oneLine([e.certificate, e.cluster, e.name, e.overdue].filter(Boolean).join(" \u00b7 "), 600))),
				worries.length + unready.length + overdue.length ? null : h("p", { class: "ok" }, t("Nothing, as far as the server knows.")));
			fill(ends, grid([t("Certificate"), t("Cluster"), t("Of"), t("Ends"), ""], [...expiry].sort((a, b) => Date.parse(a.until) - Date.parse(b.until)).map((e) => ({ class: e.overdue ? "ill" : null, cells: [e.certificate, e.cluster ?? "", e.name ?? "", when(e.until, now), e.overdue ?? ""] }))));
			const size = (name) => (one(name) === undefined ? "" : bytes(one(name)));
			fill(store, facts([t("Store in use"), one("coldrack_store_in_use_bytes") === undefined ? "" : t("{0} of {1}", size("coldrack_store_in_use_bytes"), size("coldrack_store_quota_bytes"))], [t("Free on the disk"), size("coldrack_disk_free_bytes")], [t("Held in reserve"), size("coldrack_disk_reserve_bytes")],
				[t("Audit records kept"), one("coldrack_audit_records_total") ?? ""], [t("Version"), values.find((v) => v.name === "coldrack_build_info")?.labels.version ?? ""]));
			fill(traffic, facts([t("Boots answered"), String(sum("coldrack_boots_total"))], [t("DHCP without an answer"), String(sum("coldrack_dhcp_unanswered_total"))], [t("TFTP sent"), size("coldrack_tftp_sent_bytes_total")], [t("TFTP sent again"), String(sum("coldrack_tftp_retransmits_total"))],
				[t("Boot HTTP sent"), size("coldrack_boot_http_sent_bytes_total")], [t("Boot HTTP errors"), String(sum("coldrack_boot_http_errors_total"))], [t("Container images sent"), size("coldrack_registry_sent_bytes_total")]));
		} catch (err) {
			if (!end.signal.aborted) fill(found, h("p", { class: "ill" }, oneLine(err.message)));
		}
	}
	look();
	const clock = setInterval(look, 10e3), endKeys = keys({});
	return () => { end.abort(); clearInterval(clock); endKeys(); };
}
