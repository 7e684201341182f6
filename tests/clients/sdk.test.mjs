// The Webex JS SDK against the server: all that its own integration tests cover (main keys: byok.test.mjs), and its batches, resets and checks.
import assert from 'node:assert/strict';
import {execFileSync} from 'node:child_process';
import {randomBytes, X509Certificate} from 'node:crypto';
import {once} from 'node:events';
import {mkdtempSync, readFileSync, rmSync} from 'node:fs';
import {createServer} from 'node:http';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {test} from 'node:test';
import {cluster} from './lib/env.mjs';
import {User, officer} from './lib/tokens.mjs';
import {post, randomId, server} from './lib/kms.mjs';
import {caroots, sdk, spy} from './lib/webex.mjs';

const people = (n) => Array.from({length: n}, () => sdk(new User()));
const status = (wanted) => (error) => {
    assert.equal(error.status ?? error.body?.status, wanted, error.stack);
    return true;
};
const [spock, mccoy] = people(2);
const jim = sdk(officer());
const makeKro = async (owner, count = 1, userIds = []) => {
    const keys = await owner.kms.createUnboundKeys({count});
    return owner.kms.createResource({keys, userIds});
};

/* KMS */
test('ping', async () => {
    const res = await spock.kms.ping();
    assert.equal(res.status, 200);
    assert.ok(res.requestId);
});

test('createUnboundKeys', async () => {
    const keys = await spock.kms.createUnboundKeys({count: 2});
    assert.equal(keys.length, 2);
    assert.notEqual(keys[0].uri, keys[1].uri);
    for (const key of keys) {
        assert.equal(key.jwk.kid, key.uri);
        assert.equal(key.jwk.kty, 'oct');
        assert.equal(key.jwk.length, 256);
    }
    await assert.rejects(spock.kms.createUnboundKeys({count: 101}), status(400));
});

test('createResource, naming oneself and not', async () => {
    for (const userIds of [[spock.user.sub], undefined, []]) {
        const [key] = await spock.kms.createUnboundKeys({count: 1});
        const kro = await spock.kms.createResource({userIds, key});
        assert.ok(kro.uri.startsWith(`${cluster}/resources/`));
        assert.deepEqual(kro.keyUris, [key.uri]);
        assert.equal(kro.authorizationUris.length, 1);
    }
});

test('fetchKey of an unbound key', async () => {
    const [key] = await spock.kms.createUnboundKeys({count: 1});
    const again = await spock.kms.fetchKey({uri: key.uri});
    assert.notEqual(again, key);
    assert.equal(again.uri, key.uri);
    assert.deepEqual(again.jwk.toJSON(true), key.jwk.toJSON(true));
});

test('fetchKey of what is not there, and of what is not ours', async () => {
    await assert.rejects(spock.kms.fetchKey({uri: `${cluster}/keys/${randomId()}`}), status(404));
    const kro = await makeKro(spock);
    await assert.rejects(mccoy.kms.fetchKey({uri: kro.keyUris[0]}), status(403));
});

test('bindKey', async () => {
    const [k1, k2] = await spock.kms.createUnboundKeys({count: 2});
    const kro = await spock.kms.createResource({userIds: [spock.user.sub], key: k1});
    for (let i = 0; i < 2; i++) { /* a retry after a lost answer binds again */
        const key = await spock.kms.bindKey({kro, key: k2});
        assert.equal(key.uri, k2.uri);
        assert.ok(key.bindDate);
        assert.equal(key.resourceUri, kro.uri);
    }
    const other = await makeKro(spock);
    await assert.rejects(spock.kms.bindKey({kro: other, key: k2}), status(409));
});

test('addAuthorization of a user, who fetches the key then', async () => {
    const kro = await makeKro(spock);
    await assert.rejects(mccoy.kms.fetchKey({uri: kro.keyUris[0]}), status(403));
    const [auth] = await spock.kms.addAuthorization({userIds: [mccoy.user.sub], kroUri: kro.uri});
    assert.equal(auth.resourceUri, kro.uri);
    assert.equal(auth.authId, mccoy.user.sub);
    assert.equal((await mccoy.kms.fetchKey({uri: kro.keyUris[0]})).uri, kro.keyUris[0]);
});

