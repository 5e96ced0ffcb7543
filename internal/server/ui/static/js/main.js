// The frame: who is logged in, where one is, whether what is shown is live, and which machines are stuck.

import { get, onSignedOut, pause, post, send } from "./api.js";
import { data, fill, h, oneLine, ref, setText } from "./dom.js";
import { all as languages, choose, current, t } from "./i18n.js";
import { messageOf, placeOf } from "./model.js";
import { store } from "./store.js";
import { currentKeys, go, onGo, openDialog, seldom, session } from "./shell.js";
import * as racks from "./racks.js";

const app = document.getElementById("app");
// Pages by path. Those that are not the first one are loaded when somebody goes there.
const pages = [
	{ path: "/ui/racks", key: "1", name: "Racks", load: async () => racks },
	{ path: "/ui/machines", key: "2", name: "Machines", load: () => import("./machines.js") },
	{ path: "/ui/clusters", key: "3", name: "Clusters", load: () => import("./clusters.js") },
	{ path: "/ui/network", key: "4", name: "Network", load: () => import("./network.js") },
	{ path: "/ui/content", key: "5", name: "Content", load: () => import("./content.js") },
	{ path: "/ui/health", key: "6", name: "Health", load: () => import("./health.js") },
	{ path: "/ui/power", key: "7", name: "Power-on", load: () => import("./power.js") },
	{ path: "/ui/audit", key: "8", name: "Audit log", load: () => import("./audit.js") },
	{ path: "/ui/start", key: "9", name: "First steps", load: () => import("./start.js") },
];
// Places below a page: one object each.
const single = [
	{ path: "/ui/machines/", load: () => import("./machine.js") },
	{ path: "/ui/clusters/", load: () => import("./cluster.js") },
];

// ---- log in ----

async function begin() {
	await choose();
	onSignedOut(signedOut);
	const link = /^#link=([0-9a-f]{64})$/.exec(location.hash);
	if (location.hash) history.replaceState(null, "", location.pathname + location.search);
	let why = "";
	try {
		session.me = link ? await post("/coldrack/v1/ui/session", undefined, { headers: { "Coldrack-Link": link[1] } }) : await get("/coldrack/v1/ui/session");
		return frame();
	} catch (err) {
		if (link || err.status !== 401) why = err.status === 403 ? t("You have no role here. An administrator gives you one.") : err.message;
	}
	login(why);
}

function signedOut() {
	if (!session.me) return;
	session.me = null;
	leave();
	store.stop();
	login(t("The session has ended, or its token or certificate has."));
}

function login(why) {
	const error = h("p", { class: "error", role: "alert" }, why ? oneLine(why) : "");
	const field = h("input", { id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true, autofocus: true });
	const button = h("button", { class: "primary" }, t("Log in"));
	const form = h("form", {
		class: "login",
		on: {
			submit: async (event) => {
				event.preventDefault();
				if (!/^[\x21-\x7e]+$/.test(field.value.trim())) return setText(error, t("The server does not accept this token."));
				button.disabled = true;
				try {
					session.me = await post("/coldrack/v1/ui/session", undefined, { headers: { Authorization: "Bearer " + field.value.trim() } });
					frame();
				} catch (err) {
					button.disabled = false;
					field.select();
					setText(error, err.status === 401 ? t("The server does not accept this token.") : oneLine(err.message));
				}
			},
		},
	},
	h("h1", {}, brand()),
	h("p", {}, t("On a machine where coldrack works, this opens the page:")),
	h("pre", {}, "coldrack ui"),
	h("p", {}, t("Or show a token, which the server's machine makes:")),
	h("pre", {}, "coldrack token create --name NAME --role operator --ttl 12h"),
	h("label", { for: "token" }, t("Token")), field, error, button,
	h("p", { class: "quiet" }, t("A browser that has a client certificate of this server needs neither; reload the page after importing it.")),
	language());
	fill(app, h("main", { class: "center" }, form));
	field.focus();
}

