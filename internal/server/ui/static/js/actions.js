// What people ask of machines. Each is a change of spec, as the command line writes it, or a request to the machine's BMC; the server decides.

import { get, kindPath, patch, post } from "./api.js";
import { data, fill, h, oneLine } from "./dom.js";
import { t } from "./i18n.js";
import { refusal } from "./model.js";
import { may, openDialog, session } from "./shell.js";
import { store } from "./store.js";

const attempts = 5, atOnce = 6;

/** change reads a machine and writes what edit makes of it, again when somebody else wrote in between. edit may throw a refusal. */
async function change(name, edit) {
	for (let attempt = 1; ; attempt++) {
		const m = await get(kindPath("machines", name));
		const merge = edit(m);
		merge.metadata = { ...merge.metadata, resourceVersion: m.metadata.resourceVersion };
		try {
			return await patch(kindPath("machines", name), merge);
		} catch (err) {
			if (err.status !== 409 || attempt === attempts) throw err;
		}
	}
}

const actions = {
	approve: {
		title: "Approve", key: "a", does: "They may be installed. Until now no disk of theirs was touched.", fields: ["profile"],
		edit: (m, values) => ({ spec: { approved: true, ...(values.profile ? { profile: values.profile } : {}) } }),
		done: (m, values) => (values.profile || m.spec.profile ? t("approved") : t("approved; it has no profile yet, so it is not installed")),
	},
	install: { title: "Install", key: "i", does: "Ask for an install, for example again after one failed. The profile's wipe policy decides what may be overwritten.", intent: "Install", fields: ["replace"] },
	reinstall: { title: "Reinstall", key: "r", does: "What is on the system disk is lost, and the machine gets a new identity.", intent: "Reinstall", confirm: true, fields: ["replace"] },
	release: { title: "Release", key: "x", does: "The disks that Coldrack wrote are wiped, and the machine's identity is forgotten.", intent: "Release", confirm: true, fields: ["replace"] },
	label: {
		title: "Label", key: "b", does: "Set or remove labels: key=value sets one, key- removes it.", fields: ["labels"],
		check: (values) => (values.labels.trim().split(/\s+/).every((w) => /^[A-Za-z0-9./_-]+(=[A-Za-z0-9._-]*|-)$/.test(w)) ? "" : t("write key=value or key-")),
		edit: (m, values) => ({
			metadata: { labels: Object.fromEntries(values.labels.trim().split(/\s+/).map((w) => (w.includes("=") ? [w.slice(0, w.indexOf("=")), w.slice(w.indexOf("=") + 1)] : [w.slice(0, -1), null]))) },
			spec: {},
		}),
		done: () => t("labelled"),
	},
	power: {
		title: "Power", key: "p", does: "By the BMC. Nothing is stored: what the BMC does not do now is not done later.", fields: ["power", "boot"],
		confirm: (values) => values.power !== "on",
		check: (values) => (values.boot && ["shutdown", "off"].includes(values.power) ? t("a machine that goes off boots nothing; leave the next boot as it is") : ""),
		run: (name, values) => post("/coldrack/v1/power/" + encodeURIComponent(name), { action: values.power, ...(values.boot ? { boot: values.boot } : {}) }),
		done: (answer) => (answer.was === answer.state ? t("power is {0}", t(answer.state)) : t("power is {0}, was {1}", t(answer.state), t(answer.was))),
	},
};

// Words for what a BMC does, as "coldrack power" has them.
const powers = { on: "switch on", shutdown: "have the system shut down", off: "cut the power", cycle: "cut the power and give it back", reset: "reset" };
const devices = { "": "as it is set up", network: "from the network, once", http: "by HTTP, once", disk: "from the disk, once" };

/** list of actions in the order in which they are offered: name, title, key. */
export const list = Object.entries(actions).map(([name, a]) => ({ name, title: a.title, key: a.key, danger: a.confirm === true }));

function intentEdit(action) {
	return (m, values) => {
		const why = refusal(m, action, values.replace);
		if (why) throw new Error(why);
		return { spec: { intent: { id: crypto.randomUUID(), action, requestedBy: session.me.user, requestedAt: new Date().toISOString().replace(/\.\d+Z/, "Z") } } };
	};
}

/** buttons for one or many machines; names is called when one is pressed. */
export function buttons(names, only) {
	if (!may()) return [h("p", { class: "quiet" }, t("To change machines needs role operator; you have role {0}.", t(session.me.role)))];
	return list.filter((a) => !only || only.includes(a.name)).map((a) =>
		h("button", { class: a.danger ? "danger" : null, data: { action: a.name }, on: { click: () => ask(a.name, names()) } }, t(a.title), h("kbd", { class: "hideable" }, a.key)));
}

