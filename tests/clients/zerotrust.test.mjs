// Zero-trust meetings (protocol section 7): every request that the server knows, tried by everybody there is.  What would need a key is
// answered 403010, membership works, and nothing is made or stored that could open the meeting.
import assert from 'node:assert/strict';
import {execFileSync} from 'node:child_process';
import {readFileSync} from 'node:fs';
import {after, before, test} from 'node:test';
import {env} from './lib/env.mjs';
import {Channel, ok, randomId, refused, relative} from './lib/kms.mjs';
import {addService, closeMatter, disable, enable, openMatter, setRule} from './lib/officers.mjs';
import {ServiceChannel, askAll, certificate, forgetConnections, freshIdentity} from './lib/service.mjs';
import {User, officer} from './lib/tokens.mjs';

const KINDS = ['space', 'meeting', 'file', 'whiteboard', 'calendar'];
const PURPOSES = ['indexing', 'dlp', 'ediscovery', 'archival', 'transcoding'];
const alice = new User({name: 'alice'}), bob = new User({name: 'bob'}), carol = new User({name: 'carol'}), mallory = new User({name: 'mallory'});
const [a, b, c, m] = await Promise.all([alice, bob, carol, mallory].map((u) => Channel.open(u)));
const idOf = (uri) => uri.split('/').pop();
const make = async (members, ch = a) => ok(await ch.create('/resources', members), 201).resource;
const show = async (uri, ch = a) => ok(await ch.retrieve(uri)).resource;
const value = async (ch, uri) => ok(await ch.retrieve(uri)).key.jwk.k;
const psql = (sql) => execFileSync('psql', ['-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', env.KMS_DATABASE_URL, '-c', sql], {encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], maxBuffer: 1 << 26}).trim();
const count = (what) => Number(psql(`SELECT count(*) FROM kms.${what}`));