test('addAuthorization of a resource opens to its users', async () => {
    const kro = await makeKro(spock);
    const space = await makeKro(spock, 1, [mccoy.user.sub]);
    const [auth] = await spock.kms.addAuthorization({authIds: [space.uri], kro});
    assert.equal(auth.resourceUri, kro.uri);
    assert.equal(auth.authId, space.uri);
    assert.equal((await mccoy.kms.fetchKey({uri: kro.keyUris[0]})).uri, kro.keyUris[0]);
});

test('listAuthorizations as users and resources come and go', async () => {
    const kro = await makeKro(spock);
    const space = await makeKro(spock);
    await spock.kms.addAuthorization({userIds: [mccoy.user.sub], kroUri: kro.uri});
    await spock.kms.addAuthorization({authIds: [space.uri], kro});
    const list = async () => {
        const all = await spock.kms.listAuthorizations({kroUri: kro.uri});
        return [all.map((x) => x.authId), all.map((x) => x.resourceUri)];
    };
    let [ids, uris] = await list();
    assert.equal(ids.length, 3);
    for (const id of [mccoy.user.sub, spock.user.sub]) assert.ok(ids.includes(id));
    for (const uri of [space.uri, kro.uri]) assert.ok(uris.includes(uri));

    await assert.rejects(jim.kms.listAuthorizations({kroUri: kro.uri}), status(403));

    const [gone] = await spock.kms.removeAuthorization({userId: mccoy.user.sub, kroUri: kro.uri});
    assert.equal(gone.resourceUri, kro.uri);
    assert.equal(gone.authId, mccoy.user.sub);
    [ids, uris] = await list();
    assert.deepEqual([ids.length, ids.includes(mccoy.user.sub), ids.includes(spock.user.sub)], [2, false, true]);
    for (const uri of [space.uri, kro.uri]) assert.ok(uris.includes(uri));

    const [last] = await spock.kms.removeAuthorization({userId: space.uri, kroUri: kro.uri});
    assert.equal(last.resourceUri, kro.uri);
    assert.equal(last.authId, space.uri);
    [ids, uris] = await list();
    assert.deepEqual([ids, uris], [[spock.user.sub], [kro.uri]]);
});

test('removeAuthorization of a user and of a resource takes the key away', async () => {
    const kro = await makeKro(spock, 1, [mccoy.user.sub]);
    const space = await makeKro(spock);
    await spock.kms.addAuthorization({authIds: [space.uri], kro});
    await mccoy.kms.fetchKey({uri: kro.keyUris[0]});
    await spock.kms.removeAuthorization({userId: mccoy.user.sub, kroUri: kro.uri});
    await assert.rejects(mccoy.kms.fetchKey({uri: kro.keyUris[0]}), status(403));
    const [auth] = await spock.kms.removeAuthorization({authId: space.uri, kro});
    assert.deepEqual([auth.resourceUri, auth.authId], [kro.uri, space.uri]);
});

/* fetchKey(onBehalfOf) */
test('fetchKey onBehalfOf, of another user', async () => {
    const [key] = await spock.kms.createUnboundKeys({count: 1});
    const seen = await jim.kms.fetchKey({uri: key.uri, onBehalfOf: spock.user.sub});
    assert.notEqual(seen, key);
    assert.deepEqual(seen.jwk.toJSON(true), key.jwk.toJSON(true));
});

test('fetchKey onBehalfOf, of oneself', async () => {
    const [key] = await jim.kms.createUnboundKeys({count: 1});
    assert.equal((await jim.kms.fetchKey({uri: key.uri, onBehalfOf: jim.user.sub})).uri, key.uri);
});

test('fetchKey onBehalfOf, of oneself without access', async () => {
    const [key] = await spock.kms.createUnboundKeys({count: 1});
    await assert.rejects(jim.kms.fetchKey({uri: key.uri, onBehalfOf: jim.user.sub}), status(403));
});

