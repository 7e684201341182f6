// Channels and messages (protocol sections 1 and 2), with node-kms and with messages that no honest client makes.
import assert from 'node:assert/strict';
import {X509Certificate, createECDH, createPublicKey, randomBytes} from 'node:crypto';
import {test} from 'node:test';
import {ca, cluster, env} from './lib/env.mjs';
import {User} from './lib/tokens.mjs';
import {Channel, DATE, api, http, ok, open, post, randomId, refused, relative, seal, sealStatic, server, swap, uriOf} from './lib/kms.mjs';

const alice = new User({name: 'alice'});
const ping = (more = {}) => ({method: 'update', uri: '/ping', requestId: randomId(), client: more.client, ...more});

/* The signed answer to what could not be read. */
function unreadable({signed, body}) {
    assert.ok(signed, `signed, not ${JSON.stringify(body)}`);
    refused(body, 400001);
    assert.ok(!('requestId' in body), 'no requestId');
    return body;
}

test('the static key comes with a certificate for the domain, under the CA', async () => {
    const {kmsCluster, key} = await server();
    assert.equal(kmsCluster, cluster);
    assert.equal(key.kty, 'RSA');
    assert.ok(key.kid.startsWith(`${cluster}/`), key.kid);
    assert.ok(!('d' in key) && !('p' in key), 'no private member');
    const chain = key.x5c.map((der) => new X509Certificate(Buffer.from(der, 'base64')));
    const leaf = chain[0].publicKey.export({format: 'jwk'});
    assert.deepEqual([leaf.n, leaf.e], [key.n, key.e]);
    assert.equal(chain[0].checkHost(env.KMS_DOMAIN), env.KMS_DOMAIN);
    chain.push(new X509Certificate(ca));
    for (let i = 0; i + 1 < chain.length; i++) assert.ok(chain[i].verify(chain[i + 1].publicKey), `certificate ${i}`);
    assert.equal(env.KMS_DOMAIN, env.KMS_DOMAIN.toLowerCase());
});

for (const alg of ['RSA-OAEP', 'RSA-OAEP-256']) {
    test(`opens a channel with ${alg}`, async () => {
        const ch = await Channel.open(alice, {alg});
        assert.equal(ch.firstHeader.alg, alg);
        const {key} = ch.created;
        assert.match(key.uri, uriOf('ecdhe'));
        assert.equal(key.jwk.kty, 'EC');
        assert.equal(key.jwk.crv, 'P-256');
        assert.ok(!('d' in key.jwk), 'the private half stays');
        assert.equal(key.userId, alice.sub);
        assert.equal(key.clientId, alice.clientId);
        assert.match(key.createDate, DATE);
        assert.match(key.expirationDate, DATE);
        const life = Date.parse(key.expirationDate) - Date.parse(key.createDate);
        assert.ok(life > 60e3 && life <= 24 * 3600e3, `life of ${life} ms`);
        ok(await ch.update('/ping'));
    });
}

test('the first message may have an absolute URI and an integer requestId', async () => {
    const ch = await Channel.open(alice, {uri: `${cluster}/ecdhe`, requestId: 77});
    assert.equal(ch.created.requestId, 77);
    ok(await ch.update(`${cluster}/ping`));
});

test('every channel has its own key', async () => {
    const [a, b] = await Promise.all([Channel.open(alice), Channel.open(alice)]);
    assert.notEqual(a.uri, b.uri);
    assert.notDeepEqual(a.secret, b.secret);
});

test('a channel is good on any connection at once', async () => {
    const ch = await Channel.open(alice);
    const all = await Promise.all(Array.from({length: 40}, () => ch.update('/ping')));
    all.forEach((a) => ok(a));
});

test('requestId is echoed verbatim, string or integer', async () => {
    const ch = await Channel.open(alice);
    for (const requestId of [1, 0, -5, 2 ** 53 - 1, '', 'x', 'ü€😀', '"\\/', '\t\r\n\u007f', 'a'.repeat(1000)]) {
        const {signed, body} = await ch.raw(ping({requestId, client: ch.client()}));
        assert.ok(!signed);
        ok(body);
        assert.deepEqual(body.requestId, requestId);
    }
});

