// Containers (protocol section 7): keys made with a resource, rotation, and removal that rotates.
import assert from 'node:assert/strict';
import {execFileSync} from 'node:child_process';
import {test} from 'node:test';
import {setTimeout as sleep} from 'node:timers/promises';
import {env} from './lib/env.mjs';
import {Channel, DATE, ok, randomId, refused, uriOf} from './lib/kms.mjs';
import {setRule} from './lib/officers.mjs';
import {User, officer} from './lib/tokens.mjs';
import {sdk} from './lib/webex.mjs';

const KINDS = ['space', 'meeting', 'file', 'whiteboard', 'calendar'];
const alice = new User({name: 'alice'}), bob = new User({name: 'bob'}), carol = new User({name: 'carol'});
const [a, b, c] = await Promise.all([alice, bob, carol].map((u) => Channel.open(u)));
const make = async (members, ch = a) => ok(await ch.create('/resources', members), 201).resource;
const show = async (uri, ch = a) => ok(await ch.retrieve(uri)).resource;
const rotate = async (uri, count = 1, ch = a) => ok(await ch.create(`${uri}/keys`, {count}), 201).keys;
const value = async (ch, uri) => ok(await ch.retrieve(uri)).key.jwk.k;
const count = (what) => Number(execFileSync('psql', ['-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', env.KMS_DATABASE_URL, '-c', `SELECT count(*) FROM kms.${what}`], {encoding: 'utf8'}));

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

test('who is removed from a space has no part in the active keys of what is open to the space, either', async () => {
    const [x, y, z] = [0, 1, 2].map(() => new User({org: env.KMS_ORG2}));
    const [owner, gone, stays] = await Promise.all([x, y, z].map((u) => Channel.open(u)));
    const space = await make({count: 1, userIds: [y.sub, z.sub]}, owner);
    const call = await make({kind: 'meeting', count: 1, authIds: [space.uri]}, owner);
    const board = await make({kind: 'whiteboard', count: 1, authIds: [call.uri]}, owner);
    const secret = await make({kind: 'meeting', security: 'zero-trust', authIds: [space.uri]}, owner);
    const empty = await make({kind: 'file', authIds: [space.uri]}, owner);
    const apart = await make({count: 1, userIds: [y.sub]}, owner);
    const nested = [space, call, board];
    const actives = (list) => Promise.all(list.map(async ({uri}) => (await show(uri, owner)).activeKeyUri));
    const had = await actives(nested);
    for (const uri of had) await value(gone, uri);
    await setRule(env.KMS_ORG2, 'rotate.removal', 'on');
    try {
        ok(await owner.delete(`${space.uri}/authorizations?authId=${y.sub}`));
        const now = await actives(nested);
        now.forEach((uri, i) => assert.notEqual(uri, had[i]));
        for (const uri of [...had, ...now]) refused(await gone.retrieve(uri), 403001);
        for (const {uri} of nested) refused(await gone.retrieve(`${uri}/keys`), 403001);
        assert.equal(new Set(await Promise.all([...had, ...now].map((uri) => value(stays, uri)))).size, 6);
        assert.deepEqual((await show(secret.uri, owner)).keyUris, []);
        assert.deepEqual((await show(empty.uri, owner)).keyUris, []);
        assert.deepEqual((await show(apart.uri, owner)).keyUris, apart.keys.map((k) => k.uri), 'what is not open to it stays');
        /* a whole space is taken away from the call: that is for the call and what is behind it */
        ok(await owner.delete(`${call.uri}/authorizations?authId=${encodeURIComponent(space.uri)}`));
        const then = await actives(nested);
        assert.deepEqual(then.map((uri, i) => uri === now[i]), [true, false, false]);
        for (const uri of then.slice(1)) refused(await stays.retrieve(uri), 403001);
        /* an anonymous one was let into nothing else */
        const [guest] = ok(await owner.create('/authorizations', {resourceUri: call.uri, anonymous: 1}), 201).authorizations;
        ok(await owner.delete(guest.uri));
        assert.deepEqual((await actives(nested)).map((uri, i) => uri === then[i]), [true, false, true]);
        /* many at once, in a request of its own size */
        const rooms = await Promise.all(Array.from({length: 150}, () => make({kind: 'meeting', count: 1, authIds: [space.uri]}, owner)));
        ok(await owner.delete(`${space.uri}/authorizations?authId=${z.sub}`));
        const after = await actives(rooms);
        after.forEach((uri, i) => assert.notEqual(uri, rooms[i].activeKeyUri));
        assert.equal(new Set(await Promise.all(after.map((uri) => value(owner, uri)))).size, 150);
        refused(await stays.retrieve(after[0]), 403001);
    } finally {
        await setRule(env.KMS_ORG2, 'rotate.removal', 'off');
    }
});

for (const how of ['himself', 'through a space'])
    test(`who is removed while he asks, rotates and binds, authorised ${how}, has no part in the key that is active afterwards`, async (t) => {
        const [x, y] = [0, 1].map(() => new User({org: env.KMS_ORG2}));
        const owner = await Channel.open(x), others = await Promise.all(Array.from({length: 4}, () => Channel.open(y)));
        let had = 0, late = 0;
        await setRule(env.KMS_ORG2, 'rotate.removal', 'on');
        try {
            for (let round = 0; round < 8; round++) {
                const space = await make({userIds: [y.sub]}, owner);
                const made = await make({kind: 'meeting', count: 1, ...(how === 'himself' ? {userIds: [y.sub]} : {authIds: [space.uri]})}, owner);
                const from = how === 'himself' ? made : space;
                const unbound = await others[0].keys(12);
                const seen = new Set(made.keys.map((k) => k.uri));
                const flood = others.map((ch, i) => ch.askAll(Array.from({length: 36}, (_, n) => [
                    {method: 'retrieve', uri: `${made.uri}/keys`},
                    {method: 'retrieve', uri: `${made.uri}/keys`, count: 1},
                    i === 0 ? {method: 'update', uri: unbound[Math.floor(n / 3)].uri, resourceUri: made.uri} : {method: 'create', uri: `${made.uri}/keys`, count: 1},
                ][n % 3])));
                const removed = sleep(3 * round).then(() => owner.delete(`${from.uri}/authorizations?authId=${y.sub}`));
                for (const answer of (await Promise.all(flood)).flat()) {
                    if (answer.status >= 300) { late++, refused(answer, 403001); continue; }
                    had++;
                    for (const key of [...(answer.keys ?? []), ...(answer.key ? [answer.key] : [])]) seen.add(key.uri);
                }
                ok(await removed);
                const {activeKeyUri, keyUris} = await show(made.uri, owner);
                assert.ok(!seen.has(activeKeyUri), `round ${round}: he has the active key`);
                assert.equal(keyUris.at(-1), activeKeyUri);
                for (const uri of [activeKeyUri, `${made.uri}/keys`]) refused(await others[0].retrieve(uri), 403001);
            }
        } finally {
            await setRule(env.KMS_ORG2, 'rotate.removal', 'off');
        }
        t.diagnostic(`note: ${had} requests before the removal, ${late} after it`);
        assert.ok(had > 0 && late > 0, 'it was a race');
    });
