// Elements are made here and nowhere else. Text of any origin becomes a text node, never markup, and what would not show itself is
// shown as a mark: control characters, and characters that change the direction or the order of what is read.

const hidden = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\ufffc\ufffd\u{fe00}-\u{fe0f}]/gu;
const plain = /^[\x20-\x7e\n\t]*$/;

/** visible is text in which each hidden character is replaced by a mark that names it. */
export function visible(text) {
	text = String(text);
	if (plain.test(text)) return text;
	return text.replace(hidden, (c) => {
		const code = c.codePointAt(0);
		if (c === "\n" || c === "\t") return c;
		if (code < 0x20) return String.fromCodePoint(0x2400 + code);
		if (code === 0x7f) return "\u2421";
		return "\u27e8U+" + code.toString(16).toUpperCase().padStart(4, "0") + "\u27e9";
	});
}

/** oneLine is visible text without line ends, at most limit characters long. */
export function oneLine(text, limit = 300) {
	const flat = String(text ?? "").replace(/\s+/g, " ").trim();
	const cut = flat.length > limit ? [...flat.slice(0, limit)].join("") + "\u2026" : flat;
	return visible(cut);
}

const svgTags = new Set(["svg", "circle", "line", "path", "rect", "polyline", "text", "g", "title"]);

/**
 * h makes an element. Properties: class, on (events), data (data-*), style (by CSSOM, as the content security policy forbids style attributes);
 * all others are attributes; null, undefined and false are left out. Children are elements, text, or lists of these.
 */
export function h(tag, properties, ...children) {
	const e = svgTags.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
	for (const [name, value] of Object.entries(properties ?? {})) {
		if (value === null || value === undefined || value === false) continue;
		if (name === "on") for (const [event, f] of Object.entries(value)) e.addEventListener(event, f);
		else if (name === "data") for (const [key, v] of Object.entries(value)) e.dataset[key] = v;
		else if (name === "style") for (const [key, v] of Object.entries(value)) e.style.setProperty(key, v);
		else if (name === "class") e.setAttribute("class", value);
		else if (name.startsWith("on") || name === "srcdoc") throw new Error("not an attribute to be set: " + name);
		else e.setAttribute(name, value === true ? "" : visible(value));
	}
	append(e, children);
	return e;
}

function append(e, children) {
	for (const child of children) {
		if (child === null || child === undefined || child === false) continue;
		if (Array.isArray(child)) append(e, child);
		else e.append(child instanceof Node ? child : document.createTextNode(visible(child)));
	}
}

/** fill replaces the children of an element. */
export function fill(e, ...children) {
	e.replaceChildren();
	append(e, children);
	return e;
}

/** setText changes the text of an element only if it is another. */
export function setText(e, text) {
	const shown = visible(text ?? "");
	if (e.textContent !== shown) e.textContent = shown;
}

/** data marks text that a machine or a person wrote: it keeps its own direction and does not touch what is around it. */
export function data(text, properties) {
	return h("bdi", { ...properties, class: "data " + (properties?.class ?? "") }, text);
}

/** ref is a link to a place in the pages. */
export function ref(path, properties, ...children) {
	return h("a", { href: path, ...properties }, ...children);
}
