// Containers (protocol section 7): keys made with a resource, rotation, removal that rotates, and zero-trust meetings, of which the
// server keeps nothing that could open them, whoever asks.
import assert from 'node:assert/strict';
import {execFileSync} from 'node:child_process';
import {after, before, test} from 'node:test';
import {env} from './lib/env.mjs';
import {Channel, DATE, ok, randomId, refused, relative, uriOf} from './lib/kms.mjs';
import {addService, closeMatter, disable, enable, openMatter, setRule} from './lib/officers.mjs';
import {ServiceChannel, certificate, forgetConnections, freshIdentity} from './lib/service.mjs';
import {User, officer} from './lib/tokens.mjs';
import {sdk} from './lib/webex.mjs';

const KINDS = ['space', 'meeting', 'file', 'whiteboard', 'calendar'];
const PURPOSES = ['indexing', 'dlp', 'ediscovery', 'archival'];
const alice = new User({name: 'alice'}), bob = new User({name: 'bob'}), carol = new User({name: 'carol'});
const [a, b, c] = await Promise.all([alice, bob, carol].map((u) => Channel.open(u)));
const idOf = (uri) => uri.split('/').pop();
const make = async (members, ch = a) => ok(await ch.create('/resources', members), 201).resource;
const show = async (uri, ch = a) => ok(await ch.retrieve(uri)).resource;
const rotate = async (uri, count = 1, ch = a) => ok(await ch.create(`${uri}/keys`, {count}), 201).keys;
const value = async (ch, uri) => ok(await ch.retrieve(uri)).key.jwk.k;

after(forgetConnections);

// --- keys made with a resource ---

test('a resource of any kind and its keys come out of one request', async () => {
    for (const kind of KINDS) {
        const made = await make({kind, count: 2, userIds: [bob.sub]});
        assert.equal(made.kind, kind);
        assert.equal(made.security, 'standard');
        assert.equal(made.keyUris, undefined, 'keys stand in the place of keyUris');
        assert.equal(made.keys.length, 2);
        for (const key of made.keys) {
            assert.match(key.uri, uriOf('keys'));
            assert.equal(key.jwk.kid, key.uri);
            assert.equal(key.jwk.kty, 'oct');
            assert.equal(Buffer.from(key.jwk.k, 'base64url').length, 32);
            assert.equal(key.resourceUri, made.uri);
            assert.equal(key.userId, alice.sub);
            assert.equal(key.clientId, alice.clientId);
            for (const date of ['createDate', 'bindDate', 'expirationDate']) assert.match(key[date], DATE);
            /* to its maker and to others it is a key like any other, and says the same of itself */
            for (const ch of [a, b]) assert.deepEqual(ok(await ch.retrieve(key.uri)).key, key);
            refused(await c.retrieve(key.uri), 403001);
        }
        assert.notEqual(made.keys[0].jwk.k, made.keys[1].jwk.k);
        const seen = await show(made.uri, b);
        assert.deepEqual([...seen.keyUris].sort(), made.keys.map((k) => k.uri).sort());
        assert.equal(seen.keys, undefined);
        assert.ok(made.keys.some((k) => k.uri === made.activeKeyUri));
        assert.equal(seen.activeKeyUri, made.activeKeyUri);
    }
});

test('a resource without keys has no active one; what the count may be', async () => {
    const empty = await make({userIds: []});
    assert.deepEqual(empty.keyUris, []);
    assert.equal(empty.activeKeyUri, undefined);
    assert.equal((await show(empty.uri)).activeKeyUri, undefined);
    assert.equal((await make({count: 100})).keys.length, 100);
    for (const count of [0, -1, 101, 1.5, '1', null, [1]]) {
        refused(await a.create('/resources', {count}), 400002);
        refused(await a.create(`${empty.uri}/keys`, {count}), 400002);
    }
    refused(await a.create(`${empty.uri}/keys`), 400002);
    const [key] = await a.keys(1);
    refused(await a.create('/resources', {count: 1, keyUris: [key.uri]}), 400002);
    assert.deepEqual((await make({keyUris: [key.uri]})).activeKeyUri, key.uri);
});

test('all or nothing: with a grantee who is not there, no key is left', async () => {
    const before = count(`content_keys WHERE creator = '${alice.sub}'`);
    refused(await a.create('/resources', {count: 5, authIds: [`/resources/${randomId()}`]}), 404001);
    assert.equal(count(`content_keys WHERE creator = '${alice.sub}'`), before);
});

