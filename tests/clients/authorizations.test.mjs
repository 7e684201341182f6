// Authorisations (protocol section 4): granting, listing, removing, nesting through resources, and anonymous ones.
import assert from 'node:assert/strict';
import {test} from 'node:test';
import {cluster, env} from './lib/env.mjs';
import {User} from './lib/tokens.mjs';
import {Channel, DATE, ok, randomId, refused, relative, uriOf} from './lib/kms.mjs';

const alice = new User({name: 'alice'}), bob = new User({name: 'bob'}), carol = new User({name: 'carol'});
const [a, b, c] = await Promise.all([alice, bob, carol].map((u) => Channel.open(u)));
const byAuthId = (list) => list.map((x) => x.authId);

test('granting answers in the order asked, and whoever exists already is returned', async () => {
    const resource = await a.resource();
    const more = Array.from({length: 5}, randomId);
    const first = await a.grant(resource.uri, bob.sub);
    assert.match(first[0].uri, uriOf('authorizations'));
    assert.match(first[0].createDate, DATE);
    assert.equal(first[0].resourceUri, resource.uri);
    assert.equal(first[0].authId, bob.sub);
    const order = [more[3], bob.sub, more[0], alice.sub, more[4]];
    const again = await a.grant(relative(resource.uri), ...order);
    assert.deepEqual(byAuthId(again), order);
    assert.deepEqual(again[1], first[0], 'not doubled');
    assert.equal(ok(await a.retrieve(`${resource.uri}/authorizations`)).authorizations.length, 5);
});

test('userIds do as authIds do; of both, authIds go first', async () => {
    const resource = await a.resource();
    const [u, v, w, x] = Array.from({length: 4}, randomId);
    const mixed = ok(await a.create('/authorizations', {resourceUri: resource.uri, userIds: [u, v], authIds: [w, x]}), 201);
    assert.deepEqual(byAuthId(mixed.authorizations), [w, x, u, v]);
    const {authorizations} = ok(await a.create('/authorizations', {resourceUri: resource.uri, userIds: [v]}), 201);
    assert.deepEqual(byAuthId(authorizations), [v]);
});

test('granting to many at once, doubles included, doubles nothing', async () => {
    const resource = await a.resource();
    await Promise.all(Array.from({length: 10}, () => a.grant(resource.uri, bob.sub, carol.sub)));
    ok(await a.create('/authorizations', {resourceUri: resource.uri, authIds: [bob.sub, bob.sub], userIds: [bob.sub]}), 201);
    assert.deepEqual(byAuthId(ok(await a.retrieve(`${resource.uri}/authorizations`)).authorizations).sort(), [alice.sub, bob.sub, carol.sub].sort());
});

test('granting is all or nothing', async () => {
    const resource = await a.resource();
    const grant = (members) => a.create('/authorizations', {resourceUri: resource.uri, ...members});
    refused(await grant({authIds: [bob.sub, `${cluster}/resources/${randomId()}`]}), 404001);
    refused(await grant({authIds: [bob.sub, 5]}), 400002);
    refused(await grant({authIds: [bob.sub, '']}), 400002);
    refused(await grant({authIds: [bob.sub, 'a\u0000']}), 400002);
    refused(await grant({authIds: [bob.sub], anonymous: -1}), 400002);
    refused(await grant({authIds: Array.from({length: 101}, randomId)}), 400002);
    refused(await grant({}), 400002);
    refused(await grant({authIds: bob.sub}), 400002);
    refused(await a.create('/authorizations', {authIds: [bob.sub]}), 400002);
    refused(await a.create('/authorizations', {resourceUri: `/resources/${randomId()}`, authIds: [bob.sub]}), 404001);
    assert.deepEqual(byAuthId(ok(await a.retrieve(`${resource.uri}/authorizations`)).authorizations), [alice.sub]);
    refused(await b.retrieve(resource.uri), 403001);
});

test('only who is authorised grants, lists and removes; whoever is may', async () => {
    const resource = await a.resource();
    const list = `${resource.uri}/authorizations`;
    refused(await b.create('/authorizations', {resourceUri: resource.uri, authIds: [bob.sub]}), 403001);
    refused(await b.retrieve(list), 403001);
    refused(await b.delete(`${list}?authId=${alice.sub}`), 403001);
    const [grant] = await a.grant(resource.uri, bob.sub);
    ok(await b.create('/authorizations', {resourceUri: resource.uri, authIds: [carol.sub]}), 201);
    assert.equal(ok(await c.retrieve(list)).authorizations.length, 3);
    ok(await c.delete(grant.uri));
    refused(await b.retrieve(list), 403001);
    ok(await c.delete(`${list}?authId=${carol.sub}`), 200);
    refused(await c.retrieve(resource.uri), 403001);
});

