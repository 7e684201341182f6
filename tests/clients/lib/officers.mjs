// What officers do with kmsctl, two of them where it takes two.
import assert from 'node:assert/strict';
import {execFile} from 'node:child_process';
import {randomUUID} from 'node:crypto';
import {writeFileSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {env} from './env.mjs';

const run = (command, args) => new Promise((resolve, reject) => execFile(command, ['--json', ...args], {maxBuffer: 1 << 26}, (error, stdout, stderr) => {
    if (error) reject(new Error(`kmsctl ${args.join(' ')}: ${stderr || stdout || error.message}`));
    else resolve(stdout.trim() === '' ? {} : JSON.parse(stdout));
}));
const first = (...args) => run(env.KMSCTL, args);
const second = (...args) => run(env.KMSCTL_OFFICER2, args);

/* One asks, the other is shown what it touches and agrees to that. */
async function both(...args) {
    const asked = await first(...args);
    if (asked.state !== 'pending') return asked;
    assert.match(asked.approval, /^[0-9a-f-]{36}$/);
    const {hash} = await second('approvals', 'show', asked.approval);
    const done = await second('approvals', 'approve', asked.approval, '--hash', hash);
    assert.equal(done.state, 'done', JSON.stringify(done));
    return done;
}

export const enable = async (org, purpose) => {
    const purposes = await first('purpose', 'list', org);
    if (!purposes.some((p) => p.purpose === purpose && p.enabled)) await both('purpose', 'enable', org, purpose);
};
export const disable = (org, purpose) => first('purpose', 'disable', org, purpose);

function registration({service, identity, purposes, orgs, kinds, rate, breadth, public_key: key}, how) {
    const file = key && join(tmpdir(), `kms-public-${randomUUID()}.json`);
    if (key) writeFileSync(file, JSON.stringify(key));
    return both('service', how, service, '--identity', identity, '--purpose', purposes.join(','), '--org', orgs.join(','), '--kind', kinds.join(','),
        '--rate', String(rate), '--breadth', String(breadth), ...(key ? ['--public-key', file] : [])).finally(() => file && rmSync(file));
}
export const addService = (args) => registration(args, 'add');
export const changeService = (args) => registration(args, 'change');
export const retireService = (name) => first('service', 'retire', name);
export const revokeCertificate = (serial) => first('service', 'revoke-certificate', serial);

const date = (ms) => new Date(ms).toISOString().replace(/\.\d+Z$/, 'Z');
/* The matter's id. */
export async function openMatter({org, name, custodians, from, to, kinds, expires}) {
    const asked = await first('matter', 'open', org, name, '--custodian', custodians.join(','), '--kind', kinds.join(','), '--from', date(from), '--to', date(to), '--expires', date(expires));
    const id = asked.matter ?? asked.args?.matter ?? asked.result?.matter;
    assert.match(id, /^[0-9a-f-]{36}$/, JSON.stringify(asked));
    const {hash} = await second('approvals', 'show', asked.approval);
    await second('matter', 'approve', id, '--hash', hash);
    return id;
}
export const closeMatter = (id) => first('matter', 'close', id);
/* What the first one is told, and what the second one does then. */
export const askRule = (org, name, value) => first('org', 'set', org, `${name}=${value}`);
export async function approve({approval}) {
    const {hash} = await second('approvals', 'show', approval);
    assert.equal((await second('approvals', 'approve', approval, '--hash', hash)).state, 'done');
}
export const setRule = (org, name, value) => both('org', 'set', org, `${name}=${value}`);
/* cmk COMMAND ORG ...: by both where it takes two. */
export const mainKey = (...args) => both('cmk', ...args);
/* what: ['org', NAME], ['user', ID, '--org', NAME] ...; length: 10m */
export const freeze = (what, length) => first('freeze', ...what, '--for', length);
export const thaw = (...what) => first('thaw', ...what);
/* The last request with this id, entry by entry, as kmsctl explains it. */
export const explain = async (id) => (await first('explain', id)).at(-1).entries;
