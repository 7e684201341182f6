// Section 5: customers' main keys.  The SDK's own calls, every state and transition, what a revoked key closes, on two nodes, and officers.
import assert from 'node:assert/strict';
import {execFileSync, spawn} from 'node:child_process';
import {constants, createPublicKey, publicEncrypt, randomBytes, randomUUID, webcrypto} from 'node:crypto';
import https from 'node:https';
import {createServer} from 'node:net';
import {mkdtempSync, openSync, readFileSync, readlinkSync, rmSync, writeFileSync} from 'node:fs';
import {dirname, join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {after, before, test} from 'node:test';
import {ca, env} from './lib/env.mjs';
import {Channel, DATE, api, ok, randomId, refused, uriOf} from './lib/kms.mjs';
import {notOurs} from './lib/instance.mjs';
import {User} from './lib/tokens.mjs';
import {sdk} from './lib/webex.mjs';
import * as officers from './lib/officers.mjs';

const org = env.KMS_ORG_BYOK, role = 'id_full_admin';
const person = (more = {}) => new User({org, ...more});
const boss = person({roles: [role]});
const spock = sdk(boss);
const kms = spock.kms;
const mine = {assignedOrgId: org};
let admin, alice, bob, kro, film;

const derOf = (pem) => {
    const head = '-----BEGIN PUBLIC KEY-----', foot = '-----END PUBLIC KEY-----';
    assert.ok(pem.startsWith(head) && pem.endsWith(foot));
    return pem.substring(head.length, pem.length - foot.length);
};
const encrypt = (pem, raw, oaepHash = 'sha256') =>
    publicEncrypt({key: createPublicKey(pem), padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash}, raw).toString('base64');
const upload = async (raw = randomBytes(32)) =>
    ok(await admin.create('/cmk', {...mine, customerMasterKey: encrypt(await publicKey(), raw)}), 201).customerMasterKeys[0];
const publicKey = async () => ok(await admin.retrieve('/publicKey', mine)).publicKey;
const become = (key, keyState, members = mine) => admin.update(key.uri, {...members, keyState});
const done = async (key, keyState, shown = keyState) => {
    const {customerMasterKeys: [first]} = ok(await become(key, keyState));
    assert.deepEqual([first.uri, first.usageState], [key.uri, shown]);
    return first;
};
const list = async () => ok(await admin.retrieve('/cmk', mine)).customerMasterKeys;

before(async () => {
    admin = await Channel.open(boss);
    alice = await Channel.open(person());
    bob = await Channel.open(person());
    kro = await alice.resource({authIds: [bob.user.sub], keys: 2});
    film = ok(await alice.create(`${kro.uri}/recordings`, {type: 'recording', loc: 'x:1'}), 201).recording;
});
after(async () => {
    for (const k of (await list()).filter((x) => ['REVOKED', 'DISABLED'].includes(x.usageState))) await become(k, 'ACTIVE');
    ok(await admin.delete('/cmk', mine));
});

/* As the SDK's own test does it, which uploads 16 bytes. */
async function sdkRoundTrip({kms}, bytes) {
    const assignedOrgId = org;
    await kms.deleteAllCustomerMasterKeys({assignedOrgId});
    const pem = await kms.fetchPublicKey({assignedOrgId});
    const spki = Uint8Array.from(atob(derOf(pem)), (c) => c.charCodeAt(0));
    const key = await webcrypto.subtle.importKey('spki', spki, {name: 'RSA-OAEP', hash: 'SHA-256'}, true, ['encrypt']);
    const customerMasterKey = Buffer.from(await webcrypto.subtle.encrypt({name: 'RSA-OAEP'}, key, randomBytes(bytes))).toString('base64');
    const uploaded = await kms.uploadCustomerMasterKey({assignedOrgId, customerMasterKey});
    const {uri} = uploaded.customerMasterKeys[0];
    const all = await kms.listAllCustomerMasterKey({assignedOrgId});
    assert.equal(all.customerMasterKeys.find((k) => k.uri === uri).usageState, 'PENDING');
    const active = await kms.changeCustomerMasterKeyState({keyId: uri, keyState: 'ACTIVE', assignedOrgId});
    assert.match(active.customerMasterKeys[0].usageState, /ACTIVE/);
    const [made] = await kms.createUnboundKeys({count: 1});
    assert.equal((await kms.fetchKey({uri: made.uri})).uri, made.uri);
    const root = await kms.useGlobalMasterKey({assignedOrgId});
    assert.equal(root.customerMasterKeys.find((k) => k.uri === uri).usageState, 'DEACTIVATED');
    await kms.deleteAllCustomerMasterKeys({assignedOrgId});
    assert.equal((await kms.fetchKey({uri: made.uri})).uri, made.uri);
}

test('the SDK: all its calls, with a key of 256 bits', () => sdkRoundTrip(spock, 32));
test('the SDK: a key of 128 bits is refused', () => assert.rejects(sdkRoundTrip(spock, 16), (e) => (e.status ?? e.body?.status) === 400));

test('the public key is PEM on three lines, the same each time, and of an RSA key of 3072 bits or so', async () => {
    const pem = await publicKey();
    assert.match(pem, /^-----BEGIN PUBLIC KEY-----\n[A-Za-z0-9+/]+=*\n-----END PUBLIC KEY-----$/);
    assert.equal(await publicKey(), pem);
    const key = createPublicKey(pem);
    assert.equal(key.asymmetricKeyType, 'rsa');
    assert.ok(key.asymmetricKeyDetails.modulusLength >= 2048);
});

test('what is answered to an upload', async () => {
    const body = ok(await admin.create('/cmk', {...mine, customerMasterKey: encrypt(await publicKey(), randomBytes(32))}), 201);
    const [key, ...more] = body.customerMasterKeys;
    assert.equal(more.length, 0);
    assert.match(key.uri, uriOf('cmk'));
    assert.equal(body.uri, key.uri);
    assert.equal(body.keysState, 'PENDING');
    assert.match(key.stateUpdatedOn, DATE);
    assert.deepEqual({...key, stateUpdatedOn: 0, uri: 0}, {uri: 0, assignedOrgId: org, usageState: 'PENDING', source: 'UPLOAD', stateUpdatedOn: 0});
    await done(key, 'REMOVEDCLEAN');
});

test('uploads that are refused', async () => {
    const pem = await publicKey();
    const bad = {
        '128 bits': encrypt(pem, randomBytes(16)), '192 bits': encrypt(pem, randomBytes(24)), 'nothing': encrypt(pem, Buffer.alloc(0)), '33 bytes': encrypt(pem, randomBytes(33)),
        'OAEP with SHA-1': encrypt(pem, randomBytes(32), 'sha1'), 'noise': randomBytes(384).toString('base64'), 'too short': randomBytes(100).toString('base64'),
        'no base64': '!!', 'empty': '', 'a number': 7,
    };
    for (const [what, customerMasterKey] of Object.entries(bad)) refused(await admin.create('/cmk', {...mine, customerMasterKey}), 400002), assert.ok(what);
    refused(await admin.create('/cmk', mine), 400002);
});

test('only an administrator of that organisation', async () => {
    const key = await upload();
    const asks = (m) => [['retrieve', '/publicKey'], ['retrieve', '/cmk'], ['delete', '/cmk'], ['create', '/cmk', {customerMasterKey: 'AAAA'}],
        ['update', key.uri, {keyState: 'ACTIVE'}], ['update', 'default', {keyState: 'ACTIVE'}]].map(([method, uri, more]) => ({method, uri, ...more, ...m}));
    for (const body of await alice.askAll(asks(mine))) refused(body, 403004);
    const [{said}] = await officers.explain((await alice.retrieve('/cmk', mine)).requestId);
    assert.match(said.rule, /administrator role.*assignedOrgId/);
    assert.match(said.asked, /main keys/);
    for (const assignedOrgId of [env.KMS_ORG, randomId()]) for (const body of await admin.askAll(asks({assignedOrgId}))) refused(body, 403004);
    for (const body of await admin.askAll(asks({}))) refused(body, 400002);
    const stranger = await Channel.open(new User({roles: [role]}));
    for (const body of await stranger.askAll(asks(mine))) refused(body, 403004);
    refused(await stranger.update(key.uri, {assignedOrgId: env.KMS_ORG, keyState: 'ACTIVE'}), 404001);
    for (const body of await admin.askAll(asks(mine).slice(0, 2), {onBehalfOf: randomId()})) refused(body, 403004);
    assert.equal((await list()).find((k) => k.uri === key.uri).usageState, 'PENDING');
    await done(key, 'DELETED', 'REMOVEDCLEAN');
});

test('wrong states', async () => {
    const key = await upload();
    for (const s of ['PENDING', 'REVOKED', 'DISABLED', 'DEACTIVATED', 'RETIRED', 'RECOVERING', 'REENCRYPTING', 'REMOVEDDIRTY']) refused(await become(key, s), 409002);
    refused(await become(key, 'ASLEEP'), 400002);
    refused(await become({uri: `/cmk/${randomId()}`}, 'ACTIVE'), 404001);
    refused(await admin.update('default', {...mine, keyState: 'REVOKED'}), 400002, 409002);
    await done(key, 'active', 'ACTIVE');
    for (const s of ['PENDING', 'ACTIVE', 'RETIRED', 'DELETED', 'REMOVEDCLEAN']) refused(await become(key, s), 409002);
    await done(key, 'DEACTIVATED');
    await done(key, 'RETIRED');
    for (const s of ['ACTIVE', 'DELETED', 'DEACTIVATED']) refused(await become(key, s), 409002);
    ok(await admin.delete('/cmk', mine));
});

/* Every request for keys, as one who may ask it. */
const keyRequests = (unbound) => [
    ['retrieve', kro.keyUris[0]], ['retrieve', unbound], ['retrieve', `${kro.uri}/keys`], ['retrieve', `${kro.uri}/keys`, {count: 1}], ['retrieve', kro.uri],
    ['create', '/keys', {count: 1}], ['update', unbound, {resourceUri: kro.uri}], ['create', `${kro.uri}/keys`, {count: 1}], ['create', `${kro.uri}/keys`, {count: 100}],
    ['create', '/resources', {keyUris: [unbound], authIds: []}], ['create', '/resources', {kind: 'meeting', count: 1}],
    ['create', `${kro.uri}/recordings`, {type: 'recording'}], ['create', `${kro.uri}/recordings`, {type: 'transcript', loc: 'x:1'}],
    ['update', film.uri, {loc: 'x:2'}], ['update', film.uri], ['retrieve', film.uri], ['retrieve', `${kro.uri}/recordings`], ['delete', film.uri],
].map(([method, uri, more]) => ({method, uri, ...more}));
const psql = (sql) => execFileSync('psql', ['-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', env.KMS_DATABASE_URL, '-c', sql], {encoding: 'utf8'}).trim();
/* Keys, recordings, and what the recording says of itself. */
const held = () => psql(`SELECT jsonb_build_object('keys', (SELECT count(*) FROM kms.content_keys k WHERE k.resource_id = r.resource_id),
    'recordings', (SELECT jsonb_agg(to_jsonb(m)) FROM kms.recordings m WHERE m.resource_id = r.resource_id)) FROM kms.resources r WHERE r.resource_id = '${kro.uri.split('/').pop()}'`);

/* All of them are refused so, by each who may ask; who may not learns nothing of it; and nothing has changed. */
async function closed(code, unbound, stranger) {
    const before_ = held();
    for (const body of await alice.askAll(keyRequests(unbound))) refused(body, code);
    for (const body of await bob.askAll(keyRequests(unbound).filter((r) => !JSON.stringify(r).includes(unbound)))) refused(body, code);
    for (const [method, uri, more] of [['retrieve', kro.keyUris[0]], ['retrieve', `${kro.uri}/keys`], ['retrieve', kro.uri], ['create', `${kro.uri}/keys`, {count: 1}],
        ['create', `${kro.uri}/recordings`, {type: 'recording'}], ['update', film.uri, {loc: 'x:3'}], ['retrieve', film.uri], ['delete', film.uri]])
        refused(await stranger.ask(method, uri, more), 403001);
    refused(await alice.retrieve(`/keys/${randomId()}`), 404001);
    refused(await alice.create(`/resources/${randomId()}/keys`, {count: 1}), 404001);
    refused(await alice.update(`/recordings/${randomId()}`, {loc: 'x:2'}), 404001);
    ok(await alice.update('/ping'));
    ok(await (await Channel.open(person())).update('/ping'));
    /* who is a member can still be said and changed */
    const guest = randomId();
    await alice.grant(kro.uri, guest);
    assert.ok(ok(await bob.retrieve(`${kro.uri}/authorizations`)).authorizations.some((x) => x.authId === guest));
    ok(await bob.delete(`${kro.uri}/authorizations?authId=${guest}`));
    assert.equal(held(), before_);
}

test('revoked, disabled and opened again: every request for keys, and who has no part in them', async () => {
    const key = await upload();
    const before_ = ok(await bob.retrieve(kro.keyUris[0])).key.jwk.k;
    const [{uri: unbound}] = await alice.keys(1);
    await done(key, 'ACTIVE');
    assert.equal(ok(await bob.retrieve(kro.keyUris[0])).key.jwk.k, before_, 'the same key, under the main key');
    const stranger = await Channel.open(person());
    let events = 0;
    spock.encryption.on('event:kms:key:revoke:encryption:failure', () => events++);
    for (const [state, code] of [['DISABLED', 405006], ['REVOKED', 405005]]) {
        await done(key, state);
        await closed(code, unbound, stranger);
        await assert.rejects(kms.createUnboundKeys({count: 1}));
        refused(await admin.update('default', {...mine, keyState: 'ACTIVE'}), 409002);
        refused(await admin.delete('/cmk', mine), 409002);
        const second = await upload();
        refused(await become(second, 'ACTIVE'), 409002);
        await done(second, 'DELETED', 'REMOVEDCLEAN');
    }
    assert.ok(events >= 2, 'the SDK has raised its event');
    refused(await become(key, 'DISABLED'), 409002);
    await done(key, 'ACTIVE');
    assert.equal(ok(await bob.retrieve(kro.keyUris[0])).key.jwk.k, before_);
    const {keys} = ok(await alice.create('/keys', {count: 3}), 201);

    const other = await upload();
    await done(other, 'ACTIVE');
    assert.equal((await list()).find((k) => k.uri === key.uri).usageState, 'DEACTIVATED', 'another takes its place');
    await done(key, 'DELETED');
    for (const k of keys) assert.equal(ok(await alice.retrieve(k.uri)).key.jwk.k, k.jwk.k);
    ok(await admin.delete('/cmk', mine));
    assert.ok((await list()).every((k) => ['DELETED', 'REMOVEDCLEAN'].includes(k.usageState)));
    for (const k of keys) assert.equal(ok(await alice.retrieve(k.uri)).key.jwk.k, k.jwk.k, 'nothing is lost');
    assert.equal(ok(await bob.retrieve(kro.keyUris[0])).key.jwk.k, before_);
});

test('where a removal rotates, nobody is removed while no key can be made', async () => {
    const guest = randomId(), key = await upload();
    await done(key, 'ACTIVE');
    await alice.grant(kro.uri, guest);
    await officers.setRule(org, 'rotate.removal', 'on');
    try {
        await done(key, 'REVOKED');
        const before_ = held();
        refused(await alice.delete(`${kro.uri}/authorizations?authId=${guest}`), 405005);
        assert.equal(ok(await alice.retrieve(`${kro.uri}/authorizations?authId=${guest}`)).authorizations.length, 1);
        assert.equal(held(), before_);
        await done(key, 'ACTIVE');
        ok(await alice.delete(`${kro.uri}/authorizations?authId=${guest}`));
        assert.equal(JSON.parse(held()).keys, JSON.parse(before_).keys + 1);
    } finally {
        await officers.setRule(org, 'rotate.removal', 'off');
    }
    ok(await admin.delete('/cmk', mine));
});

test('frozen: an organisation, and one of its users, until it is thawed; and what is said of that', async () => {
    const stranger = await Channel.open(person()), [{uri: unbound}] = await alice.keys(1);
    const value = ok(await bob.retrieve(kro.keyUris[0])).key.jwk.k;
    assert.equal((await officers.freeze(['org', org], '10m')).state, 'done');
    try {
        await closed(405006, unbound, stranger);
        const {requestId, reason} = refused(await alice.create(`${kro.uri}/keys`, {count: 1}), 405006);
        assert.match(reason, /frozen/);
        const [{said}] = await officers.explain(requestId);
        assert.match(said.rule, /froze/);
        assert.match(said.otherwise, /thaw/);
        assert.match(said.asked, /for a new key of resource/);
        ok(await admin.retrieve('/cmk', mine));
    } finally {
        await officers.thaw('org', org);
    }
    assert.equal(ok(await bob.retrieve(kro.keyUris[0])).key.jwk.k, value);
    /* of one user: all that he asks, and nobody else */
    await officers.freeze(['user', alice.user.sub, '--org', org], '10m');
    try {
        for (const [method, uri, more] of [['retrieve', kro.keyUris[0]], ['create', `${kro.uri}/keys`, {count: 1}], ['create', `${kro.uri}/recordings`, {type: 'recording'}],
            ['update', film.uri, {loc: 'x:2'}], ['create', '/resources', {count: 1}]]) refused(await alice.ask(method, uri, more), 405006);
        assert.equal(ok(await bob.retrieve(kro.keyUris[0])).key.jwk.k, value);
        ok(await bob.update(film.uri, {loc: 'x:1'}));
    } finally {
        await officers.thaw('user', alice.user.sub, '--org', org);
    }
    ok(await alice.retrieve(film.uri));
    ok(await alice.update(unbound, {resourceUri: kro.uri}));
});

test('activation while keys are made and fetched: none is refused, none is lost', async () => {
    const made = [];
    let on = true;
    const load = [alice, bob].map(async (ch) => {
        while (on) for (const k of ok(await ch.create('/keys', {count: 5}), 201).keys) made.push([ch, k, ok(await ch.retrieve(k.uri)).key.jwk.k]);
    });
    for (let i = 0; i < 3; i++) {
        await done(await upload(), 'ACTIVE');
        ok(await admin.update('default', {...mine, keyState: 'ACTIVE'}));
    }
    ok(await admin.delete('/cmk', mine));
    on = false;
    await Promise.all(load);
    assert.ok(made.length > 10);
    for (const [ch, k, now] of made) assert.equal(now, k.jwk.k), assert.equal(ok(await ch.retrieve(k.uri)).key.jwk.k, k.jwk.k);
});

// --- a second node: the first one's configuration with places of its own ---

const kmsdPid = () => Number(readFileSync(env.KMSD_PID_FILE, 'utf8'));
const configOf = (pid) => {
    const words = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
    return words[words.indexOf('--config') + 1];
};
const freePort = () => new Promise((resolve) => {
    const s = createServer().listen(0, '127.0.0.1', () => { const {port} = s.address(); s.close(() => resolve(port)); });
});

class Node {
    static async start(sets = {}) {
        const n = new Node(), pid = kmsdPid();
        n.home = mkdtempSync(join(dirname(env.KMS_ADMIN_SOCKET), 'k-'));
        n.port = await freePort();
        const own = {kms: {listen: `127.0.0.1:${n.port}`, node: 'second', pid_file: join(n.home, 'kmsd.pid')}, admin: {socket: join(n.home, 'a.sock')},
            metrics: {listen: `127.0.0.1:${await freePort()}`}};
        let section = '';
        const lines = readFileSync(configOf(pid), 'utf8').split('\n').map((line) => {
            section = /^\[(.*)\]/.exec(line)?.[1] ?? section;
            const name = /^(\w+)\s*=/.exec(line)?.[1];
            return own[section] && name in own[section] ? `${name} = ${own[section][name]}` : line;
        });
        writeFileSync(join(n.home, 'kms.conf'), `${lines.join('\n')}\n[keys]\n${Object.entries(sets).map(([k, v]) => `${k} = ${v}\n`).join('')}`);
        const out = openSync(join(n.home, 'log'), 'a');
        n.process = spawn(readlinkSync(`/proc/${pid}/exe`), ['--config', join(n.home, 'kms.conf')], {stdio: ['ignore', out, out]});
        for (let i = 0; i < 300; i++) {
            await sleep(100);
            try {
                if (JSON.parse(execFileSync(env.KMSCTL, ['--json', '--socket', join(n.home, 'a.sock'), 'status'], {stdio: ['ignore', 'pipe', 'ignore']})).ready) return n;
            } catch { /* not yet */ }
        }
        throw new Error(`the second node is not ready: ${readFileSync(join(n.home, 'log'), 'utf8').slice(-1500)}`);
    }
    async ask(ch, method, uri, members = {}) {
        const req = await ch.wrap({method, uri, ...members});
        const body = JSON.stringify({destination: `kms://${env.KMS_DOMAIN}`, kmsMessages: [req.wrapped]});
        const text = await new Promise((resolve, reject) => {
            const r = https.request({host: '127.0.0.1', port: this.port, path: `${api}/messages`, method: 'POST', ca,
                headers: {'content-type': 'application/json', 'content-length': Buffer.byteLength(body)}}, (res) => {
                const parts = [];
                res.on('data', (d) => parts.push(d)).on('end', () => resolve(Buffer.concat(parts).toString()));
            });
            r.on('error', reject).end(body);
        });
        return (await ch.open(JSON.parse(text).kmsMessages[0])).body;
    }
    async stop() {
        if (this.process.exitCode !== null) return;
        const ended = new Promise((resolve) => this.process.once('exit', resolve));
        this.process.kill('SIGTERM');
        await ended;
        rmSync(this.home, {recursive: true, force: true});
    }
}

test('on two nodes: revoked on one is revoked on the other before it is answered; 128 bits where that is allowed; switched off where it is off', async (t) => {
    const two = await Node.start({main_key_128: 'yes'});
    t.after(() => two.stop());
    await sdkRoundTrip(sdk(boss, {services: {encryption: `https://127.0.0.1:${two.port}/encryption/api/v1`}}), 16);
    const pem = ok(await two.ask(admin, 'retrieve', '/publicKey', mine)).publicKey;
    assert.equal(pem, await publicKey());
    const small = encrypt(pem, randomBytes(16));
    refused(await admin.create('/cmk', {...mine, customerMasterKey: small}), 400002);
    const [key] = ok(await two.ask(admin, 'create', '/cmk', {...mine, customerMasterKey: small}), 201).customerMasterKeys;
    await done(key, 'ACTIVE');
    const was = ok(await bob.retrieve(kro.keyUris[0])).key.jwk.k;
    assert.equal(ok(await two.ask(bob, 'retrieve', kro.keyUris[0])).key.jwk.k, was);

    const seen = [], asks = {first: (ch) => ch.retrieve(kro.keyUris[0]), second: (ch) => two.ask(ch, 'retrieve', kro.keyUris[0])};
    const channels = await Promise.all(Array.from({length: 4}, () => Channel.open(bob.user)));
    let on = true;
    const load = channels.map(async (ch, i) => {
        while (on) {
            const where = i % 2 ? 'first' : 'second', sent = Date.now();
            const body = await asks[where](ch);
            seen.push({where, sent, code: body.errorCode ?? 0});
        }
    });
    let slowest = 0;
    for (let i = 0; i < 5; i++) {
        await sleep(200);
        const from = Date.now();
        if (i % 2) await done(key, 'REVOKED');
        else ok(await two.ask(admin, 'update', key.uri, {...mine, keyState: 'REVOKED'}));
        const to = Date.now();
        await sleep(300);
        const late = seen.filter((s) => s.sent > to && s.code === 0);
        assert.deepEqual(late, [], 'nobody got a key who asked after the answer');
        assert.ok(['first', 'second'].every((w) => seen.some((s) => s.where === w && s.sent > to && s.code === 405005)));
        slowest = Math.max(slowest, to - from);
        await done(key, 'ACTIVE');
    }
    on = false;
    await Promise.all(load);
    assert.ok(seen.every((s) => [0, 405005].includes(s.code)), JSON.stringify(seen.find((s) => ![0, 405005].includes(s.code))));
    t.diagnostic(`note: revoked on two nodes after ${slowest} ms at most`);
    assert.ok(slowest < 1000);
    assert.equal(ok(await two.ask(bob, 'retrieve', kro.keyUris[0])).key.jwk.k, was);
    ok(await two.ask(admin, 'delete', '/cmk', mine));
    await two.stop();

    const off = await Node.start({byok: 'no'});
    t.after(() => off.stop());
    const body = await off.ask(admin, 'retrieve', '/publicKey', mine);
    assert.deepEqual([body.status, body.errorCode], [501, 501001]);
    refused(await off.ask(alice, 'retrieve', '/publicKey', mine), 403004);
});

test('while the HSM is stopped: 502, and nothing was changed', {skip: notOurs}, async () => {
    const key = await upload(); /* on the connection that is used next: its worker has the channel's key in memory */
    const hsmd = Number(readFileSync(env.HSMD_PID_FILE, 'utf8'));
    const before_ = await list();
    process.kill(hsmd, 'SIGSTOP');
    try {
        refused(await become(key, 'ACTIVE'), 502001);
        assert.deepEqual(await list(), before_);
    } finally {
        process.kill(hsmd, 'SIGCONT');
    }
    for (let i = 0; ; i++) {
        const body = await become(key, 'ACTIVE');
        if (body.status === 200) break;
        assert.ok(body.status === 502 && i < 5, JSON.stringify(body));
        await sleep(500);
    }
    await done(key, 'DEACTIVATED');
    await done(key, 'DELETED');
});

test('officers: two open, one closes', async () => {
    ok(await admin.delete('/cmk', mine));
    const was = ok(await bob.retrieve(kro.keyUris[0])).key.jwk.k;
    const {public_key: pem} = await officers.mainKey('public-key', org);
    const file = join(dirname(env.KMS_ADMIN_SOCKET), `cmk-${randomUUID()}`);
    writeFileSync(file, encrypt(pem, randomBytes(32)));
    try {
        await officers.mainKey('import', org, file);
    } finally {
        rmSync(file);
    }
    const settled = async (state) => {
        for (let i = 0; i < 100; i++) {
            const {main_keys: [key]} = await officers.mainKey('list', org);
            if (key?.state === state) return key.main_key;
            await sleep(100);
        }
        throw new Error(`no main key became ${state}`);
    };
    const id = await settled('PENDING');
    await officers.mainKey('activate', org, id);
    await settled('ACTIVE');
    assert.equal(ok(await bob.retrieve(kro.keyUris[0])).key.jwk.k, was);
    assert.equal((await officers.mainKey('disable', org)).state, 'done');
    refused(await bob.retrieve(kro.keyUris[0]), 405006);
    assert.equal((await officers.mainKey('revoke', org)).state, 'done');
    refused(await bob.retrieve(kro.keyUris[0]), 405005);
    await officers.mainKey('activate', org, id);
    ok(await bob.retrieve(kro.keyUris[0]));
    await officers.mainKey('default', org);
    await settled('DEACTIVATED');
    await officers.mainKey('delete', org, id);
    await settled('DELETED');
    assert.equal(ok(await bob.retrieve(kro.keyUris[0])).key.jwk.k, was);
});