test('listing, of all and of one', async () => {
    const [resource, other] = [await a.resource({authIds: [bob.sub]}), await a.resource()];
    await a.grant(resource.uri, other.uri);
    const list = `${resource.uri}/authorizations`;
    const {authorizations} = ok(await a.retrieve(list));
    assert.equal(authorizations.length, 3);
    for (const x of authorizations) {
        assert.match(x.uri, uriOf('authorizations'));
        assert.match(x.createDate, DATE);
        assert.equal(x.resourceUri, x.authId === other.uri ? other.uri : resource.uri);
    }
    assert.deepEqual(byAuthId(authorizations).sort(), [alice.sub, bob.sub, other.uri].sort());
    const one = async (id) => ok(await a.retrieve(`${list}?authId=${encodeURIComponent(id)}`)).authorizations;
    assert.deepEqual(await one(bob.sub), authorizations.filter((x) => x.authId === bob.sub));
    assert.deepEqual(byAuthId(await one(other.uri)), [other.uri]);
    assert.deepEqual(byAuthId(await one(relative(other.uri))), [other.uri]);
    assert.deepEqual(await one(randomId()), []);
    for (const query of ['?authId=', '?authId=a&authId=b', '?x=y', '?authId=%zz', '?authId=%00']) refused(await a.retrieve(list + query), 400002);
});

test('removing by its URI, by the resource and authId, and in bulk; the answer has both forms', async () => {
    const resource = await a.resource({authIds: [bob.sub, carol.sub]});
    const list = `${resource.uri}/authorizations`;
    const [grant] = ok(await a.retrieve(`${list}?authId=${bob.sub}`)).authorizations;
    const first = ok(await a.delete(grant.uri));
    assert.deepEqual(first.authorizations.map((x) => x.uri), [grant.uri]);
    assert.equal([].concat(first.authorization)[0].authId, bob.sub);
    refused(await a.delete(grant.uri), 404001);
    refused(await b.retrieve(resource.uri), 403001);

    const second = ok(await a.delete(`${list}?authId=${carol.sub}`));
    assert.deepEqual(byAuthId(second.authorizations), [carol.sub]);
    assert.equal(second.authorizations[0].resourceUri, resource.uri);
    assert.equal([].concat(second.authorization)[0].authId, carol.sub);
    refused(await a.delete(`${list}?authId=${carol.sub}`), 404001);

    const many = Array.from({length: 100}, randomId);
    await a.grant(resource.uri, ...many);
    const third = ok(await a.delete('/authorizations', {resourceUri: resource.uri, authIds: many}));
    assert.deepEqual(byAuthId(third.authorizations).sort(), [...many].sort());
    assert.equal(ok(await a.retrieve(list)).authorizations.length, 1);
    refused(await a.delete('/authorizations', {resourceUri: resource.uri, authIds: [alice.sub, randomId()]}), 404001);
    assert.equal(ok(await a.retrieve(list)).authorizations.length, 1, 'all or nothing');
    refused(await a.delete('/authorizations', {resourceUri: resource.uri, authIds: [...many, randomId()]}), 400002);
    refused(await a.delete('/authorizations', {resourceUri: resource.uri}), 400002);
    refused(await a.delete('/authorizations', {authIds: many}), 400002);
    refused(await b.delete('/authorizations', {resourceUri: resource.uri, authIds: [alice.sub]}), 403001);
    ok(await a.delete('/authorizations', {resourceUri: resource.uri, authIds: [alice.sub]}));
    refused(await a.retrieve(resource.uri), 403001);
});

test('a grant to a resource opens to whoever is on that resource, as long as he is', async () => {
    const [meeting, space] = [await a.resource(), await a.resource({authIds: [bob.sub]})];
    const key = meeting.keyUris[0];
    refused(await b.retrieve(key), 403001);
    const [grant] = await a.grant(meeting.uri, relative(space.uri));
    assert.equal(grant.authId, space.uri, 'given relative, answered absolute');
    assert.equal(grant.resourceUri, meeting.uri);
    ok(await b.retrieve(key));
    ok(await b.retrieve(meeting.uri));
    await a.grant(space.uri, carol.sub);
    ok(await c.retrieve(key));
    ok(await a.delete(`${space.uri}/authorizations?authId=${carol.sub}`));
    refused(await c.retrieve(key), 403001);
    ok(await a.delete(`${meeting.uri}/authorizations?authId=${encodeURIComponent(space.uri)}`));
    refused(await b.retrieve(key), 403001);
    ok(await b.retrieve(space.keyUris[0]), 200);
});