test('a number beyond 64 bits is a wrong member, not bad JSON', async () => {
    const ch = await Channel.open(alice);
    const text = JSON.stringify({method: 'create', uri: '/keys', requestId: 'r', client: ch.client()});
    const {signed, body} = await ch.raw(`${text.slice(0, -1)},"count":${'9'.repeat(30)}}`);
    assert.ok(!signed);
    refused(body, 400002);
    assert.equal(body.requestId, 'r');
});

test('a requestId of another type is 400002, and is not echoed', async () => {
    const ch = await Channel.open(alice);
    for (const requestId of [1.5, null, true, [], {}]) {
        const {signed, body} = await ch.raw(ping({requestId, client: ch.client()}));
        assert.ok(!signed);
        refused(body, 400002);
        assert.ok(!('requestId' in body));
    }
});

test('URIs may be absolute in requests and are absolute in answers', async () => {
    const ch = await Channel.open(alice);
    const [key] = await ch.keys();
    assert.match(key.uri, uriOf('keys'));
    ok(await ch.retrieve(key.uri));
    ok(await ch.retrieve(relative(key.uri)));
    ok(await ch.retrieve(key.uri.replace('kms:', 'KMS:').replace(env.KMS_DOMAIN, env.KMS_DOMAIN.toUpperCase())));
});

test('a deleted channel is dead: signed 499001', async () => {
    const ch = await Channel.open(alice);
    ok(await ch.delete(relative(ch.uri)), 204);
    /* on many connections: whichever worker takes one knows */
    for (const answer of await Promise.all(Array.from({length: 24}, () => ch.update('/ping')))) {
        assert.ok(answer.signed);
        refused(answer, 499001);
        assert.ok(answer.requestId, "a requestId of the server's own");
    }
});

test("another's channel cannot be deleted", async () => {
    const [mine, theirs] = await Promise.all([Channel.open(alice), Channel.open(new User())]);
    assert.ok((await mine.delete(theirs.uri)).status >= 400);
    ok(await theirs.update('/ping'));
});

test('an unknown ephemeral key gets a signed 499001', async () => {
    const ch = await Channel.open(alice);
    for (const kid of [`${cluster}/ecdhe/${randomId()}`, `${cluster}/ecdhe/${'0'.repeat(8)}-0000-0000-0000-${'0'.repeat(12)}`]) {
        const {signed, body} = await ch.raw(ping({client: ch.client()}), {kid});
        assert.ok(signed);
        refused(body, 499001);
        assert.ok(body.requestId);
    }
});

test('what is no JOSE gets a signed 400001 without requestId', async () => {
    const b = (s) => Buffer.from(s).toString('base64url');
    const none = `${b('{"alg":"none"}')}.${b('{}')}.`;
    const odd = ['', '.', 'x', 'a.b.c', '....', 'a.b.c.d.e', '.....', none, '{"a":1}', 'ü', ' ', '\u0000', 'A'.repeat(2000), `${b('{}')}....`, `${b('[]')}....`, `${b('null')}....`, `${b('"x"')}.a.b.c.d`];
    const answers = await post(odd);
    for (const answer of answers) unreadable(await open(answer));
});

test('signed refusals of what could not be read always say the same', async () => {
    const answers = await Promise.all((await post(Array(10).fill('no JOSE'))).map((a) => open(a)));
    for (const {body} of answers) assert.deepEqual(body, answers[0].body);
});

test('a changed bit anywhere is refused', async () => {
    const ch = await Channel.open(alice);
    const good = (await ch.wrap({method: 'update', uri: '/ping'})).wrapped.split('.');
    for (const part of [2, 3, 4]) {
        const bytes = Buffer.from(good[part], 'base64url');
        bytes[0] ^= 1;
        const bad = swap(good, part, bytes.toString('base64url')).join('.');
        unreadable(await ch.open((await post([bad]))[0]));
    }
    /* the same header in other words: the additional data differ */
    const head = Buffer.from(`${Buffer.from(good[0], 'base64url').toString()} `).toString('base64url');
    unreadable(await ch.open((await post([swap(good, 0, head).join('.')]))[0]));
    unreadable(await ch.open((await post([swap(good, 1, 'AAAA').join('.')]))[0]));
    unreadable(await ch.open((await post([swap(good, 3, '').join('.')]))[0]));
    unreadable(await ch.open((await post([swap(good, 3, `${good[3]}=`).join('.')]))[0]));
    unreadable(await ch.open((await post([swap(good, 3, `${good[3]}\n`).join('.')]))[0]));
});

