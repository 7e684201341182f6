// Bytes over TLS: requests that no HTTP library would send, and what the server made of them.
import tls from 'node:tls';
import {setTimeout as sleep} from 'node:timers/promises';
import {base, ca} from './env.mjs';

export const host = base.host;

export function connect(options = {}) {
    return new Promise((resolve, reject) => {
        const socket = tls.connect({host: base.hostname, port: base.port, ca, ...options});
        socket.once('secureConnect', () => resolve(socket)).once('error', reject);
    });
}

/* Splits what came into answers; an interim 100 is one of them.  noBody: answers to HEAD. */
function parse(data, noBody) {
    const answers = [];
    for (;;) {
        const end = data.indexOf('\r\n\r\n');
        if (end < 0) break;
        const [line, ...fields] = data.subarray(0, end).toString('latin1').split('\r\n');
        const status = Number(/^HTTP\/1\.[01] (\d{3}) /.exec(`${line} `)?.[1]);
        const headers = Object.fromEntries(fields.map((f) => [f.slice(0, f.indexOf(':')).toLowerCase(), f.slice(f.indexOf(':') + 1).trim()]));
        const length = status === 100 || noBody ? 0 : Number(headers['content-length'] ?? NaN);
        const body = Number.isNaN(length) ? data.subarray(end + 4) : data.subarray(end + 4, end + 4 + length);
        data = data.subarray(end + 4 + body.length);
        let json;
        try { json = JSON.parse(body.toString()); } catch { /* not JSON */ }
        answers.push({line, status, headers, body: body.toString(), json});
    }
    return {answers, rest: data};
}

/*
 * Writes what it is given (a string of bytes, or a list of them with `gap` ms between) and reads until the server closes, or `wait` ms after
 * the last byte.  {answers, rest, closed, after: ms until it was closed}
 */
export async function exchange(bytes, {wait = 1500, gap = 0, want = 0, noBody = false, socket, ...options} = {}) {
    const start = Date.now();
    socket ??= await connect(options);
    let data = Buffer.alloc(0), closed = false, poke;
    socket.on('data', (d) => { data = Buffer.concat([data, d]); poke?.(); });
    for (const event of ['end', 'close', 'error']) socket.on(event, () => { closed = true; poke?.(); });
    for (const piece of [].concat(bytes)) {
        if (closed) break;
        socket.write(typeof piece === 'string' ? Buffer.from(piece, 'latin1') : piece);
        if (gap) await sleep(gap);
    }
    const stop = Date.now() + wait;
    while (!closed && Date.now() < stop) {
        if (want && parse(data, noBody).answers.length >= want) break;
        await Promise.race([new Promise((resolve) => { poke = resolve; }), sleep(Math.max(1, stop - Date.now()), undefined, {ref: false})]);
    }
    const after = Date.now() - start;
    socket.destroy();
    return {...parse(data, noBody), closed, after};
}
