// Builds the table's worlds, all in one database: organisations, resources, keys, matters, services.  Keys and resources come to be through the
// protocol, organisations through kmsctl.  Times (when a key was bound, when a matter ends), matters and registrations are then put in place by the
// database's owner, with the triggers off that keep everybody else from it: no test can wait a day for a key to grow old.
import {execFile} from 'node:child_process';
import {generateKeyPairSync, randomUUID} from 'node:crypto';
import {promisify} from 'node:util';
import {Channel, certificates, env, idOf, ok} from './lib/client.mjs';
import {array, lit} from './lib/psql.mjs';
import {KINDS, PURPOSES} from './model.mjs';

const run = promisify(execFile);
const MINUTE = 60000, HOUR = 60 * MINUTE, DAY = 24 * HOUR;
const NIL = '00000000-0000-0000-0000-000000000000';

/* All subsets of a list but the empty one; short: the single ones, all but one, all. */
export function subsets(list, short = false) {
    const all = [];
    for (let m = 1; m < 1 << list.length; m++) all.push(list.filter((_, i) => m & (1 << i)));
    return short ? all.filter((s) => s.length === 1 || s.length >= list.length - 1) : all;
}

/* When keys were bound: on both sides of the matters' window, of the day that dlp may look back, and of an hour. */
const windowFrom = (now) => now - 10 * DAY, windowTo = (now) => now - 30 * MINUTE;
const BOUND = {
    before: (now) => windowFrom(now) - 1,
    from: (now) => windowFrom(now),
    old: (now) => now - 25 * HOUR,
    young: (now) => now - 23 * HOUR,
    last: (now) => windowTo(now) - 1,
    to: (now) => windowTo(now),
    fresh: (now) => now - 5 * MINUTE,
    gone: (now) => now - 22 * HOUR, // and destroyed
};

/* What a matter can be like; each is what it says beside an open one that covers all. */
const MATTERS = {
    open: () => ({}),
    pending: () => ({state: 'pending'}),
    rejected: () => ({state: 'rejected'}),
    closed: () => ({state: 'closed'}),
    expired: (now) => ({expires: now - MINUTE}),
    edited: () => ({edited: true}),
    elsewhere: () => ({custodians: ['somebody']}),
    second: () => ({custodians: ['somebody', 'custodian']}),
    narrow: (now) => ({from: now - 23 * HOUR, to: now - 23 * HOUR + 1}),
    late: (now) => ({from: windowTo(now), to: now + DAY}),
    ...Object.fromEntries(KINDS.map((k) => [`only-${k}`, () => ({kinds: [k]})])),
    'not-space': () => ({kinds: KINDS.slice(1)}),
};

/* What a resource can be like; who is on it. */
const VARIANTS = ['plain', 'others', 'nested', 'destroyed', 'expired'];