async function logout() {
	const had = session.me;
	session.me = null;
	leave();
	store.stop();
	try {
		if (had.session) await send("POST", "/coldrack/v1/ui/logout");
		login(had.session ? "" : t("This browser shows a certificate by itself; close it to end that."));
	} catch (err) {
		login(err.message);
	}
}

// ---- frame ----

let nav, alarm, live, main, leavePage = null;

function leave() {
	leavePage?.();
	leavePage = null;
}

const brand = () => h("span", { class: "brand" }, h("span", { class: "mark", "aria-hidden": "true" }), "Coldrack");

function language() {
	return h("select", { class: "plain", "aria-label": "Language", on: { change: async (e) => { await choose(e.target.value); session.me ? frame() : login(""); } } },
		languages().map(([code, name]) => h("option", { value: code, selected: code === current() }, name)));
}

function theme() {
	const root = document.documentElement;
	const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
	return h("button", {
		class: "plain", title: t("Dark or light (t)"), "aria-label": t("Dark or light (t)"), id: "theme",
		on: {
			click: () => {
				root.dataset.theme = dark() ? "light" : "dark";
				try { localStorage.setItem("theme", root.dataset.theme); } catch { /* storage may be forbidden */ }
			},
		},
	}, h("span", { class: "halfmoon", "aria-hidden": "true" }));
}

let beats = 0;

function frame() {
	leave();
	nav = h("nav", { "aria-label": t("Pages") }, pages.map((p) => ref(p.path, { data: { path: p.path }, "aria-keyshortcuts": p.key }, t(p.name), h("kbd", {}, p.key))));
	live = h("span", { class: "live", role: "status" });
	alarm = h("div", { class: "alarm", role: "status" });
	main = h("main", { id: "main", tabindex: "-1" });
	const who = h("details", { class: "who" }, h("summary", {}, data(oneLine(session.me.user, 40)), h("span", { class: "role" }, t(session.me.role))),
		h("div", { class: "menu" },
			session.me.until ? h("p", {}, t("until {0}", new Date(session.me.until).toLocaleString())) : null,
			h("p", { class: "row" }, t("Language"), language()),
			h("button", { on: { click: logout }, id: "logout" }, t("Log out"))));
	fill(app,
		h("a", { class: "skip", href: "#main", on: { click: (e) => { e.preventDefault(); main.focus(); } } }, t("To the content")),
		h("header", { class: "top" }, ref("/ui/racks", { class: "home", "aria-label": "Coldrack" }, brand()), nav,
			h("div", { class: "side" }, live, h("button", { class: "plain", on: { click: help }, "aria-label": t("Keys (?)"), title: t("Keys (?)") }, "?"), theme(), who)),
		alarm, main);
	store.start();
	stopListening();
	stopListening = store.on((changed) => {
		if (changed.has("connection")) connection();
		if (changed.has("machines")) watchStuck();
	});
	connection();
	alarms();
	beat(++beats);
	show();
}

let stopListening = () => {};

// A connection that is dead without saying so is noticed by asking now and then; so is the end of the session.
async function beat(mine) {
	while (session.me && mine === beats) {
		const signal = AbortSignal.timeout(10e3);
		try {
			await get("/coldrack/v1/ui/session", { signal });
			if (store.trouble.delete("server")) store.again();
		} catch (err) {
			if (err.status === 401) return;
			if (!store.trouble.has("server")) store.trouble.set("server", { why: t("the server does not answer"), since: Date.now() });
		}
		if (!session.me || mine !== beats) return;
		connection();
		alarms(); // time makes machines stuck, too
		await pause(15e3);
	}
}

function connection() {
	const troubles = [...store.trouble.values()];
	live.classList.toggle("bad", troubles.length > 0);
	if (troubles.length === 0) {
		setText(live, store.complete.has("machines") ? t("live") : t("loading"));
		return;
	}
	const since = Math.min(...troubles.map((one) => one.since));
	setText(live, t("not live since {0}: {1}", new Date(since).toLocaleTimeString(), oneLine(troubles[0].why, 120)));
}

// What one must see from three metres: how many are stuck, and which.
const named = 6;
let alarmShown = "";
const watchStuck = seldom(() => { if (session.me) alarms(); }, 500);

