// All machines in a table of which only the rows are made that can be seen.

import { ask, list as actions } from "./actions.js";
import { data, fill, h, oneLine, ref, setText } from "./dom.js";
import { t } from "./i18n.js";
import { age, messageOf, order, placeOf, stuck, urgency } from "./model.js";
import { phaseMark, searchTools } from "./racks.js";
import { go, keys, may, query, seldom, setQuery } from "./shell.js";
import { store } from "./store.js";

const narrow = matchMedia("(max-width: 800px)");

// title, what is compared, what is shown
const columns = [
	{ id: "name", title: "Name", width: "minmax(7rem, 1.2fr)", by: (r) => r.name, cell: (r) => ref("/ui/machines/" + encodeURIComponent(r.name), { class: "name", tabindex: "-1" }, data(r.name)) },
	{ id: "phase", title: "Phase", width: "8.5rem", by: (r, now) => urgency(r, now) + r.phase, cell: (r) => phaseMark(r.phase) },
	{ id: "since", title: "Since", width: "4.5rem", by: (r) => r.since, cell: (r, now) => age(now - r.since) },
	{ id: "place", title: "Place", width: "5.5rem", by: (r) => placeOf(r), cell: (r) => data(placeOf(r)) },
	{ id: "address", title: "Address", width: "9rem", by: (r) => r.address, cell: (r) => data(r.address) },
	{ id: "serial", title: "Serial", width: "7.5rem", by: (r) => r.serial, cell: (r) => data(r.serial) },
	{ id: "cluster", title: "Cluster", width: "7rem", by: (r) => r.cluster, cell: (r) => data(r.cluster) },
	{ id: "message", title: "Progress and message", width: "minmax(8rem, 2.4fr)", by: (r, now) => messageOf(r, now), cell: (r, now) => told(r, now) },
];

function told(r, now) {
	const text = messageOf(r, now);
	if (r.step && !stuck(r, now)) return h("span", { class: "row" }, h("span", { class: "bar2 grow", role: "img", "aria-label": r.step }, h("span", { style: { width: 100 * Math.max(0, r.fraction) + "%" } })), data(oneLine(r.step)));
	return data(oneLine(text), { title: text ? oneLine(text, 600) : null });
}