test('a grant opens in one direction only', async () => {
    const [meeting, space] = [await a.resource({authIds: [bob.sub]}), await a.resource()];
    await a.grant(meeting.uri, space.uri);
    refused(await b.retrieve(space.keyUris[0]), 403001);
});

/* resources[0] is opened to whoever is on resources[1], that to [2], and so on. */
async function chain(length) {
    const resources = [];
    for (let i = 0; i <= length; i++) resources.push(await a.resource());
    for (let i = 0; i < length; i++) await a.grant(resources[i].uri, resources[i + 1].uri);
    return resources;
}

test('nesting goes through eight grants and not nine', async () => {
    const resources = await chain(9);
    await a.grant(resources[8].uri, bob.sub);
    await a.grant(resources[9].uri, carol.sub);
    for (let i = 0; i <= 8; i++) ok(await b.retrieve(resources[i].keyUris[0]));
    refused(await b.retrieve(resources[9].keyUris[0]), 403001);
    for (let i = 1; i <= 9; i++) ok(await c.retrieve(resources[i].keyUris[0]));
    refused(await c.retrieve(resources[0].keyUris[0]), 403001);
    await a.grant(resources[0].uri, resources[3].uri);
    ok(await c.retrieve(resources[0].keyUris[0]), 200);
});

test('cycles end, and open nothing by themselves', async () => {
    const resources = await chain(3);
    await a.grant(resources[3].uri, resources[0].uri);
    await a.grant(resources[1].uri, resources[1].uri);
    refused(await b.retrieve(resources[0].keyUris[0]), 403001);
    await a.grant(resources[2].uri, bob.sub);
    for (const r of resources) ok(await b.retrieve(r.keyUris[0]));
});

test('a wide net of grants is judged quickly', async () => {
    const layers = [];
    for (let i = 0; i < 4; i++) layers.push(await Promise.all(Array.from({length: 8}, () => a.resource())));
    for (let i = 0; i < 3; i++) for (const r of layers[i]) await a.grant(r.uri, ...layers[i + 1].map((x) => x.uri));
    const start = Date.now();
    refused(await b.retrieve(layers[0][0].keyUris[0]), 403001);
    await a.grant(layers[3][7].uri, bob.sub);
    ok(await b.retrieve(layers[0][0].keyUris[0]));
    assert.ok(Date.now() - start < 2000);
});

test("a resource of another organisation cannot be a grantee, another organisation's user gets nothing", async () => {
    const far = await Channel.open(new User({org: env.KMS_ORG2}));
    const [mine, theirs] = [await a.resource(), await far.resource()];
    assert.ok([403, 404].includes((await a.create('/authorizations', {resourceUri: mine.uri, authIds: [theirs.uri]})).status));
    assert.ok([403, 404].includes((await far.retrieve(mine.keyUris[0])).status));
});

test('anonymous: a bearer each, for the keys of its resource and nothing else', async () => {
    const resource = await a.resource({keys: 2}), other = await a.resource();
    const {authorizations} = ok(await a.create('/authorizations', {resourceUri: resource.uri, anonymous: 3}), 201);
    assert.equal(authorizations.length, 3);
    for (const x of authorizations) {
        assert.match(x.uri, uriOf('authorizations'));
        assert.equal(x.resourceUri, resource.uri);
        assert.match(x.createDate, DATE);
        assert.ok(!('authId' in x));
        assert.match(x.bearer, /^[\w-]+\.[\w-]+\.[\w-]+$/);
    }
    assert.equal(new Set(authorizations.map((x) => x.bearer)).size, 3);

    const {bearer} = authorizations[0];
    const guest = await Channel.open({clientId: 'guest'}, {bearer});
    const key = ok(await guest.retrieve(resource.keyUris[0])).key;
    assert.deepEqual(key.jwk, ok(await a.retrieve(resource.keyUris[0])).key.jwk);
    assert.equal(ok(await guest.retrieve(`${resource.uri}/keys`)).keys.length, 2);
    for (const request of [
        ['retrieve', other.keyUris[0]], ['retrieve', `${other.uri}/keys`], ['retrieve', resource.uri], ['retrieve', `${resource.uri}/authorizations`],
        ['create', '/keys', {count: 1}], ['create', '/resources', {keyUris: []}], ['create', '/authorizations', {resourceUri: resource.uri, authIds: [bob.sub]}],
        ['create', '/authorizations', {resourceUri: resource.uri, anonymous: 1}], ['delete', authorizations[0].uri], ['delete', authorizations[1].uri],
        ['delete', `${resource.uri}/authorizations?authId=${alice.sub}`], ['update', resource.keyUris[0], {resourceUri: other.uri}],
    ]) assert.ok([400, 403].includes((await guest.ask(...request)).status), request.slice(0, 2).join(' '));
    assert.equal((await guest.retrieve(resource.keyUris[0], {}, {onBehalfOf: alice.sub})).status, 403);
});