/* The names of all requests, as the server's own table has them: OP_KEY_GET -> key.get. */
const names = (() => {
    const source = (file) => readFileSync(new URL(`../../proto/${file}`, import.meta.url), 'utf8');
    const [, list] = /enum kms_op \{([^}]*)\}/.exec(source('msg.h'));
    const [, table] = /op_names\[\] = \{([^}]*)\}/.exec(source('msg.c'));
    const found = Object.fromEntries([...table.matchAll(/\[(OP_\w+)\] = "([^"]+)"/g)].map(([, op, name]) => [op, name]));
    const all = [...list.replace(/\/\*.*?\*\//gs, '').matchAll(/OP_\w+/g)].map(([op]) => op);
    assert.ok(all.length > 20);
    assert.deepEqual(Object.keys(found).sort(), [...all].sort(), 'each request has its name');
    return found;
})();

let space; /* carol is in it; the meeting is open to it */
let meeting; /* zero-trust: alice's, with bob, a guest, and the space */
let standard, film; /* a meeting that has a key and a recording, of the same people */
let guest, matter, services;
const identity = freshIdentity();
before(async () => {
    space = await make({count: 1, userIds: [carol.sub]});
    const people = {kind: 'meeting', userIds: [bob.sub], authIds: [space.uri]};
    meeting = await make({security: 'zero-trust', anonymous: 1, ...people});
    const {bearer} = meeting.authorizations.find((x) => x.bearer);
    guest = await Channel.open({sub: undefined, clientId: 'guest'}, {bearer});
    standard = await make({count: 1, ...people});
    film = ok(await a.create(`${standard.uri}/recordings`, {type: 'recording'}), 201).recording;
    await addService({service: `curious-${randomId().slice(0, 8)}`, identity, purposes: PURPOSES, orgs: [env.KMS_ORG], kinds: KINDS, rate: 0, breadth: 0});
    for (const p of PURPOSES) await enable(env.KMS_ORG, p);
    const day = 86400000, now = Date.now();
    matter = await openMatter({
        org: env.KMS_ORG, name: 'the meeting', custodians: [alice.sub, bob.sub, carol.sub], from: now - day, to: now + day, kinds: KINDS, expires: now + day,
    });
    services = await Promise.all([false, true].map((relay) => ServiceChannel.open(certificate(identity), {relay})));
});
after(async () => {
    await closeMatter(matter);
    await disable(env.KMS_ORG, 'transcoding');
    forgetConnections();
});

/*
 * Every request there is, as somebody would send it to get at a key of the meeting, or to bring one in.  w: what the one who asks has of
 * his own: a key that is bound to nothing, somebody who is authorised already, another channel.  [what is expected, request ...]
 *   key      needs a key: 403010
 *   member   membership: who is a member may
 *   nothing  there is no such thing of the meeting
 *   other    about something else, or about nothing that it could hurt: the answer has nothing of the meeting
 */
const tries = {
    OP_CHANNEL_CREATE: () => [['other', 'create', '/ecdhe', {resourceUri: meeting.uri, count: 1}]],
    OP_CHANNEL_DELETE: (w) => [['other', 'delete', w.channel, {resourceUri: meeting.uri}]],
    OP_PING: () => [['other', 'update', '/ping', {resourceUri: meeting.uri}]],
    OP_KEYS_CREATE: () => [['other', 'create', '/keys', {count: 2, resourceUri: meeting.uri}]],
    OP_KEY_BIND: (w) => [
        ['key', 'update', w.unbound, {resourceUri: meeting.uri}],
        ['key', 'update', w.unbound, {resourceUri: relative(meeting.uri)}],
        ['key', 'update', standard.keys[0].uri, {resourceUri: meeting.uri}],
        ['key', 'update', space.keys[0].uri, {resourceUri: meeting.uri}],
        ['key', 'update', `/keys/${randomId()}`, {resourceUri: meeting.uri}],
    ],
    OP_KEY_GET: () => [
        ['nothing', 'retrieve', `/keys/${idOf(meeting.uri)}`],
        ['nothing', 'retrieve', `/keys/${idOf(meeting.authorizations[0].uri)}`],
        ['other', 'retrieve', standard.keys[0].uri, {resourceUri: meeting.uri}],
    ],
    OP_RESOURCE_CREATE: (w) => [
        ['key', 'create', '/resources', {kind: 'meeting', security: 'zero-trust', count: 1}],
        ['key', 'create', '/resources', {kind: 'meeting', security: 'zero-trust', count: 100, authIds: [space.uri], ttl: 86400}],
        ['key', 'create', '/resources', {kind: 'meeting', security: 'zero-trust', keyUris: [w.unbound]}],
        ['key', 'create', '/resources', {kind: 'meeting', security: 'zero-trust', keyUris: [standard.keys[0].uri]}],
        ['other', 'create', '/resources', {kind: 'meeting', security: 'standard', count: 1, uri: meeting.uri, resourceUri: meeting.uri, userIds: []}],
        ['other', 'create', '/resources', {kind: 'meeting', security: 'zero-trust', userIds: []}],
        ['other', 'create', '/resources', {count: 1, authIds: [meeting.uri]}],
    ],
    OP_RESOURCE_GET: () => [['member', 'retrieve', meeting.uri], ['member', 'retrieve', meeting.uri, {count: 1, security: 'standard'}]],
    OP_RESOURCE_KEYS: () => [
        ['key', 'retrieve', `${meeting.uri}/keys`],
        ['key', 'retrieve', `${meeting.uri}/keys`, {count: 1}],
        ['key', 'retrieve', `${meeting.uri}/keys`, {boundAfter: '2020-01-01T00:00:00Z', boundBefore: '2100-01-01T00:00:00Z'}],
        ['key', 'retrieve', relative(`${meeting.uri}/keys`)],
    ],
    OP_AUTHORIZATIONS_CREATE: () => [
        ['member', 'create', '/authorizations', {resourceUri: meeting.uri, authIds: [randomId()], count: 1}],
        ['member', 'create', '/authorizations', {resourceUri: meeting.uri, authIds: [space.uri]}],
        ['member', 'create', '/authorizations', {resourceUri: meeting.uri, anonymous: 1}],
    ],
    OP_AUTHORIZATIONS_LIST: () => [
        ['member', 'retrieve', `${meeting.uri}/authorizations`],
        ['member', 'retrieve', `${meeting.uri}/authorizations?authId=${bob.sub}`],
    ],
    OP_AUTHORIZATION_DELETE: (w) => [
        ['member', 'delete', w.grants[0].uri],
        ['member', 'delete', `${meeting.uri}/authorizations?authId=${w.grants[1].authId}`],
        ['member', 'delete', '/authorizations', {resourceUri: meeting.uri, authIds: [w.grants[2].authId]}],
    ],
    OP_RELEASES: () => [['member', 'retrieve', `${meeting.uri}/releases`]],
    OP_PURPOSE_KEYS: () => ['indexing', 'archival', 'dlp', 'transcoding'].map((p) => ['other', 'retrieve', `/purposes/${p}/keys`, {count: 1000}]),
    OP_MATTER_KEYS: () => [['other', 'retrieve', `/matters/${matter}/keys`, {count: 1000}]],
    OP_RESOURCE_ROTATE: () => [
        ['key', 'create', `${meeting.uri}/keys`, {count: 1}],
        ['key', 'create', `${meeting.uri}/keys`, {count: 100}],
        ['key', 'create', relative(`${meeting.uri}/keys`), {count: 1, security: 'standard'}],
    ],
    OP_RECORDING_CREATE: () => [
        ['key', 'create', `${meeting.uri}/recordings`, {type: 'recording'}],
        ['key', 'create', `${meeting.uri}/recordings`, {type: 'transcript', loc: 'https://files.example/1', keyUri: standard.keys[0].uri}],
    ],
    OP_RECORDING_UPDATE: () => [
        ['nothing', 'update', `/recordings/${idOf(meeting.uri)}`, {loc: 'x:y'}],
        ['other', 'update', film.uri, {resourceUri: meeting.uri, loc: 'x:y'}],
    ],
    OP_RECORDING_GET: () => [['nothing', 'retrieve', `/recordings/${idOf(meeting.uri)}`], ['other', 'retrieve', film.uri, {resourceUri: meeting.uri}]],
    OP_RECORDINGS_LIST: () => [['key', 'retrieve', `${meeting.uri}/recordings`]],
    OP_RECORDING_DELETE: () => [['nothing', 'delete', `/recordings/${idOf(meeting.uri)}`]],
    OP_PUBLIC_KEY: () => [['other', 'retrieve', '/publicKey', {assignedOrgId: env.KMS_ORG, resourceUri: meeting.uri}]],
    OP_CMK_CREATE: () => [['other', 'create', '/cmk', {assignedOrgId: env.KMS_ORG, customerMasterKey: 'AAAA', resourceUri: meeting.uri}]],
    OP_CMK_LIST: () => [['other', 'retrieve', '/cmk', {assignedOrgId: env.KMS_ORG, resourceUri: meeting.uri}]],
    OP_CMK_UPDATE: () => [['other', 'update', 'default', {assignedOrgId: env.KMS_ORG, keyState: 'ACTIVE', resourceUri: meeting.uri}]],
    OP_CMK_DELETE: () => [['other', 'delete', '/cmk', {assignedOrgId: env.KMS_ORG, resourceUri: meeting.uri}]],
};

test('each request that the server knows is tried', () => assert.deepEqual(Object.keys(tries).sort(), Object.keys(names).sort()));

/* What somebody needs of his own to try all that. */
async function outfit(ch) {
    const grants = await a.grant(meeting.uri, randomId(), randomId(), randomId());
    const {user} = ch;
    const maker = user?.sub ? ch : a;
    const extra = user?.sub ? await Channel.open(user) : null;
    return {grants, unbound: (await maker.keys(1))[0].uri, channel: extra?.uri ?? `/ecdhe/${randomId()}`};
}
const requestsOf = (w) => Object.entries(tries).flatMap(([op, list]) => list(w).map(([want, method, uri, members = {}]) => ({op, want, method, uri, members})));

/* Nothing in an answer is of the meeting but its members. */
function innocent(x, what) {
    if (Array.isArray(x)) return x.forEach((y) => innocent(y, what));
    if (x === null || typeof x !== 'object') return undefined;
    const text = () => `${what}: ${JSON.stringify(x).slice(0, 400)}`;
    if (x.uri === meeting.uri) {
        assert.deepEqual(x.keyUris, [], text());
        for (const member of ['keys', 'activeKeyUri', 'message', 'key', 'recordings']) assert.equal(x[member], undefined, text());
        assert.equal(x.security, 'zero-trust', text());
    } else if (x.resourceUri === meeting.uri) {
        for (const member of ['jwk', 'jwe', 'k', 'message', 'keyUri', 'bindDate']) assert.equal(x[member], undefined, text());
    }
    Object.values(x).forEach((y) => innocent(y, what));
}

const stored = () => psql(`SELECT string_agg(format('%s %s', r.resource_id, (SELECT count(*) FROM kms.content_keys k WHERE k.resource_id = r.resource_id)
        + (SELECT count(*) FROM kms.recordings x WHERE x.resource_id = r.resource_id)), ' ') FROM kms.resources r WHERE r.security = 'zero-trust'
        AND (EXISTS (SELECT FROM kms.content_keys k WHERE k.resource_id = r.resource_id) OR EXISTS (SELECT FROM kms.recordings x WHERE x.resource_id = r.resource_id))`);

/* The actions under which a request was recorded must be what the table says that it is: so no try misses what it means. */
const recorded = new Map(Object.keys(names).map((op) => [op, new Set()]));
function note(requests, answers) {
    const ops = new Map(requests.map(({op}, i) => [answers[i].requestId, op]));
    const rows = psql(`SELECT DISTINCT request_id || ' ' || action FROM kms.entries WHERE request_id IN (${[...ops.keys()].map((id) => `'${id}'`).join(',')})`);
    for (const row of rows.split('\n').filter(Boolean)) {
        const [id, action] = row.split(' ');
        recorded.get(ops.get(id)).add(action);
    }
}

/* expect[want](request): the codes that are right, 0 for success; undefined: any. */
function judge(who, expect, requests, answers) {
    requests.forEach(({op, want, method, uri}, i) => {
        const what = `${who}: ${op} ${method} ${uri}`, codes = expect(want, {op, method});
        innocent(answers[i], what);
        if (codes) assert.ok(codes.includes(answers[i].errorCode ?? 0), `${what}: ${codes} expected: ${JSON.stringify(answers[i]).slice(0, 300)}`);
        if (want === 'key') assert.equal(answers[i].status, 403, what);
    });
    assert.equal(stored(), '', who);
}

const member = {key: [403010], member: [0], nothing: [404001, 403001]};
const stranger = {...member, member: [403001]};
const askers = {
    'the creator': {open: () => a, ...member},
    'a member': {open: () => b, ...member},
    'a member through a space': {open: () => c, ...member},
    'a stranger': {open: () => m, ...stranger},
    'a stranger of another organisation': {open: () => Channel.open(new User({org: env.KMS_ORG2})), ...stranger},
    'an administrator of another organisation': {open: () => Channel.open(new User({org: env.KMS_ORG2, roles: ['id_full_admin']})), ...stranger},
    'an officer for himself': {open: () => Channel.open(officer()), ...stranger},
    'an anonymous member': {open: () => guest, key: [403010, 403001], member: [403001], nothing: [404001, 403001]},
};
for (const [who, {open, ...codes}] of Object.entries(askers))
    test(`${who}: 403010 to all that would need a key, ${codes.member[0] ? 'and no part in its membership' : 'and all of its membership'}`, async () => {
        const ch = await open();
        const requests = requestsOf(await outfit(ch));
        const answers = [];
        for (let i = 0; i < requests.length; i += 50)
            answers.push(...await ch.askAll(requests.slice(i, i + 50).map(({method, uri, members}) => ({method, uri, ...members}))));
        judge(who, (want) => codes[want], requests, answers);
        note(requests, answers);
    });

for (const compliance of ['role', 'matter'])
    test(`an officer ${compliance === 'matter' ? 'with an open matter' : 'by his role'}, on behalf of each sort of member`, async () => {
        if (compliance === 'matter') await setRule(env.KMS_ORG, 'compliance', 'matter');
        try {
            for (const user of [alice, bob, carol]) {
                const ch = await Channel.open(officer()), as = {onBehalfOf: user.sub};
                assert.equal(ok(await ch.retrieve(standard.keys[0].uri, {}, as)).key.jwk.k, standard.keys[0].jwk.k, 'he does get what he may');
                const requests = requestsOf(await outfit(ch)).filter((r) => r.op !== 'OP_CHANNEL_DELETE');
                const answers = await ch.askAll(requests.map(({method, uri, members}) => ({method, uri, ...members})), as);
                judge(`an officer for ${user.name}`, (want, {op, method}) => {
                    if (op === 'OP_CHANNEL_CREATE' || op === 'OP_RELEASES' || want === 'other') return undefined;
                    if (method !== 'retrieve') return [403004];
                    return {key: [403010], member: [0], nothing: [404001, 403001, 403004]}[want];
                }, requests, answers);
            }
        } finally {
            if (compliance === 'matter') await setRule(env.KMS_ORG, 'compliance', 'role');
        }
    });

for (const purpose of [...PURPOSES, undefined, 'curiosity'])
    test(`a service under ${purpose ? `the purpose ${purpose}` : 'no purpose'}, over mutual TLS and behind a relay`, async () => {
        const under = {...(purpose ? {purpose} : {}), ...(purpose === 'ediscovery' ? {matter} : {})};
        for (const ch of services) {
            if (PURPOSES.includes(purpose))
                assert.equal(ok(await ch.retrieve(relative(standard.keys[0].uri), under)).key.jwk.k, standard.keys[0].jwk.k, 'it does get what it is for');
            const requests = requestsOf(await outfit({}));
            const answers = await askAll(ch, requests.map(({method, uri, members}) => [method, uri, {...members, ...under}]));
            judge(`a service under ${purpose}`, (want, {op}) => {
                if (op === 'OP_CHANNEL_CREATE' || op === 'OP_CHANNEL_DELETE' || op === 'OP_PING') return undefined;
                if (op === 'OP_RESOURCE_KEYS') return [403010];
                return op === 'OP_KEY_GET' || want === 'other' ? undefined : [403005];
            }, requests, answers);
            note(requests, answers);
        }
    });

test('services: their walks do not come across it', async () => {
    for (const uri of ['/purposes/indexing/keys', '/purposes/archival/keys', `/matters/${matter}/keys`]) {
        let cursor, keys, seen = 0;
        do {
            ({cursor, keys} = ok(await services[0].retrieve(uri, {count: 1000, ...(cursor ? {cursor} : {})})));
            seen += keys.length;
            innocent(keys, uri);
            assert.ok(keys.every((k) => k.resourceUri !== meeting.uri));
        } while (keys.length > 0 && cursor);
        assert.ok(seen > 0);
    }
});

test('each try was, on the record, the request that it means', async () => {
    /* on a channel it is no request for one */
    ok((await Channel.open(bob, {resourceUri: meeting.uri, count: 1})).created, 201);
    for (const [op, actions] of recorded) {
        if (op === 'OP_CHANNEL_CREATE' || op === 'OP_PING') continue; /* of these there are other entries, or none */
        assert.ok(actions.has(names[op]), `${op} was tried and never recorded as ${names[op]}, but as ${[...actions]}`);
    }
    for (const action of ['key.bind', 'recording.create', 'recording.list', 'resource.keys', 'resource.keys.create'])
        assert.ok(count(`entries WHERE resource_id = '${idOf(meeting.uri)}' AND verdict = 403010 AND action = '${action}'`) > 0, action);
    assert.ok(count("entries WHERE action = 'resource.create' AND verdict = 403010") > 0);
});

// --- it stays what it is ---

test('only a meeting can be zero-trust, and security has two names', async () => {
    for (const kind of [undefined, 'space', 'file', 'whiteboard', 'calendar'])
        refused(await a.create('/resources', {security: 'zero-trust', ...(kind ? {kind} : {})}), 400002);
    for (const security of ['zero', '', 'Zero-Trust', 'ZERO-TRUST', null, 1, true, ['zero-trust']])
        refused(await a.create('/resources', {security, kind: 'meeting'}), 400002);
    assert.equal((await make({security: 'standard', kind: 'space'})).security, 'standard');
    const {security, kind, keyUris, keys, activeKeyUri} = await show(meeting.uri, b);
    assert.deepEqual({security, kind, keyUris, keys, activeKeyUri}, {security: 'zero-trust', kind: 'meeting', keyUris: [], keys: undefined, activeKeyUri: undefined});
});

test('no method on any URI turns it into one that has keys', async () => {
    const [key] = await a.keys(1), id = idOf(meeting.uri);
    const members = {security: 'standard', kind: 'space', count: 1, keyUris: [key.uri], keyUri: key.uri, resourceUri: meeting.uri, uri: meeting.uri, type: 'recording'};
    const uris = [meeting.uri, ...['keys', 'recordings', 'authorizations', 'releases', 'security', 'key'].map((x) => `${meeting.uri}/${x}`),
        `/keys/${id}`, `/recordings/${id}`, `/authorizations/${id}`, `/ecdhe/${id}`, `/cmk/${id}`, '/resources', '/keys', '/recordings'];
    for (const more of [members, {...members, security: 'zero-trust', kind: 'meeting', keyUris: [key.uri], count: undefined}, {security: 'standard'}]) {
        const requests = uris.flatMap((uri) => ['create', 'retrieve', 'update', 'delete'].map((method) => ({method, ...more, uri})));
        const answers = await a.askAll(requests);
        requests.forEach(({method, uri}, i) => innocent(answers[i], `${method} ${uri}`));
        const done = requests.filter((r, i) => answers[i].status < 300 && r.method !== 'retrieve').map(({method, uri}) => `${method} ${uri}`);
        /* all that is left: keys that are bound to nothing, and other resources */
        assert.deepEqual(done.filter((x) => !['create /keys', 'create /resources'].includes(x)), []);
    }
    assert.equal((await show(meeting.uri)).security, 'zero-trust');
    assert.equal(stored(), '');
});

test('membership works as everywhere', async () => {
    const list = `${meeting.uri}/authorizations`, dave = new User(), d = await Channel.open(dave);
    refused(await d.retrieve(meeting.uri), 403001);
    await b.grant(meeting.uri, dave.sub);
    assert.equal((await show(meeting.uri, d)).uri, meeting.uri);
    assert.ok(ok(await d.retrieve(list)).authorizations.some((x) => x.authId === dave.sub));
    ok(await d.delete(`${list}?authId=${dave.sub}`));
    refused(await d.retrieve(meeting.uri), 403001);
    await a.grant(space.uri, dave.sub);
    assert.equal((await show(meeting.uri, d)).security, 'zero-trust');
    ok(await a.delete(`${space.uri}/authorizations?authId=${dave.sub}`));
    refused(await d.retrieve(meeting.uri), 403001);
});

test('what it is open to and what is open to it: each has its own keys, the meeting none', async () => {
    /* a space that is open to the meeting's members, and the meeting to that space's: a circle */
    const box = await make({count: 1, authIds: [meeting.uri]});
    await a.grant(meeting.uri, box.uri);
    for (const ch of [a, b, c]) {
        assert.equal(await value(ch, box.keys[0].uri), box.keys[0].jwk.k);
        refused(await ch.retrieve(`${meeting.uri}/keys`), 403010);
        refused(await ch.create(`${meeting.uri}/keys`, {count: 1}), 403010);
    }
    const [own] = await b.keys(1);
    refused(await b.update(own.uri, {resourceUri: meeting.uri}), 403010);
    ok(await b.update(own.uri, {resourceUri: box.uri}));
    assert.equal(await value(c, own.uri), own.jwk.k);
    /* to be a member of the meeting opens nothing that the meeting is open to */
    refused(await b.retrieve(space.keys[0].uri), 403001);
    refused(await m.retrieve(box.keys[0].uri), 403001);
    ok(await a.delete(`${meeting.uri}/authorizations?authId=${encodeURIComponent(box.uri)}`));
    assert.equal(stored(), '');
});

// --- behind the protocol ---

test('no key is even made for it: the HSM is asked for nothing', async () => {
    const items = async () => [...(await (await fetch(`${env.KMS_METRICS_URL}/metrics`)).text()).matchAll(/^kms_hsm_items_total\{[^}]*\} (\d+)/gm)].reduce((n, [, x]) => n + Number(x), 0);
    const [key] = await b.keys(1);
    const all = (ch) => ch.askAll(Array.from({length: 8}, () => [
        {method: 'create', uri: `${meeting.uri}/keys`, count: 100}, {method: 'create', uri: `${meeting.uri}/recordings`, type: 'recording'},
        {method: 'create', uri: '/resources', kind: 'meeting', security: 'zero-trust', count: 100}, {method: 'update', uri: key.uri, resourceUri: meeting.uri},
    ]).flat());
    const foreign = await Channel.open(new User({org: env.KMS_ORG2}));
    for (const ch of [b, m, foreign]) ok(await ch.update('/ping'));
    const was = await items();
    for (const ch of [b, c, m, foreign]) for (const one of await all(ch)) refused(one, 403010);
    const asked = await items() - was;
    assert.ok(asked < 50, `${asked} items, where keys would be 6400`); /* a channel's key that another worker opens is one */
    assert.equal(stored(), '');
});