test('fetchKey onBehalfOf, without the role', async () => {
    const [key] = await spock.kms.createUnboundKeys({count: 1});
    await assert.rejects(mccoy.kms.fetchKey({uri: key.uri, onBehalfOf: spock.user.sub}), status(403));
});

test('fetchKey onBehalfOf, of several users in quick succession', async () => {
    const keys = await Promise.all([spock, mccoy].map(async (x) => (await x.kms.createUnboundKeys({count: 1}))[0]));
    const seen = await Promise.all([spock, mccoy].map((x, i) => jim.kms.fetchKey({uri: keys[i].uri, onBehalfOf: x.user.sub})));
    assert.deepEqual(seen.map((k) => k.uri), keys.map((k) => k.uri));
});

/* encryption */
const plaintext = 'The needs of the many: äöü €😀';
const file = randomBytes(70000);
const shared = (async () => {
    const kro = await makeKro(spock, 1, [mccoy.user.sub]);
    return {kro, key: await spock.encryption.getKey(kro.keyUris[0])};
})();
const plainScr = ({scr}) => JSON.stringify(scr.toJSON());

test('encryptText and decryptText, across users', async () => {
    const {key} = await shared;
    const text = await spock.encryption.encryptText(key, plaintext);
    assert.ok(!text.includes(plaintext));
    assert.equal(await spock.encryption.decryptText(key, text), plaintext);
    assert.equal(await mccoy.encryption.decryptText(key.uri, text), plaintext);
    await assert.rejects(people(1)[0].encryption.decryptText(key.uri, text), status(403));
});

test('encryptBinary and decryptBinary through a sealed SCR', async () => {
    const {key} = await shared;
    const {scr, cdata} = await spock.encryption.encryptBinary(file);
    for (const member of ['enc', 'key', 'iv']) assert.ok(scr[member]);
    scr.loc = 'file:///file.enc';
    const sealed = await spock.encryption.encryptScr(key, scr);
    const opened = await mccoy.encryption.decryptScr(key.uri, sealed);
    assert.equal(plainScr({scr: opened}), plainScr({scr}));
    assert.deepEqual(await mccoy.encryption.decryptBinary(opened, cdata), file);
});

test('a sealed SCR for a user who is authorised only through another resource', async () => {
    const [kirk] = people(1);
    const whiteboard = await makeKro(spock);
    const space = await makeKro(spock, 1, [kirk.user.sub]);
    const {scr} = await spock.encryption.encryptBinary(file);
    scr.loc = 'file:///board.enc';
    const sealed = await spock.encryption.encryptScr(whiteboard.keyUris[0], scr);
    assert.equal(typeof sealed, 'string');
    await assert.rejects(kirk.encryption.decryptScr(whiteboard.keyUris[0], sealed), status(403));
    await spock.kms.addAuthorization({authIds: [space.uri], kro: whiteboard});
    const opened = await kirk.encryption.decryptScr(whiteboard.keyUris[0], sealed);
    assert.equal(plainScr({scr: opened}), plainScr({scr}));
});

test('getKey takes a key as it is, else the cache, else the KMS', async () => {
    const {key} = await shared;
    assert.equal(await spock.encryption.getKey(key), key);
    const [kirk] = people(1);
    await spock.kms.addAuthorization({userIds: [kirk.user.sub], kroUri: key.resourceUri});
    let fetched = 0;
    const restore = spy(kirk.kms, 'fetchKey', () => fetched++);
    for (let i = 0; i < 3; i++) assert.equal((await kirk.encryption.getKey(key.uri)).uri, key.uri);
    assert.equal(fetched, 1);
    assert.ok(JSON.parse(await kirk.encryption.unboundedStorage.get(key.uri)).jwk.k);
    await kirk.encryption.unboundedStorage.del(key.uri);
    await kirk.encryption.getKey(key.uri);
    assert.equal(fetched, 2);
    restore();
});

