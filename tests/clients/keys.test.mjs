// Keys and resources (protocol section 4): minting, binding, releasing, and who may.
import assert from 'node:assert/strict';
import {test} from 'node:test';
import {setTimeout as sleep} from 'node:timers/promises';
import {cluster, env} from './lib/env.mjs';
import {User} from './lib/tokens.mjs';
import {Channel, DATE, ok, randomId, refused, relative, uriOf} from './lib/kms.mjs';

const alice = new User({name: 'alice'}), bob = new User({name: 'bob'});
const [a, b] = await Promise.all([Channel.open(alice), Channel.open(bob)]);
const elsewhere = {clientId: 'another device'};

test('create /keys mints distinct 256-bit keys, unbound', async () => {
    const keys = await a.keys(100);
    assert.equal(keys.length, 100);
    for (const key of keys) {
        assert.match(key.uri, uriOf('keys'));
        assert.equal(key.jwk.kid, key.uri);
        assert.equal(key.jwk.kty, 'oct');
        assert.equal(Buffer.from(key.jwk.k, 'base64url').length, 32);
        assert.equal(key.userId, alice.sub);
        assert.equal(key.clientId, alice.clientId);
        assert.match(key.createDate, DATE);
        assert.match(key.expirationDate, DATE);
        assert.ok(key.expirationDate > key.createDate);
        assert.ok(!key.bindDate && !key.resourceUri);
    }
    assert.equal(new Set(keys.map((k) => k.uri)).size, 100);
    assert.equal(new Set(keys.map((k) => k.jwk.k)).size, 100);
});

test('count is an integer from 1 to 100', async () => {
    for (const count of [undefined, 0, -1, 101, 1e9, 2 ** 62, 1.5, '3', null, true, [1], {}])
        refused(await a.create('/keys', {count}), 400002);
});

test('an unbound key is for its creator with the same clientId', async () => {
    const [key] = await a.keys();
    assert.deepEqual(ok(await a.retrieve(key.uri)).key, key);
    const again = await Channel.open(alice);
    assert.deepEqual(ok(await again.retrieve(key.uri)).key, key, 'on another channel of the same device');
    refused(await a.retrieve(key.uri, {}, elsewhere), 403003);
    refused(await b.retrieve(key.uri), 403002, 403001);
    refused(await b.retrieve(key.uri, {}, {clientId: alice.clientId}), 403002, 403001);
});

test('a key that does not exist is 404001, malformed ids are refused', async () => {
    refused(await a.retrieve(`/keys/${randomId()}`), 404001);
    for (const id of ['x', '1', `${randomId()}x`, '%00', 'nil', "' or 1=1", randomId().replaceAll('-', '')])
        refused(await a.retrieve(`/keys/${id}`), 404001, 400002);
});

test('a key that may not be seen and one that does not exist differ in the code alone', async () => {
    const [uri] = (await a.resource()).keyUris;
    const strip = ({status, errorCode, requestId, ...rest}) => rest;
    const hidden = await b.retrieve(uri), unknown = await b.retrieve(`/keys/${randomId()}`);
    refused(hidden, 403001);
    refused(unknown, 404001);
    assert.deepEqual(strip(hidden), strip(unknown));
});

test("a resource's id is no key's, also for who is authorised on it", async () => {
    const id = (await a.resource()).uri.split('/').pop();
    refused(await a.retrieve(`/keys/${id}`), 404001);
    refused(await a.update(`/keys/${id}`, {resourceUri: (await a.resource()).uri}), 404001);
    refused(await a.delete(`/authorizations/${id}`), 404001);
});

test('create /resources: the caller is authorised and appears once', async () => {
    for (const members of [{}, {authIds: [alice.sub]}, {userIds: [alice.sub]}, {userIds: [alice.sub, alice.sub], authIds: [alice.sub]}]) {
        const [key] = await a.keys();
        const {resource} = ok(await a.create('/resources', {...members, keyUris: [key.uri]}), 201);
        assert.match(resource.uri, uriOf('resources'));
        assert.deepEqual(resource.keyUris, [key.uri]);
        assert.equal(resource.authorizationUris.length, 1);
        assert.match(resource.authorizationUris[0], uriOf('authorizations'));
        assert.ok(!resource.expirationDate);
        const {key: bound} = ok(await a.retrieve(key.uri));
        assert.equal(bound.resourceUri, resource.uri);
        assert.match(bound.bindDate, DATE);
        assert.equal(bound.jwk.k, key.jwk.k);
    }
});

test('create /resources authorises users and takes several keys', async () => {
    const keys = await a.keys(3);
    const {resource} = ok(await a.create('/resources', {userIds: [bob.sub], authIds: [randomId()], keyUris: keys.map((k) => relative(k.uri))}), 201);
    assert.deepEqual([...resource.keyUris].sort(), keys.map((k) => k.uri).sort());
    assert.equal(resource.authorizationUris.length, 3);
    for (const key of keys) assert.equal(ok(await b.retrieve(key.uri)).key.jwk.k, key.jwk.k);
});

