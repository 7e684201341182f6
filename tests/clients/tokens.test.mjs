// Who is asking (protocol section 3): tokens good and bad, the principal of a channel, and onBehalfOf.
import assert from 'node:assert/strict';
import {createPublicKey, generateKeyPairSync} from 'node:crypto';
import {readFileSync} from 'node:fs';
import {test} from 'node:test';
import {env} from './lib/env.mjs';
import {User, mint, officer} from './lib/tokens.mjs';
import {Channel, ok, randomId, refused} from './lib/kms.mjs';

const alice = new User({name: 'alice'});
const now = () => Math.floor(Date.now() / 1000);
const other = generateKeyPairSync('ec', {namedCurve: 'P-256'}).privateKey;
const publicPem = createPublicKey(readFileSync(env.KMS_TOKEN_KEY_FILE)).export({type: 'spki', format: 'pem'});

const bad = [
    ['no bearer', () => null, 401001],
    ['an empty bearer', () => '', 401001],
    ['no token at all', () => 'nothing', 401001],
    ['half a token', () => alice.token().split('.').slice(0, 2).join('.'), 401001],
    ['an expired token', () => alice.token({iat: now() - 7200, exp: now() - 3600}), 401002],
    ['a token without exp', () => alice.token({exp: undefined}), 401001],
    ['a token whose exp is text', () => alice.token({exp: '2999-01-01'}), 401001],
    ['a token of tomorrow', () => alice.token({nbf: now() + 86400, exp: now() + 90000}), 401001],
    ['another audience', () => alice.token({aud: 'other'}), 401001],
    ['no audience', () => alice.token({aud: undefined}), 401001],
    ['another issuer', () => alice.token({iss: 'https://other.example'}), 401001],
    ['an issuer with a slash more', () => alice.token({iss: `${env.KMS_TOKEN_ISSUER}/`}), 401001],
    ['no scope', () => alice.token({scope: undefined}), 401001],
    ['another scope', () => alice.token({scope: 'spark:all spark:kmsx'}), 401001],
    ['no organisation', () => alice.token({org: undefined}), 401001],
    ['an empty organisation', () => alice.token({org: ''}), 401001],
    ['an organisation that is a number', () => alice.token({org: 5}), 401001],
    ['no subject', () => alice.token({sub: undefined}), 401001],
    ['an empty subject', () => alice.token({sub: ''}), 401001],
    ['alg none', () => mint({sub: alice.sub}, {header: {alg: 'none'}}), 401001],
    ['alg HS256 with the public key', () => mint({sub: alice.sub}, {header: {alg: 'HS256'}, key: publicPem}), 401001],
    ["another's signature", () => mint({sub: alice.sub}, {key: other}), 401001],
    ["another's key in the header", () => mint({sub: alice.sub}, {key: other, header: {jwk: createPublicKey(other).export({format: 'jwk'})}}), 401001],
    ['an unknown kid', () => mint({sub: alice.sub}, {key: other, header: {kid: 'unknown'}}), 401001],
    ['a critical header', () => mint({sub: alice.sub}, {header: {crit: ['x'], x: 1}}), 401001],
    ['changed claims', () => {
        const [h, , s] = alice.token().split('.');
        return [h, mint({sub: 'root'}).split('.')[1], s].join('.');
    }, 401001],
    ['a number as bearer', () => 17, 401001],
];

for (const [what, bearer, code] of bad)
    test(`${what} is ${code}: signed on the first message, encrypted on a channel`, async () => {
        /* a bearer of another type may also be called a wrong member */
        const codes = what.startsWith('a number') ? [code, 400002] : [code];
        refused((await Channel.try(alice, {bearer})).refused ?? {}, ...codes);
        const ch = await Channel.open(alice);
        const answer = await ch.update('/ping', {}, {bearer});
        assert.ok(!answer.signed);
        refused(answer, ...codes);
        ok(await ch.update('/ping'));
    });

test('an organisation that nobody added is 401001', async () => {
    refused((await Channel.try(new User({org: randomId()}))).refused ?? {}, 401001);
});

test('the scope among others and the audience among others are enough', async () => {
    const ch = await Channel.open(alice);
    ok(await ch.update('/ping', {}, {bearer: alice.token({scope: 'a spark:kms b'})}));
    ok(await ch.update('/ping', {}, {bearer: alice.token({aud: ['x', env.KMS_TOKEN_AUDIENCE]})}));
});

test('a refreshed token of the same subject goes on', async () => {
    const ch = await Channel.open(alice, {bearer: alice.token()});
    for (let i = 0; i < 3; i++) ok(await ch.update('/ping', {}, {bearer: alice.token({exp: now() + 600 + i})}));
});