test('anonymous: the bearer is another principal on any other channel', async () => {
    const resource = await a.resource();
    const {authorizations: [one, two]} = ok(await a.create('/authorizations', {resourceUri: resource.uri, anonymous: 2}), 201);
    assert.equal((await b.retrieve(resource.keyUris[0], {}, {bearer: one.bearer})).status, 403);
    const guest = await Channel.open({clientId: 'guest'}, {bearer: one.bearer});
    assert.equal((await guest.retrieve(resource.keyUris[0], {}, {bearer: two.bearer})).status, 403);
    assert.equal((await guest.retrieve(resource.keyUris[0], {}, {bearer: alice.token()})).status, 403);
});

test('anonymous: removed with its authorisation, and forged never', async () => {
    const resource = await a.resource();
    const {authorizations: [one, two]} = ok(await a.create('/authorizations', {resourceUri: resource.uri, anonymous: 2}), 201);
    const guest = await Channel.open({clientId: 'guest'}, {bearer: one.bearer});
    ok(await guest.retrieve(resource.keyUris[0]));
    const gone = ok(await a.delete(one.uri));
    assert.deepEqual(gone.authorizations.map((x) => x.uri), [one.uri]);
    assert.ok([401, 403].includes((await guest.retrieve(resource.keyUris[0])).status));
    const [head, claims, signature] = two.bearer.split('.');
    const changed = JSON.parse(Buffer.from(claims, 'base64url'));
    for (const [k, v] of Object.entries(changed)) if (typeof v === 'number') changed[k] = v + 3600;
    const forged = [head, Buffer.from(JSON.stringify({...changed, x: 1})).toString('base64url'), signature].join('.');
    refused((await Channel.try({clientId: 'guest'}, {bearer: forged})).refused ?? {}, 401001);
    ok(await (await Channel.open({clientId: 'guest'}, {bearer: two.bearer})).retrieve(resource.keyUris[0]));
});

test('anonymous and named ones in one request', async () => {
    const resource = await a.resource();
    const {authorizations} = ok(await a.create('/authorizations', {resourceUri: resource.uri, authIds: [bob.sub], anonymous: 2}), 201);
    assert.equal(authorizations.length, 3);
    assert.deepEqual(byAuthId(authorizations).filter(Boolean), [bob.sub]);
    assert.equal(authorizations.filter((x) => x.bearer).length, 2);
    assert.equal(ok(await a.retrieve(`${resource.uri}/authorizations`)).authorizations.length, 4);
});

test('anonymous: made together with the resource, the bearers stand in the answer', async () => {
    const resource = await a.resource({anonymous: 2});
    assert.equal(resource.authorizationUris.length, 3);
    const bearers = resource.authorizations.filter((x) => x.bearer);
    assert.equal(bearers.length, 2);
    for (const {bearer} of bearers) ok(await (await Channel.open({clientId: 'guest'}, {bearer})).retrieve(resource.keyUris[0]));
});

test('an authId is any text, also in a query', async () => {
    const odd = new User({sub: 'a b+c%/?&#ü€'});
    const resource = await a.resource();
    await a.grant(resource.uri, odd.sub);
    ok(await (await Channel.open(odd)).retrieve(resource.keyUris[0]));
    const query = `${resource.uri}/authorizations?authId=${encodeURIComponent(odd.sub)}`;
    assert.deepEqual(byAuthId(ok(await a.retrieve(query)).authorizations), [odd.sub]);
    assert.deepEqual(byAuthId(ok(await a.delete(query)).authorizations), [odd.sub]);
    await a.grant(resource.uri, bob.sub.toUpperCase());
    refused(await b.retrieve(resource.keyUris[0]), 403001);
});

test('anonymous: the count has its range', async () => {
    const resource = await a.resource();
    for (const anonymous of [-1, 101, 1.5, '1', 1e9]) refused(await a.create('/authorizations', {resourceUri: resource.uri, anonymous}), 400002);
});
