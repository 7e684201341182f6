// Organisations with rows of every kind, what is in each as their owners got it, and the database's rows of now and of before they were re-wrapped.
import {constants, publicEncrypt, randomBytes} from 'node:crypto';
import {mkdtempSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {Channel, idOf, ok, unb64, unseal} from '../purposes/lib/client.mjs';
import {ctl} from '../purposes/lib/fixture.mjs';
import {lit} from '../purposes/lib/psql.mjs';

export const TABLES = {
    content: {table: 'content_keys', id: 'key_id'},
    recording: {table: 'recordings', id: 'recording_id'},
    channel: {table: 'channels', id: 'channel_id'},
};
const DAY = 86400;
const hex = (uuid) => uuid.replaceAll('-', '');

/* What officers do; two of them where it takes two. */
async function officers(...args) {
    const asked = await ctl(['--json', ...args]);
    if (asked.code !== 0) throw new Error(`kmsctl ${args.join(' ')}: ${asked.stderr}`);
    if (asked.json?.state !== 'pending') return asked.json;
    const agreed = await ctl(['--json', 'approvals', 'approve', asked.json.approval], {officer: 2});
    if (agreed.code !== 0 || agreed.json.state !== 'done') throw new Error(`kmsctl ${args.join(' ')}: ${agreed.stderr}${agreed.stdout}`);
    return agreed.json;
}

/* Until the condition, which is SQL, holds. */
async function until(owner, what, condition, seconds = 90) {
    for (const end = Date.now() + seconds * 1000; Date.now() < end; await sleep(100))
        if ((await owner.one(`SELECT (${condition}) AS so`)).so) return;
    throw new Error(`not in ${seconds} s: ${what}`);
}

/* An organisation with `n` content keys of each generation that it has, half as many recordings, and channels. */
async function organisation(name, n) {
    const o = {name, keys: []};
    o.id = (await officers('org', 'add', name)).org;
    o.maker = await Channel.open({org: name, sub: 'maker', clientId: 'https://clients.example/maker'});
    const note = (kind, uri, value, more) => o.keys.push({kind, org: o, id: idOf(uri), value, ask: {channel: o.maker, uri}, ...more});
    const container = async (members, more) => {
        const {resource} = ok(await o.maker.ask('create', '/resources', {kind: 'meeting', ...members}), 201);
        for (const k of resource.keys) note('content', k.uri, unb64(k.jwk.k), {resource: idOf(resource.uri), ...more});
        return resource;
    };
    const recordings = async (resource, type, count) => {
        const key = unb64(resource.keys[0].jwk.k);
        const made = await o.maker.askAll(Array.from({length: count}, () => ({method: 'create', uri: `${resource.uri}/recordings`, type})));
        for (const {recording} of made.map((m) => ok(m, 201)))
            note('recording', recording.uri, unb64(unseal(key, recording.message).key), {resource: idOf(resource.uri), opener: key});
    };
    // Transcripts are kept for a while, so their keys are a month's; recordings for ever.
    await officers('org', 'set', name, 'retention.transcript=40d');
    o.container = await container({count: n});
    await container({count: n, ttl: 20 * DAY});
    await container({count: n, ttl: 55 * DAY});
    // What recordings are sealed to stays as it is: theirs are the rows that are changed.
    o.meeting = await container({count: 1}, {opens: true});
    await recordings(o.meeting, 'recording', n / 2);
    await recordings(o.meeting, 'transcript', n / 2);
    o.channels = [];
    for (let i = 0; i < n / 2; i++) {
        const ch = await Channel.open({org: name, sub: `user${i}`, clientId: `https://clients.example/${i}`});
        o.channels.push(ch);
        note('channel', ch.uri, ch.key, {ask: {channel: ch, uri: o.meeting.uri}});
    }
    return o;
}

/* Imported and activated as officers do it. */
async function bringMainKey(owner, o) {
    const dir = mkdtempSync(join(tmpdir(), 'kms-rows-')), file = join(dir, 'main.key');
    try {
        const asked = await ctl(['cmk', 'public-key', o.name]);
        if (asked.code !== 0) throw new Error(asked.stderr);
        writeFileSync(file, publicEncrypt({key: asked.stdout, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: 'sha256'}, randomBytes(32)));
        await officers('cmk', 'import', o.name, file);
        const is = (state) => `EXISTS (SELECT FROM kms.main_keys WHERE org_id = ${lit(o.id)} AND state = ${lit(state)})`;
        await until(owner, 'the main key is imported', is('PENDING'));
        const {id} = await owner.one(`SELECT main_key_id AS id FROM kms.main_keys WHERE org_id = ${lit(o.id)}`);
        await officers('cmk', 'activate', o.name, id);
        await until(owner, 'the main key is active', is('ACTIVE'));
    } finally {
        rmSync(dir, {recursive: true});
    }
}

/* {generation, blob} of each key, by id. */
async function stored(owner, orgs) {
    const out = new Map(), list = orgs.map((o) => lit(o.id)).join(',');
    for (const [kind, {table, id}] of Object.entries(TABLES))
        for (const r of await owner.rows(`SELECT ${id} AS id, generation, encode(blob, 'hex') AS blob FROM kms.${table} WHERE org_id IN (${list}) AND blob IS NOT NULL`))
            out.set(r.id, {...r, kind});
    return out;
}
export const wrappings = (owner, orgs) => owner.rows(`SELECT org_id AS org, generation, root_id AS root, encode(wrapped, 'hex') AS wrapped, encode(kcv, 'hex') AS kcv
    FROM kms.wrapping_keys WHERE wrapped IS NOT NULL AND org_id IN (${orgs.map((o) => lit(o.id)).join(',')})`);

export async function make(owner, n) {
    const w = {orgs: []};
    const stamp = randomBytes(4).toString('hex');
    for (const name of ['one', 'two', 'main']) w.orgs.push(await organisation(`rows-${name}-${stamp}`, n));
    const ours = w.orgs.map((o) => lit(o.id)).join(',');
    w.keys = w.orgs.flatMap((o) => o.keys);
    await until(owner, 'every key is under its month', `NOT EXISTS (SELECT FROM kms.reseals WHERE org_id IN (${ours}))`);

    // Each key's row before and after its wrapping key was replaced; each wrapping key's before and after it was re-wrapped.
    const before = await stored(owner, w.orgs);
    for (const o of w.orgs) await officers('wrapping-key', 'rotate', o.name);
    await until(owner, 'a second generation has everything', `NOT EXISTS (SELECT FROM kms.rotations WHERE state = 'running')
        AND 3 = (SELECT count(*) FROM kms.organisations WHERE generation > 1 AND org_id IN (${ours}))
        AND NOT EXISTS (SELECT FROM kms.content_keys WHERE generation = 1 AND org_id IN (${ours}))`);
    w.former = await wrappings(owner, w.orgs);
    await bringMainKey(owner, w.orgs[2]);
    const [{root_id: old}] = await owner.rows(`SELECT root_id FROM kms.roots WHERE state = 'active'`);
    await officers('root', 'rotate');
    await until(owner, 'the old root is retired', `EXISTS (SELECT FROM kms.roots WHERE root_id = ${lit(old)} AND state = 'retired')`);
    // Nothing is minted meanwhile, so the two minutes in which nodes may still use what they remember need not be waited for.
    await owner.run(`UPDATE kms.roots SET changed_at = changed_at - interval '1 hour' WHERE root_id = ${lit(old)}`);
    await officers('root', 'destroy', old);
    await until(owner, 'the old root is destroyed', `EXISTS (SELECT FROM kms.roots WHERE root_id = ${lit(old)} AND state = 'destroyed')`);
    await until(owner, 'what had to move has moved', `NOT EXISTS (SELECT FROM kms.reseals WHERE org_id IN (${ours}))`);
    const after = await stored(owner, w.orgs);
    w.former = w.former.filter((f) => f.root === old);
    w.wrappings = await wrappings(owner, w.orgs);
    for (const k of w.keys) {
        k.now = after.get(k.id);
        // A month's wrapping key that nothing needs any more goes, and what was under it with it.
        const was = before.get(k.id);
        if (was.blob !== k.now.blob && w.wrappings.some((r) => r.org === k.org.id && r.generation === was.generation)) k.was = was;
    }
    w.sentinels = await owner.rows(`SELECT root_id AS root, encode(wrapped, 'hex') AS wrapped, encode(sentinel, 'hex') AS blob FROM kms.roots WHERE state = 'active'`);
    w.tops = (await owner.rows(`SELECT root_id AS id FROM kms.roots WHERE state = 'active' UNION ALL SELECT main_key_id FROM kms.main_keys WHERE state = 'ACTIVE'
        UNION ALL SELECT key_id FROM kms.period_keys WHERE kcv IS NOT NULL AND ended_at IS NULL`)).map((t) => t.id);
    return w;
}

/* For open_changed. */
export function lines(w) {
    const nil = '0'.repeat(32), out = [];
    for (const k of w.keys)
        for (const r of [k.now, k.was])
            if (r) out.push(`key ${k.kind} ${hex(k.org.id)} ${hex(k.id)} ${r.generation} ${r.blob} ${k.value.toString('hex')}`);
    for (const s of w.sentinels) out.push(`key sentinel ${nil} ${hex(s.root)} 0 ${s.blob} -`, `wrapping ${nil} 0 ${hex(s.root)} ${s.wrapped}`);
    for (const r of w.wrappings) out.push(`wrapping ${hex(r.org)} ${r.generation} ${hex(r.root)} ${r.wrapped}`);
    for (const r of w.former) out.push(`former ${hex(r.org)} ${r.generation} ${hex(r.root)} ${r.wrapped}`);
    for (const t of w.tops) out.push(`top ${hex(t)}`);
    return `${out.join('\n')}\n`;
}