test('a short tag or another iv length is refused', async () => {
    const ch = await Channel.open(alice);
    const client = ch.client();
    for (const tag of [1, 4, 8, 12, 15]) unreadable(await ch.raw(ping({client}), {}, {tag}));
    for (const n of [8, 16]) unreadable(await ch.raw(ping({client}), {}, {iv: randomBytes(n)}));
});

test('a header with zip, crit, another algorithm or a key of its own is refused', async () => {
    const ch = await Channel.open(alice);
    const client = ch.client();
    const jwk = {kty: 'oct', k: ch.secret.toString('base64url')};
    for (const header of [
        {zip: 'DEF'}, {crit: ['exp'], exp: 1}, {crit: []}, {alg: 'none'}, {alg: 'A256KW'}, {alg: 'A256GCMKW'}, {alg: 'DIR'}, {alg: 'RSA1_5'},
        {alg: undefined}, {alg: 5}, {alg: null}, {enc: 'A128GCM'}, {enc: 'A128CBC-HS256'}, {enc: undefined}, {jwk}, {jku: 'https://127.0.0.1/'}, {x5c: []},
        {epk: {}}, {p2c: 1}, {b64: false},
    ]) unreadable(await ch.raw(ping({client}), header));
    /* no kid names no key: either answer says so */
    for (const kid of [5, null, undefined, '', 'x']) refused((await ch.raw(ping({client}), {kid})).body, 400001, 499001);
});

test('duplicate member names are refused, in the header and in the request', async () => {
    const ch = await Channel.open(alice);
    const client = JSON.stringify(ch.client());
    const kid = JSON.stringify(ch.uri);
    const good = JSON.stringify(ping({client: ch.client()}));
    for (const header of [
        `{"alg":"dir","enc":"A256GCM","kid":${kid},"alg":"dir"}`, `{"alg":"dir","enc":"A256GCM","kid":${kid},"kid":${kid}}`,
        `{"alg":"dir","enc":"A256GCM","kid":${kid},"a\\u006cg":"dir"}`,
    ]) unreadable(await ch.raw(good, header));
    for (const plain of [
        `{"method":"update","uri":"/ping","uri":"/ping","client":${client},"requestId":"1"}`,
        `{"method":"update","uri":"/ping","\\u0075ri":"/ping","client":${client},"requestId":"1"}`,
        `{"method":"update","uri":"/ping","client":${client},"requestId":"1","more":{"a":1,"a":2}}`,
    ]) refused((await ch.raw(plain)).body, 400001);
});

test('a request that is no JSON object is refused', async () => {
    const ch = await Channel.open(alice);
    for (const plain of ['', 'x', '[]', '"x"', 'null', '17', '{', '{} {}', '{}x', "{'a':1}", '{"a":01}', '{"a":NaN}', '[1,]', '\ufeff{}', Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d]), '['.repeat(5000)]) {
        const {body} = await ch.raw(plain);
        assert.equal(body.status, 400, `${String(plain).slice(0, 20)}: ${JSON.stringify(body)}`);
        assert.ok([400001, 400002].includes(body.errorCode));
    }
});

test('wrong or missing members: encrypted 400002 with the requestId', async () => {
    const ch = await Channel.open(alice);
    const client = ch.client();
    for (const change of [
        {method: undefined}, {method: 'patch'}, {method: 'UPDATE'}, {method: 1}, {uri: undefined}, {uri: 5}, {uri: ''}, {uri: 'ping'}, {uri: '/nothing'},
        {uri: '/keys/../ping'}, {uri: '/ping/'}, {uri: '//ping'}, {uri: 'https://example.org/keys'}, {uri: 'kms://'}, {uri: '/keys?x=1'}, {uri: '/ke ys'},
        {uri: '/ping#x'}, {uri: '/pi\u0000ng'}, {uri: `/${'k'.repeat(5000)}`}, {method: 'create', uri: '/ping'}, {method: 'delete', uri: '/keys'},
        {method: 'update', uri: '/resources'}, {method: 'create', uri: `/keys/${randomId()}`}, {client: undefined}, {client: 7}, {client: {clientId: 5, credential: client.credential}},
        {client: {clientId: 'x'}}, {method: 'create', uri: '/authorizations', resourceUri: `/resources/${randomId()}`, authIds: ['a\u0000b']},
    ]) {
        const requestId = randomId();
        const {signed, body} = await ch.raw(ping({client, ...change, requestId}));
        assert.ok(!signed && body.status >= 400, `${JSON.stringify(change).slice(0, 60)}: ${JSON.stringify(body)}`);
        /* without a client there is no token either: both are true */
        refused(body, ...('client' in change ? [400002, 401001] : [400002]));
        assert.equal(body.requestId, requestId);
    }
});

