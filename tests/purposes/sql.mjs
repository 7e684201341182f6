// What can be had by who speaks to the database as the daemon does: the roles of worker and keeper, with every function that they may call and with arguments
// that no daemon would send.  A worker that was taken over can say that any user is there (it is what checks tokens), so users who may have the key are left out
// here; but it cannot make a service's purpose, nor have a key without its record.
//
//   node sql.mjs [--short]
import {randomBytes, randomUUID} from 'node:crypto';
import {Channel, certificates, env, idOf, ok} from './lib/client.mjs';
import {Psql, SqlError, array, lit} from './lib/psql.mjs';
import {KINDS, PURPOSES} from './model.mjs';
import {fixture} from './lib/fixture.mjs';

const short = process.argv.includes('--short');
let passed = 0, failed = 0;
const check = (name, good, why = '') => {
    if (good) passed++;
    else { failed++; console.log(`FAILED: ${name} ${why}`); }
};
const owner = new Psql();
const roles = {kms_worker: new Psql(env.KMS_DATABASE_URL, 'kms_worker'), kms_keeper: new Psql(env.KMS_DATABASE_URL, 'kms_keeper')};
const state = async (sql, text) => {
    try { await sql.run(text); return '00000'; } catch (e) {
        if (!(e instanceof SqlError)) throw e;
        return e.state;
    }
};

// --- no table, no way to become somebody else ---

for (const [role, sql] of Object.entries(roles)) check(`this is ${role}`, (await sql.run('SELECT session_user'))[0] === role);

