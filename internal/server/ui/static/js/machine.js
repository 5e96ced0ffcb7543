// One machine: what it is, what is being done, what was done, what it said.

import { ask, buttons, list as actions } from "./actions.js";
import { follow, kindPath, lines, pause, send } from "./api.js";
import { data, fill, h, oneLine, ref, visible } from "./dom.js";
import { t } from "./i18n.js";
import { bytes, intentState, quantity, rowOf } from "./model.js";
import { card, facts, grid, timeline, when } from "./parts.js";
import { section } from "./hardware.js";
import { summary } from "./racks.js";
import { go, keys } from "./shell.js";

const logLines = 500;

export function mount(main, name) {
	const end = new AbortController(), body = h("div", { class: "cards" }, h("p", { class: "empty wide" }, t("loading")));
	const log = h("pre", { class: "log", tabindex: "0", "aria-label": t("Log") }), logState = h("p", { class: "quiet" });
	const logCard = card(t("Log"), { class: "wide" }, logState, log);
	fill(main, h("p", {}, ref("/ui/machines", {}, "\u2190 " + t("Machines"))), body, h("div", { class: "cards below" }, logCard));
	let m = null, drawn = "";

	function draw() {
		if (!m) return;
		const now = Date.now(), s = m.status ?? {}, running = (s.steps ?? []).some((x) => x.state === "Running") || (s.kubernetes?.phases ?? []).some((x) => x.state === "Running");
		// A picture of the same version changes only while something runs, or by the minute.
		const key = m.metadata.resourceVersion + (running ? now : Math.trunc(now / 60e3));
		if (key === drawn) return;
		drawn = key;
		const focus = body.contains(document.activeElement) ? document.activeElement.dataset.action : "";
		const i = s.inventory, spec = m.spec ?? {}, k = s.kubernetes;
		fill(body,
			h("section", { class: "card wide" }, summary(rowOf(m), now, buttons(() => [name]))),
			(s.steps ?? []).length ? card(t("Steps"), { class: "wide" }, h("p", { class: "quiet" }, spec.intent && s.intent ? [t(s.intent.action), " · ", t(s.intent.state)] : null), timeline(s.steps, now)) : null,
			k ? card(t("In its cluster"), { class: "wide" }, facts([t("Cluster"), ref("/ui/clusters/" + encodeURIComponent(k.cluster), {}, data(k.cluster))], [t("Node"), k.node], [t("Roles"), (k.roles ?? []).join(", ")], [t("Version"), k.version],
				[t("Message"), k.message], [t("First certificate ends"), when(k.certificatesExpireAt, now)]), (k.phases ?? []).length ? timeline(k.phases, now) : null) : null,
			card(t("Hardware"), {}, i ? facts([t("Model"), [i.system.vendor, i.system.product].filter(Boolean).join(" ")], [t("Serial"), i.system.serial], ["UUID", i.system.uuid], [t("Asset tag"), i.system.assetTag],
				[t("Processor"), [i.cpu.model, i.cpu.sockets ? i.cpu.sockets + " × " + i.cpu.cores / i.cpu.sockets + " " + t("cores") : "", i.cpu.threads ? i.cpu.threads + " " + t("threads") : ""].filter(Boolean).join(", ")],
				[t("Memory"), bytes(quantity(i.memory))], [t("Firmware"), [i.firmware, i.system.biosVersion, i.secureBoot ? "Secure Boot" : "", i.tpm ? "TPM " + i.tpm : ""].filter(Boolean).join(", ")], ["BMC", i.bmc?.address], [t("Reported"), when(i.reportedAt, now)])
				: h("p", { class: "quiet" }, t("It has not reported what it is."))),
			card(t("Addresses"), {}, facts([t("Last seen at"), s.address], [t("Lease"), s.lease ? [s.lease.address, s.lease.subnet, s.lease.mac].filter(Boolean).join(" · ") : ""], [t("Planned"), spec.network ? [spec.network.address, spec.network.subnet, spec.network.mac].filter(Boolean).join(" · ") : ""],
				[t("Of the node"), (s.node?.addresses ?? []).join(", ")], [t("Interface"), s.node?.interface], ["MAC", (spec.identifiers?.macs ?? []).join(", ")], ["BMC", spec.bmc?.address])),
			card(t("System"), {}, facts([t("Image"), s.installed?.image], [t("Disk"), s.installed?.disk], [t("Profile"), spec.profile], [t("Installed"), when(s.installed?.at, now)], [t("Running"), s.node ? [s.node.os, s.node.kernel].filter(Boolean).join(", ") : ""], [t("Agent"), s.node?.agentVersion],
				[t("Started"), when(s.node?.bootedAt, now)], [t("Failed units"), (s.node?.failedUnits ?? []).join(", ")], [t("Identity until"), when(s.identity?.expiresAt, now)])),
			i?.disks?.length ? card(t("Disks"), { class: "wide" }, grid([t("Name"), t("Size"), t("Model"), t("Serial"), t("Contents")], i.disks.map((d) => [d.name, bytes(quantity(d.size)), [d.vendor, d.model, d.transport, d.rotational ? t("spinning") : "", d.removable ? t("removable") : ""].filter(Boolean).join(" "), d.serial ?? "", (d.contents ?? []).join(", ")]))) : null,
			i?.nics?.length ? card(t("Network cards"), { class: "wide" }, grid([t("Name"), "MAC", t("Link"), t("Switch port")], i.nics.map((n) => [n.name + (n.boot ? " (" + t("boot") + ")" : ""), n.mac, n.link ? (n.speedMbps ? n.speedMbps / 1000 + " Gbit/s" : t("up")) : t("none"), n.lldp ? [n.lldp.systemName || n.lldp.chassisID, n.lldp.portID].filter(Boolean).join(" ") : ""]))) : null,
			section(m, now),
			(s.boots ?? []).length ? card(t("Last boots, and why"), { class: "wide" }, grid([t("When"), t("Told to"), t("Because"), t("Firmware"), "MAC"], s.boots.map((b) => [when(b.at, now), t(b.action), b.reason ?? "", b.firmware ?? "", b.mac ?? ""]))) : null,
			card(t("What was asked of it"), {}, facts([t("Approved"), spec.approved ? t("yes") : t("no")], [t("By policy"), m.metadata.annotations?.["coldrack.dev/enrolled-by"]],
				[t("Asked for"), spec.intent ? [t(spec.intent.action), " · ", t(intentState(m)), spec.intent.requestedBy ? [" · ", data(spec.intent.requestedBy)] : null] : ""], [t("When"), when(spec.intent?.requestedAt, now)],
				[t("Attempts"), s.intent?.attempts], [t("Ended"), when(s.intent?.finishedAt, now)], [t("Before that"), (s.pastIntents ?? []).length || ""], [t("Created"), when(m.metadata.creationTimestamp, now)])),
			card(t("Labels"), {}, facts(...Object.entries(m.metadata.labels ?? {})), Object.keys(m.metadata.labels ?? {}).length ? null : h("p", { class: "quiet" }, t("none"))),
			(s.conditions ?? []).length ? card(t("Conditions"), { class: "wide" }, grid([t("Name"), t("State"), t("Reason"), t("Message"), t("Since")], s.conditions.map((c) => [c.type, c.status, c.reason ?? "", c.message ?? "", when(c.lastTransitionTime, now)]))) : null);
		if (focus) body.querySelector(`[data-action="${CSS.escape(focus)}"]`)?.focus();
	}

	follow(kindPath("machines"), { fieldSelector: "metadata.name=" + name }, {
		put: (object) => { m = object; draw(); },
		drop: () => gone(),
		listed: (names) => { if (!names.has(name)) gone(); },
		state: () => {},
	}, end.signal);

	function gone() {
		m = null;
		fill(body, h("p", { class: "empty wide" }, t("There is no machine {0}.", visible(name))));
	}

	(async () => {
		const kept = [];
		for (let wait = 1000; !end.signal.aborted; wait = Math.min(2 * wait, 8000)) {
			try {
				const response = await send("GET", "/coldrack/v1/machines/" + encodeURIComponent(name) + "/log?follow=1", { signal: end.signal, headers: { Accept: "text/plain" } });
				kept.length = 0;
				fill(logState, t("The last lines that its agent and the server said of it, in UTC. They are in memory: a restart of the server ends them."));
				for await (const line of lines(response)) {
					kept.push(line);
					if (kept.length > logLines) kept.shift();
					const bottom = log.scrollTop + log.clientHeight > log.scrollHeight - 30;
					fill(log, kept.map((l) => oneLine(l, 2000)).join("\n"));
					if (bottom) log.scrollTop = log.scrollHeight;
				}
				wait = 1000;
			} catch (err) {
				if (end.signal.aborted || err.status === 401) return;
				fill(logState, err.status === 404 ? t("No lines yet.") : oneLine(err.message));
			}
			await pause(wait, end.signal);
		}
	})();

	const clock = setInterval(draw, 1000);
	const endKeys = keys({
		Escape: [t("back to all machines"), () => go("/ui/machines")],
		...Object.fromEntries(actions.map((a) => [a.key, [t(a.title), () => m && ask(a.name, [name])]])),
	});
	return () => { end.abort(); clearInterval(clock); endKeys(); };
}

