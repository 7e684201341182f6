// The table: every cell asked of the server (or, with --sql, of the database's functions alone, as the role of a worker) and of the plain model.
//
//   node table.mjs [--short] [--sql] [--only services|forbidden|users|walks]
//
// Prints how many cells had which outcome, and each outcome that never came: a table in which nothing is refused, or nothing given, proves nothing.
import {createHash, randomBytes, randomUUID} from 'node:crypto';
import {ASKED, forbiddenCells, serviceCells, userCells} from './cells.mjs';
import {Channel, cluster, env, unsealed} from './lib/client.mjs';
import {Psql, array, lit} from './lib/psql.mjs';
import {PURPOSES, expected} from './model.mjs';
import {build, certify, each} from './world.mjs';

const flags = process.argv.slice(2);
const short = flags.includes('--short'), bySql = flags.includes('--sql');
const only = flags.includes('--only') ? flags[flags.indexOf('--only') + 1] : null;
const begun = Date.now();
const log = (text) => console.log(`${((Date.now() - begun) / 1000).toFixed(1).padStart(6)} s  ${text}`);
let passed = 0, failed = 0;
const outcomes = new Map(), wrong = new Map();
const check = (name, good, why = '') => {
    if (good) passed++;
    else { failed++; console.log(`FAILED: ${name} ${why}`); }
};

/* Holds one answer {code, keys, error} against the model. */
function judge(world, {who, request}, got) {
    const want = expected(world, who, request);
    let problem = got.error;
    if (got.code !== want.code) problem ??= `${got.code}, not ${want.code}`;
    else if (want.code === 0 && want.keys) {
        // A walk goes by who was bound first, in pages: of one page its size is known, and where its keys come from.
        const walked = who.type === 'service' && ['purpose.keys', 'matter.keys'].includes(request.form) || ['indexing', 'archival'].includes(request.purpose) && who.type === 'service';
        const size = request.count ?? (request.target ? 100 : 1000);
        const name = (list) => list.slice(0, 12).map((k) => world.keys.get(k)?.when ?? k).join();
        if (walked && want.keys.length > size) {
            const whole = new Set(want.keys), known = new Set(got.keys.filter((k) => whole.has(k)));
            if (got.keys.length !== size || known.size !== size) problem ??= `${known.size} right ones among ${got.keys.length} keys, not ${size}`;
        } else {
            const inOrder = (list) => (walked ? [...list].sort() : list).join();
            if (inOrder(got.keys) !== inOrder(want.keys)) problem ??= `${got.keys.length} keys [${name(got.keys)}], not ${want.keys.length} [${name(want.keys)}]`;
        }
    }
    const line = `${who.type}, ${request.form}, ${who.type === 'service' ? request.purpose ?? 'no purpose' : request.behalf === undefined ? 'himself' : 'on behalf'}: ${want.code === 0 ? want.keys && !want.keys.length ? 'no key' : 'given' : want.code}`;
    outcomes.set(line, (outcomes.get(line) ?? 0) + 1);
    if (!problem) {
        passed++;
        return;
    }
    failed++;
    const label = describe(world, who, request);
    const sort = `${who.type} ${request.form} ${request.purpose ?? '-'}: ${problem}`;
    if (!wrong.has(sort)) wrong.set(sort, []);
    wrong.get(sort).push(label);
}

function describe(world, who, request) {
    const k = world.keys.get(request.target), r = world.resources.get(k ? k.resource : request.target), m = world.matters.get(request.matter);
    return `${who.name}@${who.org ?? ''} ${request.form} of ${(k ?? r)?.org ?? '?'} ${r ? `${r.kind}/${r.variant}` : ''} ${k?.when ?? ''} purpose=${request.purpose} matter=${m ? `${m.name}@${m.org}` : request.matter}` +
        `${request.behalf === undefined ? '' : ` behalf=${request.behalf}`}${request.count ? ` count=${request.count}` : ''}${request.after ? ' after' : ''}${request.before ? ' before' : ''} (${request.target ?? ''})`;
}

// --- the server ---

