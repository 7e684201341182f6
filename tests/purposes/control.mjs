// Nobody opens or destroys anything alone: each action that needs several officers, and each way around that can be thought of.  First against the functions
// that the keeper calls, as its role; then with kmsctl as two officers of this machine.
//
//   node control.mjs
import {randomUUID} from 'node:crypto';
import {Channel, env} from './lib/client.mjs';
import {ctl, fixture} from './lib/fixture.mjs';
import {Psql, SqlError, lit} from './lib/psql.mjs';
import {PURPOSES} from './model.mjs';

let passed = 0, failed = 0;
const check = (name, good, why = '') => {
    if (good) passed++;
    else { failed++; console.log(`FAILED: ${name} ${typeof why === 'string' ? why : JSON.stringify(why)}`); }
    return good;
};
const owner = new Psql(), keeper = new Psql(env.KMS_DATABASE_URL, 'kms_keeper');
const DAY = 86400000;

// --- officers, by uid; nothing else says who is who ---

const one = async (sql) => (await keeper.rows(sql))[0];
const act = (uid, action, args, {floor = 2, name = `officer${uid}`, op = randomUUID()} = {}) =>
    one(`SELECT * FROM kms.control_act(${lit(op)}, ${lit(action)}, ${lit(args)}, ${lit(`${name}(${uid})`)}, ${uid}, ${floor})`);
const show = async (uid, id) => (await one(`SELECT kms.approval_show(${lit(id)}, 'officer${uid}(${uid})', ${uid}) AS p`)).p;
const approve = (uid, id, {hash = null, name = `officer${uid}`, op = randomUUID(), by = one} = {}) =>
    by(`SELECT * FROM kms.approval_approve(${lit(op)}, ${lit(id)}, ${lit(hash)}, ${lit(`${name}(${uid})`)}, ${uid})`);
const reject = (uid, id, {by = one} = {}) => by(`SELECT * FROM kms.approval_reject(${lit(randomUUID())}, ${lit(id)}, 'officer${uid}(${uid})', ${uid}, 'no')`);

/* All that an action could change, but the approvals themselves. */
const state = async () => (await owner.run(`SELECT md5(string_agg(t, '|' ORDER BY t)) FROM (
    SELECT 'p' || x::text AS t FROM kms.purposes x UNION ALL SELECT 's' || x::text FROM kms.services x UNION ALL SELECT 'o' || x::text FROM kms.service_orgs x
    UNION ALL SELECT 'c' || x::text FROM kms.settings x UNION ALL SELECT 'm' || matter_id || state FROM kms.matters x WHERE state NOT IN ('pending', 'rejected')
    UNION ALL SELECT 'k' || key_id FROM kms.content_keys WHERE blob IS NOT NULL UNION ALL SELECT 'r' || resource_id FROM kms.resources WHERE destroyed_at IS NULL) q`))[0];
const entries = async (where) => Number((await owner.run(`SELECT count(*) FROM kms.entries WHERE org_id IN (${lit(f.id)}, kms.nobody()) AND ${where}`))[0]);

const f = await fixture(owner, {name: 'control', on: ['indexing']});
// At once: so that nothing is destroyed later, between two looks at the state.  The keeper writes its own figure down once, when it has begun.
for (let i = 0; i < 100 && !(await owner.run(`SELECT 1 FROM kms.settings WHERE name = 'destruction.waiting'`)).length; i++) await new Promise((r) => setTimeout(r, 200));
await keeper.rows('SELECT kms.destruction_waiting(0)');
let n = 0;
const serviceArgs = (more = {}) => ({service: `by-two-${++n}-${f.id.slice(0, 8)}`, identity: `spiffe://services.example/by-two-${n}-${f.id}`, purposes: ['dlp'], orgs: [f.name], kinds: ['space'], rate: 0, breadth: 0, ...more});
const matterArgs = (more = {}) => ({org: f.name, name: `matter ${++n}`, custodians: ['custodian'], from: Date.now() - DAY, to: Date.now() + DAY, kinds: ['space'], expires: Date.now() + DAY, ...more});
const registered = await f.service({purposes: ['dlp']});

