// Recordings and transcripts (protocol section 7): a recorder encrypts a file with node-scr, whoever may open the container decrypts
// it, with node-scr, the Webex SDK or kms-client, and nobody else.
import assert from 'node:assert/strict';
import {execFile, execFileSync} from 'node:child_process';
import {randomBytes} from 'node:crypto';
import {mkdtempSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {after, before, test} from 'node:test';
import {setTimeout as sleep} from 'node:timers/promises';
import {fileURLToPath, pathToFileURL} from 'node:url';
import {promisify} from 'node:util';
import {env, require} from './lib/env.mjs';
import {Channel, DATE, ok, randomId, refused, uriOf} from './lib/kms.mjs';
import {addService, approve, askRule, closeMatter, enable, explain, openMatter, setRule} from './lib/officers.mjs';
import {ServiceChannel, certificate, forgetConnections, freshIdentity} from './lib/service.mjs';
import {User, officer} from './lib/tokens.mjs';
import {sdk} from './lib/webex.mjs';

const SCR = require('node-scr');
const dir = mkdtempSync(join(tmpdir(), 'kms-recordings-'));
after(() => rmSync(dir, {recursive: true, force: true}));
after(forgetConnections);

const alice = new User({name: 'alice'}), bob = new User({name: 'bob'}), mallory = new User({name: 'mallory'});
const recorder = new User({name: 'recorder'});
const [a, b, m, r] = await Promise.all([alice, bob, mallory, recorder].map((u) => Channel.open(u)));
const idOf = (uri) => uri.split('/').pop();
const make = async (members, ch = a) => ok(await ch.create('/resources', members), 201).resource;
const record = async (container, members = {}, ch = a) => ok(await ch.create(`${container.uri}/recordings`, {type: 'recording', ...members}), 201).recording;
const list = async (container, ch = a) => ok(await ch.retrieve(`${container.uri}/recordings`)).recordings;
const psql = (sql) => execFileSync('psql', ['-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', env.KMS_DATABASE_URL, '-c', sql], {encoding: 'utf8'}).trim();
const headOf = (compact) => JSON.parse(Buffer.from(compact.split('.')[0], 'base64url'));
const open = async (ch, {keyUri, message}) => SCR.fromJWE(ok(await ch.retrieve(keyUri)).key.jwk, message);
const movie = Buffer.concat([Buffer.from('the recording of a meeting\n'), randomBytes(3 << 20)]);
const TAG = Buffer.alloc(16, 7).toString('base64url');

let space, meeting; /* bob is in the space alone; the meeting is open to the space */
let film; /* what the recorder made of the meeting */
before(async () => {
    space = await make({count: 1, userIds: [bob.sub]});
    meeting = await make({kind: 'meeting', count: 1, userIds: [recorder.sub], authIds: [space.uri]});
    film = await recordFile(r, meeting, movie);
});

// --- the file ---

/* What a recorder does: its recording, the file encrypted and put somewhere, and the message said once more. */
async function recordFile(ch, container, file, members = {}) {
    const made = await record(container, members, ch);
    const scr = await open(ch, made);
    const at = join(dir, idOf(made.uri));
    writeFileSync(at, await scr.encrypt(file));
    return ok(await ch.update(made.uri, {loc: pathToFileURL(at).href, tag: scr.toJSON().tag})).recording;
}

test('a recorder encrypts a file with node-scr, and a user who is authorised through the space alone decrypts it', async () => {
    assert.ok(!readFileSync(fileURLToPath(film.loc)).includes(movie.subarray(0, 26)), 'the file is encrypted');
    const [seen] = await list(meeting, b);
    assert.equal(seen.uri, film.uri);
    const scr = await open(b, seen);
    assert.ok(movie.equals(await scr.decrypt(readFileSync(fileURLToPath(scr.loc)))));
    /* and a stranger gets neither message nor key */
    refused(await m.retrieve(film.uri), 403001);
    refused(await m.retrieve(`${meeting.uri}/recordings`), 403001);
    refused(await m.retrieve(seen.keyUri), 403001);
});

test('the Webex SDK opens it with its own functions', async () => {
    const theirs = sdk(bob);
    const {message, keyUri} = ok(await b.retrieve(film.uri)).recording;
    const scr = await theirs.encryption.decryptScr(keyUri, message);
    assert.equal(scr.loc, film.loc);
    assert.ok(movie.equals(await theirs.encryption.decryptBinary(scr, readFileSync(fileURLToPath(scr.loc)))));
});

test('who is taken out of the space opens no recording any more', async () => {
    const guest = new User(), ch = await Channel.open(guest);
    await a.grant(space.uri, guest.sub);
    assert.ok((await open(ch, ok(await ch.retrieve(film.uri)).recording)).loc);
    ok(await a.delete(`${space.uri}/authorizations?authId=${guest.sub}`));
    for (const uri of [film.uri, `${meeting.uri}/recordings`, film.keyUri]) refused(await ch.retrieve(uri), 403001);
    refused(await ch.update(film.uri, {loc: 'x:y'}), 403001);
    refused(await ch.delete(film.uri), 403001);
    refused(await ch.create(`${meeting.uri}/recordings`, {type: 'recording'}), 403001);
});

test('a byte of the file, of the tag or of the message that is another one shows', async () => {
    const {recording} = ok(await b.retrieve(film.uri));
    const scr = await open(b, recording);
    const file = readFileSync(fileURLToPath(scr.loc));
    file[file.length >> 1] ^= 1;
    await assert.rejects(scr.decrypt(file));
    const parts = recording.message.split('.');
    parts[3] = (parts[3][0] === 'A' ? 'B' : 'A') + parts[3].slice(1);
    await assert.rejects(open(b, {...recording, message: parts.join('.')}));
    ok(await r.update(film.uri, {tag: TAG}));
    await assert.rejects((await open(b, ok(await b.retrieve(film.uri)).recording)).decrypt(readFileSync(fileURLToPath(scr.loc))));
    ok(await r.update(film.uri, {tag: scr.toJSON().tag}));
});

// --- recording and message ---

test('a recording says what section 7 has, and its message is what node-scr reads, no more', async () => {
    const made = await record(meeting, {type: 'transcript', loc: 'https://files.example/1?a=b&c="d"\u00e9'}, r);
    assert.deepEqual(Object.keys(made).sort(), ['createDate', 'keyUri', 'loc', 'message', 'resourceUri', 'type', 'uri']);
    assert.match(made.uri, uriOf('recordings'));
    assert.match(made.createDate, DATE);
    assert.equal(made.type, 'transcript');
    assert.equal(made.resourceUri, meeting.uri);
    assert.equal(made.keyUri, ok(await a.retrieve(meeting.uri)).resource.activeKeyUri);
    assert.deepEqual(headOf(made.message), {alg: 'dir', enc: 'A256GCM', kid: made.keyUri});
    const scr = (await open(a, made)).toJSON();
    assert.deepEqual(Object.keys(scr).sort(), ['aad', 'enc', 'iv', 'key', 'loc']);
    assert.equal(scr.enc, 'A256GCM');
    assert.equal(Buffer.from(scr.key, 'base64url').length, 32);
    assert.equal(Buffer.from(scr.iv, 'base64url').length, 12);
    assert.equal(scr.loc, made.loc);
    const done = ok(await r.update(made.uri, {loc: 'x:y', tag: TAG})).recording;
    assert.deepEqual((await open(b, done)).toJSON(), {...scr, loc: 'x:y', tag: TAG}, 'key, iv and aad stay');
    const again = ok(await b.retrieve(made.uri)).recording;
    assert.notEqual(again.message, done.message, 'sealed anew each time');
    assert.deepEqual({...again, message: 0}, {...done, message: 0});
    ok(await a.delete(made.uri));
});

test('each recording has a key and an iv of its own, which are not the container\'s', async () => {
    const box = await make({count: 1});
    await Promise.all(Array.from({length: 25}, (_, i) => record(box, {type: i % 2 ? 'transcript' : 'recording'})));
    const all = await list(box);
    assert.equal(all.length, 25);
    assert.deepEqual(all.map((x) => x.createDate), all.map((x) => x.createDate).sort());
    const scrs = await Promise.all(all.map(async (x) => (await open(a, x)).toJSON()));
    assert.equal(new Set(scrs.map((x) => x.key)).size, 25);
    assert.equal(new Set(scrs.map((x) => x.iv)).size, 25);
    assert.ok(scrs.every((x) => x.key !== box.keys[0].jwk.k));
});

test('after a rotation new messages are for the active key, and an old one still opens', async () => {
    const box = await make({kind: 'meeting', count: 1, userIds: [bob.sub]});
    const old = await record(box, {loc: 'x:1'});
    const [key] = ok(await a.create(`${box.uri}/keys`, {count: 1}), 201).keys;
    assert.equal(ok(await b.retrieve(old.uri)).recording.keyUri, box.keys[0].uri);
    const next = await record(box, {loc: 'x:2'});
    assert.equal(next.keyUri, key.uri);
    const all = await list(box, b);
    assert.deepEqual(all.map((x) => x.keyUri), [box.keys[0].uri, key.uri]);
    assert.deepEqual(await Promise.all(all.map(async (x) => (await open(b, x)).loc)), ['x:1', 'x:2']);
    const moved = ok(await b.update(old.uri, {})).recording;
    assert.equal(moved.keyUri, key.uri);
    assert.equal(headOf(moved.message).kid, key.uri);
    assert.deepEqual((await open(a, moved)).toJSON(), (await open(a, old)).toJSON());
});

test('what a request may have', async () => {
    const uri = `${meeting.uri}/recordings`;
    for (const members of [{}, {type: 'video'}, {type: 'Recording'}, {type: ''}, {type: null}, {type: 1}, {type: ['recording']},
        {type: 'recording', loc: ''}, {type: 'recording', loc: 7}, {type: 'recording', loc: null}, {type: 'recording', loc: 'a\u0000'}, {type: 'recording', loc: 'a\nb'},
        {type: 'recording', loc: 'x'.repeat(4097)}])
        refused(await r.create(uri, members), 400002);
    const made = await record(meeting, {loc: 'x'.repeat(4096)}, r);
    for (const members of [{tag: ''}, {tag: 'AA'}, {tag: `${TAG}A`}, {tag: TAG.slice(1)}, {tag: `${TAG}==`}, {tag: Buffer.alloc(16, 255).toString('base64')}, {tag: 1}, {tag: null}, {loc: ''}, {loc: []}])
        refused(await r.update(made.uri, members), 400002);
    assert.equal((await open(r, ok(await r.retrieve(made.uri)).recording)).loc.length, 4096);
    for (const method of ['create', 'update']) refused(await r.ask(method, method === 'create' ? made.uri : uri), 400002);
    refused(await r.delete(uri), 400002);
    ok(await r.delete(made.uri));
});

test('unknown recordings and containers; containers without a key', async () => {
    for (const method of ['retrieve', 'update', 'delete']) {
        refused(await a.ask(method, `/recordings/${randomId()}`), 404001);
        refused(await a.ask(method, '/recordings/7'), 404001);
    }
    refused(await a.retrieve(`/resources/${randomId()}/recordings`), 404001);
    refused(await a.create(`/resources/${randomId()}/recordings`, {type: 'recording'}), 404001);
    const empty = await make({kind: 'meeting'});
    assert.deepEqual(await list(empty), []);
    refused(await a.create(`${empty.uri}/recordings`, {type: 'recording'}), 409002);
    ok(await a.create(`${empty.uri}/keys`, {count: 1}), 201);
    await record(empty);
});

// --- who, and who not ---

test('whoever is authorised on the container may do all, whoever recorded', async () => {
    const made = await record(meeting, {}, b);
    assert.equal(ok(await r.update(made.uri, {loc: 'x:r'})).recording.loc, 'x:r');
    ok(await a.delete(made.uri));
    refused(await b.retrieve(made.uri), 410001);
});

test('others, guests and services get nothing', async () => {
    const made = await record(meeting, {}, r);
    const foreign = await Channel.open(new User({org: env.KMS_ORG2}));
    for (const ch of [m, foreign]) {
        refused(await ch.retrieve(made.uri), 403001);
        refused(await ch.update(made.uri, {tag: TAG}), 403001);
        refused(await ch.delete(made.uri), 403001);
        refused(await ch.retrieve(`${meeting.uri}/recordings`), 403001);
        refused(await ch.create(`${meeting.uri}/recordings`, {type: 'transcript'}), 403001);
    }
    const [{bearer}] = ok(await a.create('/authorizations', {resourceUri: meeting.uri, anonymous: 1}), 201).authorizations;
    const guest = await Channel.open({sub: undefined, clientId: 'guest'}, {bearer});
    ok(await guest.retrieve(`${meeting.uri}/keys`));
    refused(await guest.retrieve(made.uri), 403001);
    refused(await guest.retrieve(`${meeting.uri}/recordings`), 403001);
    refused(await guest.delete(made.uri), 403001);

    const identity = freshIdentity();
    await addService({
        service: `listener-${randomId().slice(0, 8)}`, identity, purposes: ['dlp', 'archival'], orgs: [env.KMS_ORG], kinds: ['meeting'], rate: 0, breadth: 0,
    });
    for (const p of ['dlp', 'archival']) await enable(env.KMS_ORG, p);
    const ch = await ServiceChannel.open(certificate(identity));
    for (const purpose of ['dlp', 'archival', undefined]) {
        for (const uri of [made.uri, `${meeting.uri}/recordings`]) refused(await ch.retrieve(uri, {purpose}), 403005);
        refused(await ch.ask('create', `${meeting.uri}/recordings`, {type: 'recording', purpose}), 403005);
        refused(await ch.ask('delete', made.uri, {purpose}), 403005);
    }
    ok(await r.retrieve(made.uri));
    ok(await r.delete(made.uri));
});

test('an officer retrieves on behalf of who may, and changes nothing', async () => {
    const jim = await Channel.open(officer()), as = {onBehalfOf: bob.sub};
    refused(await jim.retrieve(film.uri), 403001);
    const {recording} = ok(await jim.retrieve(film.uri, {}, as));
    const key = ok(await jim.retrieve(recording.keyUri, {}, as)).key.jwk;
    assert.equal((await SCR.fromJWE(key, recording.message)).loc, film.loc);
    assert.equal(ok(await jim.retrieve(`${meeting.uri}/recordings`, {}, as)).recordings.length, 1);
    refused(await jim.retrieve(film.uri, {}, {onBehalfOf: mallory.sub}), 403001);
    for (const method of ['update', 'delete']) refused(await jim.ask(method, film.uri, {}, as), 403004);
    refused(await jim.create(`${meeting.uri}/recordings`, {type: 'recording'}, as), 403004);
    refused(await m.retrieve(film.uri, {}, as), 403004);
    const {action, behalf} = JSON.parse(psql(`SELECT jsonb_build_object('action', action, 'behalf', behalf_person IS NOT NULL) FROM kms.entries
        WHERE detail ->> 'recording' = '${idOf(film.uri)}' AND action = 'recording.get' AND verdict = 0 AND behalf_person IS NOT NULL LIMIT 1`));
    assert.deepEqual([action, behalf], ['recording.get', true]);
});

// --- the end ---

test('what was deleted is gone: key, message and place, for everybody and in the database', async () => {
    const box = await make({kind: 'meeting', count: 1, userIds: [bob.sub]});
    const [one, two] = [await record(box, {loc: 'x:secret-place'}), await record(box)];
    refused(await m.delete(one.uri), 403001);
    const {recording} = ok(await b.delete(one.uri));
    assert.equal(recording.uri, one.uri);
    assert.equal(recording.message, undefined);
    for (const ch of [a, b]) {
        refused(await ch.retrieve(one.uri), 410001);
        refused(await ch.update(one.uri, {loc: 'x:y'}), 410001);
        refused(await ch.delete(one.uri), 410001);
        assert.deepEqual((await list(box, ch)).map((x) => x.uri), [two.uri]);
    }
    refused(await m.retrieve(one.uri), 403001);
    const row = JSON.parse(psql(`SELECT to_jsonb(x) FROM kms.recordings x WHERE recording_id = '${idOf(one.uri)}'`));
    for (const column of ['blob', 'iv', 'aad', 'loc', 'tag']) assert.equal(row[column], null);
    assert.ok(row.destroyed_at);
});

test('every message is on record, with the recording and the key it was for; nothing that opens it is', async () => {
    const box = await make({count: 1});
    const made = await record(box, {loc: 'x:not-for-the-log'});
    const scr = (await open(a, made)).toJSON();
    await a.retrieve(made.uri);
    await list(box);
    await a.update(made.uri, {tag: TAG});
    await a.delete(made.uri);
    const rows = psql(`SELECT jsonb_build_object('action', action, 'keys', key_ids, 'resource', resource_id, 'detail', detail)
        FROM kms.entries WHERE resource_id = '${idOf(box.uri)}' AND action LIKE 'recording.%' AND verdict = 0 ORDER BY entry_id`).split('\n').map((x) => JSON.parse(x));
    assert.deepEqual(rows.map((x) => x.action), ['recording.create', 'recording.get', 'recording.list', 'recording.update', 'recording.delete']);
    for (const x of rows) {
        const names = x.detail.recordings ?? [x.detail.recording];
        assert.deepEqual(names, [idOf(made.uri)]);
        if (x.action !== 'recording.delete') assert.deepEqual(x.keys, [idOf(box.keys[0].uri)]);
    }
    /* as an entry may have it: as text, or as bytes in hexadecimal */
    for (const secret of [scr.key, scr.iv, 'not-for-the-log', ...[scr.key, scr.iv].map((x) => Buffer.from(x, 'base64url').toString('hex'))])
        assert.equal(psql(`SELECT count(*) FROM kms.entries e WHERE strpos(to_jsonb(e)::text, '${secret}') > 0`), '0');
    assert.notEqual(psql(`SELECT count(*) FROM kms.entries e WHERE strpos(to_jsonb(e)::text, '${idOf(made.uri)}') > 0`), '0');
});

test('an open matter holds a recording: it is deleted when the matter is closed, not before', async () => {
    const box = await make({kind: 'meeting', count: 1});
    const made = await record(box, {loc: 'x:held'});
    const matter = await openMatter({
        org: env.KMS_ORG, name: 'a hold', custodians: [alice.sub], from: Date.now() - 86400000, to: Date.now() + 86400000, kinds: ['meeting'], expires: Date.now() + 86400000,
    });
    try {
        const no = refused(await a.delete(made.uri), 409002);
        assert.match(no.reason, /matter/);
        assert.equal((await open(a, ok(await a.retrieve(made.uri)).recording)).loc, 'x:held');
    } finally {
        await closeMatter(matter);
    }
    ok(await a.delete(made.uri));
    refused(await a.retrieve(made.uri), 410001);
});

// --- kms-client ---

const run = async (user, ...args) => {
    const options = ['--no-state', '--client-id', user.clientId];
    const {stdout} = await promisify(execFile)(env.KMS_CLIENT, [...options, ...args], {env: {...process.env, ...env, KMS_TOKEN: user.token()}, encoding: 'buffer', maxBuffer: 1 << 26});
    return stdout;
};
const said = async (user, ...args) => JSON.parse(await run(user, '--json', ...args));
const fails = async (user, status, ...args) => assert.rejects(run(user, ...args), (error) => error.code === status);

test('kms-client makes containers, rotates and records, and opens the file that node-scr made', async () => {
    const {resource} = await said(alice, 'resource', 'create', '--kind', 'meeting', '--count', '1', '--auth-id', space.uri);
    assert.equal(resource.keys.length, 1);
    const rotated = await said(alice, 'resource', 'rotate', resource.uri);
    assert.equal(rotated.keys.length, 1);
    const {recording} = await said(alice, 'recording', 'create', resource.uri, '--type', 'transcript', '--loc', 'x:1');
    assert.equal(recording.keyUri, rotated.keys[0].uri);
    const text = Buffer.from('what was said\n');
    const scr = await open(a, recording);
    const at = join(dir, 'said');
    writeFileSync(at, await scr.encrypt(text));
    await run(alice, 'recording', 'update', recording.uri, '--loc', pathToFileURL(at).href, '--tag', scr.toJSON().tag);
    assert.equal((await said(bob, 'recording', 'show', recording.uri)).recording.loc, pathToFileURL(at).href);
    assert.equal((await said(bob, 'recording', 'list', resource.uri)).recordings.length, 1);
    assert.equal((await run(bob, '--quiet', 'recording', 'list', resource.uri)).toString(), `${recording.uri}\n`);
    assert.ok(!(await run(bob, 'recording', 'show', recording.uri)).toString().includes(recording.message.slice(0, 40)), 'messages are for --json');
    /* by the place that the message names, and from a file that was fetched some other way */
    assert.deepEqual(await run(bob, 'recording', 'open', recording.uri), text);
    assert.deepEqual(await run(bob, 'recording', 'open', recording.uri, at), text);
    assert.ok(movie.equals(await run(bob, 'recording', 'open', film.uri)));
    writeFileSync(join(dir, 'other'), Buffer.concat([readFileSync(at), Buffer.from('x')]));
    await fails(bob, 3, 'recording', 'open', recording.uri, join(dir, 'other'));
    await fails(mallory, 1, 'recording', 'open', recording.uri, at);
    await run(bob, 'recording', 'delete', recording.uri);
    await fails(bob, 1, 'recording', 'open', recording.uri, at);
    await fails(alice, 1, 'resource', 'create', '--kind', 'meeting', '--security', 'zero-trust', '--count', '1');
    assert.equal((await said(alice, 'resource', 'create', '--kind', 'meeting', '--security', 'zero-trust')).resource.security, 'zero-trust');
});

test('kms-client makes the encrypted file, and node-scr opens it', async () => {
    const plain = join(dir, 'plain'), sealed = join(dir, 'sealed');
    writeFileSync(plain, movie);
    const {recording} = await said(alice, 'recording', 'create', meeting.uri);
    writeFileSync(sealed, await run(alice, 'recording', 'seal', recording.uri, plain, '--loc', pathToFileURL(sealed).href));
    const scr = await open(b, ok(await b.retrieve(recording.uri)).recording);
    assert.equal(scr.loc, pathToFileURL(sealed).href);
    assert.ok(movie.equals(await scr.decrypt(readFileSync(sealed))));
    assert.ok(movie.equals(await run(bob, 'recording', 'open', recording.uri)));
    /* once sealed it stays: the same key and iv must not meet another file */
    await fails(alice, 2, 'recording', 'seal', recording.uri, plain);
    ok(await a.delete(recording.uri));
});

// --- retention ---

const day = 86400000, org = env.KMS_ORG_BYOK;
const clerk = await Channel.open(new User({org})); /* of an organisation that keeps nothing for ever */
/* As if it had been made that much earlier: nobody waits for months here. */
const age = (made, ms) => psql(`UPDATE kms.recordings SET created_at = created_at - ${ms} * interval '1 ms', expires_at = expires_at - ${ms} * interval '1 ms'
    WHERE recording_id = '${idOf(made.uri)}'`);
const row = (made) => JSON.parse(psql(`SELECT to_jsonb(x) FROM kms.recordings x WHERE recording_id = '${idOf(made.uri)}'`));
/* What the keeper does every ten seconds; the first test awaits it. */
const sweep = () => psql('SELECT kms.sweep(1000)');
async function until(what, holds) {
    for (let i = 0; !await holds(); i++) {
        assert.ok(i < 150, what);
        await sleep(100);
    }
}
async function gone(box, made, ch = clerk) {
    refused(await ch.retrieve(made.uri), 410001);
    refused(await ch.update(made.uri, {loc: 'x:y'}), 410001);
    refused(await ch.delete(made.uri), 410001);
    assert.ok((await list(box, ch)).every((x) => x.uri !== made.uri));
}
const destroyed = (made) => {
    const {destroyed_at: at, ...x} = row(made);
    for (const column of ['blob', 'iv', 'aad', 'loc', 'tag']) assert.equal(x[column], null);
    return at !== null;
};

test("when the organisation's time for transcripts has passed, a transcript is gone at that moment, and a recording is not", async () => {
    const box = await make({kind: 'meeting', count: 1}, clerk);
    await setRule(org, 'retention.transcript', '60s');
    const [transcript, other, recording] = [await record(box, {type: 'transcript'}, clerk), await record(box, {type: 'transcript'}, clerk), await record(box, {}, clerk)];
    assert.equal(Date.parse(transcript.expirationDate) - Date.parse(transcript.createDate), 60000);
    assert.equal(recording.expirationDate, undefined);
    age(transcript, 58000);
    ok(await clerk.retrieve(transcript.uri));
    await sleep(Math.max(0, Date.parse(transcript.expirationDate) - 58000 + 50 - Date.now()));
    await gone(box, transcript);
    assert.deepEqual((await list(box, clerk)).map((x) => x.uri), [other.uri, recording.uri]);
    const {requestId} = await clerk.retrieve(transcript.uri);
    assert.match((await explain(requestId))[0].said.rule, /the time that the organisation keeps a transcript was over|the transcript was destroyed at/);
    await until('the keeper destroys it', () => row(transcript).destroyed_at !== null);
    assert.ok(destroyed(transcript));
    assert.equal(psql(`SELECT count(*) FROM kms.entries WHERE action = 'recording.destroy' AND kind = 'keeper' AND detail ->> 'recording' = '${idOf(transcript.uri)}'`), '1');
    /* to keep longer needs nobody else, and is for what is there as well */
    assert.equal((await askRule(org, 'retention.transcript', '0')).state, 'done');
    sweep();
    await until('those that are there get their new end', async () => ok(await clerk.retrieve(other.uri)).recording.expirationDate === undefined);
    assert.equal((await record(box, {type: 'transcript'}, clerk)).expirationDate, undefined);
    await gone(box, transcript);
});

test('a shorter time is for what is there as well, once officers have agreed; what a matter holds stays, and says why', async () => {
    const box = await make({kind: 'meeting', count: 1}, clerk), kept = await make({kind: 'whiteboard', count: 1}, clerk);
    const [old, young, held] = [await record(box, {loc: 'x:old'}, clerk), await record(box, {}, clerk), await record(kept, {loc: 'x:held'}, clerk)];
    age(old, 91 * day);
    age(young, 89 * day);
    age(held, 91 * day);
    const matter = await openMatter({
        org, name: 'what was drawn', custodians: [clerk.user.sub], from: Date.now() - 100 * day, to: Date.now(), kinds: ['whiteboard'], expires: Date.now() + day,
    });
    try {
        const asked = await askRule(org, 'retention.recording', '90d');
        assert.equal(asked.state, 'pending', 'one officer alone destroys nothing');
        await sleep(300);
        for (const made of [old, young, held]) assert.equal(ok(await clerk.retrieve(made.uri)).recording.expirationDate, undefined);
        await approve(asked);
        sweep();
        await until('what is too old is destroyed', () => row(old).destroyed_at !== null);
        assert.ok(destroyed(old));
        await gone(box, old);
        const {recording} = ok(await clerk.retrieve(young.uri));
        assert.equal(Date.parse(recording.expirationDate) - Date.parse(recording.createDate), 90 * day);
        /* beyond its time, and there */
        await until('the keeper has seen that it is held', () => row(held).held_by === matter);
        assert.equal((await open(clerk, ok(await clerk.retrieve(held.uri)).recording)).loc, 'x:held');
        assert.equal((await list(kept, clerk)).length, 1);
        const no = refused(await clerk.delete(held.uri), 409002);
        assert.match(no.reason, /an open matter holds it/);
        assert.match((await explain(no.requestId))[0].said.rule, /an open matter holds it/);
    } finally {
        await closeMatter(matter);
    }
    await until('it goes when the matter is closed', () => (sweep(), row(held).destroyed_at !== null));
    assert.ok(destroyed(held));
    await gone(kept, held);
    assert.equal((await askRule(org, 'retention.recording', '0')).state, 'done');
    sweep();
    await until('for ever again', async () => ok(await clerk.retrieve(young.uri)).recording.expirationDate === undefined);
});

test('with the container goes what was recorded in it', async () => {
    const box = await make({kind: 'meeting', count: 1, ttl: 86400}, clerk), made = await record(box, {loc: 'x:1'}, clerk);
    psql(`UPDATE kms.resources SET expires_at = now() - interval '1 ms' WHERE resource_id = '${idOf(box.uri)}'`);
    for (const [method, uri, members] of [['retrieve', made.uri], ['update', made.uri, {loc: 'x:2'}], ['delete', made.uri], ['retrieve', `${box.uri}/recordings`],
        ['create', `${box.uri}/recordings`, {type: 'recording'}], ['create', `${box.uri}/keys`, {count: 1}]])
        refused(await clerk.ask(method, uri, members), 410001);
    sweep();
    await until('it is destroyed', () => row(made).destroyed_at !== null);
    assert.ok(destroyed(made));
    refused(await clerk.retrieve(made.uri), 410001);
});

// --- afterwards ---

test('kmsctl explain tells of recordings what decided', async () => {
    const box = await make({kind: 'meeting', count: 1, authIds: [space.uri], anonymous: 1});
    const made = await record(box), ended = await record(box);
    const [{bearer}] = box.authorizations.filter((x) => x.bearer);
    const guest = await Channel.open({sub: undefined, clientId: 'guest'}, {bearer});
    const jim = await Channel.open(officer()), foreign = await Channel.open(new User({org}));
    const sealed = await make({kind: 'meeting', security: 'zero-trust'});
    ok(await a.delete(ended.uri));
    const other = [await make({count: 1}, clerk)];
    other.push(await record(other[0], {}, clerk));
    const cases = [
        [b, 'retrieve', made.uri, {}, {}, 0, 'rule', /^Allowed: .*the recording was made at .*the recording was there/],
        [b, 'retrieve', made.uri, {}, {}, 0, 'authorisation', /authorised on resource .* through another resource/],
        [b, 'retrieve', made.uri, {}, {}, 0, 'asked', /for recording [0-9a-f-]{36},/],
        [m, 'retrieve', made.uri, {}, {}, 403001, 'rule', /Here: "[^"]+" was not authorised on resource/],
        [m, 'create', `${box.uri}/recordings`, {type: 'recording'}, {}, 403001, 'rule', /was not authorised on resource/],
        [guest, 'retrieve', made.uri, {}, {}, 403001, 'rule', /anonymous authorisation .*no recordings/],
        [foreign, 'retrieve', made.uri, {}, {}, 403001, 'rule', /belongs to another organisation/],
        [a, 'retrieve', `/recordings/${randomId()}`, {}, {}, 404001, 'rule', /no recording has this id/],
        [a, 'retrieve', `/resources/${randomId()}/recordings`, {}, {}, 404001, 'rule', /no resource has this id/],
        [a, 'retrieve', ended.uri, {}, {}, 410001, 'rule', /Here: the recording was destroyed at/],
        [m, 'retrieve', made.uri, {}, {onBehalfOf: bob.sub}, 403004, 'rule', /Here: the token had not the role/],
        [m, 'retrieve', `${box.uri}/recordings`, {}, {onBehalfOf: bob.sub}, 403004, 'rule', /Here: the token had not the role/],
        [jim, 'retrieve', other[1].uri, {}, {onBehalfOf: bob.sub}, 403004, 'rule', /belongs to another organisation/],
        [jim, 'retrieve', made.uri, {}, {onBehalfOf: bob.sub}, 0, 'rule', /the compliance role/],
        [a, 'retrieve', `${sealed.uri}/recordings`, {}, {}, 403010, 'rule', /zero-trust/],
        [a, 'create', `${sealed.uri}/recordings`, {type: 'recording'}, {}, 403010, 'rule', /zero-trust/],
        [a, 'create', `${(await make({})).uri}/recordings`, {type: 'recording'}, {}, 409002, 'rule', /no key that its recordings could be encrypted to/],
    ];
    for (const [ch, method, uri, members, as, code, part, words] of cases) {
        const answer = await ch.ask(method, uri, members, as);
        assert.equal(answer.errorCode ?? 0, code, JSON.stringify(answer));
        const [{verdict, said}] = await explain(answer.requestId);
        assert.equal(verdict, code);
        assert.match(said[part] ?? '', words, `${method} ${uri}: ${JSON.stringify(said)}`);
        if (code === 403004) assert.doesNotMatch(said.rule, /Here: onBehalfOf is for retrieving only/);
    }
    /* since then */
    const {requestId} = ok(await b.retrieve(made.uri));
    ok(await a.delete(made.uri));
    assert.ok((await explain(requestId))[0].since.some((x) => /^The recording was destroyed at/.test(x)));
    await setRule(env.KMS_ORG, 'compliance', 'matter');
    try {
        const answer = refused(await jim.retrieve(film.uri, {}, {onBehalfOf: bob.sub}), 403007);
        assert.match((await explain(answer.requestId))[0].said.rule, /no open, approved matter covered/);
        const matter = await openMatter({
            org: env.KMS_ORG, name: 'the film', custodians: [bob.sub], from: Date.now() - day, to: Date.now() + day, kinds: ['meeting'], expires: Date.now() + day,
        });
        try {
            const {requestId: id} = ok(await jim.retrieve(film.uri, {}, {onBehalfOf: bob.sub}));
            const [{said}] = await explain(id);
            assert.match(said.rule, /the key was bound at .*inside the matter's window/);
            assert.match(said.asked, /under the matter "the film"/);
        } finally {
            await closeMatter(matter);
        }
    } finally {
        await setRule(env.KMS_ORG, 'compliance', 'role');
    }
});