function alarms() {
	const now = Date.now(), found = store.stuck(now);
	const key = found.map((r) => r.name + "\n" + placeOf(r) + "\n" + messageOf(r, now)).join("\n") + current();
	if (key === alarmShown && (alarm.childElementCount > 0) === (found.length > 0)) return;
	alarmShown = key;
	document.title = (found.length ? "(" + found.length + ") " : "") + "Coldrack";
	alarm.classList.toggle("on", found.length > 0);
	if (!found.length) return fill(alarm);
	fill(alarm,
		ref("/ui/racks?q=is:stuck", { class: "count" }, h("span", { class: "sign s-Failed", "aria-hidden": "true" }), t("{0} stuck", found.length)),
		h("ul", {}, found.slice(0, named).map((r) => h("li", {}, ref("/ui/racks?q=is:stuck&m=" + encodeURIComponent(r.name), {},
			data(r.name, { class: "name" }), r.rack ? data(placeOf(r), { class: "place" }) : null), data(oneLine(messageOf(r, now), 120), { class: "why" }))),
		found.length > named ? h("li", {}, ref("/ui/racks?q=is:stuck", {}, t("and {0} more", found.length - named))) : null));
}

// ---- places ----

let showing = 0;

async function show() {
	const mine = ++showing, path = location.pathname;
	if (path === "/ui/" || path === "/ui") return go("/ui/racks", { replace: true });
	const page = pages.find((p) => path === p.path) ?? single.find((p) => path.startsWith(p.path));
	leave();
	for (const a of nav.children) {
		const here = path.startsWith(a.dataset.path);
		a.toggleAttribute("data-here", here);
		if (here) a.setAttribute("aria-current", "page");
		else a.removeAttribute("aria-current");
	}
	if (!page) return fill(main, h("p", { class: "empty" }, t("There is no such page."), " ", ref("/ui/racks", {}, t("Racks"))));
	try {
		const module = await page.load();
		if (mine !== showing) return;
		const name = page.path.endsWith("/") ? decodeURIComponent(path.slice(page.path.length)) : "";
		fill(main);
		leavePage = module.mount(main, name) ?? null;
	} catch (err) {
		fill(main, h("p", { class: "error" }, oneLine(err.message)));
	}
}

document.addEventListener("click", (event) => {
	const a = event.target.closest?.("a[href^='/ui/']");
	if (!a || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || a.target) return;
	event.preventDefault();
	go(a.getAttribute("href"));
});
addEventListener("popstate", () => { if (session.me) show(); });

const typing = (e) => /^(INPUT|TEXTAREA|SELECT)$/.test(e.target.tagName) || e.target.isContentEditable;

document.addEventListener("keydown", (event) => {
	if (!session.me || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
	if (typing(event)) {
		if (event.key === "Escape") event.target.blur();
		return;
	}
	const page = pages.find((p) => p.key === event.key);
	const act = page ? () => go(page.path) : event.key === "?" ? help : event.key === "t" ? () => document.getElementById("theme").click()
		: event.key === "/" ? () => document.querySelector("main input[type=search]")?.focus() : currentKeys()[event.key]?.[1];
	if (!act) return;
	// Space and Enter on a button or a link are the button's.
	if ((event.key === "Enter" || event.key === " ") && event.target.closest("button, a, summary")) return;
	event.preventDefault();
	act(event);
});

function help() {
	const rows = [...pages.map((p) => [p.key, t(p.name)]), ["/", t("Search")], ["t", t("Dark or light")], ["?", t("Keys")],
		...Object.entries(currentKeys()).filter(([, [text]]) => text).map(([key, [text]]) => [key === " " ? t("Space") : key, text])];
	const dialog = h("dialog", { class: "help", "aria-label": t("Keys") }, h("h2", {}, t("Keys")),
		h("dl", {}, rows.map(([key, text]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, text)])),
		h("form", { method: "dialog" }, h("button", { class: "primary", autofocus: true }, t("Close"))));
	openDialog(dialog);
}

onGo(show);
begin();