test('U+0000 and unpaired surrogates anywhere are 400002', async () => {
    const ch = await Channel.open(alice);
    const text = JSON.stringify(ping({client: ch.client(), extra: '@'}));
    for (const bad of ['\\u0000', '\\ud800', '\\udc00x', 'a\\ud83d']) {
        const {signed, body} = await ch.raw(text.replace('"@"', `"${bad}"`));
        assert.ok(!signed);
        refused(body, 400002);
    }
    ok((await ch.raw(text.replace('"@"', '"\\ud83d\\ude00"'))).body);
});

test('a URI of another domain is 404001', async () => {
    const ch = await Channel.open(alice);
    refused(await ch.retrieve(`kms://other.example/keys/${randomId()}`), 404001);
    refused(await ch.create('kms://other.example/keys', {count: 1}), 404001);
    refused(await ch.update(`kms://${env.KMS_DOMAIN}.evil.example/ping`), 404001);
});

test('wrong padding, a wrong key length and a wrong tag are told apart by nothing', async () => {
    const {key} = await server();
    const rsa = createPublicKey({key, format: 'jwk'}).asymmetricKeyDetails.modulusLength / 8;
    const first = ping({method: 'create', uri: '/ecdhe'});
    const good = await sealStatic(first);
    const cut = good.split('.');
    const tag = Buffer.from(cut[4], 'base64url');
    tag[3] ^= 4;
    const messages = [
        await sealStatic(first, {ek: randomBytes(rsa).fill(0, 0, 1)}),
        await sealStatic(first, {cek: randomBytes(16)}),
        await sealStatic(first, {cek: randomBytes(32), ek: Buffer.alloc(rsa)}),
        await sealStatic(first, {ek: Buffer.alloc(rsa, 255)}),
        swap(cut, 4, tag.toString('base64url')).join('.'),
        await sealStatic(first, {alg: 'RSA-OAEP', header: {alg: 'RSA-OAEP-256'}}),
    ];
    const bodies = [];
    for (const answer of await post(messages)) bodies.push(unreadable(await open(answer)));
    for (const body of bodies) assert.deepEqual(body, bodies[0]);
});

test('the first message: other algorithms, kids and lengths are refused', async () => {
    const {key} = await server();
    const first = ping({method: 'create', uri: '/ecdhe'});
    const messages = await Promise.all([
        sealStatic(first, {header: {alg: 'RSA1_5'}}), sealStatic(first, {header: {alg: 'RSA-OAEP-512'}}), sealStatic(first, {header: {zip: 'DEF'}}),
        sealStatic(first, {header: {enc: 'A128GCM'}}), sealStatic(first, {ek: Buffer.alloc(0)}), sealStatic(first, {ek: randomBytes(255)}),
        sealStatic(first, {ek: randomBytes(2048)}), sealStatic(first, {header: {alg: 'dir'}, ek: ''}),
    ]);
    for (const answer of await post(messages)) {
        const {signed, body} = await open(answer);
        assert.ok(signed);
        refused(body, 400001, 499001);
    }
    const {body} = await open((await post([await sealStatic(first, {header: {kid: `${key.kid}x`}})]))[0]);
    refused(body, 400001, 499001);
    const only = await open((await post([await sealStatic(ping({client: {clientId: 'c', credential: {bearer: alice.token()}}}))]))[0]);
    assert.ok(only.signed && only.body.status === 400, 'only a channel is made with the static key');
});