export async function build(psql, {short = false, log = () => {}} = {}) {
    const now = Date.now();
    const world = {now, orgs: new Map(), resources: new Map(), keys: new Map(), matters: new Map(), users: [], services: [], material: new Map()};

    // --- what there is to be ---

    const org = (name, more = {}) => world.orgs.set(name, {name, id: null, state: 'active', on: [...PURPOSES], dlpAge: DAY, compliance: 'role', matters: ['open'],
        variants: ['plain'], bound: ['young'], ...more}).get(name);
    const rich = {variants: VARIANTS, bound: Object.keys(BOUND), matters: Object.keys(MATTERS), users: true};
    org('rich', rich);
    org('rich-matter', {...rich, compliance: 'matter'});
    org('dlp-hour', {bound: Object.keys(BOUND), dlpAge: HOUR});
    org('foreign', {...rich, variants: ['plain'], bound: ['young', 'fresh'], matters: ['open', 'pending']});
    org('suspended', {bound: ['young', 'fresh'], state: 'suspended', users: true, matters: ['open', 'closed']});
    for (const on of [[], ...subsets(PURPOSES, short)]) org(`on-${on.map((p) => p[0]).join('') || 'none'}`, {on});
    // Which matters there are, where officers need one and where they do not.
    for (const compliance of ['role', 'matter']) {
        for (const matters of [[], ...Object.keys(MATTERS).map((m) => [m]), ['closed', 'narrow'], ['pending', 'expired', 'edited'], ['only-space', 'late']])
            org(`${compliance}-${matters.join('.') || 'none'}`, {compliance, matters, bound: Object.keys(BOUND), officers: true});
    }
    const all = [...world.orgs.keys()].filter((n) => n !== 'foreign');
    const service = (name, more = {}) => world.services.push({type: 'service', name, state: 'active', purposes: PURPOSES, kinds: KINDS, orgs: all, identity: `spiffe://services.example/${name}`, ...more});
    for (const s of subsets(PURPOSES, short)) service(`p-${s.map((p) => p[0]).join('')}`, {purposes: s});
    for (const s of subsets(KINDS, short)) service(`k-${s.map((k) => k[0]).join('')}`, {kinds: s});
    for (const s of subsets(['rich', 'foreign', 'suspended'])) service(`o-${s.join('.')}`, {orgs: s});
    service('o-none', {orgs: []});
    service('all');
    service('retired', {state: 'retired'});
    // They get keys sealed to a key of their own, never bare.
    for (const [name, kind, options] of [['sealed-rsa', 'rsa', {modulusLength: 2048}], ['sealed-ec', 'ec', {namedCurve: 'P-256'}]]) {
        const {publicKey, privateKey} = generateKeyPairSync(kind, options);
        service(name, {orgs: ['rich', 'foreign', 'suspended'], sealed: privateKey, publicKey: publicKey.export({format: 'jwk'})});
    }

    // --- organisations, and who makes their keys ---

    const names = [...world.orgs.keys()], prefix = `t${now.toString(36)}`;
    for (const o of world.orgs.values()) o.real = `${prefix}-${o.name}`;
    await each(names, 4, async (n) => {
        world.orgs.get(n).id = JSON.parse((await run(env.KMSCTL, ['--json', 'org', 'add', world.orgs.get(n).real])).stdout).org;
    });
    log(`${names.length} organisations`);
    await each(names, 8, (n) => makeKeys(world, world.orgs.get(n)));
    log(`${world.resources.size} resources, ${world.keys.size} keys`);

    // --- times and states, by the owner ---

    const keys = [...world.keys.values()].filter((k) => k.resource), resources = [...world.resources.values()];
    const orgId = (x) => world.orgs.get(x.org).id;
    await psql.run(`BEGIN; SET LOCAL session_replication_role = replica`);
    await psql.run(`UPDATE kms.content_keys k SET bound_at = kms.ms_to_time(u.bound)
        FROM unnest(${array('uuid', keys.map(orgId))}, ${array('uuid', keys.map((k) => k.id))}, ${array('bigint', keys.map((k) => k.bound))}) u(org, id, bound)
        WHERE k.org_id = u.org AND k.key_id = u.id`);
    const gone = keys.filter((k) => k.gone && world.resources.get(k.resource).variant !== 'expired');
    await psql.run(`UPDATE kms.content_keys SET blob = NULL, destroyed_at = clock_timestamp() WHERE key_id = ANY (${array('uuid', gone.map((k) => k.id))})`);
    const of = (variant) => array('uuid', resources.filter((r) => r.variant === variant).map((r) => r.id));
    await psql.run(`UPDATE kms.resources SET destroyed_at = clock_timestamp() WHERE resource_id = ANY (${of('destroyed')})`);
    await psql.run(`UPDATE kms.resources SET expires_at = clock_timestamp() - interval '1 minute' WHERE resource_id = ANY (${of('expired')})`);

    for (const o of world.orgs.values()) {
        for (const p of o.on) await psql.run(`INSERT INTO kms.purposes VALUES (${lit(o.id)}, ${lit(p)}, true, clock_timestamp())`);
        // Off is off, whether it was ever on or not.
        const off = PURPOSES.filter((p) => !o.on.includes(p));
        for (const p of off.slice(0, 2)) await psql.run(`INSERT INTO kms.purposes VALUES (${lit(o.id)}, ${lit(p)}, false, clock_timestamp())`);
        if (o.dlpAge !== DAY) await psql.run(`INSERT INTO kms.settings VALUES (${lit(o.id)}, 'dlp.age', ${lit(String(o.dlpAge))}, clock_timestamp())`);
        if (o.compliance !== 'role') await psql.run(`INSERT INTO kms.settings VALUES (${lit(o.id)}, 'compliance', ${lit(o.compliance)}, clock_timestamp())`);
        for (const name of o.matters) await makeMatter(psql, world, o, name);
    }
    for (const s of world.services) {
        s.real = `${prefix}-${s.name}`;
        s.identity = `spiffe://services.example/${s.real}`;
        await psql.run(`INSERT INTO kms.services (org_id, service, identity, purposes, kinds, rate, breadth, public_key, created_at)
            VALUES (${lit(NIL)}, ${lit(s.real)}, ${lit(s.identity)}, ${array('text', s.purposes)}, ${array('text', s.kinds)}, 0, 0, ${lit(s.publicKey)}, clock_timestamp())`);
        for (const n of s.orgs) await psql.run(`INSERT INTO kms.service_orgs VALUES (${lit(world.orgs.get(n).id)}, ${lit(s.real)}, clock_timestamp())`);
    }
    await psql.run('COMMIT');
    log(`${world.services.length} services, ${world.matters.size} matters`);

    // --- users, with their channels while they can have one ---

    for (const o of world.orgs.values()) {
        const users = o.users ? ['alice', 'alice2', 'custodian', 'stranger', 'officer'] : o.officers ? ['officer', 'stranger'] : [];
        for (const name of users) {
            if (name === 'alice') continue; // she has hers: she made a key
            world.users.push({type: 'user', name, org: o.name, realOrg: o.real, sub: name === 'alice2' ? 'alice' : name, officer: name === 'officer', client: `https://clients.example/${name}`});
        }
    }
    await each(world.users.filter((u) => !u.channel), 8, async (u) => {
        u.channel = await Channel.open({org: u.realOrg, sub: u.sub, roles: u.officer ? ['spark.kms_orgagent'] : undefined, clientId: u.client});
    });
    log(`${world.users.length} users`);
    for (const o of world.orgs.values())
        if (o.state === 'suspended') await run(env.KMSCTL, ['org', 'suspend', o.real]);
    return world;
}

