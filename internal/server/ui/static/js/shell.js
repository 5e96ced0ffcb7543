// What the pages share with the frame: who is logged in, places, keys, dialogs.

/** session.me is who is logged in (user, role, until, session), or null. */
export const session = { me: null };

/** may says whether the role allows what operators do. The server decides; this only keeps dead buttons away. */
export const may = () => session.me?.role === "operator" || session.me?.role === "admin";

let show = () => {};
export function onGo(f) { show = f; }

/** go shows another place. */
export function go(path, { replace } = {}) {
	if (replace) history.replaceState(null, "", path);
	else history.pushState(null, "", path);
	return show();
}

export const query = (key) => new URL(location.href).searchParams.get(key) ?? "";

/** setQuery writes what is looked for into the address, so that it can be shared and reloaded. */
export function setQuery(values) {
	const url = new URL(location.href);
	for (const [key, value] of Object.entries(values)) {
		if (value) url.searchParams.set(key, value);
		else url.searchParams.delete(key);
	}
	history.replaceState(null, "", url.pathname + url.search);
}

/** seldom calls f at once, and then at most once in so many milliseconds, however often it is called itself. */
export function seldom(f, ms) {
	let next = 0, timer = 0;
	return () => {
		if (timer) return;
		const wait = next - Date.now();
		const now = () => {
			timer = 0;
			next = Date.now() + ms;
			f();
		};
		if (wait > 0) timer = setTimeout(now, wait);
		else now();
	};
}

let pageKeys = {};

/** keys says what keys do on the page that is shown: { key: [text, function] }. It returns a function that ends that. */
export function keys(map) {
	pageKeys = map;
	return () => { if (pageKeys === map) pageKeys = {}; };
}

export const currentKeys = () => pageKeys;

/** openDialog shows a dialog and removes it when it is closed. */
export function openDialog(dialog) {
	document.body.append(dialog);
	dialog.addEventListener("close", () => dialog.remove());
	dialog.showModal();
	return dialog;
}