test('create /resources is all or nothing', async () => {
    const keys = await a.keys(2);
    const [theirs] = await b.keys();
    const bound = (await a.resource()).keyUris[0];
    const mine = keys.map((k) => k.uri);
    refused(await a.create('/resources', {keyUris: [...mine, theirs.uri]}), 403002, 403001);
    refused(await a.create('/resources', {keyUris: [...mine, `/keys/${randomId()}`]}), 404001);
    refused(await a.create('/resources', {keyUris: [...mine, bound]}), 409001);
    refused(await a.create('/resources', {keyUris: mine, authIds: [`/resources/${randomId()}`]}), 404001);
    refused(await a.create('/resources', {keyUris: mine}, elsewhere), 403003);
    for (const bad of [{keyUris: 'x'}, {keyUris: [5]}, {keyUris: mine, authIds: [5]}, {keyUris: mine, authIds: ['']}, {keyUris: mine, userIds: {}}, {keyUris: mine, authIds: ['x'.repeat(3000)]}])
        refused(await a.create('/resources', bad), 400002);
    refused(await a.create('/resources', {keyUris: [cluster]}), 400002, 404001);
    for (const key of keys) assert.ok(!ok(await a.retrieve(key.uri)).key.bindDate, 'still unbound');
    ok(await a.create('/resources', {keyUris: mine}), 201);
});

test('binding: only the creator, authorised, with the same clientId', async () => {
    const [key] = await a.keys();
    const ours = await a.resource({authIds: [bob.sub]});
    const theirs = await b.resource();
    refused(await b.update(key.uri, {resourceUri: ours.uri}), 403002);
    refused(await a.update(key.uri, {resourceUri: theirs.uri}), 403001);
    refused(await a.update(key.uri, {resourceUri: ours.uri}, elsewhere), 403003);
    refused(await a.update(key.uri, {resourceUri: `/resources/${randomId()}`}), 404001);
    refused(await a.update(`/keys/${randomId()}`, {resourceUri: ours.uri}), 404001);
    for (const resourceUri of [undefined, 5, '', 'x', key.uri]) refused(await a.update(key.uri, {resourceUri}), 400002, 404001);
    const {key: bound} = ok(await a.update(key.uri, {resourceUri: relative(ours.uri)}));
    assert.equal(bound.uri, key.uri);
    assert.equal(bound.resourceUri, ours.uri);
    assert.match(bound.bindDate, DATE);
    assert.match(bound.expirationDate, DATE);
    assert.ok(ok(await a.retrieve(ours.uri)).resource.keyUris.includes(key.uri));
});

test('binding again: the same resource answers as before, another is 409001', async () => {
    const [key] = await a.keys();
    const [one, two] = [await a.resource({authIds: [bob.sub]}), await a.resource()];
    const first = ok(await a.update(key.uri, {resourceUri: one.uri})).key;
    assert.deepEqual(ok(await a.update(key.uri, {resourceUri: one.uri})).key, first);
    refused(await a.update(key.uri, {resourceUri: two.uri}), 409001);
    assert.notEqual((await b.update(key.uri, {resourceUri: one.uri})).status, 200);
    assert.equal(ok(await a.retrieve(key.uri)).key.resourceUri, one.uri);
});

test('of many bindings at once one wins', async () => {
    const [key] = await a.keys();
    const resources = await Promise.all(Array.from({length: 8}, () => a.resource({keys: 1})));
    const answers = await Promise.all(resources.map((r) => a.update(key.uri, {resourceUri: r.uri})));
    assert.equal(answers.filter((x) => x.status === 200).length, 1);
    for (const x of answers) if (x.status !== 200) refused(x, 409001);
});

test('a bound key is for whoever is authorised on its resource, on any device', async () => {
    const resource = await a.resource({authIds: [bob.sub]});
    const uri = resource.keyUris[0];
    const {key} = ok(await b.retrieve(uri));
    assert.equal(key.userId, alice.sub);
    ok(await b.retrieve(uri, {}, elsewhere));
    ok(await a.retrieve(uri, {}, elsewhere));
    const carol = await Channel.open(new User());
    refused(await carol.retrieve(uri), 403001);
    ok(await b.delete(`${resource.uri}/authorizations?authId=${alice.sub}`));
    refused(await a.retrieve(uri), 403001);
    ok(await b.retrieve(uri));
});

test('retrieve /resources/ID', async () => {
    const resource = await a.resource({authIds: [bob.sub], keys: 2});
    const {resource: seen} = ok(await b.retrieve(relative(resource.uri)));
    assert.equal(seen.uri, resource.uri);
    assert.deepEqual([...seen.keyUris].sort(), [...resource.keyUris].sort());
    assert.deepEqual([...seen.authorizationUris].sort(), [...resource.authorizationUris].sort());
    const carol = await Channel.open(new User());
    refused(await carol.retrieve(resource.uri), 403001);
    refused(await carol.retrieve(`${resource.uri}/keys`), 403001);
    refused(await carol.retrieve(`/resources/${randomId()}`), 404001);
    refused(await carol.retrieve(`/resources/${randomId()}/keys`), 404001);
});