async function makeKeys(world, o) {
    const maker = {org: o.real, sub: 'maker', clientId: 'https://clients.example/maker'};
    const ch = await Channel.open(maker);
    const mint = async (channel, count) => {
        const keys = [];
        while (keys.length < count) keys.push(...ok(await channel.ask('create', '/keys', {count: Math.min(100, count - keys.length)}), 201).keys);
        for (const k of keys) world.material.set(idOf(k.uri), k.jwk.k);
        return keys.map((k) => k.uri);
    };
    const resource = async (kind, variant, authIds, keyUris) => {
        const {resource: made} = ok(await ch.ask('create', '/resources', {kind, authIds, keyUris}), 201);
        const r = {id: idOf(made.uri), uri: made.uri, org: o.name, kind, variant, users: ['maker', ...authIds.filter((a) => !a.startsWith('kms:'))],
            via: authIds.filter((a) => a.startsWith('kms:')).map(idOf), gone: ['destroyed', 'expired'].includes(variant), keys: keyUris.map(idOf)};
        world.resources.set(r.id, r);
        return r;
    };
    const group = o.variants.includes('nested') ? await resource('space', 'group', ['custodian', 'alice'], []) : null;
    const uris = await mint(ch, KINDS.length * o.variants.length * o.bound.length);
    for (const kind of KINDS) {
        for (const variant of o.variants) {
            const auths = {plain: ['custodian', 'alice'], others: ['alice'], nested: [group?.uri], destroyed: ['custodian', 'alice'], expired: ['custodian', 'alice']}[variant];
            const mine = uris.splice(0, o.bound.length);
            const r = await resource(kind, variant, auths, mine);
            mine.forEach((uri, i) => world.keys.set(idOf(uri), {id: idOf(uri), org: o.name, resource: r.id, when: o.bound[i], bound: BOUND[o.bound[i]](world.now),
                gone: r.gone || o.bound[i] === 'gone', creator: 'maker', client: maker.clientId}));
        }
    }
    if (!o.users) return;
    const alice = {type: 'user', name: 'alice', org: o.name, realOrg: o.real, sub: 'alice', officer: false, client: 'https://clients.example/alice'};
    alice.channel = await Channel.open({org: o.real, sub: 'alice', clientId: alice.client});
    world.users.push(alice);
    const [unbound] = await mint(alice.channel, 1);
    world.keys.set(idOf(unbound), {id: idOf(unbound), org: o.name, resource: null, when: 'unbound', bound: null, gone: false, creator: 'alice', client: alice.client});
}