/** ask opens the dialog of an action for machines, by name. It resolves when the dialog is closed. */
export function ask(name, names) {
	const action = actions[name];
	if (!may() || !names.length) return Promise.resolve();
	const one = names.length === 1, expected = one ? names[0] : String(names.length);
	const inputs = {
		profile: () => h("select", { name: "profile" }, h("option", { value: "" }, t("as each machine has it")), store.all("profiles").map((p) => h("option", { value: p.metadata.name }, p.metadata.name))),
		power: () => h("select", { name: "power", on: { change: () => asks() } }, Object.entries(powers).map(([value, text]) => h("option", { value }, t(text)))),
		boot: () => h("select", { name: "boot" }, Object.entries(devices).map(([value, text]) => h("option", { value }, t(text)))),
		labels: () => h("input", { name: "labels", placeholder: "rack=r1 spare-", autocomplete: "off", spellcheck: "false", required: true }),
	};
	const labels = { profile: t("Profile"), labels: t("Labels"), power: t("What to do"), boot: t("What it boots next") };
	const error = h("p", { class: "error", role: "alert" });
	const confirm = action.confirm ? h("input", { name: "confirm", autocomplete: "off", spellcheck: "false", "aria-describedby": "confirm-text" }) : null;
	const confirmText = h("span", { id: "confirm-text" }), confirmed = confirm && h("label", {}, confirmText, confirm);
	const submit = h("button", { class: "primary", value: "do", autofocus: !action.confirm && !action.fields.includes("labels") }, t(action.title));
	const mustConfirm = () => (typeof action.confirm === "function" ? action.confirm(Object.fromEntries(new FormData(form))) : !!action.confirm);
	// asks says what must be typed before it is done, which may follow from what was chosen.
	const asks = () => {
		if (!confirm) return;
		const must = mustConfirm();
		confirmed.hidden = !must;
		confirm.required = must;
		submit.className = must ? "danger" : "primary";
		fill(confirmText, action.confirm === true
			? (one ? t("Data is destroyed. Type the machine's name to go on: {0}", expected) : t("Data is destroyed. Type the number of machines to go on: {0}", expected))
			: (one ? t("What runs there is interrupted. Type the machine's name to go on: {0}", expected) : t("What runs there is interrupted. Type the number of machines to go on: {0}", expected)));
	};
	const body = h("div", {},
		h("h2", {}, t(action.title), ": ", one ? data(names[0]) : t("{0} machines", names.length)),
		h("p", {}, t(action.does)),
		one ? null : h("div", { class: "many" }, names.slice(0, 200).map((n) => h("div", {}, data(n))), names.length > 200 ? h("div", {}, t("and {0} more", names.length - 200)) : null),
		action.fields.map((f) => (f === "replace"
			? h("label", {}, h("input", { type: "checkbox", name: "replace" }), " ", t("Give up an earlier request that has not begun, or whose machine is Lost"))
			: h("label", {}, labels[f], inputs[f]()))),
		action.run ? runsOn(names) : null,
		confirmed,
		error,
		h("div", { class: "foot" }, h("button", { type: "button", value: "no", on: { click: () => dialog.close() } }, t("Cancel")), submit));
	const form = h("form", {
		method: "dialog",
		on: {
			submit: (event) => {
				event.preventDefault();
				const values = Object.fromEntries(new FormData(form));
				if (confirm && mustConfirm() && confirm.value.trim() !== expected) {
					fill(error, t("What you typed is not {0}. Nothing was done.", expected));
					return;
				}
				const wrong = action.check?.(values);
				if (wrong) return fill(error, wrong);
				carryOut(dialog, action, names, values);
			},
		},
	}, body);
	asks();
	const dialog = openDialog(h("dialog", { "aria-label": t(action.title) }, form));
	(form.querySelector("[name=labels], [name=power]") ?? confirm)?.focus();
	return new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
}

/** runsOn names the nodes of clusters among machines: what is interrupted when they lose their power. */
function runsOn(names) {
	const nodes = names.map((n) => store.objects.machines.get(n)).filter((row) => row?.cluster);
	return nodes.length ? h("p", { class: "ill" }, t("Nodes of clusters: {0}", nodes.slice(0, 8).map((row) => row.name + " (" + row.cluster + ")").join(", ") + (nodes.length > 8 ? ", …" : ""))) : null;
}

/** carryOut does it for each machine and reports each. */
async function carryOut(dialog, action, names, values) {
	const edit = action.intent ? intentEdit(action.intent) : action.edit;
	const results = h("ul", { class: "report" }), sum = h("p", { role: "status" }), close = h("button", { class: "primary", value: "ok" }, t("Close"));
	fill(dialog, h("form", { method: "dialog" }, h("h2", {}, t(action.title)), sum, results, h("div", { class: "foot" }, close)));
	let done = 0, failed = 0;
	const told = () => fill(sum, t("{0} of {1} done", done, names.length), failed ? h("span", { class: "ill" }, " · ", t("{0} refused", failed)) : null);
	told();
	const waiting = [...names];
	const worker = async () => {
		for (let name; (name = waiting.shift()) !== undefined;) {
			let text = "", bad = false;
			try {
				const m = await (action.run ? action.run(name, values) : change(name, (m) => edit(m, values)));
				text = action.intent ? t("asked for") : action.done(m, values);
			} catch (err) {
				bad = true;
				failed++;
				text = oneLine(err.message);
			}
			done++;
			const item = h("li", { class: bad ? "ill" : null, data: { machine: name } }, data(name), ": ", text);
			if (bad) results.prepend(item);
			else results.append(item);
			told();
		}
	};
	close.focus();
	await Promise.all(Array.from({ length: atOnce }, worker));
}
