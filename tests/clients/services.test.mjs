// Cloud services (protocol section 8): getting in by TLS certificate or by proof, what they are given under which purpose, and all
// that must not get them in.
import assert from 'node:assert/strict';
import {generateKeyPairSync, randomUUID} from 'node:crypto';
import {readFileSync, renameSync, rmSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {after, before, test} from 'node:test';
import {setTimeout as sleep} from 'node:timers/promises';
import {cluster, env, require} from './lib/env.mjs';
import {notOurs} from './lib/instance.mjs';
import {Channel, DATE, ok, refused, relative, uriOf} from './lib/kms.mjs';
import {addService, changeService, closeMatter, enable, openMatter, setRule, disable, retireService, revokeCertificate} from './lib/officers.mjs';
import {
    ServiceChannel, askAll, authority, certificate, ephemeral, freshIdentity, forgetConnections, nowS, proof, publicJwk, replay, revocations, thumbprint, x5cOf,
} from './lib/service.mjs';
import {User, officer} from './lib/tokens.mjs';

const {JWE, JWK} = require('node-jose');
const alice = new User({name: 'alice'});
const bob = new User({name: 'bob', org: env.KMS_ORG2});
const PURPOSES = ['indexing', 'dlp', 'ediscovery', 'archival'];
const idOf = (uri) => uri.split('/').pop();

let user, foreign; /* channels of alice and bob */
let dlp, indexer, archiver, searcher; /* services: {name, identity, who} */
let space, file, strange; /* {uri, keys: [uri], k: uri -> its bytes in base64url} */
let matter;

async function container(ch, {kind, keys = 2} = {}) {
    const made = await ch.keys(keys);
    const {resource} = ok(await ch.create('/resources', {userIds: [], keyUris: made.map((k) => k.uri), ...(kind ? {kind} : {})}), 201);
    return {uri: resource.uri, keys: made.map((k) => k.uri), k: new Map(made.map((k) => [k.uri, k.jwk.k]))};
}

/* A registered service with a certificate. */
async function service(name, {purposes, orgs = [env.KMS_ORG], kinds = ['space', 'file'], cert = {}, ...more}) {
    const identity = freshIdentity();
    const full = `${name}-${randomUUID().slice(0, 8)}`;
    await addService({service: full, identity, purposes, orgs, kinds, rate: 0, breadth: 0, ...more});
    return {name: full, identity, who: certificate(identity, cert)};
}

/* What an answer with keys must be, whatever they are for. */
function released(body, {service: s, purpose, keys, matter: m}) {
    ok(body);
    assert.equal(body.service, s.name);
    assert.equal(body.purpose, purpose);
    assert.equal(body.matter, m);
    const got = body.keys ?? [body.key];
    assert.deepEqual(got.map((k) => k.uri), keys);
    return got;
}

before(async () => {
    user = await Channel.open(alice);
    foreign = await Channel.open(bob);
    space = await container(user);
    file = await container(user, {kind: 'file', keys: 1});
    strange = await container(foreign);
    for (const p of PURPOSES) await enable(env.KMS_ORG, p);
    dlp = await service('dlp', {purposes: ['dlp']});
    indexer = await service('indexer', {purposes: ['indexing'], cert: {type: 'rsa'}});
    archiver = await service('archiver', {purposes: ['archival', 'indexing']});
    searcher = await service('searcher', {purposes: ['ediscovery']});
    matter = await openMatter({
        org: env.KMS_ORG, name: 'a matter', custodians: [alice.sub], from: Date.now() - 86400000, to: Date.now() + 86400000, kinds: ['space'], expires: Date.now() + 86400000,
    });
});
after(forgetConnections);

// --- getting in ---

for (const relay of [false, true])
    for (const type of ['ec', 'rsa'])
        test(`a service gets in ${relay ? 'behind a relay, by x5c and proof' : 'by mutual TLS'} (${type})`, async () => {
            const who = certificate(dlp.identity, {type});
            const ch = await ServiceChannel.open(who, {relay});
            const {key} = ch.created;
            assert.match(key.uri, uriOf('ecdhe'));
            assert.equal(key.userId, dlp.name);
            assert.equal(key.clientId, ch.clientId);
            assert.match(key.expirationDate, DATE);
            assert.ok(Date.parse(key.expirationDate) - Date.now() <= 3600000);
            ok(await ch.ask('update', '/ping'));
            const [k] = released(await ch.retrieve(relative(space.keys[0]), {purpose: 'dlp'}), {service: dlp, purpose: 'dlp', keys: [space.keys[0]]});
            assert.equal(k.jwk.k, space.k.get(space.keys[0]));
            assert.equal(k.resourceUri, space.uri);
            assert.match(k.bindDate, DATE);
            ok(await ch.ask('delete', relative(ch.uri)), 204);
            const gone = await ch.ask('update', '/ping');
            assert.ok(gone.signed);
            refused(gone, 499001);
        });

test('over mutual TLS a channel goes on with another certificate of the same service, and by its jwk alone', async () => {
    const ch = await ServiceChannel.open(dlp.who);
    ok(await ch.ask('update', '/ping', {}, {tls: certificate(dlp.identity, {type: 'rsa'})}));
    ok(await ch.ask('update', '/ping', {}, {tls: null, credential: {jwk: publicJwk(dlp.who)}}));
    ok(await ch.ask('update', '/ping', {}, {tls: null, credential: {jwk: {...publicJwk(dlp.who), x5c: x5cOf(dlp.who)}}}));
    refused(await ch.ask('update', '/ping', {}, {tls: null}), 401001);
});

test('a chain with a CA between is followed, in TLS and in x5c', async () => {
    const between = authority('between', {cert: env.KMS_SERVICE_CA_FILE, key: env.KMS_SERVICE_CA_KEY_FILE});
    const who = certificate(dlp.identity, {issuer: between, chain: readFileSync(between.cert, 'utf8')});
    assert.equal(x5cOf(who).length, 2);
    for (const relay of [false, true]) ok(await (await ServiceChannel.open(who, {relay})).ask('update', '/ping'));
    refused((await ServiceChannel.try(who, {relay: true, credential: (() => {
        const own = ephemeral();
        return {jwk: {...publicJwk(who), x5c: x5cOf(who).slice(0, 1)}, proof: proof(who, own.jwk)};
    })()})).refused, 401001);
});

test('who is not registered is 403006, whichever way he comes', async () => {
    const who = certificate(freshIdentity());
    for (const relay of [false, true]) refused((await ServiceChannel.try(who, {relay})).refused, 403006);
});

test('no certificate and no proof is 401001', async () => {
    refused((await ServiceChannel.try(dlp.who, {tls: null})).refused, 401001);
});

// --- proofs ---

const other = certificate(freshIdentity());
const DAY = 86400;
const badProofs = [
    ['without a proof', (own) => ({jwk: {...publicJwk(dlp.who), x5c: x5cOf(dlp.who)}})],
    ['without x5c', (own) => ({jwk: publicJwk(dlp.who), proof: proof(dlp.who, own.jwk)})],
    ['with an empty x5c', (own) => ({jwk: {...publicJwk(dlp.who), x5c: []}, proof: proof(dlp.who, own.jwk)})],
    ['with x5c that is no certificate', (own) => ({jwk: {...publicJwk(dlp.who), x5c: ['AAAA']}, proof: proof(dlp.who, own.jwk)})],
    ["another key beside the service's certificate", (own) => ({jwk: {...publicJwk(other), x5c: x5cOf(dlp.who)}, proof: proof(other, own.jwk)})],
    ["another service's signature", (own) => ({jwk: {...publicJwk(dlp.who), x5c: x5cOf(dlp.who)}, proof: proof(dlp.who, own.jwk, {}, {by: other})})],
    ['of another ephemeral key', () => ({jwk: {...publicJwk(dlp.who), x5c: x5cOf(dlp.who)}, proof: proof(dlp.who, ephemeral().jwk)})],
    ['six minutes old', (own) => claims(own, {iat: nowS() - 360})],
    ['a day old', (own) => claims(own, {iat: nowS() - DAY})],
    ['six minutes in the future', (own) => claims(own, {iat: nowS() + 360})],
    ['without iat', (own) => claims(own, {iat: undefined})],
    ['whose iat is text', (own) => claims(own, {iat: String(nowS())})],
    ['past its exp', (own) => claims(own, {exp: nowS() - 1})],
    ['for another server', (own) => claims(own, {aud: 'kms://other.example'})],
    ['for another server in other letters', (own) => claims(own, {aud: cluster.toUpperCase()})],
    ['without aud', (own) => claims(own, {aud: undefined})],
    ['without jti', (own) => claims(own, {jti: undefined})],
    ['with an empty jti', (own) => claims(own, {jti: ''})],
    ['with a jti of 1000 characters', (own) => claims(own, {jti: 'x'.repeat(1000)})],
    ['without cnf', (own) => claims(own, {cnf: undefined})],
    ['with cnf as an object', (own) => claims(own, {cnf: {jkt: thumbprint(own.jwk)}})],
    ['with alg none', (own) => claims(own, {}, {alg: 'none'})],
    ['with alg HS256', (own) => claims(own, {}, {alg: 'HS256'})],
    ['with a critical header', (own) => claims(own, {}, {crit: ['x'], x: 1})],
    ['that is no JWS', () => ({jwk: {...publicJwk(dlp.who), x5c: x5cOf(dlp.who)}, proof: 'proof'})],
    ['that is empty', () => ({jwk: {...publicJwk(dlp.who), x5c: x5cOf(dlp.who)}, proof: ''})],
    ['with a private member in jwk', (own) => ({jwk: {...dlp.who.pair.privateKey.export({format: 'jwk'}), x5c: x5cOf(dlp.who)}, proof: proof(dlp.who, own.jwk)})],
];
function claims(own, change, header = {}) {
    return {jwk: {...publicJwk(dlp.who), x5c: x5cOf(dlp.who)}, proof: proof(dlp.who, own.jwk, change, {header})};
}
for (const [what, make] of badProofs)
    test(`a proof ${what} is 401001`, async () => {
        const own = ephemeral();
        const {refused: body} = await ServiceChannel.try(dlp.who, {relay: true, own, credential: make(own)});
        /* a member of another type may also be called a wrong member */
        refused(body ?? {}, 401001, 400002);
        if (!/empty|private/.test(what)) assert.equal(body.errorCode, 401001);
    });

test('a bad proof is not made good by a TLS certificate', async () => {
    const own = ephemeral();
    refused((await ServiceChannel.try(dlp.who, {relay: true, own, tls: dlp.who, credential: claims(own, {aud: 'x'})})).refused, 401001);
    refused((await ServiceChannel.try(dlp.who, {relay: true, own, tls: dlp.who, credential: {jwk: publicJwk(dlp.who)}})).refused, 401001);
});

test('a proof is good once: the same message again, and the same jti under another ephemeral key', async () => {
    const {channel} = await ServiceChannel.try(dlp.who, {relay: true});
    ok(await channel.ask('update', '/ping'));
    refused(await replay(channel.first), 401001);
    const jti = randomUUID();
    const one = ephemeral(), two = ephemeral();
    assert.ok((await ServiceChannel.try(dlp.who, {relay: true, own: one, credential: claims(one, {jti})})).channel);
    refused((await ServiceChannel.try(dlp.who, {relay: true, own: two, credential: claims(two, {jti})})).refused, 401001);
    /* another service may have had the same idea */
    const three = ephemeral();
    const credential = {jwk: {...publicJwk(indexer.who), x5c: x5cOf(indexer.who)}, proof: proof(indexer.who, three.jwk, {jti})};
    assert.ok((await ServiceChannel.try(indexer.who, {relay: true, own: three, credential})).channel);
});

test('a hundred messages with one proof open one channel', async () => {
    const own = ephemeral();
    const credential = claims(own, {});
    const all = await Promise.all(Array.from({length: 100}, () => ServiceChannel.try(dlp.who, {relay: true, own, credential})));
    assert.equal(all.filter((r) => r.channel).length, 1);
    for (const r of all) if (r.refused) refused(r.refused, 401001);
});

// --- certificates ---

const badCertificates = [
    ['has expired', {from: nowS() - 2 * DAY, until: nowS() - DAY}],
    ['is not good yet', {from: nowS() + DAY, until: nowS() + 2 * DAY}],
    ['is for servers only', {extensions: ['basicConstraints=critical,CA:FALSE', 'extendedKeyUsage=serverAuth']}],
    ['is a CA', {extensions: ['basicConstraints=critical,CA:TRUE', 'extendedKeyUsage=clientAuth']}],
    ['names nobody', {san: null}],
    ['has two identities', () => ({san: `URI:${dlp.identity},URI:${indexer.identity}`})],
    ['has its identity as a DNS name', () => ({san: `DNS:${dlp.identity.split('/').pop()}.example`})],
    ['is under a CA of its own', () => ({issuer: authority('stranger')})],
    ['is under a service', () => {
        const leaf = certificate(dlp.identity);
        const at = join(process.env.TMPDIR ?? '/tmp', `kms-leaf-${randomUUID()}`);
        writeFileSync(`${at}.pem`, leaf.cert);
        writeFileSync(`${at}.key`, leaf.key);
        after(() => { rmSync(`${at}.pem`, {force: true}); rmSync(`${at}.key`, {force: true}); });
        return {issuer: {cert: `${at}.pem`, key: `${at}.key`}, chain: leaf.cert};
    }],
];
for (const [what, how] of badCertificates)
    test(`a certificate that ${what} gets nobody in`, async () => {
        const who = certificate(dlp.identity, typeof how === 'function' ? how() : how);
        refused((await ServiceChannel.try(who, {relay: true})).refused ?? {}, 401001);
        /* in TLS the handshake may fail before there is anything to refuse */
        const tls = await ServiceChannel.try(who).catch((error) => ({error}));
        if (!tls.error) refused(tls.refused ?? {}, 401001);
        forgetConnections();
    });

test('a channel ends with its certificate', async () => {
    for (const relay of [false, true]) {
        const until = nowS() + 4;
        const ch = await ServiceChannel.open(certificate(dlp.identity, {until}), {relay});
        assert.ok(Date.parse(ch.created.key.expirationDate) <= until * 1000);
        ok(await ch.retrieve(relative(space.keys[0]), {purpose: 'dlp'}));
        await sleep(until * 1000 - Date.now() + 300);
        refused(await ch.retrieve(relative(space.keys[0]), {purpose: 'dlp'}), 499001);
        refused((await ServiceChannel.try(ch.who, {relay}).catch(() => ({refused: {errorCode: 401001, status: 401, reason: 'TLS'}}))).refused, 401001);
    }
    forgetConnections();
});

test('a connection whose certificate has expired is nobody any more', async () => {
    const until = nowS() + 4;
    const short = certificate(dlp.identity, {until});
    const ch = await ServiceChannel.open(dlp.who);
    ok(await ch.ask('update', '/ping', {}, {tls: short}));
    await sleep(until * 1000 - Date.now() + 300);
    refused(await ch.ask('update', '/ping', {}, {tls: short}), 401001);
    ok(await ch.ask('update', '/ping'));
    forgetConnections();
});

test("an officer's revocation ends the certificate's channels at once, and no others", async () => {
    const one = certificate(dlp.identity), two = certificate(dlp.identity);
    const channels = [await ServiceChannel.open(one), await ServiceChannel.open(one, {relay: true}), await ServiceChannel.open(two)];
    for (const ch of channels) ok(await ch.retrieve(relative(space.keys[0]), {purpose: 'dlp'}));
    await revokeCertificate(one.serial);
    refused(await channels[0].retrieve(relative(space.keys[0]), {purpose: 'dlp'}), 499001);
    refused(await channels[1].retrieve(relative(space.keys[0]), {purpose: 'dlp'}), 499001);
    ok(await channels[2].retrieve(relative(space.keys[0]), {purpose: 'dlp'}));
    for (const relay of [false, true]) refused((await ServiceChannel.try(one, {relay})).refused, 401001);
});

test('a revocation list ends channels, and keeps who is on it out', {skip: notOurs}, async () => {
    const conf = join(process.env.KMS_TEST_OWN, 'kms.conf'), crl = join(process.env.KMS_TEST_OWN, 'pki', 'revoked.pem');
    const put = (serials) => { writeFileSync(`${crl}.new`, revocations(serials)); renameSync(`${crl}.new`, crl); };
    const reload = () => process.kill(Number(readFileSync(env.KMSD_PID_FILE, 'utf8')), 'SIGHUP');
    const text = readFileSync(conf, 'utf8');
    const one = certificate(dlp.identity), two = certificate(dlp.identity);
    const channels = [await ServiceChannel.open(one), await ServiceChannel.open(one, {relay: true}), await ServiceChannel.open(two)];
    put([]);
    writeFileSync(conf, text.replace('[services]\n', `[services]\ncrl = ${crl}\n`));
    try {
        reload();
        await sleep(1000);
        for (const ch of channels) ok(await ch.ask('update', '/ping'));
        put([one.serial]); /* no reload: the file is looked at */
        for (let i = 0; !(await channels[0].ask('update', '/ping')).signed; i++) {
            assert.ok(i < 120, 'the list is not taken');
            await sleep(250);
        }
        refused(await channels[1].retrieve(relative(space.keys[0]), {purpose: 'dlp'}), 499001);
        ok(await channels[2].retrieve(relative(space.keys[0]), {purpose: 'dlp'}));
        for (const relay of [false, true]) refused((await ServiceChannel.try(one, {relay})).refused, 401001);
        /* on the open connection too, where it was good before; each worker looks at the file by itself */
        for (let i = 0; ; i++) {
            const body = await channels[2].ask('update', '/ping', {}, {tls: one});
            if (body.errorCode === 401001) break;
            assert.ok(i < 120 && body.status === 200, JSON.stringify(body));
            await sleep(250);
        }
        /* a list that somebody else has signed is none */
        writeFileSync(crl, revocations([two.serial], {issuer: authority('stranger')}));
        await sleep(12000);
        ok(await channels[2].ask('update', '/ping'));
        assert.ok((await ServiceChannel.try(two)).channel);
    } finally {
        writeFileSync(conf, text);
        reload();
        await sleep(1000);
    }
    /* what was revoked stays so */
    for (const relay of [false, true]) refused((await ServiceChannel.try(one, {relay})).refused, 401001);
});

// --- whose channel ---

test("another service's certificate or key on a channel is 403009", async () => {
    for (const relay of [false, true]) {
        const ch = await ServiceChannel.open(dlp.who, {relay});
        const ask = (as) => ch.retrieve(relative(space.keys[0]), {purpose: 'dlp'}, as);
        refused(await ask({tls: indexer.who, credential: {}}), 403009);
        refused(await ask({credential: {jwk: publicJwk(indexer.who)}}), 403009);
        /* its own TLS certificate does not help whoever names another key */
        refused(await ask({tls: dlp.who, credential: {jwk: publicJwk(indexer.who)}}), 403009);
        ok(await ask());
    }
});

test("a user's token on a service's channel is 403009, and so is a service on a user's", async () => {
    const ch = await ServiceChannel.open(dlp.who);
    for (const tls of [dlp.who, null])
        refused(await ch.retrieve(relative(space.keys[0]), {purpose: 'dlp'}, {tls, credential: {bearer: alice.token()}}), 403009);
    const mine = Object.assign(new ServiceChannel(), {who: dlp.who, tls: dlp.who, clientId: user.clientId, key: user.secret, uri: user.uri});
    refused(await mine.retrieve(relative(space.keys[0]), {purpose: 'dlp'}), 403009);
    refused(await mine.retrieve(relative(space.keys[0]), {purpose: 'dlp'}, {credential: {jwk: publicJwk(dlp.who)}}), 403009);
    ok(await user.retrieve(relative(space.keys[0])));
});

test("a user on a service's TLS connection is a user", async () => {
    const as = {credential: {bearer: alice.token()}};
    const {channel} = await ServiceChannel.try(dlp.who, as);
    assert.equal(channel.created.key.userId, alice.sub);
    const body = ok(await channel.retrieve(relative(space.uri), {}, as));
    assert.equal(body.resource.uri, space.uri);
    const keys = ok(await channel.retrieve(`${relative(space.uri)}/keys`, {purpose: 'dlp'}, as));
    assert.equal(keys.service, undefined);
    refused(await channel.retrieve(`${relative(space.uri)}/keys`, {purpose: 'dlp'}), 403009);
    const outsider = await ServiceChannel.try(dlp.who, {credential: {bearer: new User().token()}});
    assert.ok(outsider.channel);
});

// --- what it gets ---

test('without a purpose, with an unknown one or with one not its own: 403005', async () => {
    const ch = await ServiceChannel.open(dlp.who);
    for (const members of [{}, {purpose: 'backup'}, {purpose: 'indexing'}, {purpose: 'transcoding'}, {purpose: 'DLP'}, {purpose: 'dlp '}]) {
        refused(await ch.retrieve(relative(space.keys[0]), members), 403005);
        refused(await ch.retrieve(`${relative(space.uri)}/keys`, members), 403005);
    }
    for (const members of [{purpose: 7}, {purpose: ''}, {purpose: 'x'.repeat(65)}, {purpose: null}])
        refused(await ch.retrieve(relative(space.keys[0]), members), 400002, 403005);
});

test('another organisation and another kind: 403005; what does not exist: 404001', async () => {
    const ch = await ServiceChannel.open(dlp.who);
    refused(await ch.retrieve(relative(strange.keys[0]), {purpose: 'dlp'}), 403005);
    refused(await ch.retrieve(`${relative(strange.uri)}/keys`, {purpose: 'dlp'}), 403005);
    const board = await container(user, {kind: 'whiteboard'});
    refused(await ch.retrieve(relative(board.keys[0]), {purpose: 'dlp'}), 403005);
    refused(await ch.retrieve(`${relative(board.uri)}/keys`, {purpose: 'dlp'}), 403005);
    refused(await ch.retrieve(`/keys/${randomUUID()}`, {purpose: 'dlp'}), 404001);
    refused(await ch.retrieve(`/resources/${randomUUID()}/keys`, {purpose: 'dlp'}), 404001);
    ok(await ch.retrieve(relative(file.keys[0]), {purpose: 'dlp'}));
});

test('an unbound key is nobody\'s: 403005', async () => {
    const ch = await ServiceChannel.open(dlp.who);
    const [key] = await user.keys(1);
    refused(await ch.retrieve(relative(key.uri), {purpose: 'dlp'}), 403005, 404001);
});

test("all keys of a resource, with a service's name and purpose in the answer", async () => {
    const ch = await ServiceChannel.open(dlp.who);
    const body = await ch.retrieve(`${relative(space.uri)}/keys`, {purpose: 'dlp'});
    const place = (k) => space.keys.indexOf(k.uri);
    const got = released({...body, keys: [...body.keys].sort((a, b) => place(a) - place(b))}, {service: dlp, purpose: 'dlp', keys: space.keys});
    for (const k of got) assert.equal(k.jwk.k, space.k.get(k.uri));
    assert.equal(body.cursor, undefined);
    assert.equal(ok(await ch.retrieve(`${relative(space.uri)}/keys`, {purpose: 'dlp', count: 1})).keys.length, 1);
    assert.deepEqual(ok(await ch.retrieve(`${relative(space.uri)}/keys`, {purpose: 'dlp', boundBefore: new Date(Date.now() - 3600000).toISOString()})).keys, []);
});

test('a service does nothing but retrieve keys: 403005', async () => {
    const [unbound] = await user.keys(1);
    for (const relay of [false, true]) {
        const ch = await ServiceChannel.open(dlp.who, {relay});
        const purpose = 'dlp';
        const [auth] = ok(await user.retrieve(`${relative(space.uri)}/authorizations`)).authorizations;
        for (const [method, uri, members] of [
            ['create', '/keys', {count: 1}],
            ['update', relative(unbound.uri), {resourceUri: space.uri}],
            ['create', '/resources', {authIds: [alice.sub], keyUris: []}],
            ['retrieve', relative(space.uri), {}],
            ['create', '/authorizations', {resourceUri: space.uri, authIds: [dlp.name]}],
            ['retrieve', `${relative(space.uri)}/authorizations`, {}],
            ['delete', relative(auth.uri), {}],
            ['delete', `${relative(space.uri)}/authorizations?authId=${alice.sub}`, {}],
            ['retrieve', `${relative(space.uri)}/releases`, {}],
        ]) {
            refused(await ch.ask(method, uri, members), 403005);
            refused(await ch.ask(method, uri, {...members, purpose}), 403005);
        }
        refused(await ch.retrieve(relative(space.keys[0]), {purpose}, {credential: {...(relay ? {jwk: publicJwk(dlp.who)} : {}), onBehalfOf: alice.sub}}), 403004, 403005);
    }
    assert.equal(ok(await user.retrieve(`${relative(space.uri)}/authorizations`)).authorizations.length, 1);
});

test('by purpose or matter only services may ask', async () => {
    const boss = await Channel.open(officer({sub: alice.sub}));
    for (const ch of [user, boss])
        for (const uri of ['/purposes/indexing/keys', `/matters/${matter}/keys`]) refused(await ch.retrieve(uri), 403005, 403001);
});

test('a purpose that is off in the organisation: 403005 from the moment it is', async () => {
    const ch = await ServiceChannel.open(dlp.who);
    ok(await ch.retrieve(relative(space.keys[0]), {purpose: 'dlp'}));
    await disable(env.KMS_ORG, 'dlp');
    try {
        refused(await ch.retrieve(relative(space.keys[0]), {purpose: 'dlp'}), 403005);
        refused(await ch.retrieve(`${relative(space.uri)}/keys`, {purpose: 'dlp'}), 403005);
    } finally {
        await enable(env.KMS_ORG, 'dlp');
    }
    ok(await ch.retrieve(relative(space.keys[0]), {purpose: 'dlp'}));
});

/* Reads a walk to its end, in steps. */
async function walk(ch, uri, members, step) {
    const seen = [];
    let cursor;
    for (let i = 0; ; i++) {
        assert.ok(i < 2000, 'a walk without an end');
        const body = ok(await ch.retrieve(uri, {...members, count: step, ...(cursor ? {cursor} : {})}));
        assert.ok(typeof body.cursor === 'string' && /^[A-Za-z0-9_-]+$/.test(body.cursor), JSON.stringify(body).slice(0, 300));
        assert.ok(body.keys.length <= step);
        seen.push(...body.keys);
        cursor = body.cursor;
        if (body.keys.length === 0) return {seen, cursor};
    }
}

test('indexing walks all that it may see, from its cursor, without a gap or a double', async () => {
    const ch = await ServiceChannel.open(indexer.who);
    const {seen, cursor} = await walk(ch, '/purposes/indexing/keys', {}, 100);
    const uris = seen.map((k) => k.uri);
    assert.equal(new Set(uris).size, uris.length);
    for (const uri of [...space.keys, ...file.keys]) assert.ok(uris.includes(uri));
    for (const uri of strange.keys) assert.ok(!uris.includes(uri));
    const two = await walk(ch, '/purposes/indexing/keys', {}, 7);
    assert.deepEqual(two.seen.slice(0, uris.length).map((k) => k.uri), uris);
    const more = await container(user, {keys: 3});
    const rest = ok(await ch.retrieve('/purposes/indexing/keys', {cursor}));
    assert.deepEqual(new Set(rest.keys.map((k) => k.uri)), new Set(more.keys));
    assert.equal(rest.purpose, 'indexing');
    for (const k of rest.keys) assert.equal(k.jwk.k, more.k.get(k.uri));
    assert.deepEqual(ok(await ch.retrieve('/purposes/indexing/keys', {cursor: rest.cursor})).keys, []);
});

test('a walk of one resource; a cursor is good where it comes from and nowhere else', async () => {
    const ch = await ServiceChannel.open(indexer.who);
    const many = await container(user, {keys: 5});
    const {seen, cursor} = await walk(ch, `${relative(many.uri)}/keys`, {purpose: 'indexing'}, 2);
    assert.deepEqual(new Set(seen.map((k) => k.uri)), new Set(many.keys));
    refused(await ch.retrieve(`${relative(space.uri)}/keys`, {purpose: 'indexing', cursor}), 400002);
    refused(await ch.retrieve('/purposes/indexing/keys', {cursor}), 400002);
    const also = await ServiceChannel.open(archiver.who);
    refused(await also.retrieve(`${relative(many.uri)}/keys`, {purpose: 'indexing', cursor}), 400002);
    for (const bad of ['x', 'AAAA', 'A'.repeat(43), 'A'.repeat(2000), '+/==', 7])
        refused(await ch.retrieve('/purposes/indexing/keys', {cursor: bad}), 400002);
});

test('walks are for indexing and archival', async () => {
    const ch = await ServiceChannel.open(dlp.who);
    refused(await ch.retrieve('/purposes/dlp/keys'), 403005);
    refused(await ch.retrieve('/purposes/indexing/keys'), 403005);
    refused(await ch.retrieve('/purposes/backup/keys'), 403005);
    refused(await ch.retrieve(`/matters/${matter}/keys`), 403005);
    const search = await ServiceChannel.open(searcher.who);
    refused(await search.retrieve('/purposes/ediscovery/keys'), 403005);
});

// --- archival ---

const generate = {
    'RSA-OAEP-256': () => generateKeyPairSync('rsa', {modulusLength: 3072}),
    'ECDH-ES': () => generateKeyPairSync('ec', {namedCurve: 'P-256'}),
};
for (const [alg, make] of Object.entries(generate))
    test(`an archiver with a public key gets keys enclosed to it (${alg}), never bare`, async () => {
        const pair = make();
        const store = await service('vault', {purposes: ['archival'], public_key: {...pair.publicKey.export({format: 'jwk'}), kid: 'vault-1'}});
        const mine = await JWK.asKey(pair.privateKey.export({type: 'pkcs8', format: 'pem'}), 'pem');
        const many = await container(user, {keys: 40});
        for (const relay of [false, true]) {
            const ch = await ServiceChannel.open(store.who, {relay});
            const bodies = [
                ok(await ch.retrieve(relative(many.keys[0]), {purpose: 'archival'})),
                ok(await ch.retrieve(`${relative(many.uri)}/keys`, {purpose: 'archival', count: 40})),
                ok(await ch.retrieve('/purposes/archival/keys', {count: 1000})),
            ];
            assert.equal(bodies[1].keys.length, 40);
            for (const body of bodies) {
                const text = JSON.stringify(body);
                for (const k of many.k.values()) assert.ok(!text.includes(k), 'a bare key');
                assert.ok(!text.includes('"k"') && !text.includes('"jwk"'));
                assert.equal(body.service, store.name);
                for (const key of body.keys ?? [body.key]) {
                    const head = JSON.parse(Buffer.from(key.jwe.split('.')[0], 'base64url'));
                    assert.equal(head.alg, alg);
                    assert.equal(head.enc, 'A256GCM');
                    assert.equal(head.kid, 'vault-1');
                    assert.equal(head.cty, 'jwk+json');
                    if (!many.k.has(key.uri)) continue;
                    const opened = JSON.parse((await JWE.createDecrypt(mine).decrypt(key.jwe)).plaintext);
                    assert.deepEqual(opened, {kid: key.uri, kty: 'oct', k: many.k.get(key.uri)});
                }
            }
        }
    });

test('an archiver without a public key gets them as any other', async () => {
    const ch = await ServiceChannel.open(archiver.who);
    const [k] = released(await ch.retrieve(relative(space.keys[0]), {purpose: 'archival'}), {service: archiver, purpose: 'archival', keys: [space.keys[0]]});
    assert.equal(k.jwk.k, space.k.get(space.keys[0]));
});

// --- ediscovery ---

test('ediscovery: only under a matter that covers it', async () => {
    const ch = await ServiceChannel.open(searcher.who);
    const ask = (target, members) => ch.retrieve(target, {purpose: 'ediscovery', ...members});
    const [k] = released(await ask(relative(space.keys[0]), {matter}), {service: searcher, purpose: 'ediscovery', keys: [space.keys[0]], matter});
    assert.equal(k.jwk.k, space.k.get(space.keys[0]));
    assert.equal(ok(await ask(`${relative(space.uri)}/keys`, {matter})).keys.length, 2);
    refused(await ask(relative(space.keys[0])), 403007);
    refused(await ask(relative(space.keys[0]), {matter: randomUUID()}), 403007);
    refused(await ask(relative(space.keys[0]), {matter: 'no uuid'}), 403007, 400002);
    refused(await ask(relative(file.keys[0]), {matter}), 403007); /* kind not covered */
    const others = await container(await Channel.open(new User({name: 'carol'})), {});
    refused(await ask(relative(others.keys[0]), {matter}), 403007); /* no custodian of it */
});

test('ediscovery: all keys of a matter, and nothing once it is closed', async () => {
    const own = await openMatter({
        org: env.KMS_ORG, name: 'another', custodians: [alice.sub], from: Date.now() - 86400000, to: Date.now() + 86400000, kinds: ['space'], expires: Date.now() + 86400000,
    });
    const ch = await ServiceChannel.open(searcher.who);
    const {seen, cursor} = await walk(ch, `/matters/${own}/keys`, {}, 50);
    const uris = seen.map((k) => k.uri);
    for (const uri of space.keys) assert.ok(uris.includes(uri));
    for (const uri of [...file.keys, ...strange.keys]) assert.ok(!uris.includes(uri));
    const body = ok(await ch.retrieve(`/matters/${own}/keys`, {cursor, purpose: 'ediscovery'}));
    assert.equal(body.matter, own);
    assert.equal(body.purpose, 'ediscovery');
    await closeMatter(own);
    refused(await ch.retrieve(`/matters/${own}/keys`), 403007);
    refused(await ch.retrieve(relative(space.keys[0]), {purpose: 'ediscovery', matter: own}), 403007);
    refused(await ch.retrieve(`/matters/${randomUUID()}/keys`), 403007);
});

// --- limits, changes, receipts ---

test('breadth: so many resources an hour and no more; those already seen go on', async () => {
    const narrow = await service('narrow', {purposes: ['dlp'], breadth: 2});
    const ch = await ServiceChannel.open(narrow.who);
    const three = [await container(user, {keys: 2}), await container(user, {keys: 1}), await container(user, {keys: 1})];
    ok(await ch.retrieve(relative(three[0].keys[0]), {purpose: 'dlp'}));
    ok(await ch.retrieve(relative(three[1].keys[0]), {purpose: 'dlp'}));
    refused(await ch.retrieve(relative(three[2].keys[0]), {purpose: 'dlp'}), 429001);
    refused(await ch.retrieve(`${relative(three[2].uri)}/keys`, {purpose: 'dlp'}), 429001);
    ok(await ch.retrieve(relative(three[0].keys[1]), {purpose: 'dlp'}));
});

test('rate: so many requests a second of the whole node, over one connection or several', async () => {
    const slow = await service('slow', {purposes: ['dlp'], rate: 20});
    const ch = await ServiceChannel.open(slow.who);
    const ask = async (n) => (await askAll(ch, Array.from({length: n}, () => ['retrieve', relative(space.keys[0]), {purpose: 'dlp'}]))).map((b) => b.errorCode ?? b.status);
    for (const posts of [[100], [25, 25, 25, 25]]) {
        await sleep(1500); // whatever was asked before
        const start = Date.now();
        const codes = (await Promise.all(posts.map(ask))).flat();
        const given = codes.filter((c) => c === 200).length;
        assert.equal(codes.filter((c) => c === 429001).length, 100 - given, codes.join(' '));
        assert.ok(given >= 20 && given <= 20 + (20 * (Date.now() - start)) / 1000, `${given} of 100`);
    }
    await sleep(1000);
    ok(await ch.retrieve(relative(space.keys[0]), {purpose: 'dlp'}));
});

test('a change of the registration holds on channels that are open', async () => {
    const it = await service('changing', {purposes: ['dlp']});
    const ch = await ServiceChannel.open(it.who);
    ok(await ch.retrieve(relative(space.keys[0]), {purpose: 'dlp'}));
    await changeService({service: it.name, identity: it.identity, purposes: ['indexing'], orgs: [env.KMS_ORG], kinds: ['space'], rate: 0, breadth: 0});
    refused(await ch.retrieve(relative(space.keys[0]), {purpose: 'dlp'}), 403005, 499001);
    const next = await ServiceChannel.open(it.who);
    ok(await next.retrieve(relative(space.keys[0]), {purpose: 'indexing'}));
    await retireService(it.name);
    refused(await next.retrieve(relative(space.keys[0]), {purpose: 'indexing'}), 403006, 499001);
    refused((await ServiceChannel.try(it.who)).refused, 403006);
});

test('whoever is authorised on a resource may see which services had keys of it', async () => {
    const own = await container(user, {keys: 2});
    const ch = await ServiceChannel.open(dlp.who);
    ok(await ch.retrieve(relative(own.keys[0]), {purpose: 'dlp'}));
    refused(await ch.retrieve(relative(own.keys[1]), {purpose: 'indexing'}), 403005);
    const {releases} = ok(await user.retrieve(`${relative(own.uri)}/releases`));
    assert.equal(releases.length, 1);
    const [{date, ...receipt}] = releases;
    assert.match(date, DATE);
    assert.deepEqual(receipt, {by: 'service', name: dlp.name, purpose: 'dlp', keyUris: [own.keys[0]]});
    refused(await (await Channel.open(new User())).retrieve(`${relative(own.uri)}/releases`), 403001);
    refused(await user.retrieve(`/resources/${randomUUID()}/releases`), 404001);
});

test('requests in one POST are judged each by itself', async () => {
    const ch = await ServiceChannel.open(dlp.who);
    const bodies = await askAll(ch, [
        ['retrieve', relative(space.keys[0]), {purpose: 'dlp'}],
        ['retrieve', relative(space.keys[0]), {purpose: 'indexing'}],
        ['retrieve', relative(strange.keys[0]), {purpose: 'dlp'}],
        ['update', '/ping', {}],
        ['retrieve', relative(space.keys[1]), {purpose: 'dlp'}],
        ['create', '/keys', {count: 1}],
    ]);
    assert.deepEqual(bodies.map((b) => b.errorCode ?? b.status), [200, 403005, 403005, 200, 200, 403005]);
});

test('dlp sees what was bound within the age that is set, and no shorter one than a minute is', async () => {
    const ch = await ServiceChannel.open(dlp.who);
    const made = await container(user, {keys: 1});
    await setRule(env.KMS_ORG, 'dlp.age', '60s');
    try {
        const bound = Date.parse(ok(await ch.retrieve(relative(made.keys[0]), {purpose: 'dlp'})).key.bindDate);
        await sleep(bound + 60200 - Date.now());
        refused(await ch.retrieve(relative(made.keys[0]), {purpose: 'dlp'}), 403005);
        assert.deepEqual(ok(await ch.retrieve(`${relative(made.uri)}/keys`, {purpose: 'dlp'})).keys, []);
    } finally {
        await setRule(env.KMS_ORG, 'dlp.age', '24h');
    }
    ok(await ch.retrieve(relative(made.keys[0]), {purpose: 'dlp'}));
});
