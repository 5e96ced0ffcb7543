// What a machine is built of, what has become of it, and accepting that. The same rules as those of package drift: a test compares both.

import { get, kindPath, patch } from "./api.js";
import { data, fill, h, oneLine } from "./dom.js";
import { t } from "./i18n.js";
import { bytes, condition, quantity } from "./model.js";
import { card, facts, grid, when } from "./parts.js";
import { may, openDialog, session } from "./shell.js";

const mark = "coldrack.dev/accept-hardware", mostParts = 512;

// As Go compares texts: by their bytes, which is the order of code points.
function compare(a, b) {
	const x = [...a], y = [...b];
	for (let i = 0; i < Math.min(x.length, y.length); i++) if (x[i] !== y[i]) return x[i].codePointAt(0) - y[i].codePointAt(0);
	return x.length - y.length;
}

const space = "[\\t-\\r \\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]+", ends = new RegExp("^" + space + "|" + space + "$", "g");
const trim = (text) => text.replace(ends, "");

/** parts are what a machine consists of, in an order that depends on nothing but them. */
export function parts(hardware) {
	const all = [];
	const add = (p) => {
		const same = all.find((o) => o.kind === p.kind && o.id === p.id);
		if (same) same.count += p.count;
		else all.push(p);
	};
	for (const d of hardware.disks ?? []) add({ kind: "Disk", id: diskID(d), name: trim((d.model || "disk") + ", " + d.size + "B"), count: 1 });
	for (const m of hardware.memoryModules ?? [])
		add({ kind: "MemoryModule", id: trim((m.slot || "?") + " " + (m.serial || m.partNumber || m.size + "B")), name: [m.size + "B", m.type, m.manufacturer, m.partNumber].filter(Boolean).join(" "), count: 1 });
	for (const d of hardware.devices ?? []) if (!d.class.startsWith("0108")) add({ kind: "Device", id: d.id, name: d.name ?? "", accelerator: d.kind ?? "", count: d.count });
	for (const d of hardware.devices ?? []) {
		if (!slow(d.link)) continue;
		for (const address of d.addresses ?? []) add({ kind: "SlowLink", id: address, name: linkText(d) + " (" + (d.name || d.id) + ")", count: 1, width: d.link.width, speedMTs: d.link.speedMTs });
	}
	return all.sort((a, b) => compare(a.kind, b.kind) || compare(a.id, b.id)).slice(0, mostParts);
}

const diskID = (d) => d.serial || d.wwn || trim((d.model ?? "") + " " + d.size + "B");
const slow = (l) => l && !(l.width >= l.maxWidth && (l.speedMTs === 0 || l.speedMTs >= l.maxSpeedMTs));

function linkText(d) {
	const l = d.link, texts = [];
	if (l.width < l.maxWidth) texts.push("link x" + l.width + " instead of x" + l.maxWidth);
	if (l.speedMTs > 0 && l.speedMTs < l.maxSpeedMTs) texts.push(l.speedMTs / 1000 + " instead of " + l.maxSpeedMTs / 1000 + " GT/s");
	return texts.join(", ");
}

// Fields in the order and with the marks of Go's encoding/json.
const fields = [["kind"], ["id"], ["name", true], ["accelerator", true], ["count"], ["width", true], ["speedMTs", true]];
const asGo = (list) => (list.length ? JSON.stringify(list.map((p) => Object.fromEntries(fields.filter(([key, optional]) => !optional || p[key]).map(([key]) => [key, p[key]]))))
	.replace(/[<>&\u2028\u2029]/g, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0")) : "null");

/** digest stands for parts: a person accepts those that were shown, and no others. */
export async function digest(list) {
	const sum = new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(asGo(list))));
	return [...sum.slice(0, 8)].map((b) => b.toString(16).padStart(2, "0")).join("");
}

/** drifted says what has become of the accepted parts: missing and degraded, each as texts. */
export function drifted(accepted, now) {
	const find = (list, p) => list.find((o) => o.kind === p.kind && o.id === p.id), missing = [], degraded = [];
	for (const was of accepted) {
		if (was.kind === "SlowLink") continue;
		const gone = was.count - (find(now, was)?.count ?? 0);
		if (gone > 0) missing.push(text(was, gone));
	}
	for (const is of now) {
		if (is.kind !== "SlowLink") continue;
		const was = find(accepted, is);
		if (!was || is.width < (was.width ?? 0) || is.speedMTs < (was.speedMTs ?? 0)) degraded.push(is.id + " " + is.name);
	}
	return { missing, degraded };
}

function text(p, n) {
	let name = p.id;
	if (p.kind === "Device" && p.name) name = p.name + " (" + p.id + ")";
	else if (p.kind === "Disk") name = "disk " + p.id + " (" + (p.name ?? "") + ")";
	else if (p.kind === "MemoryModule") name = "memory module " + p.id + " (" + (p.name ?? "") + ")";
	return p.count > 1 ? n + " of " + p.count + " " + name : name;
}

