// The objects that the pages show, followed as long as somebody is logged in. Machines are kept as rows (see model.js), others whole.

import { follow, kindPath, listMemory } from "./api.js";
import { order, rowOf, stuck } from "./model.js";

const kinds = ["machines", "clusters", "machinegroups", "subnets", "images", "profiles", "enrollmentpolicies", "bundles"];
// Changes are told together: machines that install change some times a second each.
const burst = 150;

class Store {
	objects = Object.fromEntries(kinds.map((kind) => [kind, new Map()]));
	/** complete: kinds that were listed as a whole. */
	complete = new Set();
	/** trouble by kind: why what is shown may be old, and since when. */
	trouble = new Map();
	#listeners = new Set();
	#changed = new Set();
	#names = new Set();
	#moved = false;
	#timer = 0;
	#abort = null;
	#sorted = null;

	start() {
		this.stop();
		this.again();
	}

	/** again follows everything anew and keeps what is shown: connections that are dead without saying so are given up. */
	again() {
		this.#abort?.abort();
		this.#abort = new AbortController();
		for (const kind of kinds) this.#follow(kind, this.#abort.signal);
	}

	stop() {
		this.#abort?.abort();
		for (const kind of kinds) this.objects[kind].clear();
		this.complete.clear();
		this.trouble.clear();
		this.#sorted = null;
	}

	#follow(kind, signal) {
		const map = this.objects[kind], machines = kind === "machines";
		follow(kindPath(kind), {}, {
			put: (object) => {
				const name = object.metadata.name;
				if (machines) this.#putRow(name, rowOf(object));
				else map.set(name, object);
				this.#tell(kind);
			},
			drop: (name) => {
				map.delete(name);
				if (machines) this.#structure();
				this.#tell(kind);
			},
			page: () => this.#tell(kind),
			listed: (names) => {
				for (const name of map.keys()) if (!names.has(name)) map.delete(name);
				if (machines) this.#structure();
				this.complete.add(kind);
				this.#tell(kind);
			},
			state: (state, why) => {
				if (state === "live") this.trouble.delete(kind);
				else if (!this.trouble.has(kind)) this.trouble.set(kind, { why, since: Date.now() });
				this.#tell("connection");
			},
		}, signal, machines ? listMemory : undefined);
	}

	#putRow(name, row) {
		const map = this.objects.machines, before = map.get(name);
		if (!before || before.rack !== row.rack || before.unit !== row.unit || before.site !== row.site || before.room !== row.room) this.#structure();
		map.set(name, row);
		this.#names.add(name);
	}

	/** structure notes that machines came, went or moved. */
	#structure() {
		this.#sorted = null;
		this.#moved = true;
	}

	#tell(kind) {
		this.#changed.add(kind);
		this.#timer ||= setTimeout(() => {
			const changed = this.#changed, names = this.#moved ? null : this.#names;
			this.#changed = new Set();
			this.#names = new Set();
			this.#moved = false;
			this.#timer = 0;
			for (const f of [...this.#listeners]) f(changed, names);
		}, burst);
	}

	/**
	 * on calls f after each burst with the set of changed kinds, and the names of machines that changed, or null when some came, went or moved;
	 * until the function that it returns is called.
	 */
	on(f) {
		this.#listeners.add(f);
		return () => this.#listeners.delete(f);
	}

	/** all objects of a kind, by name. */
	all(kind) { return [...this.objects[kind].values()].sort((a, b) => order(a.metadata.name, b.metadata.name)); }

	/** machines are all rows in the order of their names. Nobody may change the list. */
	get machines() {
		return this.#sorted ??= [...this.objects.machines.values()].map((r) => r.name).sort(order);
	}

	/** rows in the order of their names. */
	*rows() { for (const name of this.machines) yield this.objects.machines.get(name); }

	/** stuck machines, by name. */
	stuck(now) {
		const found = [];
		for (const row of this.rows()) if (stuck(row, now)) found.push(row);
		return found;
	}
}

export const store = new Store();
