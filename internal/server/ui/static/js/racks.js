// Racks with each machine at its place.

import { ask, buttons, list as actions } from "./actions.js";
import { data, fill, h, oneLine, ref, setText } from "./dom.js";
import { t } from "./i18n.js";
import { advice, age, filter, messageOf, order, phases, placeOf, stuck } from "./model.js";
import { keys, may, query, seldom, setQuery } from "./shell.js";
import { store } from "./store.js";

const defaultHeight = 42;
// From so many machines on, tiles are smaller.
const medium = 160, small = 900;

export const sign = (phase) => h("span", { class: "sign s-" + phase, "aria-hidden": "true" });

/** phaseMark is a phase as colour, shape and word. */
export const phaseMark = (phase) => h("span", { class: "phase" }, sign(phase), t(phase));

/** searchTools are the field, the counts by phase, and what is chosen of both. changed is called when the filter is another. */
export function searchTools(changed) {
	const field = h("input", {
		type: "search", value: query("q"), placeholder: t("Name, serial, address, phase:Failed, rack:A1, label=value"), "aria-label": t("Search (/)"), spellcheck: "false",
		on: { input: () => apply(field.value) },
	});
	const chips = h("div", { class: "chips", role: "group", "aria-label": t("Phases") });
	let matches = filter(field.value), drawn = "";
	function apply(text) {
		field.value = text;
		setQuery({ q: text });
		matches = filter(text);
		drawn = "";
		changed();
	}
	return {
		field, chips, element: h("div", { class: "tools" }, field, chips),
		matches: (row, now) => matches(row, now),
		get text() { return field.value.trim(); },
		set: apply,
		count(now) {
			const counts = new Map([["stuck", 0], ...phases.map((p) => [p, 0])]);
			for (const row of store.rows()) {
				counts.set(row.phase, (counts.get(row.phase) ?? 0) + 1);
				if (stuck(row, now)) counts.set("stuck", counts.get("stuck") + 1);
			}
			const key = JSON.stringify([...counts]) + field.value;
			if (key === drawn) return;
			drawn = key;
			const had = chips.contains(document.activeElement) ? document.activeElement.dataset.phase : "";
			fill(chips, [...counts].filter(([, n]) => n).map(([phase, n]) => {
				const word = phase === "stuck" ? "is:stuck" : "phase:" + phase, on = field.value.split(/\s+/).includes(word);
				return h("button", {
					class: "chip", "aria-pressed": String(on), data: { phase },
					on: { click: () => apply(on ? field.value.split(/\s+/).filter((w) => w !== word).join(" ") : [...field.value.split(/\s+/).filter((w) => w && !/^(is:stuck|phase:.*)$/.test(w)), word].join(" ")) },
				}, sign(phase === "stuck" ? "Failed" : phase), phase === "stuck" ? t("stuck") : t(phase), h("b", {}, n));
			}));
			if (had) chips.querySelector(`[data-phase="${CSS.escape(had)}"]`)?.focus();
		},
	};
}