/* Each action that opens or destroys: fresh arguments each time, and how the facts under it can change meanwhile. */
const moreService = async () => { await f.service({purposes: PURPOSES}); };
const moreResources = async () => { await f.resources(60); };
/* What an open matter covers is not destroyed. */
const closeMatters = async () => {
    for (const matter of await owner.run(`SELECT matter_id FROM kms.matters WHERE org_id = ${lit(f.id)} AND state = 'open'`)) await act(1, 'matter.close', {matter});
};
const ACTIONS = {
    'purpose.enable': {args: async () => {
        await owner.run(`DELETE FROM kms.purposes WHERE org_id = ${lit(f.id)} AND purpose = 'dlp'`);
        return {org: f.name, purpose: 'dlp'};
    }, changes: [moreService, moreResources]},
    'service.add': {args: async () => serviceArgs(), changes: [moreResources, async () => { await owner.run(`INSERT INTO kms.purposes VALUES (${lit(f.id)}, 'dlp', true, clock_timestamp()) ON CONFLICT (org_id, purpose) DO UPDATE SET enabled = NOT kms.purposes.enabled`); }]},
    'service.change': {args: async () => serviceArgs({service: registered.name, identity: registered.identity, rate: ++n, purposes: ['dlp', 'indexing']}), changes: [moreResources]},
    'matter.open': {args: async () => matterArgs(), changes: [moreService, moreResources]},
    'setting.set': {args: async () => ({org: f.name, name: 'dlp.age', value: String(DAY * (2 + ++n))}), changes: [moreService]},
    'key.destroy': {args: async () => {
        await closeMatters();
        return {key: await f.more()};
    }, changes: [async (args) => { await owner.run(`INSERT INTO kms.authorizations (org_id, authorization_id, resource_id, kind, grantee, granted_by, created_at)
        SELECT k.org_id, gen_random_uuid(), k.resource_id, 'user', 'newcomer' || gen_random_uuid(), 'maker', clock_timestamp() FROM kms.content_keys k WHERE k.key_id = ${lit(args.key)}`); }]},
    'resource.destroy': {args: async () => ({resource: (await f.resources(1))[0].id}), changes: [moreService]},
    'audit.suspend': {args: async () => {
        await act(1, 'audit.resume', {});
        return {};
    }, changes: []},
};