test("another subject's token on a channel is 403009", async () => {
    const ch = await Channel.open(alice);
    refused(await ch.update('/ping', {}, {bearer: new User().token()}), 403009);
    refused(await ch.create('/keys', {count: 1}, {bearer: new User().token()}), 403009);
    ok(await ch.update('/ping'));
});

test('the same sub of another organisation is another subject', async () => {
    const ch = await Channel.open(alice);
    const twin = new User({sub: alice.sub, org: env.KMS_ORG2});
    assert.equal((await ch.update('/ping', {}, {bearer: twin.token()})).status, 403);
    const [key] = await ch.keys();
    const theirs = await Channel.open(twin, {clientId: alice.clientId});
    assert.ok([403, 404].includes((await theirs.retrieve(key.uri)).status), 'and its keys are its own');
    const resource = await ch.resource({authIds: [randomId()]});
    assert.ok([403, 404].includes((await theirs.retrieve(resource.uri)).status));
    assert.ok([403, 404].includes((await theirs.retrieve(resource.keyUris[0])).status));
});

test('credential.userId is ignored where the token says who it is', async () => {
    const ch = await Channel.open(alice, {credential: {userId: 'somebody'}});
    assert.equal(ch.created.key.userId, alice.sub);
    const answer = ok(await ch.create('/keys', {count: 1}, {credential: {userId: 'somebody'}}), 201);
    assert.equal(answer.keys[0].userId, alice.sub);
});

test('onBehalfOf: the officer sees what the user sees, and the clientId rule does not apply', async () => {
    const [ch, off, bob] = await Promise.all([Channel.open(alice), Channel.open(officer()), Channel.open(new User())]);
    const [unbound] = await ch.keys();
    assert.deepEqual(ok(await off.retrieve(unbound.uri, {}, {onBehalfOf: alice.sub})).key, unbound);
    const resource = await ch.resource();
    const as = {onBehalfOf: alice.sub};
    assert.equal(ok(await off.retrieve(resource.keyUris[0], {}, as)).key.uri, resource.keyUris[0]);
    assert.equal(ok(await off.retrieve(resource.uri, {}, as)).resource.uri, resource.uri);
    assert.equal(ok(await off.retrieve(`${resource.uri}/keys`, {}, as)).keys.length, 1);
    assert.equal(ok(await off.retrieve(`${resource.uri}/authorizations`, {}, as)).authorizations.length, 1);
    refused(await off.retrieve(resource.keyUris[0], {}, {onBehalfOf: bob.user.sub}), 403001);
    refused(await off.retrieve(resource.keyUris[0]), 403001);
    refused(await off.retrieve(unbound.uri, {}, {onBehalfOf: bob.user.sub}), 403001, 403002);
    refused(await off.retrieve(`/keys/${randomId()}`, {}, as), 404001);
});

test('onBehalfOf the caller itself is judged as the caller, with or without the role', async () => {
    for (const user of [alice, officer()]) {
        const ch = await Channel.open(user);
        const [key] = await ch.keys();
        ok(await ch.retrieve(key.uri, {}, {onBehalfOf: user.sub}));
        const stranger = await Channel.open(new User());
        const [theirs] = await stranger.keys();
        assert.equal((await ch.retrieve(theirs.uri, {}, {onBehalfOf: user.sub})).status, 403);
        refused(await ch.retrieve(key.uri, {}, {onBehalfOf: user.sub, clientId: 'other device'}), 403003);
    }
});

test('onBehalfOf without the role, or on another method, is 403004', async () => {
    const [ch, bob, off] = await Promise.all([Channel.open(alice), Channel.open(new User()), Channel.open(officer())]);
    const resource = await ch.resource();
    const as = {onBehalfOf: alice.sub};
    refused(await bob.retrieve(resource.keyUris[0], {}, as), 403004);
    refused(await off.create('/keys', {count: 1}, as), 403004);
    refused(await off.create('/authorizations', {resourceUri: resource.uri, authIds: [off.user.sub]}, as), 403004);
    refused(await off.delete(`${resource.uri}/authorizations?authId=${alice.sub}`, {}, as), 403004);
    ok(await ch.retrieve(resource.uri));
    for (const roles of ['spark.kms_orgagent', ['spark.kms_orgagentx'], {'spark.kms_orgagent': true}])
        assert.notEqual((await bob.retrieve(resource.keyUris[0], {}, {...as, bearer: bob.user.token({roles})})).status, 200);
});

test('an officer of another organisation gets nothing', async () => {
    const [ch, off] = await Promise.all([Channel.open(alice), Channel.open(officer({org: env.KMS_ORG2}))]);
    const resource = await ch.resource();
    for (const uri of [resource.keyUris[0], resource.uri, `${resource.uri}/keys`])
        assert.ok([403, 404].includes((await off.retrieve(uri, {}, {onBehalfOf: alice.sub})).status));
});