export function mount(main) {
	const tools = searchTools(() => draw());
	let size = query("size");
	const sizes = h("select", { "aria-label": t("Size"), on: { change: () => { size = sizes.value; setQuery({ size }); draw(); } } },
		[["", t("size by number")], ["l", t("large")], ["m", t("medium")], ["s", t("small")]].map(([v, text]) => h("option", { value: v, selected: v === size }, text)));
	tools.element.append(sizes);
	const racks = h("div", { class: "racks" }), panel = h("aside", { class: "panel card", hidden: true, "aria-label": t("Machine") });
	fill(main, h("h1", { class: "skip" }, t("Racks")), tools.element, h("div", { class: "floor" }, racks, panel));
	const tiles = new Map(); // by machine: { element, row, key }
	const boxes = new Map(); // by rack
	let layout = "", chosen = query("m");

	/** place of a machine: which rack, and where in it. */
	const rackKey = (row) => (row.rack ? [row.site, row.room, row.rack].join("\u0000") : "");

	let byRack = new Map(), dense = false; // names of machines by rack
	const count = seldom(() => tools.count(Date.now()), 500);

	/** draw shows all machines, or only those that changed. */
	function draw(names) {
		const now = Date.now(), number = store.objects.machines.size;
		count();
		if (names) {
			const touched = new Set();
			for (const name of names) touched.add(rackKey(store.objects.machines.get(name)));
			for (const key of touched) drawRack(key, now);
		} else {
			const step = size || (number > small ? "s" : number > medium ? "m" : "l");
			racks.className = "racks size-" + step;
			dense = step === "s";
			// Where machines stand decides the layout; that seldom changes.
			byRack = new Map();
			const signature = [step];
			for (const row of store.rows()) {
				const key = rackKey(row);
				if (!byRack.has(key)) byRack.set(key, []);
				byRack.get(key).push(row.name);
				signature.push(row.name, key, row.unit);
			}
			const places = signature.join("\n");
			if (places !== layout) {
				layout = places;
				build();
			}
			for (const key of byRack.keys()) drawRack(key, now);
			for (const box of boxes.values()) if (box.site) box.site.hidden = box.racks.every((r) => r.hidden);
		}
		empty.hidden = number > 0 || !store.complete.has("machines");
		nothing.hidden = tools.text === "" || number === 0 || [...boxes.values()].some((b) => b.element && !b.element.hidden);
		drawPanel(now);
	}

	function drawRack(key, now) {
		const filtered = tools.text !== "", names = byRack.get(key);
		let bad = 0, shown = 0;
		for (const name of names) {
			const row = store.objects.machines.get(name), trouble = stuck(row, now) !== "", matches = !filtered || tools.matches(row, now);
			if (trouble) bad++;
			if (matches) shown++;
			paint(tiles.get(name), row, trouble, matches, now);
		}
		const box = boxes.get(key);
		box.element.hidden = filtered && shown === 0;
		if (!key) return setText(box.count, t("{0} without a rack", names.length));
		box.element.classList.toggle("stuck", bad > 0);
		setText(box.count, bad ? "\u2715 " + bad : String(names.length));
	}

	const empty = h("p", { class: "empty wide" }, t("No machines yet. Power one on in a Subnet, or write one with coldrack apply."), " ", ref("/ui/start", {}, t("First steps")));
	const nothing = h("p", { class: "empty wide" }, t("Nothing matches. "), h("button", { on: { click: () => tools.set("") } }, t("Show all")));

	function build() {
		const focused = racks.contains(document.activeElement) ? document.activeElement.dataset.machine : "";
		tiles.clear();
		boxes.clear();
		const parts = [empty, nothing];
		let lastSite = null;
		const keys = [...byRack.keys()].sort((a, b) => (a === "" ? 1 : b === "" ? -1 : order(a, b)));
		const sites = new Set(keys.filter(Boolean).map((k) => k.split("\u0000").slice(0, 2).join("\u0000")));
		let site = null;
		for (const key of keys) {
			const rows = byRack.get(key).map((name) => store.objects.machines.get(name));
			if (key === "") {
				const count = h("span", {});
				const element = h("section", { class: "tray" }, h("h2", {}, count), h("div", { class: "tiles" }, rows.map((row) => tile(row))));
				boxes.set(key, { element, count });
				parts.push(element);
				continue;
			}
			const [siteName, room, rack] = key.split("\u0000"), where = [siteName, room].filter(Boolean).join(" / ");
			if (sites.size > 1 && where !== lastSite) {
				lastSite = where;
				const heading = h("h2", { class: "site" }, where ? data(where) : t("no site"));
				site = { site: heading, racks: [] };
				boxes.set("\u0001" + where, site);
				parts.push(heading);
			}
			const height = Math.max(defaultHeight, ...rows.map((r) => r.unit)), at = new Map();
			for (const row of rows) at.set(row.unit, [...(at.get(row.unit) ?? []), row]);
			const slots = Math.max(1, ...[...at].filter(([unit]) => unit > 0).map(([, r]) => r.length));
			const units = h("div", { class: "units", style: { "--slots": String(slots) } });
			for (let u = height; u >= 1 && !dense; u--) units.append(h("span", { class: "u", "aria-hidden": "true", style: { "grid-row": String(height - u + 1) } }, u % 2 || slots > 1 ? u : ""));
			let below = height;
			for (const [unit, there] of [...at].sort((a, b) => b[0] - a[0])) {
				there.forEach((row, i) => {
					const e = tile(row);
					// Machines whose unit nobody wrote stand below the rack.
					e.style.gridRow = String(unit > 0 ? height - unit + 1 : ++below);
					e.style.gridColumn = unit > 0 ? (there.length === 1 ? "2 / -1" : String(2 + i)) : "2 / -1";
					units.append(e);
				});
			}
			const count = h("span", { class: "n" });
			const element = h("section", { class: "rack", data: { rack }, style: { "--units": String(below) } }, h("h2", {}, data(rack), count), units);
			boxes.set(key, { element, count });
			site?.racks.push(element);
			parts.push(element);
		}
		fill(racks, parts);
		if (focused) tiles.get(focused)?.element.focus();
	}

	function tile(row) {
		const press = { class: "tile", data: { machine: row.name }, on: { click: () => choose(row.name === chosen ? "" : row.name) } };
		// Of thousands, each is one element: its shape is drawn by the style sheet.
		if (dense) {
			const element = h("button", press);
			tiles.set(row.name, { element, key: "" });
			return element;
		}
		const name = data(""), bar = h("span", { class: "bar" }), mark = h("span", { class: "sign" });
		const element = h("button", press, mark, name, bar);
		tiles.set(row.name, { element, name, bar, mark, key: "" });
		return element;
	}

	function paint(one, row, trouble, matches, now) {
		const key = row.version + trouble + matches + (row.name === chosen);
		if (one.key === key) return;
		one.key = key;
		const shape = trouble && row.phase !== "Lost" ? "Failed" : row.phase;
		one.element.className = "tile s-" + (dense ? shape : row.phase) + (trouble ? " bad" : "") + (matches ? "" : " off") + (row.name === chosen ? " on" : "");
		if (!dense) {
			one.mark.className = "sign s-" + shape;
			one.bar.style.width = row.fraction > 0 && row.fraction < 1 ? 100 * row.fraction + "%" : "0";
			setText(one.name, row.hostname || row.name);
		}
		const title = row.name + " · " + t(row.phase) + (row.step ? " · " + row.step : "") + (trouble ? " · " + oneLine(messageOf(row, now)) : "");
		one.element.title = oneLine(title);
		one.element.setAttribute("aria-label", oneLine(title));
		one.element.setAttribute("aria-pressed", String(row.name === chosen));
	}

	function choose(name) {
		const before = chosen;
		chosen = name;
		setQuery({ m: name });
		panelKey = "";
		for (const n of [before, name]) {
			const one = tiles.get(n), row = store.objects.machines.get(n);
			if (one && row) paint(one, row, stuck(row, Date.now()) !== "", !tools.text || tools.matches(row, Date.now()), Date.now());
		}
		drawPanel(Date.now());
		if (!name) tiles.get(before)?.element.focus();
	}

	let panelKey = "";
	function drawPanel(now) {
		const row = store.objects.machines.get(chosen);
		panel.hidden = !row;
		if (!row) return;
		const why = stuck(row, now), key = JSON.stringify([row, why, may()]);
		if (key === panelKey) {
			const since = panel.querySelector(".since");
			if (since) setText(since, age(now - row.since));
			return;
		}
		panelKey = key;
		fill(panel, summary(row, now, buttons(() => [row.name])),
			h("p", {}, ref("/ui/machines/" + encodeURIComponent(row.name), {}, t("All about it"))),
			h("button", { class: "plain close", "aria-label": t("Close"), on: { click: () => choose("") } }, "\u2715"));
	}

	/** walk moves the focus between tiles as arrows say. */
	function walk(dx, dy) {
		const here = document.activeElement?.closest?.(".tile");
		const shown = [...racks.querySelectorAll(".tile:not(.off)")].filter((e) => !e.closest("[hidden]"));
		if (!here) return shown[0]?.focus();
		const from = here.getBoundingClientRect();
		let best = null, least = Infinity;
		for (const e of shown) {
			const to = e.getBoundingClientRect(), x = to.x - from.x, y = to.y - from.y;
			if (e === here || dx * x < -1 || dy * y < -1 || (dx ? Math.abs(x) < 2 : Math.abs(y) < 2)) continue;
			const far = dx ? Math.abs(x) + 4 * Math.abs(y) : Math.abs(y) + 4 * Math.abs(x);
			if (far < least) [best, least] = [e, far];
		}
		best?.focus();
	}

	const target = () => chosen || document.activeElement?.dataset?.machine || "";
	const endKeys = keys({
		ArrowLeft: [t("to the machine beside"), () => walk(-1, 0)], ArrowRight: ["", () => walk(1, 0)],
		ArrowUp: [t("to the machine above"), () => walk(0, -1)], ArrowDown: ["", () => walk(0, 1)],
		Escape: [t("close the machine, or show all"), () => (chosen ? choose("") : tools.set(""))],
		s: [t("only those that are stuck"), () => tools.set(tools.text === "is:stuck" ? "" : "is:stuck")],
		...Object.fromEntries(actions.map((a) => [a.key, [t(a.title), () => target() && ask(a.name, [target()])]])),
	});
	const stop = store.on((changed, names) => { if (changed.has("machines")) draw(names); });
	const clock = setInterval(() => draw(), 10e3); // time makes machines stuck, too
	draw();
	if (chosen) tiles.get(chosen)?.element.scrollIntoView({ block: "center" });
	return () => { stop(); endKeys(); clearInterval(clock); };
}

/** summary is what there is to say of a machine in a few lines. */
export function summary(row, now, doing) {
	const why = stuck(row, now), fact = (name, value) => (value ? [h("dt", {}, name), h("dd", {}, data(oneLine(value)))] : null);
	return [
		h("h2", {}, data(row.name)),
		h("p", { class: "row" }, phaseMark(row.phase), h("span", { class: "quiet since" }, age(now - row.since)), row.step ? data(oneLine(row.step), { class: "quiet" }) : null),
		h("div", { class: "verdict" + (why ? " bad" : "") },
			why || row.message || row.bringUp ? h("p", { class: "what" }, data(oneLine(messageOf(row, now), 1000))) : null,
			h("p", {}, t(advice[row.phase]))),
		h("div", { class: "row doing" }, doing),
		h("dl", { class: "facts" }, fact(t("Place"), [row.site, row.room, placeOf(row)].filter(Boolean).join(" / ")), fact(t("Address"), row.address), fact(t("Host name"), row.hostname),
			fact(t("Model"), row.model), fact(t("Serial"), row.serial), fact(t("Cluster"), [row.cluster, row.roles].filter(Boolean).join(" · ")), fact(t("Image"), row.image), fact(t("Profile"), row.profile)),
	];
}