test("the client's point must be on P-256", async () => {
    const ec = createECDH('prime256v1');
    const point = ec.generateKeys();
    const x = point.subarray(1, 33).toString('base64url'), y = point.subarray(33).toString('base64url');
    const b64 = (n, fill = 0) => Buffer.alloc(n, fill).toString('base64url');
    for (const jwk of [
        {kty: 'EC', crv: 'P-256', x: y, y: x}, {kty: 'EC', crv: 'P-256', x, y: x}, {kty: 'EC', crv: 'P-256', x: b64(32), y: b64(32)}, {kty: 'EC', crv: 'P-256', x, y: b64(32)},
        {kty: 'EC', crv: 'P-256', x: b64(32, 255), y: b64(32, 255)}, {kty: 'EC', crv: 'P-256', x}, {kty: 'EC', crv: 'P-256', x: '', y: ''},
        {kty: 'EC', crv: 'P-256', x: `AA${x}`, y}, {kty: 'EC', crv: 'P-256', x: x.slice(0, 20), y}, {kty: 'EC', crv: 'P-384', x, y}, {kty: 'EC', crv: 'secp256k1', x, y},
        {kty: 'OKP', crv: 'X25519', x}, {kty: 'RSA', n: x, e: 'AQAB'}, {kty: 'oct', k: x}, {}, null, 5, 'x', [],
    ]) {
        const {refused: no} = await Channel.try(alice, {jwk});
        assert.ok(no, JSON.stringify(jwk));
        refused(no, 400001, 400002, 400003);
    }
});

test('a channel key opens nothing under another channel', async () => {
    const [a, b] = await Promise.all([Channel.open(alice), Channel.open(alice)]);
    const message = seal(a.secret, {alg: 'dir', enc: 'A256GCM', kid: b.uri}, ping({client: a.client()}));
    unreadable(await b.open((await post([message]))[0]));
});

test('a bad message does not disturb its neighbours, and answers keep their order', async () => {
    const [a, b] = await Promise.all([Channel.open(alice), Channel.open(new User())]);
    const dead = await Channel.open(alice);
    ok(await dead.delete(dead.uri), 204);
    const [key] = await a.keys();
    const messages = [], expected = [];
    const add = async (ch, request, status, as) => {
        const req = await ch.wrap(request, as);
        messages.push(req.wrapped);
        expected.push([ch, status, req.body.requestId]);
    };
    for (let i = 0; i < 6; i++) {
        await add(a, {method: 'update', uri: '/ping'}, 200);
        messages.push('garbage');
        expected.push([undefined, 400]);
        await add(b, {method: 'create', uri: '/keys', count: 1}, 201);
        await add(b, {method: 'retrieve', uri: key.uri}, 403);
        await add(dead, {method: 'update', uri: '/ping'}, 499);
        await add(a, {method: 'retrieve', uri: key.uri}, 200);
        await add(a, {method: 'retrieve', uri: `/keys/${randomId()}`}, 404);
        await add(a, {method: 'update', uri: '/ping'}, 401, {bearer: 'nothing'});
        messages.push(await sealStatic({method: 'create'}));
        expected.push([undefined, 400]);
    }
    const answers = await post(messages);
    for (const [i, [ch, status, requestId]] of expected.entries()) {
        const {signed, body} = await open(answers[i], ch?.ctx);
        assert.equal(body.status, status, `message ${i}: ${JSON.stringify(body)}`);
        if (!signed) assert.equal(body.requestId, requestId, `message ${i}`);
    }
});

for (const n of [50, 100])
    test(`${n} messages in one request, answered in order`, async () => {
        const ch = await Channel.open(alice);
        const keys = await ch.keys(n);
        const answers = await ch.askAll(keys.map((k) => ({method: 'retrieve', uri: k.uri})));
        answers.forEach((a, i) => assert.deepEqual(ok(a).key, keys[i]));
    });

test('the same request again, word for word, is another request', async () => {
    const ch = await Channel.open(alice);
    const {wrapped} = await ch.wrap({method: 'create', uri: '/keys', count: 1});
    const [one, two] = await Promise.all((await post([wrapped, wrapped])).map((a) => ch.open(a)));
    assert.notEqual(ok(one.body, 201).keys[0].uri, ok(two.body, 201).keys[0].uri);
});

test('GET answers the same for any user id', async () => {
    const [a, b] = await Promise.all(['someone', encodeURIComponent('a/b ü')].map((id) => http('GET', `${api}/${id}`)));
    assert.equal(a.status, 200);
    assert.match(a.headers['content-type'], /^application\/json/);
    assert.equal(typeof a.json.rsaPublicKey, 'string');
    assert.equal(b.text, a.text);
});
