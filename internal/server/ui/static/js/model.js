// What is known of machines, in words and numbers: pure functions, the same rules as those of the command line (package cli).

/** phases: trouble first, then the order of a machine's life. */
export const phases = ["Failed", "Lost", "Expected", "Discovering", "Waiting", "Approved", "Installing", "Rebooting", "Ready", "Releasing", "Released"];

const minute = 60e3;
/** patience is how long a machine may stay in a phase before a person should look, in milliseconds. */
const patience = { Discovering: 15 * minute, Approved: 15 * minute, Rebooting: 15 * minute, Installing: 60 * minute, Releasing: 60 * minute };

/** advice is what to do about a phase; messages of machines are more exact. */
export const advice = {
	Failed: "Read the message and the log. Repair the cause, then install it again.",
	Lost: "Look at its power and its network cable, then at its console.",
	Expected: "It was never seen. Look at its cable, its boot order, and the MAC in the rack sheet.",
	Discovering: "It asked for a boot and has not reported. Look at its console; it needs 400 MiB of memory.",
	Waiting: "It waits for approval. Approve it, or write an EnrollmentPolicy.",
	Approved: "The install has not begun. The message names what is missing; otherwise power it on.",
	Installing: "Steps are running.",
	Rebooting: "It is installed and was not heard of from its disk. Look at its boot order and its console.",
	Ready: "It runs from its disk and reports.",
	Releasing: "Its disks are being wiped.",
	Released: "It was wiped. Approve and install it again, or delete it.",
};

const phaseOf = (m) => m.status?.phase || "Expected";

/** stuck says why a machine will not get on without a person, or "". row is one of rowOf. */
export function stuck(row, now) {
	if (row.phase === "Failed" || row.phase === "Lost") return row.message || row.phase.toLowerCase();
	if (row.conflict) return row.conflict;
	const limit = patience[row.phase];
	if (limit && row.phaseSince && now - row.phaseSince > limit)
		return row.phase.toLowerCase() + " for " + age(now - row.phaseSince) + (row.message ? ": " + row.message : "");
	return "";
}

/** progressOf is the running or failed step, or null. */
export function progressOf(steps) {
	const i = (steps ?? []).findIndex((s) => s.state === "Running" || s.state === "Failed");
	if (i < 0) return null;
	const s = steps[i], measured = s.bytesTotal > 0;
	return {
		step: s.name, number: i + 1, total: steps.length, state: s.state, message: s.message ?? "",
		measured, fraction: measured ? Math.min(1, (s.bytesDone ?? 0) / s.bytesTotal) : 0,
	};
}

/** progressText is few words: "image 43% (6/10)". */
export function progressText(p) {
	let text = p.step;
	if (p.state === "Failed") text += " failed";
	else if (p.measured) text += " " + Math.trunc(p.fraction * 100) + "%";
	return text + " (" + p.number + "/" + p.total + ")";
}

/** overall is the fraction of the whole operation. Steps that move data count as much as all others together. */
export function overall(steps) {
	let done = 0, total = 0;
	for (const s of steps ?? []) {
		const weight = s.bytesTotal > 0 || s.name === "image" ? Math.max(1, steps.length - 1) : 1;
		total += weight;
		if (s.state === "Succeeded" || s.state === "Skipped") done += weight;
		else if ((s.state === "Running" || s.state === "Failed") && s.bytesTotal > 0) done += weight * Math.min(1, (s.bytesDone ?? 0) / s.bytesTotal);
	}
	return total ? done / total : 0;
}

const acts = new Set(["Installing", "Releasing", "Failed", "Lost"]);

/** age is a duration of milliseconds in at most two units: 42s, 3m20s, 5h12m, 8d. */
export function age(ms) {
	const s = Math.max(0, Math.trunc(ms / 1000)), m = Math.trunc(s / 60), hours = Math.trunc(m / 60);
	const two = (n) => String(n).padStart(2, "0");
	if (s < 60) return s + "s";
	if (m < 10) return m + "m" + two(s % 60) + "s";
	if (m < 60) return m + "m";
	if (hours < 24) return hours + "h" + two(m % 60) + "m";
	return Math.trunc(hours / 24) + "d";
}

/** bytes is a size in binary units: 512 B, 8.0 GiB. */
export function bytes(n) {
	if (n < 1024) return n + " B";
	let value = n / 1024, i = 0;
	while (value >= 1024 && i < 5) [value, i] = [value / 1024, i + 1];
	return value.toFixed(1) + " " + "KMGTPE"[i] + "iB";
}

const suffixes = { Ki: 2 ** 10, Mi: 2 ** 20, Gi: 2 ** 30, Ti: 2 ** 40, Pi: 2 ** 50, Ei: 2 ** 60, m: 1e-3, k: 1e3, M: 1e6, G: 1e9, T: 1e12, P: 1e15, E: 1e18 };

