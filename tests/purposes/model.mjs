// Who may get what: the plain model.  Written from the protocol (sections 3, 4 and 8) and knows nothing of how the server does it.
//
// A world is plain data:
//   orgs       name -> {name, state: active|suspended, on: [purpose], dlpAge: ms, compliance: role|matter}
//   resources  id -> {id, org, kind, users: [sub], via: [resource id], gone}
//   keys       id -> {id, org, resource: id|null, bound: ms|null, gone, creator: sub, client}
//   matters    id -> {id, org, state: pending|open|rejected|closed, custodians: [sub], kinds, from, to, expires, edited}
// and so are principals:
//   {type: 'user', org, sub, client, officer}      {type: 'service', state: active|retired, purposes, orgs, kinds}
// and requests:
//   {form: key|resource.keys|resource|authorizations, target, purpose?, matter?, behalf?, after?, before?, count?}
//   {form: purpose.keys, purpose}   {form: matter.keys, matter, purpose?}
// The answer: {code: 0 or the errorCode, keys: [id] in the order of their binding, where keys are asked for}.

export const PURPOSES = ['indexing', 'dlp', 'ediscovery', 'archival', 'transcoding'];
export const KINDS = ['space', 'meeting', 'file', 'whiteboard', 'calendar'];
const DEPTH = 8;

const no = (code) => ({code});
const yes = (keys) => ({code: 0, keys: keys?.map((k) => k.id)});
const byBinding = (a, b) => a.bound - b.bound || (a.id < b.id ? -1 : 1);

export function expected(world, who, request) {
    return who.type === 'service' ? service(world, who, request) : user(world, who, request);
}

// --- users (sections 3 and 4) ---

/* Is this user on the resource, or on one that it is open to, through at most eight grants? */
function authorised(world, sub, resource) {
    let reached = new Set([resource.id]), last = [resource];
    for (let depth = 0; depth <= DEPTH && last.length; depth++) {
        if (last.some((r) => r.users.includes(sub))) return true;
        last = last.flatMap((r) => r.via).filter((id) => !reached.has(id)).map((id) => world.resources.get(id)).filter((r) => !r.gone);
        for (const r of last) reached.add(r.id);
    }
    return false;
}

function user(world, who, request) {
    const org = world.orgs.get(who.org), officer = request.behalf !== undefined && request.behalf !== who.sub;
    if (['purpose.keys', 'matter.keys'].includes(request.form)) return no(403005);
    if (org.state !== 'active') return no(403001);
    if (officer && !who.officer) return no(403004);
    const as = officer ? request.behalf : who.sub;
    const target = (request.form === 'key' ? world.keys : world.resources).get(request.target);
    if (!target) return no(404001);
    if (target.org !== who.org) return no(officer ? 403004 : 403001);

    const resource = request.form === 'key' ? target.resource && world.resources.get(target.resource) : target;
    if (!resource) {
        if (target.creator !== as) return no(403002);
        if (!officer && target.client !== who.client) return no(403003);
        return officer && org.compliance === 'matter' ? no(403007) : yes([target]);
    }
    if (!authorised(world, as, resource)) return no(403001);

    // An organisation may want an open matter for its officers too.  A request is tied to one: of those that cover it rather one that has keys of what is
    // asked for, then the one that expires last.
    const matters = !officer || org.compliance === 'role' ? null : [...world.matters.values()].filter((m) => m.org === who.org && open(world, m) &&
        m.custodians.includes(as) && m.kinds.includes(resource.kind));
    const asked = request.form === 'key' ? [target] : latest(keysOf(world, resource), {...request, count: undefined});
    const has = (m) => asked.some((k) => inWindow(m, k));
    const matter = matters?.sort((a, b) => has(b) - has(a) || b.expires - a.expires || (a.id < b.id ? -1 : 1))[0];
    const seen = (k) => !matters || inWindow(matter, k);
    if (matters && (!matter || (request.form === 'key' && !seen(target)))) return no(403007);
    if (resource.gone || (request.form === 'key' && target.gone)) return no(410001);
    if (request.form === 'key') return yes([target]);
    if (request.form === 'resource.keys') return yes(latest(keysOf(world, resource).filter(seen), request));
    return yes();
}

