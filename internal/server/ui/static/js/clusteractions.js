// What people ask of a cluster: as the command line writes it. The server refuses what would lose something.

import { get, kindPath, patch } from "./api.js";
import { data, fill, h, oneLine } from "./dom.js";
import { t } from "./i18n.js";
import { may, openDialog } from "./shell.js";

const abortMark = "coldrack.dev/abort", retryMark = "coldrack.dev/retry";

const held = (c) => c.spec.paused || c.metadata.annotations?.[abortMark];

/** buttons of a cluster as it is now. */
export function buttons(c) {
	if (!may()) return null;
	const name = c.metadata.name, is = [];
	if (!c.spec.paused) is.push(["pause", "Pause", "Nothing further is begun. What is under way on a machine is finished.", { spec: { paused: true } }]);
	if (!c.metadata.annotations?.[abortMark]) is.push(["abort", "Abort", "No further node is taken, and nodes in hand go back to what they had, as far as that is possible.", { metadata: { annotations: { [abortMark]: "true" } } }]);
	if (held(c) || c.status?.failure) {
		is.push(["resume", "Resume", c.status?.failure ? "What failed is tried again. Change what is wanted first, if that is why it failed." : "It goes on with what is wanted.",
			{ spec: { paused: false }, metadata: { annotations: { [abortMark]: null, ...(c.status?.failure ? { [retryMark]: new Date().toISOString() } : {}) } } }]);
	}
	return h("p", { class: "row" }, is.map(([action, title, does, change]) =>
		h("button", { data: { action }, on: { click: () => ask(t(title), name, [h("p", {}, t(does))], () => patch(kindPath("clusters", name), change)) } }, t(title))));
}

/** scale is a button that changes how many machines a group has. */
export function scale(g) {
	if (!may()) return null;
	const name = g.metadata.name, was = g.spec.replicas ?? 1;
	return h("button", {
		data: { action: "scale", group: name },
		on: {
			click: () => {
				const input = h("input", { name: "replicas", type: "number", min: "0", step: "1", required: true, value: String(was) });
				const fewer = h("p", { class: "quiet" });
				const tell = () => fill(fewer, Number(input.value) < was ? t("{0} machines are drained, leave one after another, and are then wiped or become spares, as the group says.", was - Number(input.value)) : "");
				input.addEventListener("input", tell);
				ask(t("Scale"), name, [h("label", {}, t("How many machines"), input), fewer], async () => {
					const fresh = await get(kindPath("machinegroups", name));
					return patch(kindPath("machinegroups", name), { metadata: { resourceVersion: fresh.metadata.resourceVersion }, spec: { replicas: Number(input.value) } });
				});
				input.focus();
				input.select();
			},
		},
	}, t("Scale"));
}

/** ask opens a dialog, and does it when the person says so. What the server refuses is shown there. */
function ask(title, name, content, change) {
	const error = h("p", { class: "error", role: "alert" });
	const submit = h("button", { class: "primary", value: "do", autofocus: true }, title);
	const form = h("form", {
		method: "dialog",
		on: {
			submit: async (event) => {
				event.preventDefault();
				submit.disabled = true;
				try {
					await change();
					dialog.close();
				} catch (err) {
					fill(error, oneLine(err.message, 2000));
					submit.disabled = false;
				}
			},
		},
	}, h("h2", {}, title, ": ", data(name)), content, error, h("div", { class: "foot" }, h("button", { type: "button", value: "no", on: { click: () => dialog.close() } }, t("Cancel")), submit));
	const dialog = openDialog(h("dialog", { "aria-label": title }, form));
}
