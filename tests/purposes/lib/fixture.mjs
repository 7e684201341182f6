// One organisation with a key, and what a test wants beside it: services, matters, more resources.  Organisations come by kmsctl, keys through the protocol;
// registrations and matters are put in place by the database's owner: that two officers are needed for them is control.mjs' matter.
import {execFile} from 'node:child_process';
import {randomBytes, randomUUID} from 'node:crypto';
import {promisify} from 'node:util';
import {Channel, certificates, env, idOf, ok} from './client.mjs';
import {array, lit} from './psql.mjs';

const run = promisify(execFile);
const NIL = '00000000-0000-0000-0000-000000000000';
export const ctl = async (args, {officer = 1, socket, timeout = 60000} = {}) => {
    const tool = officer === 1 ? env.KMSCTL : env.KMSCTL_OFFICER2;
    try {
        const {stdout, stderr} = await run(tool, args, {timeout, env: {...process.env, ...(socket ? {KMS_ADMIN_SOCKET: socket} : {})}, cwd: '/'});
        return {code: 0, stdout, stderr, json: parse(stdout)};
    } catch (e) {
        if (typeof e.code !== 'number') throw e;
        return {code: e.code, stdout: e.stdout, stderr: e.stderr, json: parse(e.stdout)};
    }
};
const parse = (text) => {
    try { return JSON.parse(text); } catch { return undefined; }
};
const unique = () => randomBytes(5).toString('hex');

export async function fixture(owner, {name = 'fixture', on = [], compliance, nodes = []} = {}) {
    const f = {name: `${name}-${unique()}`};
    const made = await ctl(['--json', 'org', 'add', f.name]);
    if (made.code !== 0) throw new Error(made.stderr);
    f.id = made.json.org;
    for (const p of on) await owner.run(`INSERT INTO kms.purposes VALUES (${lit(f.id)}, ${lit(p)}, true, clock_timestamp())`);
    if (compliance) await owner.run(`INSERT INTO kms.settings VALUES (${lit(f.id)}, 'compliance', ${lit(compliance)}, clock_timestamp())`);
    f.channel = await Channel.open({org: f.name, sub: 'maker', clientId: 'https://clients.example/maker'});
    f.resources = async (n, {kind = 'space', authIds = ['custodian']} = {}) => {
        const keys = [];
        while (keys.length < n) keys.push(...ok(await f.channel.ask('create', '/keys', {count: Math.min(100, n - keys.length)}), 201).keys);
        const out = [];
        for (let i = 0; i < n; i += 50) {
            const part = keys.slice(i, i + 50);
            const bodies = await f.channel.askAll(part.map((k) => ({method: 'create', uri: '/resources', kind, authIds, keyUris: [k.uri]})));
            bodies.forEach((b, j) => out.push({id: idOf(ok(b, 201).resource.uri), key: idOf(part[j].uri), k: part[j].jwk.k}));
        }
        return out;
    };
    f.more = async () => (await f.resources(1))[0].key;
    const [first] = await f.resources(1);
    Object.assign(f, {resource: first.id, key: first.key, k: first.k});
    f.unbound = idOf(ok(await f.channel.ask('create', '/keys', {count: 1}), 201).keys[0].uri);

    /* A registered service with its certificate, ready for Channel.open. */
    f.service = async ({purposes, kinds = ['space'], orgs = [f], rate = 0, breadth = 0, publicKey = null}) => {
        const s = {name: `service-${unique()}`, clientId: 'https://services.example/one'};
        s.real = s.name;
        s.identity = `spiffe://services.example/${s.name}`;
        await owner.run(`INSERT INTO kms.services (org_id, service, identity, purposes, kinds, rate, breadth, public_key, created_at)
            VALUES (${lit(NIL)}, ${lit(s.name)}, ${lit(s.identity)}, ${array('text', purposes)}, ${array('text', kinds)}, ${rate}, ${breadth}, ${lit(publicKey)}, clock_timestamp())`);
        for (const o of orgs) await owner.run(`INSERT INTO kms.service_orgs VALUES (${lit(o.id)}, ${lit(s.name)}, clock_timestamp())`);
        [s.certificate] = certificates([s.identity]);
        return s;
    };
    f.matter = async ({state = 'open', custodians = ['custodian'], kinds = ['space'], from = Date.now() - 86400000, to = Date.now() + 86400000, expires = Date.now() + 86400000}) => {
        const id = randomUUID(), at = (t) => `kms.ms_to_time(${t})`;
        await owner.run(`BEGIN;
            INSERT INTO kms.matters (org_id, matter_id, name, custodians, window_from, window_to, kinds, expires_at, text_sha256, state, opened_by, opened_at, approved_at)
            VALUES (${lit(f.id)}, ${lit(id)}, 'a matter', ${array('text', custodians)}, ${at(from)}, ${at(to)}, ${array('text', kinds)}, ${at(expires)}, sha256(''), ${lit(state)}, 'suite(0)', clock_timestamp(), ${state === 'pending' ? 'NULL' : 'clock_timestamp()'});
            SET LOCAL session_replication_role = replica;
            UPDATE kms.matters m SET text_sha256 = sha256(convert_to(kms.matter_text(m), 'UTF8')) WHERE matter_id = ${lit(id)};
            INSERT INTO kms.approvals (org_id, approval_id, action, args, state, needed, requested_by, requested_uid, created_at, expires_at, decided_at)
            SELECT m.org_id, m.matter_id, 'matter.open', '{}', CASE m.state WHEN 'pending' THEN 'pending' ELSE 'done' END, 2, m.opened_by, 0, m.opened_at,
                   m.opened_at + interval '3 days', CASE WHEN m.state <> 'pending' THEN clock_timestamp() END
              FROM kms.matters m WHERE m.matter_id = ${lit(id)};
            COMMIT`);
        return id;
    };
    return f;
}