test('onBehalfOf: text, SCR and getKey for a compliance officer', async () => {
    const {key} = await shared;
    const me = sdk(officer()), {encryption} = me;
    const as = {onBehalfOf: spock.user.sub};
    const theirs = await spock.encryption.encryptText(key, plaintext);
    assert.equal(await encryption.decryptText(key.uri, theirs, as), plaintext);
    const ours = await encryption.encryptText(key.uri, plaintext, as);
    assert.equal(await encryption.decryptText(key.uri, ours, as), plaintext);
    const {scr} = await spock.encryption.encryptBinary(file);
    scr.loc = 'file:///file.enc';
    for (const sealed of [await spock.encryption.encryptScr(key, scr), await encryption.encryptScr(key.uri, scr, as)])
        assert.equal(plainScr({scr: await encryption.decryptScr(key.uri, sealed, as)}), plainScr({scr}));
    assert.equal((await encryption.getKey(key.uri, as)).uri, key.uri);
    await assert.rejects(encryption.getKey(key.uri), status(403));
    await assert.rejects(encryption.getKey(key.uri, {onBehalfOf: randomId()}), status(403));
});

/* batches */
test('120 requests at once go in POSTs of at most 50, and each gets its own answer', async () => {
    const [user] = people(1);
    const keys = [...await user.kms.createUnboundKeys({count: 100}), ...await user.kms.createUnboundKeys({count: 20})];
    user.posts.length = 0;
    const seen = await Promise.all(keys.map((k) => user.kms.fetchKey({uri: k.uri})));
    seen.forEach((k, i) => assert.deepEqual(k.jwk.toJSON(true), keys[i].jwk.toJSON(true)));
    assert.equal(user.posts.reduce((sum, n) => sum + n), 120, String(user.posts));
    assert.ok(Math.max(...user.posts) <= 50 && Math.max(...user.posts) > 1, String(user.posts));
});

test('refusals in a batch reach their own requests', async () => {
    const [user] = people(1);
    const keys = await user.kms.createUnboundKeys({count: 10});
    const foreign = (await makeKro(spock)).keyUris[0];
    user.posts.length = 0;
    const results = await Promise.allSettled([...keys.map((k) => k.uri), foreign, `${cluster}/keys/${randomId()}`].map((uri) => user.kms.fetchKey({uri})));
    assert.deepEqual(results.map((r) => r.reason?.status ?? 200), [...Array(10).fill(200), 403, 404]);
    assert.deepEqual(user.posts, [12]);
    assert.deepEqual(user.push.errors, []);
});

/* inside of another service's API */
test('a messaging service carries kmsMessage there and back, and a refusal too', async () => {
    /* It cannot read what it carries; a KMS refusal becomes its own error 1900000, as the Webex cloud has it. */
    const service = createServer(async (req, res) => {
        const body = JSON.parse(Buffer.concat(await req.toArray()));
        const [kmsMessage] = await post([body.kmsMessage]);
        const error = {errorCode: 1900000, message: kmsMessage, errors: [{description: kmsMessage}]};
        res.writeHead(body.refuse ? 400 : 200, {'content-type': 'application/json'}).end(JSON.stringify(body.refuse ? error : {kmsMessage}));
    }).listen(0, '127.0.0.1');
    await once(service, 'listening');
    const me = sdk(new User(), {services: {conversation: `http://127.0.0.1:${service.address().port}/api`}});
    const call = (kmsMessage, refuse) => me.webex.request({method: 'POST', service: 'conversation', resource: 'conversations', body: {kmsMessage, refuse}});
    const [key] = await me.kms.createUnboundKeys({count: 1});
    const {body} = await call({method: 'create', uri: '/resources', userIds: [mccoy.user.sub], keyUris: [key.uri]});
    assert.equal(body.kmsMessage.status, 201);
    assert.equal((await mccoy.kms.fetchKey({uri: key.uri})).uri, key.uri);
    await assert.rejects(call({method: 'create', uri: '/resources', keyUris: ['kms://fakeuri']}, true), (e) => {
        assert.equal(e.constructor.name, 'DryError');
        assert.match(e.message, /KMS_RESPONSE_STATUS: 4\d\d/);
        assert.match(e.message, /KMS_REQUEST_ID: ./);
        return true;
    });
    service.close();
    service.closeAllConnections();
});