const tables = (await owner.rows(`SELECT c.relname, c.relkind FROM pg_class c WHERE c.relnamespace = 'kms'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'S')`));
check('there are tables', tables.length > 20, tables.length);
for (const [role, sql] of Object.entries(roles)) {
    for (const t of tables) {
        const all = t.relkind === 'S' ? [`SELECT * FROM kms.${t.relname}`, `SELECT nextval('kms.${t.relname}')`, `SELECT setval('kms.${t.relname}', 1)`] : [`SELECT * FROM kms.${t.relname} LIMIT 1`,
            `SELECT count(*) FROM kms.${t.relname}`, `INSERT INTO kms.${t.relname} DEFAULT VALUES`, `DELETE FROM kms.${t.relname}`, `TRUNCATE kms.${t.relname}`,
            `COPY kms.${t.relname} TO STDOUT`, `DO $$ BEGIN LOCK TABLE kms.${t.relname} IN ACCESS EXCLUSIVE MODE; END $$`, `ALTER TABLE kms.${t.relname} DISABLE TRIGGER ALL`, `DROP TABLE kms.${t.relname}`];
        for (const text of all) check(`${role}: ${text}`, await state(sql, text) === '42501');
    }
    for (const text of ['SET ROLE kms_owner', 'SET SESSION AUTHORIZATION kms_owner', 'SET session_replication_role = replica', 'CREATE TABLE kms.mine (x int)', 'CREATE TEMPORARY TABLE mine (x int)',
        'CREATE FUNCTION kms.mine() RETURNS int LANGUAGE sql RETURN 1', "SELECT pg_read_file('/etc/passwd')", "COPY (SELECT 1) TO PROGRAM 'true'", "SELECT lo_import('/etc/passwd')",
        'ALTER ROLE kms_worker SUPERUSER', 'GRANT kms_owner TO kms_worker', 'CREATE EXTENSION dblink', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'kms_admin'"])
        check(`${role}: ${text}`, ['42501', '42704', '0A000', '58P01'].includes(await state(sql, text)), await state(sql, text));
}

// --- whose functions are whose ---

const functions = await owner.rows(`SELECT p.oid::int, p.proname AS name, has_function_privilege('kms_worker', p.oid, 'EXECUTE') AS worker,
        has_function_privilege('kms_keeper', p.oid, 'EXECUTE') AS keeper, p.prosecdef AS definer, p.provariadic <> 0 AS variadic, p.proconfig AS config, p.provolatile AS volatile, p.proretset AS many, p.prorettype::regtype::text AS gives,
        (SELECT array_agg(format_type(t, NULL) ORDER BY i) FROM unnest(p.proargtypes) WITH ORDINALITY u(t, i)) AS types, p.proargnames AS names
    FROM pg_proc p WHERE p.pronamespace = 'kms'::regnamespace AND p.prokind = 'f'`);
for (const f of functions.filter((x) => x.worker || x.keeper)) {
    check(`${f.name} runs as its owner`, f.definer);
    check(`${f.name} has its own search path`, f.config?.some((c) => /^search_path=pg_catalog, kms, pg_temp$/.test(c)), f.config);
}
const workers = functions.filter((f) => f.worker).map((f) => f.name);
for (const name of functions.map((f) => f.name).filter((n) => /^(control_|approval|matter|purpose|setting|org_(add|set)|root_|canary|log_|person_|certificates_revoked|services_|service_show)/.test(n)))
    check(`a worker may not call ${name}`, !workers.includes(name));
// What gives out blobs, by the types of what functions return: users' functions and the one for services.
const giving = functions.filter((f) => f.worker && /released/.test(f.gives)).map((f) => f.name).sort();
check('a service\'s keys come out of one function', giving.join() === 'keys_bind,keys_release,resource_keys,resource_keys_create,service_release' &&
    functions.filter((f) => f.worker && /service_released/.test(f.gives)).length === 1, giving);
// What is refused by privilege is refused before an argument is looked at.
for (const f of functions) {
    for (const [role, sql] of Object.entries(roles)) {
        if (role === 'kms_worker' ? f.worker : f.keeper) continue;
        if (f.gives === 'trigger') continue;
        check(`${role} may not call ${f.name}`, await state(sql, `SELECT kms.${f.name}(${f.variadic ? 'VARIADIC ' : ''}${(f.types ?? []).map((t) => `NULL::${t === 'call' ? 'kms.call' : t}`).join()})`) === '42501');
    }
}

// --- hostile arguments ---

// The key to be had: in an organisation with all purposes off and officers bound to matters, of which there is none.
const shut = await fixture(owner, {name: 'shut', on: [], compliance: 'matter'});
const open = await fixture(owner, {name: 'open', on: PURPOSES});
const service = await shut.service({purposes: PURPOSES, kinds: KINDS, orgs: [shut, open]});
const channel = await Channel.open(service);
const stranger = await Channel.open({org: shut.name, sub: 'stranger', roles: ['spark.kms_orgagent']});
const elsewhere = await Channel.open({org: open.name, sub: 'maker'});
const blob = async (id) => (await owner.one(`SELECT encode(blob, 'hex') AS blob FROM kms.content_keys WHERE key_id = ${lit(id)}`)).blob;
const secrets = [await blob(shut.key), await blob(shut.unbound)];
const matter = await open.matter({});

const nil = '00000000-0000-0000-0000-000000000000';
const pick = (list) => list[randomBytes(1)[0] % list.length];
const pools = {
    ids: () => pick([shut.key, shut.unbound, shut.resource, shut.id, open.id, open.key, open.resource, nil, idOf(channel.uri), idOf(stranger.uri), idOf(elsewhere.uri), matter, randomUUID(), null]),
    channel: () => pick([idOf(channel.uri), idOf(stranger.uri), idOf(elsewhere.uri), forged, randomUUID(), nil, shut.id, null]),
    org: () => pick([shut.id, nil, open.id, null]),
    key: () => pick([shut.key, shut.key, shut.unbound, shut.resource, null]),
    text: () => pick([service.real, service.identity, 'stranger', shut.name, 'user', 'service', 'anonymous', 'key.get', 'resource.keys', 'purpose.keys', 'matter.keys', ...PURPOSES, 'open', 'active', '', "'; --", null]),
};
let forged = randomUUID();
const args = () => ({resource: pools.key(), keys: [pools.key()].filter(Boolean), behalf: pick(['maker', 'stranger', null]), officer: pick([true, false, null]), channel: pools.channel(), kind: pick(KINDS),
    auths: [{kind: pick(['user', 'resource']), grantee: pick(['stranger', shut.resource])}], anonymous: pick([0, 1, null]), authorization: pools.ids(), service: service.real, org: shut.name, purpose: pick(PURPOSES)});
function value(name, type) {
    if (type === 'uuid') {
        if (/^ops?$/.test(name)) return randomUUID();
        if (/^orgs?$/.test(name)) return pools.org();
        if (/^channels?$/.test(name)) return pools.channel();
        if (/^(keys|targets|resources|id)$/.test(name)) return pools.key();
        return pools.ids();
    }
    switch (type) {
    case 'text':
        if (/^actions$/.test(name)) return pick(['key.get', 'resource.keys', 'purpose.keys', 'matter.keys', 'channel.create', 'nonsense', null]);
        if (/^purposes?$/.test(name)) return pick([...PURPOSES, '', 'INDEXING', null]);
        if (/^behalf$/.test(name)) return pick(['maker', 'stranger', '', null]);
        if (/^identities$/.test(name)) return service.identity;
        if (/^(clients|subjects)$/.test(name)) return pick(['https://clients.example/maker', service.real, 'stranger', '', null]);
        return pools.text();
    case 'jsonb': return args();
    case 'boolean': return pick([true, true, false, null]);
    case 'integer': return pick([0, 1, 1, 2, 100, 1000, -1, 2147483647, null]);
    case 'bigint': return pick([0, 1, 60000, 4102444800000, -1, null]);
    case 'bytea': return pick([randomBytes(32), randomBytes(61), randomBytes(24), Buffer.alloc(32), Buffer.alloc(0), null]);
    default: return null;
    }
}
function call(f) {
    const list = (f.types ?? []).map((t, i) => {
        const name = f.names?.[i] ?? '', base = t.replace(/\[\]$/, '');
        if (!t.endsWith('[]')) return `${lit(value(name, t))}::${t}`;
        const n = lengths;
        return array(base, Array.from({length: n}, () => value(name, base)));
    });
    return `SELECT to_jsonb(q) FROM kms.${f.name}(${list.join(', ')}) q`;
}
let lengths = 1;

const rounds = short ? 60 : 500;
for (const [role, sql] of Object.entries(roles)) {
    const mine = functions.filter((f) => (role === 'kms_worker' ? f.worker : f.keeper));
    let calls = 0, worked = 0, leaked = null, unknown = new Map();
    for (let i = 0; i < rounds; i++) {
        for (const f of mine) {
            lengths = pick([1, 1, 2, 3]);
            forged = randomUUID();
            // Some steps of one transaction, so that what one makes the next can use; then it never was.
            const steps = [];
            if (role === 'kms_worker' && i % 3 === 0) {
                const make = functions.find((x) => x.name === (i % 2 ? 'channel_create' : 'service_channel_create'));
                lengths = 1;
                steps.push(call(make).replace(/(ARRAY\[)(?:'[0-9a-f-]{36}'|NULL)(\]::uuid\[\])(?=, ARRAY\[[^\]]*\]::text\[\])/, `$1'${forged}'$2`));
            }
            steps.push(call(f));
            let out = [];
            for (const [j, text] of steps.entries()) {
                calls++;
                try {
                    out = out.concat(await sql.run(`${j === 0 ? 'BEGIN; SET LOCAL statement_timeout = 5000; ' : ''}${text}`));
                    worked++;
                } catch (e) {
                    if (!(e instanceof SqlError)) throw e;
                    // What a function may say of wrong arguments: integrity, data, privilege, its own refusals.
                    if (!/^(22|23|42501|40001|25P02|0A000|P0001|57014)/.test(e.state)) unknown.set(`${f.name} ${e.message}`, text);
                    break;
                }
            }
            await sql.run('ROLLBACK');
            const said = out.join('\n');
            if (secrets.some((s) => said.includes(s))) leaked ??= steps.join(';\n');
        }
    }
    check(`${role}: ${calls} hostile calls of ${mine.length} functions give no key of a closed organisation`, leaked === null, leaked);
    check(`${role}: some of the calls were taken`, worked > calls / 20, `${worked} of ${calls}`);
    check(`${role}: nothing unexpected`, unknown.size === 0, [...unknown].slice(0, 5).map((x) => x.join('\n    ')).join('\n'));
    console.log(`${role}: ${calls} calls, ${worked} without an error`);
}

// --- a service's channel where a user's belongs, and the other way round ---

const worker = roles.kms_worker;
const common = (channelId, org) => `ARRAY[gen_random_uuid()], ARRAY[${lit(org)}]::uuid[], ARRAY[${lit(channelId)}]::uuid[], ARRAY['r'], ARRAY['c']`;
for (const org of [nil, open.id, shut.id]) {
    for (const [name, rest] of [['keys_release', `ARRAY[${lit(open.key)}]::uuid[], ARRAY[NULL]::text[], ARRAY[true]`],
        ['keys_release', `ARRAY[${lit(open.key)}]::uuid[], ARRAY['maker']::text[], ARRAY[true]`],
        ['resource_keys', `ARRAY[${lit(open.resource)}]::uuid[], ARRAY[NULL]::bigint[], ARRAY[NULL]::bigint[], ARRAY[NULL]::int[], ARRAY['maker']::text[], ARRAY[true], 100`],
        ['keys_bind', `ARRAY[${lit(open.unbound)}]::uuid[], ARRAY[${lit(open.resource)}]::uuid[], 0`]]) {
        const [row] = await worker.rows(`SELECT verdict, blob FROM kms.${name}(${common(idOf(channel.uri), org)}, ${rest})`);
        check(`${name} on a service's channel as ${org === nil ? 'nobody' : 'an organisation'}`, row.verdict === (org === nil ? 403005 : 499001) && row.blob === null, JSON.stringify(row));
    }
    const [made] = await worker.rows(`SELECT * FROM kms.keys_create(${common(idOf(channel.uri), org)}, ARRAY[1], ARRAY[1], ARRAY[gen_random_uuid()], ARRAY[${lit(randomBytes(61))}], 60000)`);
    check('keys_create on a service\'s channel', made.verdict === (org === nil ? 403005 : 499001), JSON.stringify(made));
    for (const name of ['resource_create', 'resource_get', 'authorizations_create', 'authorizations_list', 'authorizations_delete']) {
        const [row] = await worker.rows(`SELECT * FROM kms.${name}(${common(idOf(channel.uri), org)}, ARRAY[${lit({resource: open.resource, auths: [{kind: 'user', grantee: 'x'}], behalf: 'maker', officer: true})}])`);
        check(`${name} on a service's channel`, row.verdict === (org === nil ? 403005 : 499001), JSON.stringify(row));
    }
}
for (const [who, id] of [['a user', idOf(elsewhere.uri)], ['a stranger', idOf(stranger.uri)], ['nobody', randomUUID()]]) {
    for (const [action, target] of [['key.get', open.key], ['resource.keys', open.resource], ['purpose.keys', null], ['matter.keys', null]]) {
        for (const purpose of PURPOSES) {
            const rows = await worker.rows(`SELECT verdict, blob FROM kms.service_release(ARRAY[gen_random_uuid()], ARRAY[${lit(id)}]::uuid[], ARRAY['r'], ARRAY['c'], ARRAY[${lit(action)}],
                ARRAY[${lit(target)}]::uuid[], ARRAY[${lit(purpose)}], ARRAY[${lit(matter)}]::uuid[], ARRAY[NULL]::bigint[], ARRAY[NULL]::bigint[], ARRAY[NULL]::int[], ARRAY[NULL]::bytea[], 100)`);
            check(`service_release on the channel of ${who}`, rows.every((r) => r.verdict !== 0 && r.blob === null), JSON.stringify(rows));
        }
    }
}

// --- an operation's id is good for its own request alone ---

{
    const op = randomUUID();
    const ask = (o, key, purpose) => worker.rows(`SELECT verdict, key, blob FROM kms.service_release(ARRAY[${lit(o)}]::uuid[], ARRAY[${lit(idOf(channel.uri))}]::uuid[], ARRAY['r'], ARRAY['c'], ARRAY['key.get'],
        ARRAY[${lit(key)}]::uuid[], ARRAY[${lit(purpose)}], ARRAY[NULL]::uuid[], ARRAY[NULL]::bigint[], ARRAY[NULL]::bigint[], ARRAY[NULL]::int[], ARRAY[NULL]::bytea[], 100)`);
    const entries = async () => Number((await owner.run(`SELECT count(*) FROM kms.entries WHERE kind = 'service' AND subject = ${lit(service.real)}`))[0]);
    const before = await entries();
    const [first] = await ask(op, open.key, 'dlp');
    check('it is released', first.verdict === 0 && first.blob !== null, JSON.stringify(first));
    check('and recorded', await entries() === before + 1);
    const [again] = await ask(op, open.key, 'dlp');
    check('run again: the same', again.verdict === 0 && again.blob === first.blob);
    check('and no new record', await entries() === before + 1);
    const other = await open.more();
    let got;
    try { got = await ask(op, other, 'dlp'); } catch (e) { got = e.state; }
    check('another key by the same id', got === '22023' || got[0].blob === null, JSON.stringify(got));
    const user = open.channel;
    const used = randomUUID();
    await worker.run(`SELECT * FROM kms.keys_release(ARRAY[${lit(used)}]::uuid[], ARRAY[${lit(open.id)}]::uuid[], ARRAY[${lit(idOf(user.uri))}]::uuid[], ARRAY['r'], ARRAY['c'], ARRAY[${lit(open.key)}]::uuid[], ARRAY[NULL]::text[], ARRAY[false])`);
    try { got = await ask(used, open.key, 'dlp'); } catch (e) { got = e.state; }
    check('a user\'s operation is none of a service', got === '22023' || got[0].blob === null, JSON.stringify(got));
}

// --- races of breadth ---

for (let round = 0; round < (short ? 3 : 20); round++) {
    const breadth = 10;
    const s = await open.service({purposes: PURPOSES, kinds: KINDS, orgs: [open], breadth});
    const list = await open.resources(40);
    const channels = await Promise.all(Array.from({length: 8}, () => Channel.open(s)));
    // Each channel asks for all resources, each in an order of its own, in POSTs of 1 and 20.
    const got = new Set(), codes = new Map();
    await Promise.all(channels.map(async (ch, i) => {
        const mine = [...list.slice(i * 5), ...list.slice(0, i * 5)];
        for (let at = 0; at < mine.length;) {
            const part = mine.slice(at, at += i % 2 ? 1 : 20);
            const bodies = await ch.askAll(part.map((r) => (i % 3 ? {method: 'retrieve', uri: `/keys/${r.key}`, purpose: 'indexing'} : {method: 'retrieve', uri: `/resources/${r.id}/keys`, purpose: 'dlp'})));
            bodies.forEach((b, j) => {
                if (b.status === 200) got.add(part[j].id);
                else codes.set(b.errorCode, (codes.get(b.errorCode) ?? 0) + 1);
            });
        }
    }));
    check(`round ${round}: no more resources than its breadth, however many ask at once`, got.size === breadth, `${got.size} of ${breadth}, refusals ${JSON.stringify([...codes])}`);
    check('what is too much is 429001', codes.size === 1 && codes.has(429001), JSON.stringify([...codes]));
    const again = await channels[0].askAll([...got].map((id) => ({method: 'retrieve', uri: `/resources/${id}/keys`, purpose: 'dlp'})));
    check('what it had it may have again', again.every((b) => b.status === 200));
    const recorded = Number((await owner.run(`SELECT count(DISTINCT resource_id) FROM kms.entries WHERE kind = 'service' AND subject = ${lit(s.real)} AND verdict = 0 AND resource_id IS NOT NULL`))[0]);
    check('the log says as much', recorded === breadth, recorded);
}

owner.end();
for (const s of Object.values(roles)) s.end();
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