test("the database's owner finds no key of it anywhere, and cannot put one there", async () => {
    const id = idOf(meeting.uri);
    /* whatever has its id, or that of one of its entries' keys, in whatever column of whatever table */
    const tables = psql("SELECT table_name FROM information_schema.tables WHERE table_schema = 'kms' AND table_type = 'BASE TABLE' ORDER BY 1").split('\n');
    assert.ok(tables.includes('content_keys') && tables.includes('recordings'));
    const found = psql(tables.map((t) => `SELECT '${t} ' || to_jsonb(x)::text FROM kms.${t} x WHERE to_jsonb(x)::text LIKE '%${id}%'`).join(' UNION ALL ')).split('\n');
    const bytes = new Set(psql("SELECT table_name || '.' || column_name FROM information_schema.columns WHERE table_schema = 'kms' AND data_type = 'bytea'").split('\n'));
    assert.ok(bytes.has('content_keys.blob'));
    const where = new Set();
    for (const line of found) {
        const table = line.split(' ', 1)[0], row = JSON.parse(line.slice(table.length + 1));
        where.add(table);
        for (const [column, held] of Object.entries(row)) if (bytes.has(`${table}.${column}`)) assert.equal(held, null, `${table}.${column}`);
        assert.equal(row.blob ?? null, null, table);
    }
    for (const table of ['authorizations', 'entries', 'resources']) assert.ok(where.delete(table));
    where.delete('authorizations_past');
    assert.deepEqual([...where], [], 'the meeting, its members, and what was asked, nothing else');
    assert.equal(psql(`SELECT DISTINCT unnest(key_ids) FROM kms.entries WHERE resource_id = '${id}' AND verdict = 0`), '');

    const asOwner = (sql) => psql(`BEGIN; SET ROLE kms_owner; ${sql}; COMMIT`);
    const [unbound] = await a.keys(1);
    const bind = (resource) => `UPDATE kms.content_keys SET resource_id = '${idOf(resource)}', bound_at = now() WHERE key_id = '${idOf(unbound.uri)}'`;
    assert.throws(() => asOwner(bind(meeting.uri)), /zero-trust/);
    assert.throws(() => asOwner(`UPDATE kms.recordings SET resource_id = '${id}' WHERE recording_id = '${idOf(film.uri)}'`), /zero-trust/);
    assert.throws(() => asOwner(`INSERT INTO kms.recordings SELECT (x).* FROM (SELECT jsonb_populate_record(r, '{"recording_id":"${randomId()}","resource_id":"${id}"}') AS x
        FROM kms.recordings r WHERE r.recording_id = '${idOf(film.uri)}') y`), /zero-trust/);
    assert.throws(() => asOwner(`UPDATE kms.resources SET security = 'standard' WHERE resource_id = '${id}'`), /resources/);
    /* with another resource he could: that it was the meeting is what kept him */
    asOwner(bind((await make({})).uri));
    assert.equal(stored(), '');
    assert.equal(count(`resources WHERE resource_id = '${id}' AND security = 'zero-trust'`), 1);
});
