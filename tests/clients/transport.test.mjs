// The two endpoints (protocol section 1): what a POST must be, its limits, and that what is refused has done nothing.
import assert from 'node:assert/strict';
import {test} from 'node:test';
import {cluster} from './lib/env.mjs';
import {User} from './lib/tokens.mjs';
import {Channel, api, http, ok, open, postRaw, refused} from './lib/kms.mjs';

const alice = new User();
const messages = `${api}/messages`;

/* An HTTP refusal with its JSON body. */
function turnedDown(res, ...statuses) {
    assert.ok(statuses.length ? statuses.includes(res.status) : res.status >= 400 && res.status < 500, `HTTP ${res.status}: ${res.text.slice(0, 200)}`);
    assert.match(res.headers['content-type'] ?? '', /^application\/json/);
    assert.equal(typeof res.json?.message, 'string', res.text.slice(0, 200));
    assert.ok(Number.isInteger(res.json.errorCode));
}

test('an empty list of messages is 200 and an empty list', async () => {
    const res = await postRaw([]);
    assert.equal(res.status, 200);
    assert.deepEqual(res.json, {kmsMessages: []});
    assert.match(res.headers['content-type'], /^application\/json/);
});

test('a body that is not what it must be is 4xx with a JSON body', async () => {
    const dest = JSON.stringify(cluster);
    for (const body of [
        '', ' ', 'x', '[]', 'null', '5', '"x"', '{}', '{', `{"destination":${dest}}`, '{"kmsMessages":[]}', `{"destination":${dest},"kmsMessages":"x"}`,
        `{"destination":${dest},"kmsMessages":{}}`, `{"destination":${dest},"kmsMessages":null}`, `{"destination":${dest},"kmsMessages":[5]}`,
        `{"destination":${dest},"kmsMessages":["x",null]}`, `{"destination":${dest},"kmsMessages":[["x"]]}`, '{"destination":5,"kmsMessages":[]}',
        `{"destination":${dest},"kmsMessages":[]} x`, `{"destination":${dest},"kmsMessages":[],"kmsMessages":[]}`, `{"destination":${dest},"destination":${dest},"kmsMessages":[]}`,
        `{"destination":${dest},"kmsMessages":[],}`, '['.repeat(100000), Buffer.from([0x7b, 0xff, 0xfe, 0x7d]),
    ]) turnedDown(await http('POST', messages, body, {'content-type': 'application/json'}));
});

test('an unknown destination is 4xx', async () => {
    for (const destination of ['kms://elsewhere.example', `${cluster}.example`, 'https://elsewhere.example', '', 'x']) turnedDown(await postRaw([], destination));
});

test('a POST that is refused has done nothing', async () => {
    const ch = await Channel.open(alice);
    const kill = async () => (await ch.wrap({method: 'delete', uri: ch.uri})).wrapped;
    turnedDown(await postRaw([await kill()], 'kms://elsewhere.example'));
    turnedDown(await postRaw([await kill(), ...Array(100).fill('x')]));
    turnedDown(await postRaw([await kill(), 'x'.repeat(256 * 1024 + 1)]));
    turnedDown(await http('POST', messages, `{"destination":"${cluster}","kmsMessages":["${await kill()}"]`));
    turnedDown(await http('POST', messages, `{"destination":"${cluster}","kmsMessages":["${await kill()}",5]}`));
    ok(await ch.update('/ping'));
});

test('100 messages are taken, 101 are not', async () => {
    const res = await postRaw(Array(100).fill('x'));
    assert.equal(res.status, 200);
    assert.equal(res.json.kmsMessages.length, 100);
    turnedDown(await postRaw(Array(101).fill('x')));
});

test('a message of up to 256 KiB is taken, a longer one is not', async () => {
    const ch = await Channel.open(alice);
    const client = ch.client();
    const of = (n) => ch.seal({method: 'update', uri: '/ping', requestId: 'big', client, padding: 'x'.repeat(n)});
    const answer = await postRaw([of(190000)]);
    assert.equal(answer.status, 200);
    ok((await open(answer.json.kmsMessages[0], ch.ctx)).body);
    turnedDown(await postRaw([of(200000)]));
    turnedDown(await postRaw(['x', 'x'.repeat(256 * 1024 + 1)]));
});

test('a body over 4 MiB is 413', async () => {
    const res = await http('POST', messages, JSON.stringify({destination: cluster, kmsMessages: Array(50).fill('x'.repeat(100000))})).catch((e) => e);
    /* it may close before all of the body was sent */
    if (res instanceof Error) assert.ok(['EPIPE', 'ECONNRESET'].includes(res.code), res.stack);
    else turnedDown(res, 413);
});

test('a body full of tiny members is refused, and quickly', async () => {
    const members = Array.from({length: 200000}, (_, i) => `"${i}":1`).join();
    const start = Date.now();
    turnedDown(await http('POST', messages, `{"destination":"${cluster}","kmsMessages":[],${members}}`), 413);
    assert.ok(Date.now() - start < 1000, 'before a tree is made of it');
    assert.equal((await postRaw([','.repeat(200000)])).status, 200, 'commas in a string are none');
});

test('garbage in a POST is answered message by message', async () => {
    const res = await postRaw(['x', '', 'a.b.c.d.e']);
    assert.equal(res.status, 200);
    for (const message of res.json.kmsMessages) refused((await open(message)).body, 400001);
});

test('other members of the body are ignored', async () => {
    const res = await http('POST', messages, {destination: cluster, kmsMessages: [], clientInfo: {a: [1]}, ünïcode: true});
    assert.equal(res.status, 200);
});

test('any content type is either taken or 415', async () => {
    for (const type of ['application/json; charset=utf-8', 'APPLICATION/JSON']) {
        const res = await http('POST', messages, {destination: cluster, kmsMessages: []}, {'content-type': type});
        assert.equal(res.status, 200, type);
    }
    for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'nonsense', '']) {
        const res = await http('POST', messages, {destination: cluster, kmsMessages: []}, {'content-type': type});
        assert.ok([200, 400, 415].includes(res.status), `${type}: ${res.status}`);
        if (res.status !== 200) turnedDown(res);
    }
});

test('unknown paths are 404, unknown methods 405, with a JSON body', async () => {
    for (const path of ['/', '/encryption', '/encryption/api/v1', '/encryption/api/v2/kms/x', `${api}`, `${api}/x/y`, '/metrics', '/livez', '/favicon.ico', `/x/..${api}/x`, `${api}/../kms/x/y`])
        turnedDown(await http('GET', path), 404, 400);
    for (const method of ['PUT', 'DELETE', 'PATCH']) {
        turnedDown(await http(method, messages, {}), 405);
        turnedDown(await http(method, `${api}/someone`, {}), 405);
    }
    turnedDown(await http('POST', `${api}/someone`, {}), 405, 404);
    turnedDown(await http('OPTIONS', messages), 405, 404);
    assert.ok([404, 405, 501].includes((await http('PROPFIND', messages)).status));
});

test('HEAD has no body', async () => {
    for (const path of [`${api}/someone`, messages, '/nothing']) {
        const res = await http('HEAD', path);
        assert.ok([200, 404, 405].includes(res.status));
        assert.equal(res.text, '');
    }
});

test('answers are not to be cached or sniffed', async () => {
    for (const res of [await http('GET', `${api}/someone`), await postRaw([])]) {
        assert.match(res.headers['cache-control'] ?? '', /no-store/);
        assert.equal(res.headers['x-content-type-options'], 'nosniff');
    }
});
