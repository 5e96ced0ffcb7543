// Words of the pages themselves. What machines and the server say stays as it is.

const languages = { en: "English", zh: "中文" };
let words = {}, language = "en";

export const current = () => language;
export const all = () => Object.entries(languages);

/** choose loads a language: the one that was chosen before, or the browser's. */
export async function choose(wanted) {
	let saved = "";
	try {
		if (wanted) localStorage.setItem("language", wanted);
		saved = localStorage.getItem("language") ?? "";
	} catch { /* storage may be forbidden */ }
	const asked = wanted || saved || (navigator.languages ?? []).map((l) => l.slice(0, 2)).find((l) => l in languages);
	language = asked in languages ? asked : "en";
	words = language === "en" ? {} : (await import("./" + language + ".js")).words;
	document.documentElement.lang = language === "zh" ? "zh-CN" : language;
}

/** t is a text in the language of the person; {0}, {1} are replaced. */
export function t(text, ...values) {
	return (words[text] ?? text).replace(/\{(\d)\}/g, (_, i) => String(values[i]));
}