const date = (ms) => new Date(ms).toISOString();
function wire({form, target, purpose, matter, behalf, after, before, count, key}) {
    const common = {purpose, matter, behalf};
    const span = {boundAfter: after && date(after), boundBefore: before && date(before), count};
    switch (form) {
    case 'key': return {method: 'retrieve', uri: `/keys/${target}`, ...common};
    case 'resource.keys': return {method: 'retrieve', uri: `/resources/${target}/keys`, ...common, ...span};
    case 'resource': return {method: 'retrieve', uri: `/resources/${target}`, ...common};
    case 'authorizations': return {method: 'retrieve', uri: `/resources/${target}/authorizations`, ...common};
    case 'releases': return {method: 'retrieve', uri: `/resources/${target}/releases`, ...common};
    case 'purpose.keys': return {method: 'retrieve', uri: `/purposes/${purpose}/keys`, count: 1000, behalf};
    case 'matter.keys': return {method: 'retrieve', uri: `/matters/${matter}/keys`, purpose, behalf, count: 1000};
    case 'grant': return {method: 'create', uri: '/authorizations', resourceUri: `/resources/${target}`, authIds: ['mallory'], ...common};
    case 'revoke': return {method: 'delete', uri: `/resources/${target}/authorizations?authId=alice`, ...common};
    case 'mint': return {method: 'create', uri: '/keys', count: 1, ...common};
    case 'make': return {method: 'create', uri: '/resources', authIds: ['mallory'], keyUris: [], ...common};
    case 'bind': return {method: 'update', uri: `/keys/${key}`, resourceUri: `/resources/${target}`, ...common};
    }
    throw new Error(form);
}

/* What an answer says, and whether it says it right. */
function read(world, who, request, body) {
    if (body.signed) return {code: body.errorCode, error: who.state === 'retired' ? undefined : `signed ${body.status}`};
    if (body.status !== 200) return {code: body.errorCode, error: Math.floor(body.errorCode / 1000) === body.status ? undefined : `status ${body.status}, errorCode ${body.errorCode}`};
    const list = body.keys ?? (body.key ? [body.key] : undefined);
    if (!list) return {code: 0};
    const keys = list.map((k) => k.uri.slice(`${cluster}/keys/`.length));
    let error;
    list.forEach((k, i) => {
        const known = world.material.get(keys[i]);
        if (who.sealed && (k.jwk !== undefined || typeof k.jwe !== 'string')) error = `${keys[i]} is not sealed`;
        const jwk = who.sealed ? unsealed(k.jwe, who.sealed) : k.jwk;
        if (jwk?.k !== known) error ??= `${keys[i]} is not the key that was minted`;
        if (jwk?.kid !== k.uri) error ??= `kid ${jwk?.kid}`;
    });
    if (who.type === 'service') {
        const purpose = request.form === 'matter.keys' ? 'ediscovery' : request.purpose;
        if (body.purpose !== purpose) error ??= `the answer's purpose is ${body.purpose}`;
        if (body.service !== who.real) error ??= `the answer's service is ${body.service}`;
        if (purpose === 'ediscovery' && !`${body.matter}`.endsWith(request.matter)) error ??= `the answer's matter is ${body.matter}`;
    } else if (body.purpose !== undefined || body.service !== undefined) error ??= 'a user is told of a purpose';
    return {code: 0, keys, error};
}

async function askServer(world, cells) {
    const by = new Map();
    for (const c of cells) {
        if (!by.has(c.who)) by.set(c.who, []);
        by.get(c.who).push(c);
    }
    const jobs = [];
    // A walk answers with many keys: fewer of them in a POST.
    for (const [who, list] of by) {
        const heavy = list.filter((c) => c.request.form.endsWith('.keys') && !c.request.target), light = list.filter((c) => !heavy.includes(c));
        for (const [part, size] of [[light, 100], [heavy, 10]]) for (let i = 0; i < part.length; i += size) jobs.push([who, part.slice(i, i + size)]);
    }
    await each(jobs, 6, async ([who, part]) => {
        if (who.state === 'retired') return retired(world, who, part);
        const bodies = await who.channel.askAll(part.map((c) => wire(c.request)));
        part.forEach((c, i) => judge(world, c, read(world, who, c.request, bodies[i])));
    });
}

/* Its channel died with it.  A worker that still has the channel's key refuses on it as the model has it, one that has not cannot: the signed 499001. */
async function retired(world, who, part) {
    const bodies = await who.channel.askAll(part.map((c) => wire(c.request)));
    part.forEach((c, i) => judge(world, c, {code: bodies[i].signed && bodies[i].errorCode === 499001 ? expected(world, who, c.request).code : bodies[i].errorCode ?? 0}));
}

// --- the functions of the database alone ---