// --- services (section 8) ---

const open = (world, m) => m.state === 'open' && m.expires > world.now && !m.edited;
const inWindow = (m, key) => key.bound >= m.from && key.bound < m.to;
/* By its own authorisations, not by nesting. */
const covers = (m, resource) => m.org === resource.org && m.kinds.includes(resource.kind) && m.custodians.some((c) => resource.users.includes(c));
const keysOf = (world, resource) => (resource.keys ?? []).map((id) => world.keys.get(id)).filter((k) => !k.gone).sort(byBinding);

function latest(keys, {after = -Infinity, before = Infinity, count}) {
    const list = keys.filter((k) => k.bound >= after && k.bound < before);
    return count === undefined ? list : list.slice(-count);
}

const allows = (world, who, purpose, org) => who.orgs.includes(org) && world.orgs.get(org).on.includes(purpose);

function service(world, who, request) {
    const {form} = request;
    if (!['key', 'resource.keys', 'purpose.keys', 'matter.keys'].includes(form)) return no(403005);
    if (who.state === 'retired') return no(403006);
    const purpose = form === 'matter.keys' ? request.purpose ?? 'ediscovery' : request.purpose;
    if (!PURPOSES.includes(purpose) || !who.purposes.includes(purpose)) return no(403005);
    if (form === 'purpose.keys') return walk(world, who, purpose);
    if (form === 'matter.keys') return ofMatter(world, who, purpose, request);

    const target = (form === 'key' ? world.keys : world.resources).get(request.target);
    if (!target) return no(404001);
    const resource = form === 'resource.keys' ? target : target.resource && world.resources.get(target.resource);
    if (!allows(world, who, purpose, target.org)) return no(403005);
    if (resource && !who.kinds.includes(resource.kind)) return no(403005);
    if (world.orgs.get(target.org).state !== 'active') return no(403001);
    if (!resource) return no(purpose === 'ediscovery' ? 403007 : 403005);

    let seen = () => true, refusal;
    if (purpose === 'ediscovery') {
        const m = world.matters.get(request.matter);
        if (!m || !open(world, m) || !covers(m, resource)) return no(403007);
        seen = (k) => inWindow(m, k);
        refusal = 403007;
    } else if (purpose === 'dlp') {
        seen = (k) => k.bound > world.now - world.orgs.get(resource.org).dlpAge;
        refusal = 403005;
    }
    if (form === 'key' && !seen(target)) return no(refusal);
    if (resource.gone || (form === 'key' && target.gone)) return no(410001);
    // Of a walk, `count` is the size of a page: this is all of it.
    const span = ['indexing', 'archival'].includes(purpose) ? {...request, count: undefined} : request;
    return yes(form === 'key' ? [target] : latest(keysOf(world, resource).filter(seen), span));
}

/* All that a service sees under indexing or archival. */
function walk(world, who, purpose) {
    const orgs = [...world.orgs.values()].filter((o) => allows(world, who, purpose, o.name));
    if (!['indexing', 'archival'].includes(purpose) || orgs.length === 0) return no(403005);
    if (orgs.every((o) => o.state !== 'active')) return no(403001);
    return yes([...world.resources.values()]
        .filter((r) => allows(world, who, purpose, r.org) && world.orgs.get(r.org).state === 'active' && who.kinds.includes(r.kind) && !r.gone)
        .flatMap((r) => keysOf(world, r)));
}

function ofMatter(world, who, purpose, request) {
    if (purpose !== 'ediscovery') return no(403005);
    const m = world.matters.get(request.matter);
    if (!m) return no(403007);
    if (!allows(world, who, purpose, m.org)) return no(403005);
    if (world.orgs.get(m.org).state !== 'active') return no(403001);
    if (!open(world, m)) return no(403007);
    return yes([...world.resources.values()]
        .filter((r) => covers(m, r) && who.kinds.includes(r.kind) && !r.gone)
        .flatMap((r) => keysOf(world, r)).filter((k) => inWindow(m, k)));
}