/** section is the card about a machine's hardware, or null where it has not reported any. */
export function section(m, now) {
	const is = m.status?.hardware, accepted = m.status?.acceptedHardware, drift = condition(m, "HardwareDrift"), failing = condition(m, "DiskFailing");
	if (!is) return null;
	const firmware = is.firmware ?? {};
	return card(t("Built of"), { class: "wide" },
		drift?.status === "True" ? h("div", { class: "verdict bad" }, h("p", { class: "what" }, data(oneLine(drift.message, 1500))),
			may() ? h("p", {}, h("button", { data: { action: "accept-hardware" }, on: { click: () => ask(m.metadata.name) } }, t("Accept it"))) : h("p", {}, t("To accept it needs role operator; you have role {0}.", t(session.me.role)))) : null,
		failing?.status === "True" ? h("div", { class: "verdict bad" }, h("p", { class: "what" }, data(oneLine(failing.message, 1500)))) : null,
		facts([t("Reported"), when(is.reportedAt, now)], [t("Accepted"), accepted ? when(accepted.at, now) : t("nothing yet: that of an approved machine is accepted by itself")], ["BIOS", [firmware.biosVersion, firmware.biosDate].filter(Boolean).join(", ")], [t("Firmware of the BMC"), firmware.bmc], [t("Microcode"), firmware.microcode], [t("Not compared"), is.incomplete]),
		(is.devices ?? []).length ? [h("h3", {}, t("Devices")), grid([t("Number"), t("Name"), "ID", t("Kind"), t("Link"), "NUMA"], is.devices.map((d) => ({ class: slow(d.link) ? "warnrow" : null, cells: [d.count, d.name || d.className || d.class, d.id, d.kind ?? "",
			slow(d.link) ? h("span", { class: "warn" }, oneLine(linkText(d))) : d.link ? "x" + d.link.width : "", d.numaNode ?? ""] })))] : null,
		(is.memoryModules ?? []).length ? [h("h3", {}, t("Memory modules")), grid([t("Slot"), t("Size"), t("Type"), "MT/s", t("Model"), t("Serial")], is.memoryModules.map((d) => [d.slot ?? "", bytes(quantity(d.size)), [d.type, d.ecc ? "ECC" : ""].filter(Boolean).join(" "), d.speedMTs ? (d.maxSpeedMTs > d.speedMTs ? d.speedMTs + " / " + d.maxSpeedMTs : d.speedMTs) : "", [d.manufacturer, d.partNumber].filter(Boolean).join(" "), d.serial ?? ""])),
			(is.emptyMemorySlots ?? []).length ? h("p", { class: "quiet" }, t("Empty slots: {0}", oneLine(is.emptyMemorySlots.join(", "), 600))) : null] : null,
		(is.disks ?? []).some((d) => d.health || d.state) ? [h("h3", {}, t("Health of disks")), grid([t("Name"), t("Serial"), t("State"), t("Life used"), t("Spare"), "°C", t("Hours"), t("Media errors"), t("Written")], is.disks.filter((d) => d.health || d.state).map((d) => {
			const x = d.health, bad = d.state || x?.warnings?.length || x?.usedPercent >= 100;
			return { class: bad ? "ill" : null, cells: [d.name, d.serial ?? "", [d.state, ...(x?.warnings ?? [])].filter(Boolean).join(", "), x ? x.usedPercent + " %" : "", x ? x.sparePercent + " %" : "", x?.temperatureCelsius ?? "", x?.powerOnHours ?? "", x?.mediaErrors ?? "", x ? bytes(x.writtenBytes) : ""] };
		}))] : null);
}

/** ask shows what would be accepted, and accepts just that: when the machine reports something else meanwhile, the server does nothing. */
async function ask(name) {
	const error = h("p", { class: "error", role: "alert" }), submit = h("button", { class: "primary", value: "do", autofocus: true }, t("Accept it")), found = h("div", {});
	let seen = null;
	const form = h("form", {
		method: "dialog",
		on: {
			submit: async (event) => {
				event.preventDefault();
				submit.disabled = true;
				try {
					await patch(kindPath("machines", name), { metadata: { resourceVersion: seen.version, annotations: { [mark]: await digest(seen.now) } } });
					dialog.close();
				} catch (err) {
					submit.disabled = false;
					fill(error, err.status === 409 ? t("The machine was changed meanwhile. Look at it again.") : oneLine(err.message, 1000));
					if (err.status === 409) look();
				}
			},
		},
	}, h("h2", {}, t("Accept it"), ": ", data(name)), h("p", {}, t("What the machine reports now becomes what it is meant to have. Labels that count accelerators follow, so it may no longer fit the selector of its group.")), found, error,
	h("div", { class: "foot" }, h("button", { type: "button", value: "no", on: { click: () => dialog.close() } }, t("Cancel")), submit));
	const dialog = openDialog(h("dialog", { "aria-label": t("Accept it") }, form));
	async function look() {
		submit.disabled = true;
		try {
			const m = await get(kindPath("machines", name)), is = m.status?.hardware, known = m.status?.acceptedHardware;
			if (!is || is.incomplete || !known) throw new Error(t("There is nothing to accept: its hardware is not compared."));
			const now = parts(is), { missing, degraded } = drifted(known.parts ?? [], now);
			if (!missing.length && !degraded.length) throw new Error(t("There is nothing to accept: its hardware is what was accepted."));
			seen = { now, version: m.metadata.resourceVersion };
			const list = (title, texts) => (texts.length ? [h("h3", {}, title), h("ul", {}, texts.map((x) => h("li", {}, data(oneLine(x)))))] : null);
			fill(found, list(t("Missing"), missing), list(t("Degraded"), degraded));
			submit.disabled = false;
			submit.focus();
		} catch (err) {
			fill(found);
			fill(error, oneLine(err.message, 1000));
		}
	}
	look();
}
