// Who did what: the server's audit log. It is for administrators, as "coldrack audit" is.

import { get, pause } from "./api.js";
import { data, fill, h, oneLine, setText } from "./dom.js";
import { t } from "./i18n.js";
import { facts } from "./parts.js";
import { keys, query, session, setQuery } from "./shell.js";

const path = "/coldrack/v1/audit", pageOf = 100, look = 3000, mostShown = 500;
const verbs = ["create", "update", "patch", "delete", "deletecollection", "get", "list", "watch", "post", "put"];

export function mount(main) {
	if (session.me.role !== "admin") {
		fill(main, h("h1", {}, t("Audit log")), h("p", { class: "quiet" }, t("Who did what is for administrators to read; you have role {0}.", t(session.me.role))));
		return keys({});
	}
	const end = new AbortController();
	let run = new AbortController(), trail = [""], older = "", timer = 0;
	const changed = () => {
		clearTimeout(timer);
		timer = setTimeout(() => {
			setQuery({ q: object.value.trim(), user: user.value.trim(), verb: verb.value, since: since.value, until: until.value, people: people.checked ? "" : "no", failed: failed.checked ? "yes" : "" });
			trail = [""];
			read();
		}, 300);
	};
	const on = { input: changed, change: changed };
	const field = (text, input) => h("label", { class: "field" }, h("span", { class: "quiet" }, text), input);
	const object = h("input", { type: "search", name: "object", value: query("q"), placeholder: "machines/node-7", "aria-label": t("Search (/)"), spellcheck: "false", on });
	const user = h("input", { name: "user", value: query("user"), autocomplete: "off", spellcheck: "false", on });
	const verb = h("select", { name: "verb", on }, h("option", { value: "" }, t("any")), verbs.map((v) => h("option", { value: v, selected: v === query("verb") }, v)));
	const since = h("input", { name: "since", type: "datetime-local", value: query("since"), on }), until = h("input", { name: "until", type: "datetime-local", value: query("until"), on });
	const people = h("input", { name: "people", type: "checkbox", checked: query("people") !== "no", on }), failed = h("input", { name: "failed", type: "checkbox", checked: query("failed") === "yes", on });
	const state = h("p", { class: "quiet", role: "status" }), list = h("ol", { class: "records" });
	const back = h("button", { data: { action: "newer" }, on: { click: () => { if (trail.length > 1) { trail.pop(); read(); } } } }, t("Newer"));
	const forth = h("button", { data: { action: "older" }, on: { click: () => { if (older) { trail.push(older); read(); } } } }, t("Older"));
	fill(main, h("h1", {}, t("Audit log")),
		h("div", { class: "tools" }, field(t("Object or path"), object), field(t("Who"), user), field(t("Verb"), verb), field(t("From"), since), field(t("Until"), until),
			h("label", { class: "row" }, people, t("without what the server itself does")), h("label", { class: "row" }, failed, t("only what was refused or failed"))),
		h("section", { class: "card" }, h("div", { class: "row" }, back, forth, state), list));

	const moment = (input) => (input.value && !Number.isNaN(Date.parse(input.value)) ? new Date(input.value).toISOString() : "");
	// ask reads one part of the log that the filters let through.
	function ask(more, signal) {
		const q = { user: user.value.trim(), object: object.value.trim(), verb: verb.value, since: moment(since), until: moment(until), people: people.checked ? "1" : "", failed: failed.checked ? "1" : "", limit: pageOf, ...more };
		return get(path + "?" + new URLSearchParams(Object.entries(q).filter(([, v]) => v !== "")), { signal });
	}

	// read shows a page, and what comes while it is the first one.
	async function read() {
		run.abort();
		run = new AbortController();
		const { signal } = run, first = trail.length === 1;
		let before = trail.at(-1), count = 0, newest = "";
		older = "";
		buttons();
		fill(list);
		setText(state, t("loading"));
		try {
			while (count < pageOf) {
				const page = await ask({ before, limit: pageOf - count }, signal);
				newest ||= page.newest ?? "";
				for (const r of page.records) list.append(record(r));
				count += page.records.length;
				before = page.older ?? "";
				if (!before) break;
				setText(state, t("searched back to {0}", new Date(page.reached).toLocaleString()));
			}
			older = before;
			buttons();
			const shown = () => setText(state, first ? (list.childElementCount ? t("live") : t("nothing yet; what comes is shown")) : t("page {0}", trail.length));
			shown();
			while (first) {
				await pause(look, signal);
				if (signal.aborted) return;
				try {
					const page = await ask({ after: newest }, signal);
					if (page.older && newest) return read(); // more has come than is shown at once
					newest = page.newest ?? newest;
					list.prepend(...page.records.map(record));
					if (list.childElementCount > mostShown) return read();
					shown();
				} catch (err) {
					if (signal.aborted || err.status === 401) return;
					if (err.status === 410) return read();
					setText(state, oneLine(err.message));
				}
			}
		} catch (err) {
			if (signal.aborted || err.status === 401) return;
			if (err.status === 410 && !first) {
				trail = [""];
				return read();
			}
			fill(state, h("span", { class: "ill" }, oneLine(err.message)));
		}
	}

	function buttons() {
		back.disabled = trail.length === 1;
		forth.disabled = !older;
	}

	read();
	const endKeys = keys({ o: [t("older records"), () => forth.click()], n: [t("newer records"), () => back.click()] });
	return () => { clearTimeout(timer); run.abort(); end.abort(); endKeys(); };
}

/** record is one line, and all that is known of it. */
function record(r) {
	const ill = r.code >= 400, at = new Date(r.at);
	const more = h("div", { class: "more" });
	const details = h("details", {
		on: {
			// What is behind a line is made when somebody looks at it.
			toggle: () => {
				if (!details.open || more.childElementCount) return;
				fill(more, facts([t("When"), at.toLocaleString() + ", " + r.at], [t("Who"), r.user], [t("Path"), r.uri], [t("Answer"), r.code ? String(r.code) : ""], [t("Message"), r.message], [t("From"), (r.sources ?? []).join(", ")], [t("Program"), r.userAgent], ["ID", r.id],
					...Object.entries(r.notes ?? {})),
				r.sent !== undefined ? h("pre", {}, JSON.stringify(r.sent, null, 2)) : r.sentBytes ? h("p", { class: "quiet" }, t("What was sent has {0} bytes; the log on the server has it.", r.sentBytes)) : null);
			},
		},
	}, h("summary", {}, h("time", { datetime: r.at, title: r.at }, at.toLocaleString()), data(oneLine(r.user, 80), { class: "name" }), data(r.verb), data(oneLine(r.object || r.uri, 200), { class: "what" }),
		h("span", { class: ill ? "ill" : "ok" }, r.code ? String(r.code) : "", ill && r.message ? [" ", data(oneLine(r.message, 160))] : null)), more);
	return h("li", { class: ill ? "ill" : null }, details);
}