async function makeMatter(psql, world, o, name) {
    const m = {id: randomUUID(), name, org: o.name, state: 'open', custodians: ['custodian'], kinds: KINDS, from: windowFrom(world.now), to: windowTo(world.now),
        expires: world.now + DAY, edited: false, ...MATTERS[name](world.now)};
    world.matters.set(m.id, m);
    const at = (t) => `kms.ms_to_time(${t})`;
    // The hash is over the text as the function of the schema writes it; an edited one had a shorter window when it was approved.
    await psql.run(`INSERT INTO kms.matters AS m (org_id, matter_id, name, custodians, window_from, window_to, kinds, expires_at, text_sha256, state, opened_by, opened_at, approved_at, closed_at)
        VALUES (${lit(o.id)}, ${lit(m.id)}, ${lit(name)}, ${array('text', m.custodians)}, ${at(m.from)}, ${at(m.edited ? m.to - 1 : m.to)}, ${array('text', m.kinds)}, ${at(m.expires)},
                sha256(''), ${lit(m.state)}, 'suite(0)', clock_timestamp(), ${m.state === 'pending' || m.state === 'rejected' ? 'NULL' : 'clock_timestamp()'},
                ${m.state === 'closed' ? 'clock_timestamp()' : 'NULL'})`);
    await psql.run(`UPDATE kms.matters m SET text_sha256 = sha256(convert_to(kms.matter_text(m), 'UTF8')) WHERE matter_id = ${lit(m.id)}`);
    await psql.run(`INSERT INTO kms.approvals (org_id, approval_id, action, args, state, needed, requested_by, requested_uid, created_at, expires_at, decided_at)
        SELECT m.org_id, m.matter_id, 'matter.open', '{}', CASE m.state WHEN 'pending' THEN 'pending' WHEN 'rejected' THEN 'rejected' ELSE 'done' END, 2,
               m.opened_by, 0, m.opened_at, m.opened_at + interval '3 days', CASE WHEN m.state <> 'pending' THEN clock_timestamp() END
          FROM kms.matters m WHERE m.matter_id = ${lit(m.id)}`);
    if (m.edited) await psql.run(`UPDATE kms.matters SET window_to = ${at(m.to)} WHERE matter_id = ${lit(m.id)}`);
}

export function certify(services) {
    const made = certificates(services.map((s) => s.identity));
    services.forEach((s, i) => { s.certificate = made[i]; });
}

/* f of each, some at a time. */
export async function each(list, width, f) {
    const todo = [...list];
    await Promise.all(Array.from({length: width}, async () => {
        while (todo.length) await f(todo.shift());
    }));
}
