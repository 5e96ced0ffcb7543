// A kubeconfig of a cluster. The key is made in the browser and goes into the file only; the server signs a certificate for it.

import { post } from "./api.js";

// ---- DER (X.690), as much of it as a certificate request needs ----

function der(tag, ...parts) {
	const body = parts.flatMap((p) => [...p]), n = body.length;
	const length = n < 128 ? [n] : n < 256 ? [0x81, n] : [0x82, n >> 8, n & 255];
	return Uint8Array.from([tag, ...length, ...body]);
}
const sequence = (...parts) => der(0x30, ...parts);

function integer(bytes) {
	let i = 0;
	while (i < bytes.length - 1 && bytes[i] === 0) i++;
	const rest = [...bytes.slice(i)];
	return der(0x02, rest[0] & 0x80 ? [0, ...rest] : rest);
}

const commonName = Uint8Array.from([0x06, 3, 0x55, 4, 3]); // 2.5.4.3
const ecdsaWithSHA256 = Uint8Array.from([0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]); // 1.2.840.10045.4.3.2

/** requestFor is a PKCS #10 request (RFC 2986) for a key, DER. */
async function requestFor(pair, user) {
	const name = sequence(der(0x31, sequence(commonName, der(0x0c, new TextEncoder().encode(user)))));
	const key = new Uint8Array(await crypto.subtle.exportKey("spki", pair.publicKey));
	const info = sequence(integer([0]), name, key, der(0xa0));
	const raw = new Uint8Array(await crypto.subtle.sign({ name: "ECDSA", hash: "SHA-256" }, pair.privateKey, info));
	const signature = sequence(integer(raw.slice(0, 32)), integer(raw.slice(32)));
	return sequence(info, sequence(ecdsaWithSHA256), der(0x03, [0], signature));
}

const base64 = (bytes) => btoa(String.fromCharCode(...bytes));
const pem = (type, bytes) => "-----BEGIN " + type + "-----\n" + base64(bytes).replace(/.{64}/g, "$&\n").trimEnd() + "\n-----END " + type + "-----\n";
const encoded = (text) => base64(new TextEncoder().encode(text));

/** make asks for a certificate and returns the kubeconfig as text with the answer of the server. */
export async function make(cluster, user, request = {}) {
	const pair = await crypto.subtle.generateKey({ name: "ECDSA", namedCurve: "P-256" }, true, ["sign"]);
	const answer = await post("/coldrack/v1/certificates/" + encodeURIComponent(cluster), { ...request, csr: pem("CERTIFICATE REQUEST", await requestFor(pair, user)) });
	const key = pem("PRIVATE KEY", new Uint8Array(await crypto.subtle.exportKey("pkcs8", pair.privateKey)));
	const context = answer.user + "@" + answer.cluster;
	// JSON is YAML.
	const text = JSON.stringify({
		apiVersion: "v1", kind: "Config", "current-context": context,
		clusters: [{ name: answer.cluster, cluster: { server: answer.server, "certificate-authority-data": encoded(answer.authority) } }],
		contexts: [{ name: context, context: { cluster: answer.cluster, user: context } }],
		users: [{ name: context, user: { "client-certificate-data": encoded(answer.certificate), "client-key-data": encoded(key) } }],
	}, null, 2) + "\n";
	return { text, answer };
}

/** save gives a text to the person as a file. */
export function save(name, text) {
	const address = URL.createObjectURL(new Blob([text], { type: "application/octet-stream" })), a = document.createElement("a");
	a.href = address;
	a.download = name;
	a.click();
	setTimeout(() => URL.revokeObjectURL(address), 60e3);
}
