// A rack, or all, is powered on: how many have asked, load, were lost, are ready, as time goes by.

import { get } from "./api.js";
import { data, fill, h, ref } from "./dom.js";
import { t } from "./i18n.js";
import { age, messageOf, order, stuck } from "./model.js";
import { grid } from "./parts.js";
import { phaseMark } from "./racks.js";
import { keys, query, setQuery } from "./shell.js";
import { store } from "./store.js";

const every = 2000, most = 1800; // an hour

const lines = [
	{ key: "here", name: "seen", color: "--none", dash: [2, 4] }, { key: "working", name: "installing", color: "--work", dash: [] },
	{ key: "ready", name: "ready", color: "--good", dash: [] }, { key: "stuck", name: "stuck", color: "--fail", dash: [8, 3] },
];

// What was seen goes on being kept while another page is shown.
let history = [], kept = null;

export function mount(main) {
	const end = new AbortController(), figures = h("div", { class: "figures" }), canvas = h("canvas", { role: "img" }), late = h("div", {});
	const choice = h("select", { "aria-label": t("Rack"), on: { change: () => { setQuery({ rack: choice.value }); restart(); } } });
	let boots = null, offered = null;
	fill(main, h("h1", {}, t("Power-on")), h("div", { class: "tools" }, choice, h("button", { on: { click: () => restart() } }, t("Begin anew"))),
		h("section", { class: "card" }, figures, canvas, h("p", { class: "row" }, lines.map((l) => h("span", { class: "phase" }, h("span", { class: "sign", style: { background: "var(" + l.color + ")", height: "4px" } }), t(l.name))))),
		h("section", { class: "card below" }, h("h2", {}, t("The last ones")), late));

	function restart() { kept = query("rack"); history = []; look(); }
	const mine = () => [...store.rows()].filter((r) => !kept || r.rack === kept);

	function look() {
		const now = Date.now(), rows = mine(), since = history[0]?.at ?? now, point = { at: now, here: 0, working: 0, ready: 0, stuck: 0, all: rows.length };
		for (const r of rows) {
			if (r.phase !== "Expected" && r.phase !== "Lost") point.here++;
			if (r.phase === "Ready") point.ready++;
			else if (["Installing", "Rebooting", "Discovering", "Releasing"].includes(r.phase)) point.working++;
			if (stuck(r, now)) point.stuck++;
		}
		history.push(point);
		if (history.length > most) history.splice(1, 1); // the beginning stays
		const racks = [...new Set([...store.rows()].map((r) => r.rack).filter(Boolean))].sort(order);
		if (offered !== racks.join("\n") + kept) {
			offered = racks.join("\n") + kept;
			fill(choice, h("option", { value: "" }, t("all machines")), racks.map((r) => h("option", { value: r, selected: r === kept }, r)));
		}
		const figure = (n, text, look) => h("div", {}, h("b", { class: look }, n), text);
		fill(figures, figure(point.ready + " / " + point.all, t("ready"), "ok"), figure(point.working, t("at work")), figure(point.stuck, t("stuck"), point.stuck ? "ill" : ""),
			boots ? [figure(boots.asked, t("asked for a boot")), figure(boots.loading, t("loading")), figure(boots.waiting, t("wait for their turn")), figure(boots.lost, t("lost on the way"), boots.lost ? "ill" : "")] : null, figure(age(now - since), t("since the beginning")));
		canvas.setAttribute("aria-label", t("{0} of {1} ready", point.ready, point.all));
		paint();
		const left = rows.filter((r) => r.phase !== "Ready" && r.phase !== "Expected").sort((a, b) => a.since - b.since).slice(0, 12);
		fill(late, left.length ? grid([t("Machine"), t("Phase"), t("Since"), t("Progress and message")], left.map((r) => ({ class: stuck(r, now) ? "ill" : null, cells: [ref("/ui/machines/" + encodeURIComponent(r.name), {}, data(r.name)), phaseMark(r.phase), age(now - r.since), r.step || messageOf(r, now)] }))) : h("p", { class: "quiet" }, t("none")));
	}

	function paint() {
		const ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight, style = getComputedStyle(document.documentElement), c = canvas.getContext("2d");
		if (!width) return;
		canvas.width = width * ratio;
		canvas.height = height * ratio;
		c.scale(ratio, ratio);
		const first = history[0], last = history[history.length - 1], span = Math.max(60e3, last.at - first.at), top = Math.max(1, ...history.map((p) => p.all)), left = 48, bottom = 24;
		const x = (at) => left + (at - first.at) / span * (width - left - 10), y = (n) => 8 + (1 - n / top) * (height - bottom - 8);
		c.font = "12px sans-serif";
		c.fillStyle = style.getPropertyValue("--quiet");
		c.strokeStyle = style.getPropertyValue("--line");
		c.lineWidth = 1;
		for (let i = 0; i <= 4; i++) {
			const n = Math.round(top * i / 4);
			c.beginPath();
			c.moveTo(left, y(n) + .5);
			c.lineTo(width - 10, y(n) + .5);
			c.stroke();
			c.textAlign = "right";
			c.fillText(String(n), left - 6, y(n) + 4);
			c.textAlign = "center";
			c.fillText(age(span * i / 4), x(first.at + span * i / 4) - (i === 4 ? 14 : 0), height - 6);
		}
		for (const l of lines) {
			c.strokeStyle = style.getPropertyValue(l.color);
			c.lineWidth = 2.5;
			c.setLineDash(l.dash);
			c.beginPath();
			history.forEach((p, i) => (i ? c.lineTo(x(p.at), y(p[l.key])) : c.moveTo(x(p.at), y(p[l.key]))));
			c.stroke();
		}
		c.setLineDash([]);
	}

	if (kept !== query("rack")) restart();
	async function poll() {
		try { boots = await get("/coldrack/v1/boots", { signal: end.signal }); } catch { /* the frame says that the server does not answer */ }
		if (!end.signal.aborted) look();
	}
	poll();
	const clock = setInterval(poll, every), endKeys = keys({});
	return () => { end.abort(); clearInterval(clock); endKeys(); };
}
