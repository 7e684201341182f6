// The table's cells: every request that can be asked in these worlds, by nested loops.  Nothing is left out by chance; what the loops go over is said here.
import {randomUUID} from 'node:crypto';
import {KINDS, PURPOSES} from './model.mjs';

export const ASKED = [undefined, 'backup', ...PURPOSES];
const nowhere = randomUUID();

/* Keys and resources of an organisation, with one of another and one that does not exist. */
function targets(world, org, {unbound = true} = {}) {
    const keys = [...world.keys.values()].filter((k) => k.org === org.name && (k.resource || unbound)).map((k) => k.id);
    const resources = [...world.resources.values()].filter((r) => r.org === org.name).map((r) => r.id);
    const other = org.name === 'foreign' ? 'rich' : 'foreign';
    const strange = [...world.resources.values()].find((r) => r.org === other && r.variant === 'plain');
    return {keys: [...keys, strange.keys[0], nowhere], resources: [...resources, strange.id, nowhere]};
}
const mattersOf = (world, org) => [...world.matters.values()].filter((m) => m.org === org.name);

export function* serviceCells(world) {
    const byName = new Map(world.services.map((s) => [s.name, s]));
    const plain = (org) => [...world.resources.values()].filter((r) => r.org === org.name && r.variant === 'plain');
    const both = function* (who, org, asked, matter) {
        for (const r of plain(org)) {
            yield {who, request: {form: 'key', target: r.keys.find((k) => world.keys.get(k).when === 'young'), purpose: asked, matter}};
            yield {who, request: {form: 'resource.keys', target: r.id, purpose: asked, matter}};
        }
    };

    // 1. Purposes: each registration, each set that an organisation has on, each that is asked for, each kind.
    // 2. Kinds: each registration of kinds, where all is on.
    // 3. Organisations: each registration of them.
    const open = (org) => mattersOf(world, org).find((m) => m.name === 'open')?.id;
    for (const who of world.services) {
        for (const org of world.orgs.values()) {
            const wanted = who.name.startsWith('p-') ? /^(on-|suspended$|foreign$)/ : who.name.startsWith('k-') ? /^rich$/ : /^(rich|foreign|suspended|dlp-hour)$/;
            if (wanted.test(org.name)) for (const asked of ASKED) yield* both(who, org, asked, open(org));
        }
    }

    // 4. Matters and times: each matter of the organisation, none, one of another organisation, one that does not exist; each resource; each key.
    const all = byName.get('all');
    const elsewhere = [...world.matters.values()].find((m) => m.org === 'on-none').id;
    const cross = function* (org, purposes) {
        const {keys, resources} = targets(world, org);
        for (const purpose of purposes) {
            for (const matter of [undefined, nowhere, elsewhere, ...mattersOf(world, org).map((m) => m.id)]) {
                for (const target of keys) yield {who: all, request: {form: 'key', target, purpose, matter}};
                for (const target of resources) {
                    yield {who: all, request: {form: 'resource.keys', target, purpose, matter}};
                    for (const more of [{after: world.now - 86400000}, {before: world.now - 1800000}, {count: 2}, {after: world.now - 25 * 3600000, before: world.now - 1800000 - 1, count: 1}])
                        yield {who: all, request: {form: 'resource.keys', target, purpose, matter, ...more}};
                }
            }
        }
    };
    yield* cross(world.orgs.get('rich'), ASKED);
    yield* cross(world.orgs.get('dlp-hour'), ASKED);
    yield* cross(world.orgs.get('suspended'), ASKED);
    for (const org of world.orgs.values()) if (org.officers) yield* cross(org, ['ediscovery']);

    // 5. Walks: who may begin one at all, and under which matter.
    for (const who of world.services) {
        for (const asked of ASKED.slice(1)) yield {who, request: {form: 'purpose.keys', purpose: asked}};
        for (const asked of ASKED)
            for (const matter of [nowhere, elsewhere, ...['rich', 'suspended', 'foreign'].flatMap((n) => mattersOf(world, world.orgs.get(n)).map((m) => m.id))])
                yield {who, request: {form: 'matter.keys', matter, purpose: asked}};
    }
}

/* What is no service's business, whatever it is registered for. */
export function* forbiddenCells(world) {
    const r = [...world.resources.values()].find((x) => x.org === 'rich' && x.variant === 'plain');
    for (const who of world.services) {
        for (const purpose of ASKED) {
            for (const target of [r.id, nowhere]) {
                yield {who, request: {form: 'resource', target, purpose}};
                yield {who, request: {form: 'authorizations', target, purpose}};
                yield {who, request: {form: 'releases', target, purpose}};
                yield {who, request: {form: 'grant', target, purpose}};
                yield {who, request: {form: 'mint', purpose}};
                yield {who, request: {form: 'bind', target, key: r.keys[0], purpose}};
                yield {who, request: {form: 'make', purpose}};
                yield {who, request: {form: 'revoke', target, purpose}};
            }
        }
    }
}

export function* userCells(world) {
    for (const who of world.users) {
        const org = world.orgs.get(who.org);
        const {keys, resources} = targets(world, org);
        const behalfs = org.officers && !who.officer ? [undefined, 'custodian'] : [undefined, who.sub, 'custodian', 'alice', 'maker', 'nobody'];
        for (const behalf of behalfs) {
            for (const target of keys) yield {who, request: {form: 'key', target, behalf}};
            for (const target of resources) {
                for (const form of ['resource.keys', 'resource', 'authorizations']) yield {who, request: {form, target, behalf}};
                for (const more of [{after: world.now - 86400000}, {before: world.now - 1800000}, {count: 2}]) yield {who, request: {form: 'resource.keys', target, behalf, ...more}};
            }
        }
        // A purpose is nothing to a user: it opens nothing and closes nothing.
        if (!org.users) continue;
        const matter = mattersOf(world, org).find((m) => m.name === 'open')?.id;
        for (const purpose of ASKED.slice(2)) {
            for (const target of keys.slice(0, 9)) yield {who, request: {form: 'key', target, purpose, matter}};
            for (const target of resources.slice(0, 2)) yield {who, request: {form: 'resource.keys', target, purpose, matter}};
            yield {who, request: {form: 'purpose.keys', purpose}};
        }
        if (matter) yield {who, request: {form: 'matter.keys', matter}};
    }
}
export {KINDS};
