// A KMS client over node-kms and plain https: channels, requests, and sealed messages that node-kms would never make.
import assert from 'node:assert/strict';
import {constants, createCipheriv, createPublicKey, publicEncrypt, randomBytes, randomUUID} from 'node:crypto';
import https from 'node:https';
import {base, ca, cluster, env, require} from './env.mjs';

const {Context, Request, Response} = require('node-kms');
const agent = new https.Agent({keepAlive: true, maxSockets: 64, ca});

export const api = '/encryption/api/v1/kms';
export const randomId = randomUUID;
const b64 = (v) => Buffer.from(typeof v === 'string' || Buffer.isBuffer(v) ? v : JSON.stringify(v)).toString('base64url');

/* One HTTP request; json is undefined where the body is none. */
export function http(method, path, body, headers = {}) {
    const data = body === undefined || typeof body === 'string' || Buffer.isBuffer(body) ? body : JSON.stringify(body);
    return new Promise((resolve, reject) => {
        const length = data === undefined ? {} : {'content-type': 'application/json', 'content-length': Buffer.byteLength(data)};
        const req = https.request({host: base.hostname, port: base.port, path, method, agent, headers: {...length, ...headers}}, (res) => {
            const parts = [];
            res.on('error', reject).on('data', (d) => parts.push(d)).on('end', () => {
                const text = Buffer.concat(parts).toString();
                let json;
                try { json = JSON.parse(text); } catch { /* not JSON: the caller looks at text */ }
                resolve({status: res.statusCode, headers: res.headers, text, json});
            });
        });
        req.on('error', reject).end(data);
    });
}

let details;
/* What GET answers, with the static key parsed. */
export async function server() {
    details ??= http('GET', `${api}/${randomId()}`).then(({status, json}) => {
        assert.equal(status, 200);
        return {...json, key: JSON.parse(json.rsaPublicKey)};
    });
    return details;
}

/* POSTs compact messages; the whole HTTP answer. */
export const postRaw = (kmsMessages, destination = cluster) => http('POST', `${api}/messages`, {destination, kmsMessages});

/* POSTs compact messages and returns as many. */
export async function post(kmsMessages) {
    const res = await postRaw(kmsMessages);
    assert.equal(res.status, 200, `HTTP ${res.status}: ${res.text.slice(0, 300)}`);
    assert.ok(Array.isArray(res.json?.kmsMessages), res.text.slice(0, 300));
    assert.equal(res.json.kmsMessages.length, kmsMessages.length, 'one answer for each message');
    return res.json.kmsMessages;
}

const headOf = (compact) => JSON.parse(Buffer.from(compact.split('.')[0], 'base64url'));

/* Opens an answer with node-kms, and holds its header against section 2.  {signed, body} */
export async function open(compact, ctx) {
    const {key} = await server();
    const head = headOf(compact);
    const signed = compact.split('.').length === 3;
    if (signed) {
        assert.equal(head.alg, 'PS256');
        assert.equal(head.kid, key.kid);
    } else {
        assert.equal(head.alg, 'dir');
        assert.equal(head.enc, 'A256GCM');
        assert.equal(head.kid, ctx.ephemeralKey.uri);
    }
    const opened = new Context();
    opened.serverInfo = {key};
    if (!signed) opened.ephemeralKey = ctx.ephemeralKey;
    const res = new Response(compact);
    await res.unwrap(opened);
    assert.ok(Number.isInteger(res.body.status), 'an answer has a status');
    return {signed, body: res.body};
}

/* Compact JWE by hand: A256GCM under key (32 bytes), any header, any encrypted key. */
export function seal(key, header, plain, {ek = '', iv = randomBytes(12), tag = 16} = {}) {
    const head = b64(header);
    const cipher = createCipheriv(key.length === 16 ? 'aes-128-gcm' : 'aes-256-gcm', key, iv);
    cipher.setAAD(Buffer.from(head));
    const text = Buffer.concat([cipher.update(typeof plain === 'object' && !Buffer.isBuffer(plain) ? JSON.stringify(plain) : plain), cipher.final()]);
    return [head, b64(ek), b64(iv), b64(text), b64(cipher.getAuthTag().subarray(0, tag))].join('.');
}

/* Compact JWE by hand to the server's static key.  oaepHash sha1 or sha256; cek and padding can be wrong on purpose. */
export async function sealStatic(plain, {alg = 'RSA-OAEP', cek = randomBytes(32), ek, header = {}, ...rest} = {}) {
    const {key} = await server();
    const pub = createPublicKey({key, format: 'jwk'});
    ek ??= publicEncrypt({key: pub, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: alg === 'RSA-OAEP' ? 'sha1' : 'sha256'}, cek);
    return seal(cek, {alg, enc: 'A256GCM', kid: key.kid, ...header}, plain, {ek, ...rest});
}