/* the unhappy way */
test('a wrong token is 401', async () => {
    const wrong = sdk(new User(), {token: () => 'invalidToken'});
    await assert.rejects(wrong.kms.createUnboundKeys({count: 1}), status(401));
});

test('a token that expires on a live channel is 401, and a fresh one goes on', async () => {
    const user = new User();
    let claims = {};
    const me = sdk(user, {token: () => user.token(claims)});
    const [key] = await me.kms.createUnboundKeys({count: 1});
    claims = {exp: Math.floor(Date.now() / 1000) - 3600};
    await assert.rejects(me.kms.fetchKey({uri: key.uri}), status(401));
    claims = {};
    assert.equal((await me.kms.fetchKey({uri: key.uri})).uri, key.uri);
    assert.deepEqual(me.push.errors, []);
});

test('late answers to the ephemeral key request are survived', async () => {
    const me = sdk(new User(), {encryption: {kmsInitialTimeout: 100}});
    me.push.delay = 250;
    assert.equal((await me.kms.ping()).status, 200);
    const ecdhe = me.trace.filter((r) => r.uri.includes('/ecdhe')).length;
    assert.ok(ecdhe >= 2, `${ecdhe} attempts`);
    me.push.delay = 0;
    me.trace.length = 0;
    assert.equal((await me.kms.ping()).status, 200);
    assert.ok(me.trace.length < 5);
});

test('a deleted channel: no answer that the SDK can read, so it negotiates another in its time', async () => {
    /* with its own timeouts it would give up first: 6 s, doubled up to 96 s, never pass the test for a new channel */
    const alive = setInterval(() => undefined, 1000); /* the SDK's own timers hold no process */
    const me = sdk(new User(), {encryption: {kmsInitialTimeout: 400, kmsMaxTimeout: 800, ecdhMaxTimeout: 12000}});
    await me.kms.ping();
    const {uri} = (await me.kms._getContext()).ephemeralKey;
    await me.kms.request({method: 'delete', uri});
    assert.equal((await me.kms.ping()).status, 200);
    assert.notEqual((await me.kms._getContext()).ephemeralKey.uri, uri);
    assert.ok(me.push.errors.length > 0, 'the reset is signed');
    clearInterval(alive);
});

test('an unknown destination is an HTTP error to the SDK', async () => {
    const post = (body) => spock.webex.request({method: 'POST', service: 'encryption', resource: '/kms/messages', body});
    await assert.rejects(post({destination: 'kms://elsewhere.example', kmsMessages: []}), (e) => e.statusCode >= 400 && e.statusCode < 500);
    assert.deepEqual((await post({destination: cluster, kmsMessages: []})).body.kmsMessages, []);
});

/* certificate validation */
test('the CA of the instance is accepted', async () => {
    assert.ok(caroots.length === 1 && (await server()).key.x5c.length > 0);
    assert.equal((await sdk(new User(), {encryption: {caroots}}).kms.ping()).status, 200);
});

test('another CA is refused', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'kms-ca-'));
    execFileSync('openssl', ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', join(dir, 'key'), '-out', join(dir, 'ca'), '-days', '2', '-subj', '/CN=another'], {stdio: 'ignore'});
    const wrong = [new X509Certificate(readFileSync(join(dir, 'ca'))).raw.toString('base64')];
    rmSync(dir, {recursive: true});
    await assert.rejects(sdk(new User(), {encryption: {caroots: wrong}}).kms.ping(), /INVALID KMS/);
});

test('a key that is not the certificate\'s, and a kid of another domain, are refused', async () => {
    const {key} = await server();
    for (const change of [{n: `A${key.n.slice(1, -1)}B`}, {e: 'AAAB'}, {kid: 'kms://elsewhere.example/static'}, {x5c: []}, {kty: 'EC'}]) {
        const me = sdk(new User());
        me.kms._getKMSStaticPubKey = async () => ({...key, ...change});
        await assert.rejects(me.kms.ping(), /INVALID KMS/, JSON.stringify(change).slice(0, 40));
    }
});