for (const [action, {args, changes}] of Object.entries(ACTIONS)) {
    const propose = async (more) => {
        const a = await args(), before = await state();
        const p = await act(1, action, a, more);
        check(`${action}: it waits`, p.verdict === 0 && p.result.state === 'pending' && p.result.votes.length === 1, p);
        return {args: a, id: p.result.approval, hash: p.result.hash, before, p: p.result};
    };
    const unchanged = async (name, q) => check(`${action}: ${name}: nothing is done`, await state() === q.before);

    let q = await propose();
    await unchanged('asked for', q);
    check(`${action}: the report says what it touches`, ['resources', 'keys', 'users', 'services', 'organisations'].every((m) => m in q.p.impact), q.p.impact);
    for (const [name, how] of [['his own', {}], ['his own, by its hash', {hash: q.hash}], ['his own, by another name', {name: 'somebody'}]]) {
        const r = await approve(1, q.id, how);
        check(`${action}: nobody approves ${name}`, r.verdict === 403004 && r.result.why, r);
    }
    await show(1, q.id);
    check(`${action}: nor after looking`, (await approve(1, q.id)).verdict === 403004);
    check(`${action}: not unseen`, (await approve(2, q.id)).verdict === 409002);
    for (const hash of ['0'.repeat(64), '', q.hash.slice(0, 63), q.hash + '0']) check(`${action}: not by another hash`, (await approve(2, q.id, {hash})).verdict === 409002);
    check(`${action}: no other approval's id`, (await approve(2, randomUUID(), {hash: q.hash})).verdict === 404001);
    await unchanged('refused approvals', q);

    // What was looked at is no longer so.
    for (const change of changes) {
        await show(2, q.id);
        await change(q.args);
        q.before = await state();
        const r = await approve(2, q.id);
        check(`${action}: not on an outdated report`, r.verdict === 409002 && /changed/.test(r.result.why), r);
        const h = await approve(2, q.id, {hash: q.hash});
        check(`${action}: nor by its hash`, h.verdict === 409002, h);
        await unchanged('an outdated report', q);
    }
    const looked = await show(2, q.id);
    const op = randomUUID();
    const done = await approve(2, q.id, {hash: looked.hash, op});
    check(`${action}: done with the second officer's vote`, done.verdict === 0 && done.result.state === 'done', done);
    check(`${action}: really`, await state() !== q.before);
    const after = await state();
    const again = await approve(2, q.id, {hash: looked.hash, op});
    check(`${action}: run again it answers the same`, again.verdict === 0 && await state() === after, again);
    check(`${action}: it is done once`, (await approve(3, q.id, {hash: looked.hash})).verdict === 409002 && (await reject(3, q.id)).verdict === 409002);
    check(`${action}: each step is on record`, await entries(`detail ->> 'approval' = ${lit(q.id)}`) >= 5);

    // Rejected, taken back, out of time.
    for (const [name, end] of [['rejected', () => reject(2, q.id)], ['taken back', () => reject(1, q.id)],
        ['out of time', () => owner.run(`BEGIN; SET LOCAL session_replication_role = replica; UPDATE kms.approvals SET expires_at = clock_timestamp() - interval '1 second' WHERE approval_id = ${lit(q.id)}; COMMIT`)]]) {
        q = await propose();
        const seen = await show(2, q.id);
        await end();
        check(`${action}: not when ${name}`, (await approve(2, q.id, {hash: seen.hash})).verdict === 409002 && (await approve(3, q.id, {hash: seen.hash})).verdict === 409002);
        await unchanged(name, q);
    }

    // Three are needed: nobody counts twice, and who agreed to what is no longer so does not count.
    q = await propose({floor: 3});
    let seen = await show(2, q.id);
    let r = await approve(2, q.id);
    check(`${action}: two of three are not enough`, r.verdict === 0 && r.result.state === 'pending', r);
    check(`${action}: nor is one twice`, (await approve(2, q.id)).verdict === 403004 && (await approve(2, q.id, {name: 'another'})).verdict === 403004);
    await unchanged('two of three', q);
    if (changes.length) {
        await changes[0](q.args);
        q.before = await state();
        await show(3, q.id);
        r = await approve(3, q.id);
        check(`${action}: votes for an outdated report do not count`, r.verdict === 0 && r.result.state === 'pending', r);
        await unchanged('an outdated vote', q);
        await show(2, q.id);
        r = await approve(2, q.id);
    } else {
        seen = await show(3, q.id);
        r = await approve(3, q.id);
    }
    check(`${action}: three are`, r.verdict === 0 && r.result.state === 'done', r);

    // Races: two who agree at once, one who agrees while another says no.
    for (let i = 0; i < 4; i++) {
        q = await propose();
        seen = await show(2, q.id);
        await show(3, q.id);
        const second = new Psql(env.KMS_DATABASE_URL, 'kms_keeper');
        const by = async (sql) => (await second.rows(sql))[0];
        const both = await Promise.all([approve(2, q.id, {hash: seen.hash}), i % 2 ? reject(3, q.id, {by}) : approve(3, q.id, {hash: seen.hash, by})]);
        second.end();
        check(`${action}: of two at once one decides`, both.filter((x) => x.verdict === 0).length === 1, both.map((x) => x.verdict));
        check(`${action}: it is done once`, await entries(`detail ->> 'approval' = ${lit(q.id)} AND action = ${lit(action)} AND verdict = 0`) <= 1);
    }
}

// --- a matter is approved as it was shown, and never changes ---

const EDITS = {
    name: `'another'`, custodians: `ARRAY['somebody']`, kinds: `ARRAY['space', 'file']`, window_from: `window_from - interval '1 day'`, window_to: `window_to + interval '1 day'`,
    expires_at: `expires_at + interval '1 day'`, sealed_until: `clock_timestamp() + interval '1 year'`, opened_by: `'somebody(9)'`,
};
const edit = (id, column, value) => owner.run(`BEGIN; SET LOCAL session_replication_role = replica; UPDATE kms.matters SET ${column} = ${value} WHERE matter_id = ${lit(id)}; COMMIT`);
await owner.run(`INSERT INTO kms.purposes VALUES (${lit(f.id)}, 'ediscovery', true, clock_timestamp()) ON CONFLICT (org_id, purpose) DO UPDATE SET enabled = true`);
const searcher = await f.service({purposes: ['ediscovery']});
const channel = await Channel.open(searcher);
const under = (matter) => channel.askAll([{method: 'retrieve', uri: `/keys/${f.key}`, purpose: 'ediscovery', matter}, {method: 'retrieve', uri: `/resources/${f.resource}/keys`, purpose: 'ediscovery', matter},
    {method: 'retrieve', uri: `/matters/${matter}/keys`, count: 5}]);