async function askFunctions(world, cells) {
    const owner = new Psql(), worker = new Psql(env.KMS_DATABASE_URL, 'kms_worker');
    const nil = '00000000-0000-0000-0000-000000000000';
    for (const s of world.services) {
        s.row = randomUUID();
        await owner.run(`INSERT INTO kms.channels (org_id, channel_id, kind, subject, client_id, generation, blob, created_at, expires_at, key_thumb, cert_issuer, cert_serial)
            VALUES (${lit(nil)}, ${lit(s.row)}, 'service', ${lit(s.real)}, 'suite', 1, ${lit(randomBytes(61))}, clock_timestamp(), clock_timestamp() + interval '1 hour',
                ${lit(createHash('sha256').update(s.real).digest())}, ${lit(Buffer.alloc(32, 1))}, ${lit(Buffer.from([1]))})`);
    }
    const action = {key: 'key.get', 'resource.keys': 'resource.keys', 'purpose.keys': 'purpose.keys', 'matter.keys': 'matter.keys'};
    const list = [...cells];
    for (let i = 0; i < list.length; i += 100) {
        const part = list.slice(i, i + 100), arg = (type, f) => array(type, part.map(f));
        const rows = await worker.rows(`SELECT n, verdict, key, purpose, service, matter FROM kms.service_release(${arg('uuid', () => randomUUID())}, ${arg('uuid', (c) => c.who.row)},
            ${arg('text', () => 'r')}, ${arg('text', () => 'suite')}, ${arg('text', (c) => action[c.request.form])}, ${arg('uuid', (c) => c.request.target ?? null)},
            ${arg('text', (c) => c.request.purpose ?? null)}, ${arg('uuid', (c) => c.request.matter ?? null)}, ${arg('bigint', (c) => c.request.after ?? null)},
            ${arg('bigint', (c) => c.request.before ?? null)}, ${arg('integer', (c) => c.request.count ?? (c.request.target ? null : 1000))}, ${arg('bytea', () => null)}, 1000)`);
        const answers = part.map(() => []);
        for (const r of rows) answers[r.n - 1].push(r);
        part.forEach((c, j) => {
            const [first] = answers[j], code = c.who.state === 'retired' && first?.verdict === 499001 ? 403006 : first?.verdict;
            const keys = answers[j].filter((r) => r.key).map((r) => r.key);
            const error = first ? first.verdict === 0 && keys.length && first.service !== c.who.real ? `service ${first.service}` : undefined : 'no row';
            judge(world, c, {code, keys, error});
        });
    }
    owner.end();
    worker.end();
}

// --- walks, page by page ---

async function walks(world) {
    const pages = async (who, uri, count, members = {}) => {
        const seen = [];
        let cursor;
        for (let n = 0; n < 2000; n++) {
            const body = await who.channel.ask('retrieve', uri, {count, cursor, ...members});
            if (body.status !== 200) return {body, seen};
            if (typeof body.cursor !== 'string') return {body: {reason: 'no cursor', ...body}, seen};
            if (body.keys.length > count) return {body: {reason: 'a page too long'}, seen};
            seen.push(...body.keys);
            cursor = body.cursor;
            if (body.keys.length === 0) return {seen, cursor};
        }
        return {body: {reason: 'endless'}, seen};
    };
    const compare = (who, name, got, keys) => {
        if (got.body) return check(name, false, JSON.stringify(got.body));
        const ids = got.seen.map((k) => k.uri.slice(`${cluster}/keys/`.length));
        check(`${name}: each once`, new Set(ids).size === ids.length);
        check(`${name}: all that may be seen and nothing else`, [...ids].sort().join() === [...keys].sort().join(), `${ids.length} keys, not ${keys.length}`);
        check(`${name}: the very keys`, got.seen.every((k, i) => (who.sealed ? unsealed(k.jwe, who.sealed) : k.jwk)?.k === world.material.get(ids[i])));
    };
    const services = world.services.filter((s) => s.state === 'active' && /^(all|o-|sealed|k-s|k-m|p-i$|p-a$|p-ia)/.test(s.name));
    await each(services, 4, async (who) => {
        for (const purpose of ['indexing', 'archival']) {
            if (!who.purposes.includes(purpose)) continue;
            const {code, keys} = expected(world, who, {form: 'purpose.keys', purpose});
            if (code !== 0) {
                const {body} = await pages(who, `/purposes/${purpose}/keys`, 97);
                check(`${who.name} may not walk ${purpose}`, body?.errorCode === code, JSON.stringify(body));
                continue;
            }
            for (const count of who.name === 'all' ? [7, 100, 1000] : [97])
                compare(who, `${who.name} walks ${purpose} by ${count}`, await pages(who, `/purposes/${purpose}/keys`, count), keys);
        }
        if (!who.purposes.includes('ediscovery')) return;
        for (const m of world.matters.values()) {
            const want = expected(world, who, {form: 'matter.keys', matter: m.id});
            if (want.code === 0) compare(who, `${who.name} walks the matter ${m.name} of ${m.org}`, await pages(who, `/matters/${m.id}/keys`, 9), want.keys);
        }
    });
    // A resource is walked likewise.
    const all = world.services.find((s) => s.name === 'all');
    for (const r of [...world.resources.values()].filter((x) => x.org === 'rich' && !x.gone).slice(0, 10)) {
        for (const purpose of ['indexing', 'archival']) {
            const keys = expected(world, all, {form: 'resource.keys', target: r.id, purpose}).keys;
            compare(all, `all walks a ${r.kind} for ${purpose}`, await pages(all, `/resources/${r.id}/keys`, 3, {purpose}), keys);
        }
    }
    // A cursor is good for its own walk alone.
    const first = await all.channel.ask('retrieve', '/purposes/indexing/keys', {count: 5});
    const other = world.services.find((s) => s.name === 'p-ia') ?? world.services.find((s) => s.name === 'o-rich');
    const tries = [[all, '/purposes/archival/keys', {}], [other, '/purposes/indexing/keys', {}], [all, `/resources/${[...world.resources.values()].find((r) => r.org === 'rich' && r.variant === 'plain').id}/keys`, {purpose: 'indexing'}],
        [all, `/matters/${[...world.matters.values()].find((m) => m.org === 'rich').id}/keys`, {}]];
    for (const [who, uri, members] of tries) {
        const body = await who.channel.ask('retrieve', uri, {count: 5, cursor: first.cursor, ...members});
        check(`a cursor of another walk on ${uri.replace(/[0-9a-f-]{36}/, 'ID')}`, body.errorCode === 400002, JSON.stringify(body).slice(0, 200));
    }
    for (const cursor of ['', 'A', 'AAAA', '*', 'A'.repeat(43), 'A'.repeat(100), 5, null, ['x']]) {
        const body = await all.channel.ask('retrieve', '/purposes/indexing/keys', {count: 5, cursor});
        check(`no cursor: ${JSON.stringify(cursor)}`, body.errorCode === 400002 || (cursor === null && body.status === 200), JSON.stringify(body).slice(0, 200));
    }
}