export function mount(main) {
	const tools = searchTools(() => { at = 0; scroller.scrollTop = 0; draw(true); });
	const picked = new Set();
	let shown = [], at = 0, sort = query("sort") || "urgency", reversed = false, rowHeight = 40;
	if (sort.startsWith("-")) [sort, reversed] = [sort.slice(1), true];

	const picks = h("div", { class: "picks row", hidden: true, role: "status" });
	const head = h("div", { class: "tr thead", role: "row" });
	const body = h("div", { class: "tbody", role: "presentation" });
	const space = h("div", { class: "space", role: "presentation" }, body);
	const scroller = h("div", { class: "table", role: "grid", tabindex: "0", "aria-label": t("Machines"), "aria-multiselectable": "true", on: { scroll: () => rows() } }, head, space);
	const none = h("p", { class: "empty", hidden: true });
	fill(main, h("h1", { class: "skip" }, t("Machines")), tools.element, picks, none, scroller);

	const used = () => columns.filter((c) => !narrow.matches || ["name", "phase", "message"].includes(c.id)).filter((c) => !empty.has(c.id));
	let empty = new Set();

	function header() {
		const cells = used();
		rowHeight = narrow.matches ? 64 : 40;
		scroller.style.setProperty("--columns", (may() ? "1.4rem " : "") + (narrow.matches ? "minmax(0, 1fr) 8.5rem" : cells.map((c) => c.width).join(" ")));
		fill(head, may() ? h("input", { type: "checkbox", "aria-label": t("Choose all that match"), on: { change: (e) => all(e.target.checked) } }) : null,
			cells.map((c) => h("button", {
				class: "plain", role: "columnheader", "aria-sort": sort === c.id ? (reversed ? "descending" : "ascending") : "none",
				on: { click: () => { [sort, reversed] = sort === c.id ? (reversed ? ["urgency", false] : [c.id, true]) : [c.id, false]; setQuery({ sort: sort === "urgency" ? "" : (reversed ? "-" : "") + sort }); draw(true); } },
			}, t(c.title), sort === c.id ? (reversed ? " \u2193" : " \u2191") : "")));
	}

	function draw(whole) {
		const now = Date.now(), here = shown[at]?.name;
		tools.count(now);
		shown = [];
		const seen = new Set();
		for (const row of store.rows()) {
			if (row.cluster) seen.add("cluster");
			if (row.rack) seen.add("place");
			if (tools.matches(row, now)) shown.push(row);
		}
		const missing = new Set(["cluster", "place"].filter((c) => !seen.has(c)));
		if (whole || missing.size !== empty.size) {
			empty = missing;
			header();
		}
		const column = columns.find((c) => c.id === sort);
		if (column?.id !== "name") {
			// Rows are in the order of their names already, and sorting keeps that among equals.
			const key = new Map(shown.map((r) => [r, column ? column.by(r, now) : urgency(r, now)]));
			shown.sort((a, b) => { const x = key.get(a), y = key.get(b); return typeof x === "number" ? x - y : order(x, y); });
		}
		if (reversed) shown.reverse();
		for (const name of picked) if (!store.objects.machines.has(name)) picked.delete(name);
		if (here) at = Math.max(0, shown.findIndex((r) => r.name === here));
		at = Math.min(at, Math.max(0, shown.length - 1));
		const complete = store.complete.has("machines");
		none.hidden = shown.length > 0;
		setText(none, !complete ? t("loading") : store.objects.machines.size ? t("Nothing matches. ") : t("No machines yet. Power one on in a Subnet, or write one with coldrack apply."));
		scroller.hidden = shown.length === 0;
		scroller.setAttribute("aria-rowcount", String(shown.length));
		space.style.height = shown.length * rowHeight + "px";
		const top = scroller.getBoundingClientRect().top + scrollY;
		scroller.style.setProperty("--above", Math.round(top) + 16 + "px");
		drawPicks();
		rows();
	}

	// Elements by name; those that scroll out of sight are removed.
	const elements = new Map();
	function rows() {
		const now = Date.now(), first = Math.max(0, Math.floor(scroller.scrollTop / rowHeight) - 6), last = Math.min(shown.length, Math.ceil((scroller.scrollTop + scroller.clientHeight) / rowHeight) + 6);
		const wanted = new Set();
		for (let i = first; i < last; i++) {
			const row = shown[i], trouble = stuck(row, now) !== "";
			wanted.add(row.name);
			let one = elements.get(row.name);
			const key = row.version + trouble + used().length + (now - row.since < 600e3 ? Math.trunc(now / 5e3) : Math.trunc(now / 60e3)) + picked.has(row.name);
			if (!one || one.key !== key) {
				const made = h("div", {
					role: "row", id: "row-" + row.name, data: { machine: row.name },
					on: { click: (e) => { if (!e.target.closest("a, input")) { at = shown.findIndex((r) => r.name === row.name); rows(); } }, dblclick: () => open(row.name) },
				}, may() ? h("input", { type: "checkbox", tabindex: "-1", checked: picked.has(row.name), "aria-label": t("Choose {0}", row.name), on: { change: () => pick(row.name) } }) : null,
				used().map((c) => h("div", { role: "gridcell" }, c.cell(row, now))));
				one?.element.replaceWith(made);
				one = { element: made, key };
				elements.set(row.name, one);
			}
			one.element.className = "tr" + (trouble ? " bad" : "") + (i === at ? " at" : "") + (picked.has(row.name) ? " picked" : "");
			one.element.style.transform = "translateY(" + i * rowHeight + "px)";
			one.element.setAttribute("aria-rowindex", String(i + 1));
			one.element.setAttribute("aria-selected", String(picked.has(row.name)));
			if (one.element.parentNode !== body) body.append(one.element);
		}
		for (const [name, one] of elements) if (!wanted.has(name)) { one.element.remove(); elements.delete(name); }
		const active = shown[at] && elements.get(shown[at].name);
		if (active) scroller.setAttribute("aria-activedescendant", active.element.id);
	}

	function drawPicks() {
		picks.hidden = picked.size === 0;
		if (!picked.size) return;
		const key = String(picked.size);
		if (picks.dataset.key === key) return;
		picks.dataset.key = key;
		fill(picks, h("b", {}, t("{0} chosen", picked.size)), actions.map((a) => h("button", { class: a.danger ? "danger" : null, data: { action: a.name }, on: { click: () => act(a.name) } }, t(a.title), h("kbd", { class: "hideable" }, a.key))),
			h("button", { on: { click: () => { picked.clear(); draw(); } } }, t("None")));
	}

	function pick(name) {
		if (!name || !may()) return;
		if (picked.has(name)) picked.delete(name);
		else picked.add(name);
		drawPicks();
		rows();
	}

	function all(on) {
		if (!may()) return;
		for (const row of shown) on ? picked.add(row.name) : picked.delete(row.name);
		drawPicks();
		rows();
	}

	function move(by) {
		at = Math.min(Math.max(0, at + by), Math.max(0, shown.length - 1));
		const top = at * rowHeight, room = scroller.clientHeight - head.offsetHeight;
		if (top < scroller.scrollTop) scroller.scrollTop = top;
		else if (top + rowHeight > scroller.scrollTop + room) scroller.scrollTop = top + rowHeight - room;
		rows();
		scroller.focus({ preventScroll: true });
	}

	const open = (name) => name && go("/ui/machines/" + encodeURIComponent(name));
	const targets = () => (picked.size ? [...picked].sort(order) : shown[at] ? [shown[at].name] : []);
	async function act(name) {
		await ask(name, targets());
		scroller.focus({ preventScroll: true });
	}

	const page = () => Math.max(1, Math.floor(scroller.clientHeight / rowHeight) - 2);
	const endKeys = keys({
		ArrowDown: [t("next machine"), () => move(1)], ArrowUp: [t("machine before"), () => move(-1)], j: ["", () => move(1)], k: ["", () => move(-1)],
		PageDown: ["", () => move(page())], PageUp: ["", () => move(-page())], Home: ["", () => move(-1e9)], End: ["", () => move(1e9)],
		Enter: [t("all about the machine"), () => open(shown[at]?.name)],
		...(may() ? {
			" ": [t("choose the machine"), () => pick(shown[at]?.name)],
			"*": [t("choose all that match"), () => all(picked.size < shown.length)],
			...Object.fromEntries(actions.map((a) => [a.key, [t(a.title), () => act(a.name)]])),
		} : {}),
		Escape: [t("choose none, show all"), () => (picked.size ? (picked.clear(), draw()) : tools.set(""))],
	});
	const redraw = seldom(() => draw(false), 400);
	const stop = store.on((changed) => { if (changed.has("machines")) redraw(); });
	const clock = setInterval(() => draw(false), 5e3);
	const resized = () => draw(true);
	addEventListener("resize", resized);
	draw(true);
	scroller.focus({ preventScroll: true });
	return () => { stop(); endKeys(); clearInterval(clock); removeEventListener("resize", resized); };
}