for (const [column, value] of Object.entries(EDITS)) {
    let p = (await act(1, 'matter.open', matterArgs())).result;
    check('a pending matter opens nothing', (await under(p.approval)).every((b) => b.errorCode === 403007));
    const seen = await show(2, p.approval);
    await edit(p.approval, column, value);
    const r = await approve(2, p.approval, {hash: seen.hash});
    check(`a matter whose ${column} was edited is not approved as it was shown`, r.verdict !== 0 && (await under(p.approval)).every((b) => b.errorCode === 403007), r);

    p = (await act(1, 'matter.open', matterArgs())).result;
    await show(2, p.approval);
    const ok = await approve(2, p.approval);
    check('a matter that two agreed to is open', ok.verdict === 0 && (await under(p.approval)).every((b) => b.status === 200), ok);
    let refusal;
    try { await owner.run(`UPDATE kms.matters SET ${column} = ${value} WHERE matter_id = ${lit(p.approval)}`); } catch (e) { refusal = e instanceof SqlError ? e.state : String(e); }
    check(`not even its owner edits a matter's ${column}`, refusal === '42501', refusal);
    await edit(p.approval, column, value);
    const after = await under(p.approval);
    check(`a matter whose ${column} was edited with the triggers off opens nothing`, after.every((b) => b.errorCode === 403007), after.map((b) => b.errorCode ?? b.status));
}

// --- the same with kmsctl, by two users of this machine ---

const json = (args, how) => ctl(['--json', ...args], how);
{
    const org = f.name, purpose = 'archival';
    const first = await json(['purpose', 'enable', org, purpose]);
    check('kmsctl: a purpose waits', first.code === 0 && first.json?.state === 'pending', first);
    const id = first.json?.approval;
    const own = await json(['approvals', 'approve', id]);
    check('kmsctl: not by who asked for it', own.code !== 0 && /403004|another officer/.test(own.stdout + own.stderr), own);
    const byHash = await json(['approvals', 'approve', id, '--hash', first.json?.hash]);
    check('kmsctl: nor by its hash', byHash.code !== 0, byHash);
    const listed = await json(['approvals', 'list'], {officer: 2});
    check('kmsctl: the second officer sees it', JSON.stringify(listed.json).includes(id), listed);
    const shown = await json(['approvals', 'show', id], {officer: 2});
    check('kmsctl: with its report', typeof shown.json?.impact?.resources === 'number' && shown.json?.hash, shown);
    await f.resources(60);
    const stale = await json(['approvals', 'approve', id, '--hash', shown.json?.hash], {officer: 2});
    check('kmsctl: what has changed must be looked at again', stale.code !== 0, stale);
    const anew = await json(['approvals', 'show', id], {officer: 2});
    const agreed = await json(['approvals', 'approve', id, '--hash', anew.json?.hash], {officer: 2});
    check('kmsctl: the second officer agrees', agreed.code === 0, agreed);
    check('kmsctl: it is on', (await json(['purpose', 'list', org])).stdout.includes(purpose));
    check('kmsctl: and off by one', (await ctl(['purpose', 'disable', org, purpose])).code === 0);
}
{
    const open = ['matter', 'open', f.name, 'Case 1', '--custodian', 'custodian', '--from', new Date(Date.now() - DAY).toISOString(), '--to', new Date(Date.now() + DAY).toISOString(), '--expires', '30d'];
    const asked = await json(open);
    check('kmsctl: a matter waits', asked.code === 0 && asked.json?.approval, asked);
    const id = asked.json?.approval;
    check('kmsctl: and opens nothing', (await under(id)).every((b) => b.errorCode === 403007));
    check('kmsctl: not by who opened it', (await json(['matter', 'approve', id])).code !== 0);
    check('kmsctl: still nothing', (await under(id)).every((b) => b.errorCode === 403007));
    await json(['approvals', 'show', id], {officer: 2});
    const agreed = await json(['matter', 'approve', id], {officer: 2});
    check('kmsctl: the second officer approves it', agreed.code === 0, agreed);
    check('kmsctl: now it opens', (await under(id)).every((b) => b.status === 200));
    check('kmsctl: one closes it', (await ctl(['matter', 'close', id], {officer: 2})).code === 0);
    check('kmsctl: nothing more', (await under(id)).every((b) => b.errorCode === 403007));
}

owner.end();
keeper.end();
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