// --- rotation ---

test('each rotation makes the newest key the active one; the older ones stay', async () => {
    const made = await make({kind: 'meeting', count: 1, userIds: [bob.sub]});
    const all = [made.keys[0]];
    for (const ch of [a, b, a]) {
        const [key] = await rotate(made.uri, 1, ch);
        assert.equal(key.userId, ch.user.sub);
        assert.equal(key.resourceUri, made.uri);
        assert.ok(key.bindDate > all.at(-1).bindDate, 'later than the one before');
        all.push(key);
        assert.equal((await show(made.uri)).activeKeyUri, key.uri);
    }
    const {keys} = ok(await b.retrieve(`${made.uri}/keys`));
    assert.deepEqual(keys.map((k) => [k.uri, k.jwk.k]), all.map((k) => [k.uri, k.jwk.k]));
    assert.deepEqual(ok(await b.retrieve(`${made.uri}/keys`, {count: 1})).keys.map((k) => k.uri), [all.at(-1).uri]);
    assert.equal(new Set(keys.map((k) => k.jwk.k)).size, 4);
    const many = await rotate(made.uri, 100);
    assert.equal(new Set(many.map((k) => k.uri)).size, 100);
    assert.ok(many.map((k) => k.uri).includes((await show(made.uri)).activeKeyUri));
});

test('a key that was bound the old way becomes the active one, too', async () => {
    const made = await make({count: 1});
    const [key] = await a.keys(1);
    ok(await a.update(key.uri, {resourceUri: made.uri}));
    assert.equal((await show(made.uri)).activeKeyUri, key.uri);
});

test('only who is authorised rotates', async () => {
    const made = await make({count: 1, anonymous: 1});
    refused(await b.create(`${made.uri}/keys`, {count: 1}), 403001);
    refused(await a.create(`/resources/${randomId()}/keys`, {count: 1}), 404001);
    refused(await a.create('/resources/7/keys', {count: 1}), 404001);
    const {bearer} = made.authorizations.find((x) => x.bearer);
    const guest = await Channel.open({sub: undefined, clientId: 'guest'}, {bearer});
    refused(await guest.create(`${made.uri}/keys`, {count: 1}), 403001);
    refused(await guest.create('/resources', {count: 1}), 403001);
    const other = await Channel.open(new User({org: env.KMS_ORG2}));
    refused(await other.create(`${made.uri}/keys`, {count: 1}), 403001);
    const jim = await Channel.open(officer());
    refused(await jim.create(`${made.uri}/keys`, {count: 1}, {onBehalfOf: alice.sub}), 403004);
    assert.deepEqual((await show(made.uri)).keyUris, made.keys.map((k) => k.uri));
});

test('thirty rotations at once: thirty keys, one of them active', async () => {
    const made = await make({count: 1, userIds: [bob.sub]});
    const keys = (await Promise.all(Array.from({length: 30}, (_, i) => rotate(made.uri, 1, i % 2 ? a : b)))).flat();
    const {keyUris, activeKeyUri} = await show(made.uri);
    assert.deepEqual([...keyUris].sort(), [made.keys[0].uri, ...keys.map((k) => k.uri)].sort());
    assert.equal(activeKeyUri, keyUris.at(-1));
});

test('a meeting is opened to a whole space, and to whoever comes and goes there', async () => {
    const space = await make({count: 1, userIds: [bob.sub]});
    const meeting = await make({kind: 'meeting', count: 1, authIds: [space.uri]});
    const [key] = meeting.keys;
    assert.equal(await value(b, key.uri), key.jwk.k);
    refused(await c.retrieve(key.uri), 403001);
    await a.grant(space.uri, carol.sub);
    assert.equal(await value(c, key.uri), key.jwk.k);
    const [next] = await rotate(meeting.uri, 1, c);
    assert.equal(await value(b, next.uri), next.jwk.k);
    ok(await a.delete(`${space.uri}/authorizations?authId=${carol.sub}`));
    for (const uri of [key.uri, next.uri]) refused(await c.retrieve(uri), 403001);
    refused(await c.create(`${meeting.uri}/keys`, {count: 1}), 403001);
});

