// Pieces that several pages are made of.

import { data, h, oneLine } from "./dom.js";
import { t } from "./i18n.js";
import { age, bytes } from "./model.js";

/** when is a time as the person's clock shows it, with how long ago that is. */
export function when(text, now = Date.now()) {
	if (!text) return "";
	const at = Date.parse(text);
	return h("time", { datetime: text, title: text }, new Date(at).toLocaleString(), h("span", { class: "quiet" }, " (" + (at <= now ? t("{0} ago", age(now - at)) : t("in {0}", age(at - now))) + ")"));
}

/** facts is a list of names and values; empty ones are left out. */
export const facts = (...pairs) => h("dl", { class: "facts" }, pairs.filter(([, value]) => value !== "" && value !== null && value !== undefined && value !== false)
	.map(([name, value]) => [h("dt", {}, name), h("dd", {}, typeof value === "string" || typeof value === "number" ? data(oneLine(value, 600)) : value)]));

/** card is a titled part of a page. */
export const card = (title, properties, ...children) => h("section", { ...properties, class: "card " + (properties?.class ?? "") }, h("h2", {}, title), children);

/** grid is a plain table. */
export const grid = (titles, rows, properties) => h("div", { class: "scroll" }, h("table", properties, h("thead", {}, h("tr", {}, titles.map((x) => h("th", { scope: "col" }, x)))),
	h("tbody", {}, rows.map((cells) => h("tr", { class: cells.class }, (cells.cells ?? cells).map((c) => h("td", {}, typeof c === "string" || typeof c === "number" ? data(oneLine(c, 600)) : c)))))));

/** timeline shows steps with when they ran, how long, and how many bytes they moved. */
export function timeline(steps, now = Date.now()) {
	const times = steps.flatMap((s) => [s.startedAt, s.finishedAt]).filter(Boolean).map((x) => Date.parse(x));
	const from = Math.min(...times), running = steps.some((s) => s.state === "Running");
	const to = Math.max(...times, running ? now : 0), span = Math.max(1, to - from);
	return h("ol", { class: "steps" }, steps.map((s) => {
		const began = s.startedAt ? Date.parse(s.startedAt) : 0, ended = s.finishedAt ? Date.parse(s.finishedAt) : s.state === "Running" ? now : began;
		const took = began && (s.finishedAt || s.state === "Running") ? ended - began : -1;
		let size = "";
		if (s.bytesTotal > 0) {
			size = s.state === "Running" ? bytes(s.bytesDone ?? 0) + " / " + bytes(s.bytesTotal) : bytes(s.bytesDone || s.bytesTotal);
			if (took > 0 && s.bytesDone > 0) size += ", " + bytes(Math.round(s.bytesDone / took * 1000)) + "/s";
		}
		const said = [size, s.message].filter(Boolean).join(" · ");
		return h("li", { class: s.state }, h("span", { class: "st", title: t(s.state) }), h("span", {}, data(s.name), h("span", { class: "skip" }, t(s.state))),
			h("span", { class: "track" }, began ? h("span", { style: { left: 100 * (began - from) / span + "%", width: Math.max(.5, 100 * (ended - began) / span) + "%" } }) : null),
			h("span", { class: "t" }, took >= 0 ? (took < 10e3 ? (took / 1000).toFixed(1) + "s" : age(took)) : ""),
			said ? h("span", { class: "said" }, data(oneLine(said, 1000))) : null);
	}));
}

/** verdict is a sentence that says whether something is well. */
export const verdict = (bad, what, todo) => h("div", { class: "verdict" + (bad ? " bad" : "") }, what ? h("p", { class: "what" }, data(oneLine(what, 1000))) : null, todo ? h("p", {}, todo) : null);
