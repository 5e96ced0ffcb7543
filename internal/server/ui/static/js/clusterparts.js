// A cluster's add-ons, the backups of its etcd, and the versions of Kubernetes that it could have.

import { follow, kindPath, lines, send } from "./api.js";
import { data, fill, h, oneLine } from "./dom.js";
import { t } from "./i18n.js";
import { bytes, order } from "./model.js";
import { card, facts, grid, when } from "./parts.js";
import { may, seldom, session } from "./shell.js";
import { store } from "./store.js";

/** addons of a cluster: those that every cluster has, and those that people gave it. draw(cluster) shows them anew. */
export function addons(name, signal) {
	const known = new Map(), element = card(t("Add-ons"), { class: "wide" }), body = h("div", {});
	element.append(body);
	let cluster = null, complete = false;
	function draw(c = cluster) {
		cluster = c;
		const now = Date.now(), own = (c?.status?.addons ?? []).filter((a) => !known.has(a.name)), given = [...known.values()].sort((a, b) => (a.spec.order ?? 0) - (b.spec.order ?? 0) || order(a.name, b.name));
		const rows = [...own.map((a) => ({ class: a.ready ? null : "ill", cells: [a.name, a.version ?? "", state(a.ready ? "Ready" : "not ready", a.ready), "", "", a.message ?? ""] })),
			...given.map((a) => {
				const s = a.status ?? {}, phase = s.phase || "Waiting", bad = phase === "Failed" || phase === "Drifted";
				return { class: bad ? "ill" : null, cells: [a.name, a.spec.version ?? "", state(phase, phase === "Ready"), s.healthy ?? "", when(s.appliedAt, now), said(s)] };
			})];
		fill(body, rows.length ? grid([t("Name"), t("Version"), t("State"), t("Healthy"), t("Applied"), t("Message")], rows) : h("p", { class: "quiet" }, complete ? t("none") : t("loading")));
	}
	const state = (word, good) => h("span", { class: good ? "ok" : null }, t(word));
	const said = (s) => [s.message ? data(oneLine(s.message, 600)) : null, (s.missingImages ?? []).length ? h("div", {}, t("Images that nobody has:"), " ", data(s.missingImages.join(", "))) : null,
		(s.left ?? []).length ? h("div", { class: "quiet" }, t("Stays in the cluster:"), " ", data(oneLine(s.left.join("; "), 600))) : null];
	follow(kindPath("addons"), {}, {
		// Their files may be large, and are not shown.
		put: (a) => { if (a.spec.cluster === name) known.set(a.metadata.name, { name: a.metadata.name, spec: { version: a.spec.version, order: a.spec.order }, status: a.status }); draw(); },
		drop: (n) => { known.delete(n); draw(); },
		listed: (names) => { for (const n of known.keys()) if (!names.has(n)) known.delete(n); complete = true; draw(); },
		state: () => {},
	}, signal);
	return { element, draw };
}

/** backups of a cluster's etcd. draw(cluster) shows how they stand, and lists them anew when there is another. */
export function backups(name, signal) {
	const standing = h("div", {}), kept = keeper("/coldrack/v1/clusters/" + encodeURIComponent(name) + "/backups", signal,
		(id) => [h("p", {}, t("What was written to the cluster since is lost, and its API is away meanwhile. So a restore is begun on the command line:")), h("pre", {}, "coldrack cluster restore " + name + " --from " + id)]);
	const element = card(t("Backups of etcd"), { class: "wide" }, standing, kept.elements);
	let seen = null;
	function draw(c) {
		const now = Date.now(), b = c.status?.backup, last = b?.last, restore = c.status?.restore, copied = (c.status?.conditions ?? []).find((x) => x.type === "BackupCopied");
		fill(standing,
			b?.error ? h("div", { class: "verdict bad" }, h("p", { class: "what" }, data(oneLine(b.error, 1000))), h("p", {}, t("{0} failures in a row", b.failures ?? 1))) : null,
			facts([t("Last good one"), last ? [data(last.id), " \u00b7 ", when(last.takenAt, now)] : t("none")], [t("Restored on trial"), last ? t("{0} keys, {1} MiB, written by etcd {2}", last.keys ?? 0, Math.ceil((last.size ?? 0) / 1048576), last.etcd ?? "?") : ""],
				[t("Next one"), b?.nextAt ? when(b.nextAt, now) : t("none by itself")], [t("Copies"), copied ? copied.message || copied.reason : ""], [t("Restore"), restore ? [restore.backup, restore.step, restore.message].filter(Boolean).join(" \u00b7 ") : ""]));
		if (seen === (last?.id ?? "")) return;
		seen = last?.id ?? "";
		kept.read();
	}
	return { element, draw };
}