test('the SDK goes on with a container that was made so', async () => {
    const spock = sdk(alice), mccoy = sdk(bob);
    const made = await make({kind: 'whiteboard', count: 1, userIds: [bob.sub]});
    const key = await mccoy.kms.fetchKey({uri: made.activeKeyUri});
    assert.equal(key.jwk.toJSON(true).k, made.keys[0].jwk.k);
    const sealed = await spock.encryption.encryptText(made.activeKeyUri, 'to the whiteboard');
    assert.equal(await mccoy.encryption.decryptText(made.activeKeyUri, sealed), 'to the whiteboard');
    const [fresh] = await spock.kms.createUnboundKeys({count: 1});
    await spock.kms.bindKey({kro: made, key: fresh});
    assert.equal((await show(made.uri)).activeKeyUri, fresh.uri);
    assert.equal((await mccoy.kms.fetchKey({uri: fresh.uri})).uri, fresh.uri);
    await spock.kms.removeAuthorization({userId: bob.sub, kroUri: made.uri});
    await assert.rejects(sdk(bob).kms.fetchKey({uri: fresh.uri}), (error) => (error.status ?? error.body?.status) === 403);
});

// --- removal that rotates ---

test('where the organisation says so, a removal leaves an active key that who was removed never had', async () => {
    const [x, y, z] = [0, 1, 2].map(() => new User({org: env.KMS_ORG2}));
    const [ch, gone, stays] = await Promise.all([x, y, z].map((u) => Channel.open(u)));
    const remove = {
        'by its own URI': async (uri) => {
            const {authorizations} = ok(await ch.retrieve(`${uri}/authorizations?authId=${y.sub}`));
            return ch.delete(authorizations[0].uri);
        },
        'of the resource': (uri) => ch.delete(`${uri}/authorizations?authId=${y.sub}`),
        'of many': (uri) => ch.delete('/authorizations', {resourceUri: uri, authIds: [y.sub]}),
        'by himself': (uri) => gone.delete(`${uri}/authorizations?authId=${y.sub}`),
    };
    const people = {kind: 'meeting', userIds: [y.sub, z.sub]};
    const before = await make({count: 1, ...people}, ch);
    ok(await remove['of many'](before.uri));
    assert.equal((await show(before.uri, ch)).activeKeyUri, before.activeKeyUri, 'not while the rule is off');
    await setRule(env.KMS_ORG2, 'rotate.removal', 'on');
    try {
        for (const [how, run] of Object.entries(remove)) {
            const made = await make({count: 1, ...people}, ch);
            assert.equal(await value(gone, made.activeKeyUri), made.keys[0].jwk.k);
            const {authorizations} = ok(await run(made.uri));
            assert.deepEqual(authorizations.map((q) => q.authId), [y.sub], how);
            const now = await show(made.uri, stays);
            assert.notEqual(now.activeKeyUri, made.activeKeyUri, how);
            assert.deepEqual(now.keyUris, [made.keys[0].uri, now.activeKeyUri]);
            assert.notEqual(await value(stays, now.activeKeyUri), made.keys[0].jwk.k);
            assert.equal(await value(stays, made.keys[0].uri), made.keys[0].jwk.k);
            for (const uri of now.keyUris) refused(await gone.retrieve(uri), 403001);
        }
        const none = await make(people, ch);
        ok(await remove['of many'](none.uri));
        assert.deepEqual((await show(none.uri, ch)).keyUris, [], 'nothing to rotate');
        const secret = await make({security: 'zero-trust', ...people}, ch);
        ok(await remove['of many'](secret.uri));
        const made = await make({count: 1, ...people}, ch);
        refused(await ch.delete(`${made.uri}/authorizations?authId=${randomId()}`), 404001);
        const stranger = await Channel.open(new User({org: env.KMS_ORG2}));
        refused(await stranger.delete(`${made.uri}/authorizations?authId=${y.sub}`), 403001);
        assert.deepEqual((await show(made.uri, ch)).keyUris, [made.keys[0].uri], 'a removal that is refused rotates nothing');
        /* twenty at once: each leaves a key of its own */
        const crowd = Array.from({length: 20}, randomId);
        const full = await make({count: 1, userIds: crowd}, ch);
        const all = await Promise.all(crowd.map((id) => ch.delete(`${full.uri}/authorizations?authId=${id}`)));
        for (const one of all) ok(one);
        assert.equal((await show(full.uri, ch)).keyUris.length, 21);
    } finally {
        await setRule(env.KMS_ORG2, 'rotate.removal', 'off');
    }
    const later = await make({count: 1, ...people}, ch);
    ok(await remove['of many'](later.uri));
    assert.equal((await show(later.uri, ch)).activeKeyUri, later.activeKeyUri);
});