/* One end of an ephemeral key, as one user on one device. */
export class Channel {
    /* bearer: a function, or a fixed token.  alg: how the first message is encrypted.  rest: members.  {channel} or {refused: answer}. */
    static async try(user, {alg, bearer, clientId = user.clientId, uri = '/ecdhe', credential = {}, requestId, ...rest} = {}) {
        const ch = new Channel();
        const {key} = await server();
        ch.user = user;
        ch.clientId = clientId;
        ch.bearer = bearer ?? (() => user.token());
        const ctx = new Context();
        ctx.serverInfo = {key: alg ? {...key, alg} : key};
        ctx.clientInfo = ch.client({credential});
        ctx.ephemeralKey = await ctx.createECDHKey();
        ch.ctx = ctx;
        const local = await ctx.ephemeralKey.asKey();
        const req = new Request({method: 'create', uri, jwk: local.toJSON(), ...rest, ...(requestId === undefined ? {} : {requestId})});
        await req.wrap(ctx, {serverKey: true});
        ch.firstHeader = headOf(req.wrapped);
        const {signed, body} = await open((await post([req.wrapped]))[0], ctx);
        assert.ok(signed, 'the answer to the first message is signed');
        if (body.requestId !== undefined) assert.equal(body.requestId, req.requestId);
        ch.created = body;
        if (body.status !== 201) return {refused: body};
        ctx.ephemeralKey = await ctx.deriveEphemeralKey(body.key);
        return {channel: ch};
    }

    static async open(user, options) {
        const {channel, refused} = await Channel.try(user, options);
        assert.ok(channel, `no channel: ${JSON.stringify(refused)}`);
        return channel;
    }

    get uri() { return this.ctx.ephemeralKey.uri; }
    get secret() { return Buffer.from(this.ctx.ephemeralKey.jwk.k, 'base64url'); }

    client({bearer = this.bearer, clientId = this.clientId, credential = {}, onBehalfOf} = {}) {
        const token = typeof bearer === 'function' ? bearer() : bearer;
        const who = {...(this.user.sub ? {userId: this.user.sub} : {}), ...(token === null ? {} : {bearer: token})};
        return {clientId, credential: {...who, ...(onBehalfOf ? {userId: onBehalfOf, onBehalfOf} : {}), ...credential}};
    }

    /* Wraps with node-kms; as: bearer, clientId, credential, onBehalfOf for this request alone. */
    async wrap(request, as = {}) {
        const ctx = new Context();
        ctx.ephemeralKey = this.ctx.ephemeralKey;
        ctx.clientInfo = this.client(as);
        const req = new Request(request);
        await req.wrap(ctx);
        return req;
    }

    /* Seals any text by hand, with any header. */
    seal(plain, header = {}, how = {}) {
        const head = typeof header === 'string' ? header : {alg: 'dir', enc: 'A256GCM', kid: this.uri, ...header};
        return seal(this.secret, head, plain, how);
    }

    open(compact) { return open(compact, this.ctx); }

    /* Several requests in one POST; the answers' bodies, in order. */
    async askAll(requests, as = {}) {
        const reqs = await Promise.all(requests.map((r) => this.wrap(r, as)));
        const answers = await Promise.all((await post(reqs.map((r) => r.wrapped))).map((c) => this.open(c)));
        answers.forEach(({signed, body}, i) => {
            if (signed) return;
            assert.deepEqual(body.requestId, reqs[i].body.requestId, 'requestId is echoed');
        });
        return answers.map(({signed, body}) => Object.defineProperty(body, 'signed', {value: signed}));
    }

    async ask(method, uri, members = {}, as = {}) {
        return (await this.askAll([{method, uri, ...members}], as))[0];
    }

    /* What was sealed by hand: {signed, body}. */
    async raw(plain, header, how) {
        return this.open((await post([this.seal(plain, header, how)]))[0]);
    }

    create(uri, members, as) { return this.ask('create', uri, members, as); }
    retrieve(uri, members, as) { return this.ask('retrieve', uri, members, as); }
    update(uri, members, as) { return this.ask('update', uri, members, as); }
    delete(uri, members, as) { return this.ask('delete', uri, members, as); }

    /* The usual beginnings; each insists on success. */
    async keys(count = 1) { return ok(await this.create('/keys', {count}), 201).keys; }

    async resource({authIds = [], keys = 1, ...more} = {}) {
        const keyUris = keys ? (await this.keys(keys)).map((k) => k.uri) : [];
        return ok(await this.create('/resources', {authIds, keyUris, ...more}), 201).resource;
    }

    async grant(resourceUri, ...authIds) {
        return ok(await this.create('/authorizations', {resourceUri, authIds}), 201).authorizations;
    }
}

export function ok(body, status = 200) {
    assert.equal(body.status, status, `${status} expected: ${JSON.stringify(body)}`);
    assert.equal(body.errorCode, undefined);
    return body;
}

export function refused(body, ...codes) {
    assert.ok(codes.includes(body.errorCode), `${codes} expected: ${JSON.stringify(body)}`);
    assert.equal(body.status, Math.floor(body.errorCode / 1000));
    assert.ok(typeof body.reason === 'string' && body.reason.length > 0, 'a refusal has its reason');
    return body;
}

/* A copy of a list with another value at i. */
export const swap = (list, i, value) => list.map((old, j) => (j === i ? value : old));
export const DATE = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;
export const UUID = '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}';
export const uriOf = (collection) => new RegExp(`^kms://${env.KMS_DOMAIN.replaceAll('.', '\\.')}/${collection}/${UUID}$`);
export const relative = (uri) => uri.slice(cluster.length);
