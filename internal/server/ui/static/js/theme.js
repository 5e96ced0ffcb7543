// Runs before anything is drawn, so that a page that is to be dark never flashes.
(() => {
	let theme = "";
	try { theme = localStorage.getItem("theme") || ""; } catch { /* storage may be forbidden */ }
	if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
})();
