// One cluster: which machine holds what, how far it is, what is done to it, who gets in, whether it works.

import { get, lines, send } from "./api.js";
import { buttons, scale } from "./clusteractions.js";
import { addons, backups, updates } from "./clusterparts.js";
import { clusterPhase, needsPerson, quorum } from "./clusters.js";
import { data, fill, h, oneLine, ref } from "./dom.js";
import { t } from "./i18n.js";
import { make, save } from "./kubeconfig.js";
import { age, stuck } from "./model.js";
import { card, facts, grid, timeline, when } from "./parts.js";
import { phaseMark } from "./racks.js";
import { go, keys, may, session } from "./shell.js";
import { store } from "./store.js";

export function mount(main, name) {
	const end = new AbortController();
	const own = addons(name, end.signal), kept = backups(name, end.signal), newer = h("div", {});
	const body = h("div", { class: "cards" }), access = card(t("Access"), {}), ends = card(t("What ends"), {}, h("p", { class: "quiet" }, t("loading"))), check = card(t("Does it work?"), { class: "wide" });
	fill(main, h("p", {}, ref("/ui/clusters", {}, "\u2190 " + t("Clusters"))), body, h("div", { class: "cards below" }, own.element, kept.element, access, newer, ends, check));
	drawAccess();
	drawCheck();

	function draw() {
		const c = store.objects.clusters.get(name);
		for (const one of [own.element, kept.element, newer]) one.hidden = !c;
		if (c) {
			own.draw(c);
			kept.draw(c);
			fill(newer, updates(c));
		}
		if (!c) return fill(body, h("p", { class: "empty wide" }, store.complete.has("clusters") ? t("There is no cluster {0}.", name) : t("loading")));
		const now = Date.now(), s = c.status ?? {}, why = needsPerson(c), groups = store.all("machinegroups").filter((g) => g.spec.cluster === name);
		const roles = new Map(groups.map((g) => [g.metadata.name, g.spec.roles]));
		const rows = (s.nodes ?? []).map((n) => {
			const row = store.objects.machines.get(n.machine), trouble = row ? stuck(row, now) : "";
			const state = n.ready ? h("span", { class: "ok" }, t("Ready")) : row && row.phase !== "Ready" ? phaseMark(row.phase) : h("span", { class: "ill" }, t("not ready"));
			return { class: n.ready ? null : "ill", cells: [ref("/ui/machines/" + encodeURIComponent(n.machine), {}, data(n.nodeName || n.machine)), n.group, (roles.get(n.group) ?? []).join(", ") + (n.etcd ? " \u25cf etcd" : ""), (n.addresses ?? [])[0] ?? "", n.version ?? "", state,
				[n.hand ? t("taken for {0}: {1}", n.hand.operation, n.hand.step || n.hand.message || n.hand.reason || "") : "", n.leaving ? t("leaves: {0}", n.leaving) : "", row?.step, trouble || row?.bringUp, n.message].filter(Boolean).join(" \u00b7 ")] };
		});
		const work = s.work ?? {};
		fill(body,
			h("section", { class: "card wide" }, h("h1", {}, data(name)), h("p", { class: "row" }, clusterPhase(c), s.nodesReady ? h("span", { class: "quiet" }, t("{0} nodes ready", s.nodesReady)) : null),
				why || s.message ? h("div", { class: "verdict" + (why ? " bad" : "") }, h("p", { class: "what" }, data(oneLine(why || s.message, 1000)))) : null,
				buttons(c),
				facts([t("Version"), s.version && s.version !== c.spec.version ? c.spec.version + ", " + t("runs {0}", s.version) : c.spec.version], [t("Topology"), c.spec.topology], [t("Endpoint"), s.endpoint], [t("Virtual IP"), c.spec.endpoint?.virtualIP?.address],
					[t("Pods"), (c.spec.network?.podCIDRs ?? []).join(", ")], [t("Services"), (c.spec.network?.serviceCIDRs ?? []).join(", ")], [t("Network"), [c.spec.network?.plugin, c.spec.network?.proxy].filter(Boolean).join(", ")])),
			card(t("Quorum of etcd"), { class: "wide" }, quorum(c)),
			card(t("What is done now"), { class: "wide" },
				s.failure ? h("div", { class: "verdict bad" }, h("p", { class: "what" }, data(s.failure.node), ": ", data(oneLine(s.failure.reason, 1000))), h("p", {}, t("This stops all other changes until the Cluster or one of its groups is written anew, or resumed."), " ", when(s.failure.at, now))) : null,
				list(t("Needs a person"), work.blocks, "ill"), steps(work.steps, now), list(t("Waits by itself"), work.waits, "quiet"), work.nextWindow ? h("p", { class: "quiet" }, t("The next maintenance window opens"), " ", when(work.nextWindow, now)) : null,
				!s.failure && !work.blocks?.length && !work.steps?.length && !work.waits?.length ? h("p", { class: "quiet" }, t("Nothing.")) : null),
			rotation(s.rotation, now),
			(s.steps ?? []).length ? card(t("Bring-up"), { class: "wide" }, timeline(s.steps, now)) : null,
			card(t("Nodes"), { class: "wide" }, rows.length ? grid([t("Node"), t("Group"), t("Roles"), t("Address"), t("Version"), t("State"), t("Message")], rows) : h("p", { class: "quiet" }, t("No machine belongs to it yet."))),
			card(t("Groups"), { class: "wide" }, groups.length ? grid([t("Name"), t("Roles"), t("Wanted"), t("There"), t("Ready"), t("Profile"), t("Message"), ""], groups.map((g) => [g.metadata.name, g.spec.roles.join(", "), g.spec.replicas ?? 1, g.status?.replicas ?? 0, g.status?.readyReplicas ?? 0, g.spec.profile ?? "", g.status?.message ?? "", scale(g)])) : h("p", { class: "quiet" }, t("none"))),
			(s.history ?? []).length ? card(t("What was done"), { class: "wide" }, grid([t("Ended"), t("Operation"), t("Step"), t("Node"), t("Took"), t("Reason"), t("Error")], [...s.history].reverse().map((x) => ({ class: x.error ? "ill" : null,
				cells: [when(x.finishedAt, now), x.operation, x.kind, x.node ?? "", x.startedAt && x.finishedAt ? age(Date.parse(x.finishedAt) - Date.parse(x.startedAt)) : "", x.reason ?? "", x.error ?? ""] })))) : null,
			(s.conditions ?? []).length ? card(t("Conditions"), { class: "wide" }, grid([t("Name"), t("State"), t("Reason"), t("Message"), t("Since")], s.conditions.map((x) => [x.type, x.status, x.reason ?? "", x.message ?? "", when(x.lastTransitionTime, now)]))) : null);
	}

	const list = (title, texts, look) => (texts?.length ? [h("h3", {}, title), h("ul", { class: look }, texts.map((x) => h("li", {}, data(oneLine(x, 1000)))))] : null);
	const steps = (all, now) => (all?.length ? grid([t("Operation"), t("Step"), t("Node"), t("Since"), t("Reason")], all.map((x) => [x.operation, x.kind, x.node ?? "", x.startedAt ? age(now - Date.parse(x.startedAt)) : "", x.reason ?? ""])) : null);

	// rotation of a key, under way or the last one.
	function rotation(r, now) {
		if (!r) return null;
		return card(t("Replacement of a key"), {}, facts([t("Key"), r.key], [t("Stage"), r.stage], [t("Since"), when(r.since, now)], [t("Secrets written anew"), r.secrets ? t("{0} of {1}", r.rewritten ?? 0, r.secrets) : ""],
			[t("Asked for by"), r.requestedBy ?? ""], [t("Message"), r.message ?? ""]));
	}

	function drawAccess() {
		const said = h("p", { role: "status" });
		const button = h("button", {
			data: { action: "kubeconfig" },
			on: {
				click: async () => {
					button.disabled = true;
					fill(said);
					try {
						const { text, answer } = await make(name, session.me.user);
						save(name + ".kubeconfig", text);
						fill(said, t("{0} ({1}), until {2}. The key was made in this browser.", answer.user, answer.groups.join(", "), new Date(answer.expiresAt).toLocaleString()));
					} catch (err) {
						fill(said, h("span", { class: "ill" }, oneLine(err.message)));
					}
					button.disabled = false;
				},
			},
		}, t("Download a kubeconfig"));
		fill(access, h("h2", {}, t("Access")), h("p", {}, { viewer: t("With role viewer it may look."), operator: t("With role operator it may change workloads."), admin: t("With role admin it may do everything in the cluster.") }[session.me.role] ?? ""), button, said);
	}

	function drawCheck() {
		const results = h("div", {}), pods = h("input", { type: "checkbox", checked: true });
		const button = h("button", {
			data: { action: "verify" },
			on: {
				click: async () => {
					button.disabled = true;
					const rows = [];
					const show = (sum) => fill(results, h("p", { role: "status" }, sum), rows.length ? grid([t("Result"), t("Check"), t("Target"), t("Took"), t("Found")], rows) : null);
					show(t("running"));
					let failed = 0;
					try {
						const response = await send("POST", "/coldrack/v1/clusters/" + encodeURIComponent(name) + "/verify" + (pods.checked ? "" : "?pods=no"), { body: {}, signal: end.signal, headers: { Accept: "*/*" } });
						let done = false;
						for await (const line of lines(response)) {
							if (!line) continue;
							const one = JSON.parse(line);
							if (one.error) throw new Error(one.error);
							if (one.done) { done = true; break; }
							if (!one.check.ok) failed++;
							const row = { class: one.check.ok ? null : "ill", cells: [one.check.ok ? h("span", { class: "ok" }, t("ok")) : t("failed"), one.check.name, one.check.target, (one.check.duration / 1e9).toFixed(1) + "s", one.check.detail] };
							if (one.check.ok) rows.push(row);
							else rows.unshift(row);
							show(t("running"));
						}
						if (!done) throw new Error(t("the verification ended early"));
						show(failed ? h("span", { class: "ill" }, t("{0} of {1} checks failed", failed, rows.length)) : h("span", { class: "ok" }, t("all {0} checks passed", rows.length)));
					} catch (err) {
						if (!end.signal.aborted) show(h("span", { class: "ill" }, oneLine(err.message)));
					}
					button.disabled = false;
				},
			},
		}, t("Verify"));
		fill(check, h("h2", {}, t("Does it work?")), may() ? h("p", { class: "row" }, button, h("label", {}, pods, " ", t("with probe pods in the cluster"))) : h("p", { class: "quiet" }, t("To verify needs role operator; you have role {0}.", t(session.me.role))), results);
	}

	get("/coldrack/v1/expiry", { signal: end.signal }).then((all) => {
		const now = Date.now(), mine = all.filter((x) => x.cluster === name);
		fill(ends, h("h2", {}, t("What ends")), mine.length ? grid([t("Certificate"), t("Of"), t("Ends"), ""], mine.map((x) => ({ class: x.overdue ? "ill" : null, cells: [x.certificate, x.name ?? "", when(x.until, now), x.overdue ?? t("renewed in time by itself")] }))) : h("p", { class: "quiet" }, t("nothing is known yet")));
	}).catch((err) => { if (!end.signal.aborted) fill(ends, h("h2", {}, t("What ends")), h("p", { class: "ill" }, oneLine(err.message))); });

	const stop = store.on((changed) => { if (["clusters", "machinegroups", "machines", "bundles"].some((k) => changed.has(k))) draw(); });
	const endKeys = keys({ Escape: [t("back to all clusters"), () => go("/ui/clusters")] });
	draw();
	return () => { stop(); endKeys(); end.abort(); };
}