/** ownBackups are those of the server's own store. */
export function ownBackups(signal) {
	const kept = keeper("/coldrack/v1/server/backups", signal, () => [h("p", {}, t("The server is stopped for a restore, or a new one begins with it. On its machine:")), h("pre", {}, "coldrack server restore --help")]);
	kept.read();
	return card(t("Backups of the server's own store"), { class: "wide" }, kept.elements);
}

/** keeper lists the backups at a path, each of which was restored on trial, and takes another one. restoring(id) says how one is restored. */
function keeper(path, signal, restoring) {
	const taking = h("div", { role: "status" }), list = h("div", {}), command = h("div", { role: "status" });
	const button = h("button", { data: { action: "backup" }, on: { click: take } }, t("Back up now"));
	const read = seldom(async () => {
		try {
			const response = await send("GET", path, { signal }), all = await response.json(), now = Date.now(), problem = response.headers.get("Coldrack-Problem");
			fill(list, problem ? h("p", { class: "warn" }, oneLine(problem, 600)) : null,
				all.length ? [h("p", { class: "quiet" }, t("Each of them was restored on trial before it counted.")), grid([t("Backup"), t("Taken"), t("Size"), t("Keys"), "etcd", "Kubernetes", t("Where"), t("Reason"), ""], all.map((b) => [b.id, when(b.takenAt, now), bytes(b.size), b.keys, b.etcd ?? "", b.kubernetes ?? "", (b.where ?? []).map((w) => t(w)).join(", "), b.reason ?? "",
					h("button", { data: { restore: b.id }, on: { click: () => fill(command, restoring(b.id)) } }, t("Restore"))])), command]
					: h("p", { class: "quiet" }, t("There is no backup yet.")));
		} catch (err) {
			if (!signal.aborted) fill(list, h("p", { class: "ill" }, oneLine(err.message)));
		}
	}, 1000);
	async function take() {
		button.disabled = true;
		fill(taking, h("p", {}, t("begins")));
		try {
			let done = null;
			for await (const line of lines(await send("POST", path, { body: {}, signal, headers: { Accept: "*/*" } }))) {
				if (!line) continue;
				const one = JSON.parse(line);
				if (one.error) throw new Error(one.error);
				if (one.backup) done = one.backup;
				else if (one.step === "copy") fill(taking, h("p", {}, t("copying: {0} of about {1}", bytes(one.done ?? 0), bytes(one.total ?? 0))), h("progress", { max: Math.max(1, one.total ?? 0), value: one.done ?? 0 }));
				else fill(taking, h("p", {}, one.step === "try" ? t("restoring it on trial") : t("keeping it")));
			}
			if (!done) throw new Error(t("the server's answer ended before the backup did"));
			fill(taking, h("p", { class: "ok" }, t("{0}: {1} keys, {2}", done.id, done.keys, bytes(done.size))));
			read();
		} catch (err) {
			if (!signal.aborted) fill(taking, h("p", { class: "ill" }, oneLine(err.message, 1000)));
		}
		button.disabled = false;
	}
	return { read, elements: [may() ? h("p", { class: "row" }, button) : h("p", { class: "quiet" }, t("To take a backup needs role operator; you have role {0}.", t(session.me.role))), taking, list] };
}

const numbers = (version) => /^v(\d+)\.(\d+)\.(\d+)/.exec(version)?.slice(1).map(Number);

/** offered are the versions of Kubernetes that bundles have and that a cluster may go to from where it is: of its minor release or the next. */
export function offered(version) {
	const have = numbers(version ?? ""), found = new Set();
	if (!have) return [];
	for (const b of store.all("bundles")) {
		for (const c of b.spec.contents ?? []) {
			const is = /\/kube-apiserver:(v\d+\.\d+\.\d+)$/.exec(c.name)?.[1], n = is && numbers(is);
			if (n && c.kind === "container" && n[0] === have[0] && (n[1] === have[1] && n[2] > have[2] || n[1] === have[1] + 1)) found.add(is);
		}
	}
	return [...found].sort(order);
}

/** updates is what a cluster could be upgraded to, and how. */
export function updates(c) {
	const from = c.spec.version, all = offered(from);
	return card(t("Updates"), {}, all.length ? [facts([t("Has"), from], [t("Bundles offer"), all.join(", ")]), h("p", {}, t("Write spec.version of the Cluster; this shows what would happen:")), h("pre", {}, "coldrack get cluster " + c.metadata.name + " -o yaml > cluster.yaml\ncoldrack plan -f cluster.yaml\ncoldrack apply -f cluster.yaml")]
		: h("p", { class: "quiet" }, t("No bundle here has a newer version that it could go to from {0}.", from)));
}
