// Two nodes on one database and one hsmd: what closes on one is closed on the other before the command returns, and what opens is open.  Services ask both nodes
// all the time, singly and in POSTs of 40, while the command runs on one of them; a request that was sent after the command had returned gets no key,
// and no release is on record after it.
//
//   node nodes.mjs [--short]
import {execFileSync, spawn} from 'node:child_process';
import {mkdtempSync, openSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {createServer} from 'node:net';
import {dirname, join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {Channel, env, ok} from './lib/client.mjs';
import {ctl, fixture} from './lib/fixture.mjs';
import {Psql, lit} from './lib/psql.mjs';
import {PURPOSES} from './model.mjs';

const short = process.argv.includes('--short'), rounds = short ? 1 : 5;
let passed = 0, failed = 0;
const check = (name, good, why = '') => {
    if (good) passed++;
    else { failed++; console.log(`FAILED: ${name} ${why}`); }
};
const owner = new Psql();

// --- the second node: the first one's configuration with other places of its own ---

const freePort = () => new Promise((resolve) => {
    const s = createServer().listen(0, '127.0.0.1', () => { const {port} = s.address(); s.close(() => resolve(port)); });
});
// Below the first one's socket: the second officer can reach it there.
const home = mkdtempSync(join(dirname(env.KMS_ADMIN_SOCKET), 'b-'));
execFileSync('chmod', ['711', home]);
const [https, metrics] = [await freePort(), await freePort()];
const second = {url: `https://127.0.0.1:${https}`};
const socket = join(home, 'a.sock');
let section = '';
writeFileSync(join(home, 'kms.conf'), readFileSync(env.KMS_TEST_CONF, 'utf8').split('\n').map((line) => {
    section = /^\[(.*)\]/.exec(line)?.[1] ?? section;
    const set = {kms: {listen: `127.0.0.1:${https}`, node: 'second', pid_file: join(home, 'kmsd.pid')}, admin: {socket}, metrics: {listen: `127.0.0.1:${metrics}`}}[section];
    const name = /^(\w+)\s*=/.exec(line)?.[1];
    return set && name in set ? `${name} = ${set[name]}` : line;
}).join('\n'));
const out = openSync(join(home, 'log'), 'a');
const node = spawn(env.KMS_TEST_KMSD, ['--config', join(home, 'kms.conf')], {stdio: ['ignore', out, out], detached: true});
const end = () => { try { process.kill(node.pid, 'SIGTERM'); } catch { /* it has ended */ } };
process.on('exit', end);
let ready = false;
for (let i = 0; i < 300 && !ready; i++) {
    await sleep(100);
    ready = (await ctl(['--json', 'status'], {socket})).json?.ready === true;
}
check('the second node is ready', ready, ready ? '' : readFileSync(join(home, 'log'), 'utf8').slice(-2000));
if (!ready) {
    console.log(`${passed} passed, ${failed} failed`);
    process.exit(1);
}

// --- load ---

/* Asks without end, on both nodes; notes of each answer when its request was sent, and what came. */
class Load {
    constructor(channels, requests) {
        this.seen = [];
        this.running = true;
        this.loops = channels.flatMap(([ch, where], i) => [1, 40].map((n) => this.loop(ch, where, n, requests, i)));
    }
    async loop(ch, where, n, requests, at) {
        while (this.running) {
            const part = Array.from({length: n}, (_, i) => requests[(at + i) % requests.length]);
            const sent = Date.now();
            try {
                const bodies = await ch.askAll(part, where);
                for (const b of bodies) this.seen.push({sent, node: where.url ?? 'first', status: b.status, code: b.errorCode ?? 0, keys: b.keys?.length ?? (b.key ? 1 : 0)});
            } catch (e) {
                // A connection that the server ends, or no certificate any more: no key came.
                this.seen.push({sent, node: where.url ?? 'first', status: 0, code: -1, keys: 0, why: e.message});
                await sleep(20);
            }
        }
    }
    async end() {
        this.running = false;
        await Promise.all(this.loops);
    }
}

/* Whoever asks, for what, and the command that ends it.  kind: of the entries that releases leave. */
const services = {
    kind: 'service',
    open: (f, where) => Channel.open(f.s, where),
    requests: (f, list) => [...list.flatMap((r) => [{method: 'retrieve', uri: `/keys/${r.key}`, purpose: 'ediscovery', matter: f.matterId},
        {method: 'retrieve', uri: `/resources/${r.id}/keys`, purpose: 'ediscovery', matter: f.matterId}]), {method: 'retrieve', uri: `/matters/${f.matterId}/keys`, count: 10}],
};
const walkers = {...services, requests: () => [{method: 'retrieve', uri: '/purposes/indexing/keys', count: 10}]};
const scanners = {...services, requests: (f, list) => list.map((r) => ({method: 'retrieve', uri: `/keys/${r.key}`, purpose: 'dlp'}))};
const officers = {
    kind: 'user',
    open: (f, where) => Channel.open({org: f.name, sub: 'officer', roles: ['spark.kms_orgagent'], clientId: 'https://clients.example/officer'}, where),
    requests: (f, list) => list.flatMap((r) => [{method: 'retrieve', uri: `/keys/${r.key}`, behalf: 'custodian'}, {method: 'retrieve', uri: `/resources/${r.id}/keys`, behalf: 'custodian'}]),
};
const CLOSING = {
    'purpose.disable': {...services, command: (f) => ['purpose', 'disable', f.name, 'ediscovery'], codes: [403005]},
    'purpose.disable of a walk': {...walkers, command: (f) => ['purpose', 'disable', f.name, 'indexing'], codes: [403005]},
    'matter.close': {...services, command: (f) => ['matter', 'close', f.matterId], codes: [403007]},
    'matter.close for officers': {...officers, compliance: 'matter', command: (f) => ['matter', 'close', f.matterId], codes: [403007]},
    'setting.set of compliance': {...officers, matter: false, command: (f) => ['org', 'set', f.name, 'compliance=matter'], codes: [403007]},
    'setting.set of dlp.age': {...scanners, old: 3600000, command: (f) => ['org', 'set', f.name, 'dlp.age=30m'], codes: [403005]},
    'service.retire': {...services, command: (f) => ['service', 'retire', f.s.name], codes: [499001, 403006, -1]},
    'certificate.revoke': {...services, command: (f) => ['service', 'revoke-certificate', f.s.certificate.serial], codes: [499001, 401001, -1]},
    'org.suspend': {...services, command: (f) => ['org', 'suspend', f.name], codes: [403001]},
};

for (let round = 0; round < rounds; round++) {
    for (const [what, how] of Object.entries(CLOSING)) {
        for (const on of ['first', 'second']) {
            const f = await fixture(owner, {name: what.split(' ')[0].replace('.', '-'), on: PURPOSES, compliance: how.compliance});
            f.s = await f.service({purposes: PURPOSES});
            if (how.matter !== false) f.matterId = await f.matter({});
            const list = [{id: f.resource, key: f.key}, ...await f.resources(5)];
            if (how.old) {
                await owner.run(`BEGIN; SET LOCAL session_replication_role = replica; UPDATE kms.content_keys SET bound_at = bound_at - ${how.old} * interval '1 millisecond'
                    WHERE org_id = ${lit(f.id)} AND resource_id IS NOT NULL; COMMIT`);
            }
            const channels = [];
            for (const where of [{}, second, {}, second]) channels.push([await how.open(f, where), where]);
            const load = new Load(channels, how.requests(f, list));
            await sleep(400 + Math.random() * 300);
            const before = load.seen.length;
            const res = await ctl(how.command(f), on === 'first' ? {} : {socket});
            const returned = Date.now();
            await sleep(600);
            await load.end();
            const name = `${what} on the ${on} node`;
            check(`${name} is done`, res.code === 0, res.stderr + res.stdout);
            for (const node of ['first', second.url]) {
                const got = load.seen.filter((x) => x.node === node && x.sent < returned && x.keys > 0).length;
                check(`${name}: keys were released before, on ${node === 'first' ? 'the first' : 'the second'}`, got > 50, `${got} of ${before}, ${JSON.stringify(load.seen.find((x) => x.keys === 0))}`);
                const after = load.seen.filter((x) => x.node === node && x.sent > returned);
                check(`${name}: none to a request sent after it returned`, after.length > 0 && after.every((x) => x.keys === 0), `${after.filter((x) => x.keys).length} of ${after.length}`);
                check(`${name}: for the right reason`, after.every((x) => how.codes.includes(x.code)), JSON.stringify(after.find((x) => !how.codes.includes(x.code))));
            }
            const released = `e.org_id = ${lit(f.id)} AND e.kind = '${how.kind}' AND e.verdict = 0 AND e.action IN ('key.get', 'resource.keys', 'matter.keys', 'purpose.keys') AND e.key_ids IS NOT NULL`;
            const count = async (where) => Number((await owner.run(`SELECT count(*) FROM kms.entries e WHERE ${released} AND ${where}`))[0]);
            const late = await count(`e.at >= kms.ms_to_time(${returned})`);
            check(`${name}: no release on record after it`, late === 0, late);
            // And by the log itself: after the command's own entry there is no release.
            const order = await count(`e.at > (SELECT max(c.at) FROM kms.entries c WHERE c.action = ${lit(what.split(' ')[0])} AND c.verdict = 0 AND c.at <= kms.ms_to_time(${returned})
                AND c.org_id IN (${lit(f.id)}, kms.nobody()))`);
            check(`${name}: nor after the command's own entry`, order === 0, order);
        }
    }

    // --- a matter ends by itself, at its time, on both ---
    {
        const f = await fixture(owner, {name: 'expiry', on: PURPOSES});
        f.s = await f.service({purposes: PURPOSES});
        const channels = [];
        for (const where of [{}, second]) channels.push([await Channel.open(f.s, where), where]);
        const expires = Date.now() + 1500;
        const matter = await f.matter({expires});
        const load = new Load(channels, [{method: 'retrieve', uri: `/keys/${f.key}`, purpose: 'ediscovery', matter}, {method: 'retrieve', uri: `/matters/${matter}/keys`}]);
        await sleep(2300);
        await load.end();
        check('a matter gives keys until it expires', load.seen.filter((x) => x.sent < expires && x.keys).length > 50);
        const after = load.seen.filter((x) => x.sent >= expires);
        check('and none from then on', after.length > 0 && after.every((x) => x.keys === 0 && x.code === 403007), JSON.stringify(after.find((x) => x.keys || x.code !== 403007)));
        const late = Number((await owner.run(`SELECT count(*) FROM kms.entries WHERE org_id = ${lit(f.id)} AND kind = 'service' AND verdict = 0 AND at >= kms.ms_to_time(${expires})`))[0]);
        check('nor on record', late === 0, late);
    }

    // --- what opens is open everywhere when the second officer's command returns ---
    {
        const f = await fixture(owner, {name: 'opening', on: []});
        f.s = await f.service({purposes: PURPOSES});
        const channels = [await Channel.open(f.s), await Channel.open(f.s, second)];
        const ask = () => Promise.all(channels.map((ch) => ch.ask('retrieve', `/keys/${f.key}`, {purpose: 'dlp'})));
        check('it is closed', (await ask()).every((b) => b.errorCode === 403005));
        const asked = await ctl(['--json', 'purpose', 'enable', f.name, 'dlp']);
        check('one officer asks for it', asked.code === 0 && asked.json?.approval, asked.stderr);
        check('and it is still closed', (await ask()).every((b) => b.errorCode === 403005));
        const agreed = await ctl(['--json', 'approvals', 'approve', asked.json?.approval], {officer: 2, socket});
        check('the second one agrees, on the other node', agreed.code === 0, agreed.stderr + agreed.stdout);
        const [a, b] = await ask();
        check('it is open on both', a.status === 200 && b.status === 200, JSON.stringify([a, b]).slice(0, 300));
        const off = await ctl(['purpose', 'disable', f.name, 'dlp'], {socket});
        check('and closed by one', off.code === 0, off.stderr);
        check('on both', (await ask()).every((x) => x.errorCode === 403005));
    }
}

end();
owner.end();
await new Promise((resolve) => { node.on('exit', resolve); setTimeout(resolve, 20000).unref(); });
if (!failed) rmSync(home, {recursive: true, force: true});
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
