// From an empty server to the first cluster: what is done, and what comes next.

import { fill, h, ref } from "./dom.js";
import { t } from "./i18n.js";
import { condition } from "./model.js";
import { keys } from "./shell.js";
import { store } from "./store.js";

const steps = [
	{ name: "Bring the content in", why: "A bundle has what machines boot and what they are installed with.", done: () => store.objects.bundles.size > 0, command: "coldrack bundle trust bundle.pub\ncoldrack bundle import default.bundle.tar", page: "/ui/content" },
	{ name: "Say what your network is", why: "A Subnet has the range for machines that are not known yet, and the range of addresses that installed machines keep.", done: () => store.all("subnets").some((s) => condition(s, "Ready")?.status !== "False"), command: "coldrack apply -f subnet.yaml", page: "/ui/network" },
	{ name: "Say how machines are installed", why: "A Profile names the image, the disk, and who may log in.", done: () => store.objects.profiles.size > 0, command: "coldrack apply -f profile.yaml", page: "/ui/content" },
	{ name: "Power one machine on", why: "Network first in its boot order. It appears here by itself and waits; no disk of it is touched.", done: () => [...store.rows()].some((r) => r.phase !== "Expected"), page: "/ui/racks" },
	{ name: "Approve it", why: "It is installed in a few minutes.", done: () => [...store.rows()].some((r) => r.approved), command: "coldrack approve NAME --profile PROFILE", page: "/ui/machines?q=phase:Waiting" },
	{ name: "See it ready", why: "It runs from its own disk and reports.", done: () => [...store.rows()].some((r) => r.phase === "Ready"), page: "/ui/racks" },
	{ name: "Now the rack", why: "An EnrollmentPolicy approves machines that match your hardware, and gives them names and addresses.", done: () => store.objects.enrollmentpolicies.size > 0, command: "coldrack apply -f policy.yaml", page: "/ui/power" },
	{ name: "Make a cluster", why: "A preset says which machines hold what; the plan says what would be done.", done: () => store.objects.clusters.size > 0, command: "coldrack cluster init --preset small --name CLUSTER > cluster.yaml\ncoldrack plan -f cluster.yaml\ncoldrack apply -f cluster.yaml", page: "/ui/clusters" },
];

export function mount(main) {
	const list = h("ol", { class: "todo" });
	fill(main, h("section", { class: "card" }, h("h1", {}, t("First steps")), list));
	let drawn = "";
	const needed = ["machines", "clusters", "subnets", "profiles", "enrollmentpolicies", "bundles"];
	function draw() {
		if (!needed.every((kind) => store.complete.has(kind))) return fill(list, h("li", {}, t("loading")));
		const done = steps.map((s) => s.done()), key = done.join();
		if (key === drawn) return;
		drawn = key;
		const next = done.indexOf(false);
		fill(list, steps.map((s, i) => h("li", { class: done[i] ? "done" : "" }, h("span", { class: "box", role: "img", "aria-label": done[i] ? t("done") : t("not done") }),
			h("div", {}, h("h3", {}, ref(s.page, {}, t(s.name)), done[i] ? h("span", { class: "ok" }, " \u2713") : i === next ? h("span", { class: "warn" }, " \u2190 " + t("next")) : null), h("p", {}, t(s.why)), !done[i] && s.command ? h("pre", {}, s.command) : null))));
	}
	const stop = store.on(draw), endKeys = keys({});
	draw();
	return () => { stop(); endKeys(); };
}