// --- all of it ---

const psql = new Psql();
const world = await build(psql, {short, log});
if (!bySql && only !== 'users') {
    certify(world.services);
    await each(world.services, 6, async (s) => { s.channel = await Channel.open({name: s.name, certificate: s.certificate}); });
    log('channels of services');
}
for (const s of world.services.filter((x) => x.state === 'retired')) {
    await psql.run(`UPDATE kms.services SET state = 'retired', retired_at = clock_timestamp() WHERE service = ${lit(s.real)}`);
    if (bySql || only === 'users') continue;
    const {refused} = await Channel.try({name: s.name, certificate: s.certificate});
    check('a retired service has no new channel', refused?.errorCode === 403006, JSON.stringify(refused));
}
const part = async (name, f) => {
    if (only && only !== name) return;
    const before = passed + failed;
    await f();
    log(`${name}: ${passed + failed - before} cells`);
};
if (bySql) await part('services', () => askFunctions(world, serviceCells(world)));
else {
    await part('services', () => askServer(world, serviceCells(world)));
    await part('forbidden', () => askServer(world, forbiddenCells(world)));
    await part('users', () => askServer(world, userCells(world)));
    await part('walks', () => walks(world));
}
for (const [line, n] of [...outcomes].sort()) console.log(`${String(n).padStart(8)}  ${line}`);
for (const [sort, list] of wrong) console.log(`FAILED ${list.length} times: ${sort}\n    ${list.slice(0, 3).join('\n    ')}`);

// Each outcome that the protocol has for such a request must have come; else the table looks at nothing.
if (!only) {
    const seen = (re) => [...outcomes.keys()].some((l) => re.test(l));
    for (const p of PURPOSES) for (const form of ['key', 'resource.keys']) for (const what of ['given', '403001', '403005', '404001', '410001', ...(p === 'ediscovery' ? ['403007'] : [])])
        check(`the table has ${form} under ${p}: ${what}`, seen(new RegExp(`^service, ${form}, ${p}: ${what}$`)));
    for (const p of ['no purpose', 'backup']) check(`the table has ${p}: refused alone`, seen(new RegExp(`^service, key, ${p}: 403005$`)) && !seen(new RegExp(`^service, (key|resource.keys), ${p}: (given|no key)$`)));
    for (const what of ['403006', 'given', '403005', '403001']) check(`the table has a walk: ${what}`, seen(new RegExp(`^service, (purpose|matter).keys, .*: ${what}$`)));
    if (!bySql) for (const what of ['given', '403001', '403002', '403003', '404001', '410001']) check(`the table has users: ${what}`, seen(new RegExp(`^user, .*, himself: ${what}$`)));
    if (!bySql) for (const what of ['given', '403001', '403002', '403004', '403007', '404001', '410001']) check(`the table has officers: ${what}`, seen(new RegExp(`^user, .*, on behalf: ${what}$`)));
    check('thousands of cells', [...outcomes.values()].reduce((a, b) => a + b, 0) > 10000);
}
psql.end();
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