// --- zero-trust meetings ---

const psql = (sql) => execFileSync('psql', ['-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', env.KMS_DATABASE_URL, '-c', sql], {encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe']}).trim();
const count = (what) => Number(psql(`SELECT count(*) FROM kms.${what}`));

let meeting, guest, unbound; /* of alice, with bob, an anonymous guest; a key of alice's that is bound to nothing */
before(async () => {
    meeting = await make({kind: 'meeting', security: 'zero-trust', userIds: [bob.sub], anonymous: 1});
    const {bearer} = meeting.authorizations.find((x) => x.bearer);
    guest = await Channel.open({sub: undefined, clientId: 'guest'}, {bearer});
    [unbound] = await a.keys(1);
});

test('a zero-trust meeting has members and no key', async () => {
    assert.equal(meeting.security, 'zero-trust');
    assert.equal(meeting.kind, 'meeting');
    assert.deepEqual(meeting.keyUris, []);
    assert.equal(meeting.keys, undefined);
    assert.equal(meeting.activeKeyUri, undefined);
    const seen = await show(meeting.uri, b);
    assert.equal(seen.security, 'zero-trust');
    assert.deepEqual(seen.keyUris, []);
    assert.equal(seen.activeKeyUri, undefined);
});

test('only a meeting can be zero-trust, and security has two names', async () => {
    for (const kind of [undefined, 'space', 'file', 'whiteboard', 'calendar'])
        refused(await a.create('/resources', {security: 'zero-trust', ...(kind ? {kind} : {})}), 400002);
    for (const security of ['zero', '', 'Zero-Trust', 'ZERO-TRUST', null, 1, true, ['zero-trust']])
        refused(await a.create('/resources', {security, kind: 'meeting'}), 400002);
    assert.equal((await make({security: 'standard', kind: 'space'})).security, 'standard');
});

test('membership of a zero-trust meeting works as everywhere', async () => {
    const list = `${meeting.uri}/authorizations`;
    const members = async (ch = a) => ok(await ch.retrieve(list)).authorizations.map((x) => x.authId).filter(Boolean).sort();
    assert.deepEqual(await members(b), [alice.sub, bob.sub].sort());
    refused(await c.retrieve(list), 403001);
    refused(await c.retrieve(meeting.uri), 403001);
    refused(await c.create('/authorizations', {resourceUri: meeting.uri, authIds: [carol.sub]}), 403001);
    const space = await make({count: 1, userIds: [carol.sub]});
    const [grant] = await b.grant(meeting.uri, space.uri);
    assert.equal((await show(meeting.uri, c)).uri, meeting.uri);
    ok(await a.delete(grant.uri));
    refused(await c.retrieve(meeting.uri), 403001);
    await a.grant(meeting.uri, carol.sub);
    ok(await c.delete(`${list}?authId=${carol.sub}`));
    refused(await c.retrieve(meeting.uri), 403001);
    assert.deepEqual(await members(), [alice.sub, bob.sub].sort());
});

/* Every request that would need a key of it, as whoever asks would send it. */
const needsKey = () => ({
    'create /resources with count': ['create', '/resources', {kind: 'meeting', security: 'zero-trust', count: 1}],
    'create /resources with a key': ['create', '/resources', {kind: 'meeting', security: 'zero-trust', keyUris: [unbound.uri]}],
    'update /keys/ID': ['update', unbound.uri, {resourceUri: meeting.uri}],
    'retrieve /resources/ID/keys': ['retrieve', `${meeting.uri}/keys`],
    'retrieve /resources/ID/keys, the last': ['retrieve', `${meeting.uri}/keys`, {count: 1}],
    'retrieve /resources/ID/keys, of a time': ['retrieve', `${meeting.uri}/keys`, {boundAfter: '2020-01-01T00:00:00Z'}],
    'create /resources/ID/keys': ['create', `${meeting.uri}/keys`, {count: 1}],
    'create /resources/ID/recordings': ['create', `${meeting.uri}/recordings`, {type: 'recording'}],
    'create /resources/ID/recordings, a transcript': ['create', `${meeting.uri}/recordings`, {type: 'transcript', loc: 'https://files.example/1'}],
    'retrieve /resources/ID/recordings': ['retrieve', `${meeting.uri}/recordings`],
});

const askers = {
    'a member': async () => [a],
    'another member': async () => [b],
    'a stranger': async () => [c],
    'a stranger of another organisation': async () => [await Channel.open(new User({org: env.KMS_ORG2}))],
    'an officer for himself': async () => [await Channel.open(officer())],
    'an officer on behalf of a member': async () => [await Channel.open(officer()), {onBehalfOf: alice.sub}, ['retrieve']],
    'an anonymous member': async () => [guest, {}, ['retrieve']],
};
for (const [who, open] of Object.entries(askers))
    test(`${who} is answered 403010 to all that would need a key of a zero-trust meeting`, async () => {
        const [ch, as = {}, methods = ['create', 'update', 'retrieve']] = await open();
        for (const [what, [method, uri, members]] of Object.entries(needsKey())) {
            if (!methods.includes(method)) continue;
            /* an anonymous one has nothing but his resource's keys */
            const codes = ch === guest && /recordings/.test(what) ? [403010, 403001] : [403010];
            refused(await ch.ask(method, uri, members, as), ...codes);
        }
    });

test('an anonymous member gets no key, whatever he asks', async () => {
    for (const [method, uri, members] of Object.values(needsKey())) {
        const {status, errorCode} = await guest.ask(method, uri, members);
        assert.equal(status, 403);
        assert.ok([403001, 403010].includes(errorCode));
    }
});

test('no service gets anything of a zero-trust meeting, under any purpose, by certificate or by proof', async () => {
    const identity = freshIdentity(), name = `curious-${randomId().slice(0, 8)}`;
    await addService({service: name, identity, purposes: PURPOSES, orgs: [env.KMS_ORG], kinds: KINDS, rate: 0, breadth: 0});
    for (const p of PURPOSES) await enable(env.KMS_ORG, p);
    /* transcoding is known and off; even an organisation that turns it on */
    await enable(env.KMS_ORG, 'transcoding');
    const matter = await openMatter({
        org: env.KMS_ORG, name: 'the meeting', custodians: [alice.sub, bob.sub], from: Date.now() - 86400000, to: Date.now() + 86400000, kinds: KINDS,
        expires: Date.now() + 86400000,
    });
    const standard = await make({kind: 'meeting', count: 1});
    try {
        for (const relay of [false, true]) {
            const ch = await ServiceChannel.open(certificate(identity), {relay});
            for (const purpose of PURPOSES) {
                const under = purpose === 'ediscovery' ? {purpose, matter} : {purpose};
                /* it does get what it is for */
                assert.equal(ok(await ch.retrieve(relative(standard.keys[0].uri), under)).key.jwk.k, standard.keys[0].jwk.k);
                refused(await ch.retrieve(`${meeting.uri}/keys`, under), 403010);
                refused(await ch.retrieve(`${meeting.uri}/keys`, {...under, count: 1}), 403010);
                refused(await ch.retrieve(meeting.uri, under), 403005);
                refused(await ch.retrieve(`${meeting.uri}/recordings`, under), 403005);
                refused(await ch.ask('create', `${meeting.uri}/keys`, {...under, count: 1}), 403005);
                refused(await ch.ask('create', `${meeting.uri}/recordings`, {...under, type: 'recording'}), 403005);
            }
            refused(await ch.retrieve(`${meeting.uri}/keys`, {purpose: 'transcoding'}), 403005, 403010);
            refused(await ch.retrieve(`${meeting.uri}/keys`), 403005, 403010);
            /* nor do walks come across it */
            for (const uri of ['/purposes/indexing/keys', '/purposes/archival/keys', `/matters/${matter}/keys`]) {
                let cursor, keys;
                do {
                    ({cursor, keys} = ok(await ch.retrieve(uri, {count: 1000, ...(cursor ? {cursor} : {})})));
                    assert.ok(keys.every((k) => k.resourceUri !== meeting.uri));
                } while (keys.length > 0 && cursor);
            }
        }
    } finally {
        await closeMatter(matter);
        await disable(env.KMS_ORG, 'transcoding');
    }
});

test('an officer who needs a matter gets nothing of it with one either', async () => {
    const jim = await Channel.open(officer());
    const matter = await openMatter({
        org: env.KMS_ORG, name: 'the meeting once more', custodians: [alice.sub], from: Date.now() - 86400000, to: Date.now() + 86400000, kinds: KINDS,
        expires: Date.now() + 86400000,
    });
    const standard = await make({kind: 'meeting', count: 1});
    await setRule(env.KMS_ORG, 'compliance', 'matter');
    try {
        ok(await jim.retrieve(standard.keys[0].uri, {}, {onBehalfOf: alice.sub}));
        refused(await jim.retrieve(`${meeting.uri}/keys`, {}, {onBehalfOf: alice.sub}), 403010);
        refused(await jim.retrieve(`${meeting.uri}/recordings`, {}, {onBehalfOf: alice.sub}), 403010);
    } finally {
        await setRule(env.KMS_ORG, 'compliance', 'role');
        await closeMatter(matter);
    }
});

test('no key of it comes by another way: bound keys, nesting, a resource that is opened to it', async () => {
    /* whoever is a member of the meeting may be let into a space; the meeting itself gets nothing by that */
    const space = await make({count: 1, authIds: [meeting.uri]});
    assert.equal(await value(b, space.keys[0].uri), space.keys[0].jwk.k);
    refused(await b.retrieve(`${meeting.uri}/keys`), 403010);
    /* a key that is bound elsewhere already, or somebody else's */
    refused(await a.update(space.keys[0].uri, {resourceUri: meeting.uri}), 403010);
    refused(await b.update(unbound.uri, {resourceUri: meeting.uri}), 403010);
    const stored = count(`content_keys WHERE creator = '${alice.sub}'`);
    const all = await a.askAll(Array.from({length: 20}, () => ({method: 'create', uri: `${meeting.uri}/keys`, count: 5})));
    for (const one of all) refused(one, 403010);
    assert.equal(count(`content_keys WHERE creator = '${alice.sub}'`), stored);
});

test("the database's owner finds no key of it, and cannot put one there", async () => {
    const id = idOf(meeting.uri);
    assert.equal(count(`resources WHERE resource_id = '${id}'`), 1);
    assert.equal(count(`content_keys WHERE resource_id = '${id}'`), 0);
    assert.equal(count(`recordings WHERE resource_id = '${id}'`), 0);
    /* no entry of it names a key but one that was not let in */
    const known = psql(`SELECT DISTINCT unnest(key_ids) FROM kms.entries WHERE resource_id = '${id}' AND verdict = 0`);
    assert.equal(known, '');
    /* whatever column of whatever table has its id: none of those rows has wrapped key material */
    const blobs = psql("SELECT table_name FROM information_schema.columns WHERE table_schema = 'kms' AND column_name = 'blob' ORDER BY 1").split('\n');
    for (const table of blobs)
        assert.equal(Number(psql(`SELECT count(*) FROM kms.${table} t WHERE t.blob IS NOT NULL AND to_jsonb(t)::text LIKE '%${id}%'`)), 0, table);
    const asOwner = (sql) => psql(`BEGIN; SET ROLE kms_owner; ${sql}; COMMIT`);
    const bind = (resource, key) => `UPDATE kms.content_keys SET resource_id = '${idOf(resource)}', bound_at = now() WHERE key_id = '${idOf(key)}'`;
    assert.throws(() => asOwner(bind(meeting.uri, unbound.uri)), /zero-trust/);
    assert.throws(() => asOwner(`UPDATE kms.resources SET security = 'standard' WHERE resource_id = '${id}'`), /resources/);
    /* he could with another resource's: that it was the meeting is what kept him */
    const space = await make({});
    asOwner(bind(space.uri, unbound.uri));
    assert.equal(count(`content_keys WHERE resource_id = '${idOf(space.uri)}'`), 1);
    assert.equal(count(`content_keys WHERE resource_id = '${id}'`), 0);
    assert.equal(count(`resources WHERE resource_id = '${id}' AND security = 'zero-trust'`), 1);
});

test('each refusal is on record as what it was', async () => {
    const id = idOf(meeting.uri);
    const actions = psql(`SELECT DISTINCT action FROM kms.entries WHERE resource_id = '${id}' AND verdict = 403010 ORDER BY 1`).split('\n');
    for (const action of ['key.bind', 'recording.create', 'recording.list', 'resource.keys', 'resource.keys.create']) assert.ok(actions.includes(action), action);
    assert.ok(count("entries WHERE action = 'resource.create' AND verdict = 403010") > 0);
});