test('retrieve /resources/ID/keys: the window and the count', async () => {
    const resource = await a.resource();
    const all = [resource.keyUris[0]];
    for (const key of await a.keys(4)) {
        await sleep(5);
        ok(await a.update(key.uri, {resourceUri: resource.uri}));
        all.push(key.uri);
    }
    const list = `${resource.uri}/keys`;
    const {keys} = ok(await a.retrieve(list));
    assert.deepEqual(keys.map((k) => k.uri).sort(), [...all].sort());
    const byDate = [...keys].sort((x, y) => (x.bindDate < y.bindDate ? -1 : 1));
    assert.deepEqual(byDate.map((k) => k.uri), all, 'bind dates tell the order');
    const uris = async (members) => ok(await a.retrieve(list, members)).keys.map((k) => k.uri).sort();
    const dates = byDate.map((k) => k.bindDate);
    assert.deepEqual(await uris({boundAfter: dates[2]}), all.slice(2).sort(), 'boundAfter is inclusive');
    assert.deepEqual(await uris({boundBefore: dates[2]}), all.slice(0, 2).sort(), 'boundBefore is exclusive');
    assert.deepEqual(await uris({boundAfter: dates[1], boundBefore: dates[4]}), all.slice(1, 4).sort());
    assert.deepEqual(await uris({boundAfter: dates[3], boundBefore: dates[3]}), []);
    assert.deepEqual(await uris({count: 2}), all.slice(3).sort(), 'the most recently bound ones');
    assert.deepEqual(await uris({count: 1, boundBefore: dates[3]}), [all[2]]);
    assert.deepEqual(await uris({count: 100}), [...all].sort());
    assert.deepEqual(await uris({boundAfter: new Date(Date.parse(dates[2])).toISOString().replace('Z', '+00:00')}), all.slice(2).sort());
    for (const bad of [{boundAfter: 'yesterday'}, {boundAfter: 5}, {boundBefore: '2026-13-01T00:00:00Z'}, {count: 0}, {count: -1}, {count: '2'}])
        refused(await a.retrieve(list, bad), 400002);
});

test('ttl: 0 is for ever, outside of the range is 400 naming the range', async () => {
    const [k1, k2] = await a.keys(2);
    const forEver = ok(await a.create('/resources', {keyUris: [k1.uri], ttl: 0}), 201).resource;
    assert.ok(!forEver.expirationDate);
    for (const ttl of [-1, 1.5, '60', null, 1e15])
        assert.match(refused(await a.create('/resources', {keyUris: [k2.uri], ttl}), 400002).reason, /\d+.*\d+/);
    const {reason} = refused(await a.create('/resources', {keyUris: [k2.uri], ttl: 1e15}), 400002);
    const [min, max] = (reason.match(/\d+/g) ?? []).map(Number).slice(-2);
    assert.ok(min > 0 && max > min, `names the range: ${reason}`);
    if (min > 1) refused(await a.create('/resources', {keyUris: [k2.uri], ttl: min - 1}), 400002);
    refused(await a.create('/resources', {keyUris: [k2.uri], ttl: max + 1}), 400002);
    const before = Date.now();
    const {resource} = ok(await a.create('/resources', {keyUris: [k2.uri], ttl: min}), 201);
    assert.match(resource.expirationDate, DATE);
    assert.ok(Math.abs(Date.parse(resource.expirationDate) - before - min * 1000) < 20e3, resource.expirationDate);
    if (min <= 5) {
        await sleep(min * 1000 + 500);
        const stranger = await Channel.open(new User());
        for (const uri of [resource.uri, `${resource.uri}/keys`, `${resource.uri}/authorizations`, k2.uri]) {
            refused(await a.retrieve(uri), 410001);
            refused(await stranger.retrieve(uri), 403001);
        }
        const [late] = await a.keys();
        refused(await a.update(late.uri, {resourceUri: resource.uri}), 410001);
        refused(await a.create('/authorizations', {resourceUri: resource.uri, authIds: [stranger.user.sub]}), 410001);
    }
    const [k3] = await a.keys();
    ok(await a.create('/resources', {keyUris: [k3.uri], ttl: max}), 201);
});

test('nothing of another organisation can be mixed in', async () => {
    const far = await Channel.open(new User({org: env.KMS_ORG2}));
    const [theirs] = await far.keys();
    const resource = await far.resource();
    const [mine] = await a.keys();
    assert.ok([403, 404].includes((await a.create('/resources', {keyUris: [theirs.uri]})).status));
    assert.ok([403, 404].includes((await a.update(mine.uri, {resourceUri: resource.uri})).status));
    assert.ok([403, 404].includes((await a.create('/authorizations', {resourceUri: resource.uri, authIds: [alice.sub]})).status));
    assert.ok(!ok(await a.retrieve(mine.uri)).key.bindDate);
});