/** quantity is the number that Kubernetes writes as 16Gi, or NaN. */
export function quantity(text) {
	const match = /^([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)(Ki|Mi|Gi|Ti|Pi|Ei|m|k|M|G|T|P|E)?$/.exec(String(text ?? ""));
	return match ? Number(match[1]) * (suffixes[match[2]] ?? 1) : NaN;
}

export const addressOf = (m) => m.status?.address || m.spec?.network?.address || m.status?.lease?.address || "";

const time = (text) => (text ? Date.parse(text) : 0);

export const condition = (object, type) => (object.status?.conditions ?? []).find((c) => c.type === type);

/** openIntent is the intent that has yet to be carried out, or null. */
function openIntent(m) {
	const intent = m.spec?.intent, status = m.status?.intent;
	if (!intent) return null;
	if (status?.id === intent.id) return status.state === "Succeeded" || status.state === "Failed" ? null : intent;
	return (m.status?.pastIntents ?? []).includes(intent.id) ? null : intent;
}

export const intentState = (m) => (m.status?.intent && m.status.intent.id === m.spec?.intent?.id ? m.status.intent.state : "Pending");

/** rowOf is what tables and racks need of a Machine, so that ten thousand fit into the memory of an old laptop. */
export function rowOf(m) {
	const s = m.status ?? {}, system = s.inventory?.system ?? {}, k = s.kubernetes, at = m.spec?.location ?? {};
	const phase = phaseOf(m), conflict = condition(m, "IdentityConflict"), acting = acts.has(phase);
	const p = acting ? progressOf(s.steps) : null;
	const bringing = k && !k.done && phase === "Ready";
	const kp = bringing ? progressOf(k.phases) : null;
	const row = {
		name: m.metadata.name, labels: m.metadata.labels ?? {}, version: m.metadata.resourceVersion,
		phase, since: time(s.phaseSince) || time(m.metadata.creationTimestamp), phaseSince: time(s.phaseSince), message: s.message ?? "",
		step: p ? progressText(p) : kp ? progressText(kp) : acting ? s.currentStep ?? "" : "",
		fraction: acting ? overall(s.steps) : bringing ? overall(k.phases) : -1,
		bringUp: bringing ? (kp?.state === "Failed" ? kp.step + ": " + kp.message : k.message ?? "") : "",
		conflict: conflict?.status === "True" ? conflict.message || "shares identifiers with another machine" : "",
		address: addressOf(m), lease: s.lease?.address ?? "", subnet: s.lease?.subnet ?? m.spec?.network?.subnet ?? "", mac: s.lease?.mac ?? m.spec?.identifiers?.macs?.[0] ?? "", site: at.site ?? "", room: at.room ?? "", rack: at.rack ?? "", unit: at.unit ?? 0,
		serial: system.serial || m.spec?.identifiers?.serial || "", model: ((system.vendor ?? "") + " " + (system.product ?? "")).trim(),
		hostname: m.spec?.hostname ?? "", approved: !!m.spec?.approved, profile: m.spec?.profile ?? "", image: s.installed?.image ?? "",
		cluster: k?.cluster ?? "", roles: (k?.roles ?? []).join(" "),
	};
	row.text = [row.name, row.hostname, row.address, row.serial, row.model, row.rack, row.room, row.site, row.cluster, row.message].join("\n").toLowerCase();
	return row;
}

/** order compares names as people do: node-2 before node-10. */
export const order = new Intl.Collator("en", { numeric: true }).compare;

/** messageOf is what a table says of a machine. */
export const messageOf = (row, now) => stuck(row, now) || row.bringUp || row.message;

/** urgency orders machines by how much they need a person. */
export function urgency(row, now) {
	if (stuck(row, now)) return 0;
	if (row.phase === "Installing" || row.phase === "Releasing" || row.phase === "Rebooting") return 1;
	if (row.phase === "Waiting") return 2;
	return row.phase === "Ready" ? 4 : 3;
}

/** filter makes a predicate over rows of what a person typed: words, is:stuck, phase:failed,lost, rack:a1, cluster:c, label=value. */
export function filter(text) {
	const tests = [];
	for (const word of text.trim().split(/\s+/).filter(Boolean)) {
		const lower = word.toLowerCase(), colon = lower.indexOf(":"), equal = word.indexOf("=");
		const key = colon > 0 ? lower.slice(0, colon) : "", values = colon > 0 ? lower.slice(colon + 1).split(",") : [];
		const one = (field) => tests.push((r) => values.includes(String(r[field]).toLowerCase()));
		if (lower === "is:stuck") tests.push((r, now) => stuck(r, now) !== "");
		else if (["phase", "rack", "room", "site", "cluster", "profile", "image", "name"].includes(key)) one(key);
		else if (equal > 0) tests.push((r) => r.labels[word.slice(0, equal)] === word.slice(equal + 1));
		else tests.push((r) => r.text.includes(lower));
	}
	return (row, now) => tests.every((t) => t(row, now));
}

/** placeOf is rack and unit in words. */
export const placeOf = (row) => (row.unit > 0 ? row.rack + "/" + row.unit : row.rack);

/** refusal says why an action cannot be asked of a machine now, or "". replace gives up an earlier request. */
export function refusal(m, action, replace) {
	const open = openIntent(m);
	const running = open && intentState(m) === "Running" && phaseOf(m) !== "Lost";
	if (open && (running || !replace))
		return "its " + open.action.toLowerCase() + (running ? " is running" : " has not begun") + (open.requestedBy ? ", asked for by " + open.requestedBy : "");
	if (action !== "Release" && !m.spec?.approved) return "it is not approved";
	if (action === "Install" && m.status?.installed) return m.status.installed.image + " is installed already; reinstall replaces it";
	if (action === "Reinstall" && !m.status?.installed) return "it was never installed; install does that";
	return "";
}
