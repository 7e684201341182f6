// A cloud service of our own making, on node's crypto and the openssl tool alone: certificates, proofs, channels over mutual TLS
// or through a relay, and how services are registered.
import assert from 'node:assert/strict';
import {execFileSync} from 'node:child_process';
import {
    constants, createCipheriv, createDecipheriv, createHash, createPrivateKey, createPublicKey, diffieHellman, generateKeyPairSync, hkdfSync,
    publicEncrypt, randomBytes, randomUUID, sign, verify, X509Certificate,
} from 'node:crypto';
import {mkdtempSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import https from 'node:https';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {base, ca, cluster, env} from './env.mjs';
import {api, server} from './kms.mjs';

const b64 = (v) => Buffer.from(typeof v === 'string' || Buffer.isBuffer(v) ? v : JSON.stringify(v)).toString('base64url');
const unb64 = (s) => Buffer.from(s, 'base64url');
const json = (s) => JSON.parse(unb64(s));
export const nowS = () => Math.floor(Date.now() / 1000);
export const freshIdentity = () => `spiffe://services.example/${randomUUID()}`;

// --- certificates ---

const dir = mkdtempSync(join(tmpdir(), 'kms-services-'));
process.on('exit', () => rmSync(dir, {recursive: true, force: true}));
const openssl = (...args) => execFileSync('openssl', args, {cwd: dir, stdio: ['ignore', 'pipe', 'ignore']});
const serviceCa = () => ({cert: env.KMS_SERVICE_CA_FILE, key: env.KMS_SERVICE_CA_KEY_FILE});

const utc = (seconds) => `${new Date(seconds * 1000).toISOString().replace(/[-:T]/g, '').slice(0, 14)}Z`;
const DEFAULTS = ['basicConstraints=critical,CA:FALSE', 'keyUsage=critical,digitalSignature', 'extendedKeyUsage=clientAuth'];

/*
 * A certificate with its key: {identity, cert, key (PEM), serial (hex), pair}.  san: another subjectAltName, or null for none.  from,
 * until: seconds since 1970.  issuer: another CA's files.  chain: PEM of what stands between.
 */
export function certificate(identity, {type = 'ec', bits = 2048, san = `URI:${identity}`, extensions = DEFAULTS, from = nowS() - 60, until = nowS() + 86400, issuer = serviceCa(), chain = ''} = {}) {
    const serial = `1${randomBytes(12).toString('hex')}`;
    const pair = type === 'rsa' ? generateKeyPairSync('rsa', {modulusLength: bits}) : generateKeyPairSync('ec', {namedCurve: 'P-256'});
    writeFileSync(join(dir, 'key'), pair.privateKey.export({type: 'pkcs8', format: 'pem'}));
    writeFileSync(join(dir, 'index'), '');
    writeFileSync(join(dir, 'serial'), `${serial.length % 2 ? '0' : ''}${serial}\n`);
    writeFileSync(join(dir, 'cnf'), [
        '[ca]', 'default_ca=d', '[d]', 'database=index', 'serial=serial', 'new_certs_dir=.', 'default_md=sha256', 'policy=p', 'unique_subject=no',
        '[p]', 'commonName=supplied', '[x]', ...(san === null ? [] : [`subjectAltName=${san}`]), ...extensions, ''].join('\n'));
    openssl('req', '-new', '-key', 'key', '-subj', `/CN=service ${serial.slice(0, 8)}`, '-out', 'csr');
    openssl('ca', '-batch', '-notext', '-config', 'cnf', '-extensions', 'x', '-cert', issuer.cert, '-keyfile', issuer.key, '-in', 'csr', '-out', 'crt',
        '-startdate', utc(from), '-enddate', utc(until));
    return {identity, cert: readFileSync(join(dir, 'crt'), 'utf8') + chain, key: pair.privateKey.export({type: 'pkcs8', format: 'pem'}), serial, pair};
}

/* A CA's files, its own or under another. */
export function authority(name, issuer) {
    const at = join(dir, `${name}-${randomUUID()}`);
    const usage = ['-addext', 'basicConstraints=critical,CA:TRUE', '-addext', 'keyUsage=critical,keyCertSign,cRLSign'];
    if (issuer) {
        const {cert, key} = certificate(`urn:${name}`, {san: null, extensions: ['basicConstraints=critical,CA:TRUE', 'keyUsage=critical,keyCertSign,cRLSign'], issuer});
        writeFileSync(`${at}.pem`, cert);
        writeFileSync(`${at}.key`, key);
    } else {
        openssl('req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '30', '-keyout', `${at}.key`, '-out', `${at}.pem`, '-subj', `/CN=${name}`, ...usage);
    }
    return {cert: `${at}.pem`, key: `${at}.key`};
}

/* A revocation list of the services' CA (PEM) with these serial numbers. */
export function revocations(serials, {issuer = serviceCa(), days = 30} = {}) {
    const when = utc(nowS() - 3600).slice(2), end = utc(nowS() + 86400).slice(2);
    writeFileSync(join(dir, 'index'), serials.map((s) => `R\t${end}\t${when}\t${s.length % 2 ? '0' : ''}${s.toUpperCase()}\tunknown\t/CN=x\n`).join(''));
    writeFileSync(join(dir, 'cnf'), '[ca]\ndefault_ca=d\n[d]\ndatabase=index\ndefault_md=sha256\n');
    return openssl('ca', '-gencrl', '-config', 'cnf', '-cert', issuer.cert, '-keyfile', issuer.key, '-crldays', String(days)).toString();
}

const pems = (text) => text.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g);
export const publicJwk = (who) => who.pair.publicKey.export({format: 'jwk'});
export const x5cOf = (who) => pems(who.cert).map((pem) => new X509Certificate(pem).raw.toString('base64'));

// --- proofs ---

/* RFC 7638. */
export function thumbprint(jwk) {
    const members = jwk.kty === 'RSA' ? {e: jwk.e, kty: jwk.kty, n: jwk.n} : {crv: jwk.crv, kty: jwk.kty, x: jwk.x, y: jwk.y};
    return createHash('sha256').update(JSON.stringify(members)).digest('base64url');
}

/* claims: to change some of them (undefined: left out).  by: who signs.  header: likewise. */
export function proof(who, ephemeral, claims = {}, {by = who, header = {}} = {}) {
    const rsa = by.pair.privateKey.asymmetricKeyType === 'rsa';
    const head = b64({alg: rsa ? 'PS256' : 'ES256', ...header});
    const body = b64({aud: cluster, iat: nowS(), jti: randomUUID(), cnf: thumbprint(ephemeral), ...claims});
    const how = rsa ? {padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: 32} : {dsaEncoding: 'ieee-p1363'};
    return `${head}.${body}.${b64(sign('sha256', Buffer.from(`${head}.${body}`), {key: by.pair.privateKey, ...how}))}`;
}

// --- transport and JOSE ---

/* The agent of a connection with this certificate; without one, a relay's. */
const agents = new Map();
function agentOf(who) {
    const name = who?.serial ?? '';
    if (!agents.has(name)) agents.set(name, new https.Agent({keepAlive: true, maxSockets: 4, ca, cert: who?.cert, key: who?.key}));
    return agents.get(name);
}
export function forgetConnections() {
    for (const agent of agents.values()) agent.destroy();
    agents.clear();
}

export function send(kmsMessages, agent) {
    const data = JSON.stringify({destination: cluster, kmsMessages});
    return new Promise((resolve, reject) => {
        const headers = {'content-type': 'application/json', 'content-length': Buffer.byteLength(data)};
        const req = https.request({host: base.hostname, port: base.port, method: 'POST', path: `${api}/messages`, agent, headers}, (res) => {
            const parts = [];
            res.on('error', reject).on('data', (d) => parts.push(d)).on('end', () => {
                const text = Buffer.concat(parts).toString();
                if (res.statusCode !== 200) reject(new Error(`HTTP ${res.statusCode}: ${text.slice(0, 300)}`));
                else resolve(JSON.parse(text).kmsMessages);
            });
        });
        req.on('error', reject).end(data);
    });
}

function seal(key, header, plain, ek = '') {
    const head = b64(header), iv = randomBytes(12), cipher = createCipheriv('aes-256-gcm', key, iv);
    cipher.setAAD(Buffer.from(head));
    const text = Buffer.concat([cipher.update(JSON.stringify(plain)), cipher.final()]);
    return [head, b64(ek), b64(iv), b64(text), b64(cipher.getAuthTag())].join('.');
}
function unseal(key, compact) {
    const [head, , iv, text, tag] = compact.split('.');
    const cipher = createDecipheriv('aes-256-gcm', key, unb64(iv));
    cipher.setAAD(Buffer.from(head));
    cipher.setAuthTag(unb64(tag));
    return JSON.parse(Buffer.concat([cipher.update(unb64(text)), cipher.final()]));
}
async function signed(compact) {
    const {key} = await server();
    const [head, body, signature] = compact.split('.');
    assert.equal(json(head).alg, 'PS256');
    assert.ok(verify('sha256', Buffer.from(`${head}.${body}`), {key: createPublicKey({key, format: 'jwk'}), padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: 32},
        unb64(signature)), "the server's signature");
    return json(body);
}

export function ephemeral() {
    const pair = generateKeyPairSync('ec', {namedCurve: 'P-256'});
    return {pair, jwk: pair.publicKey.export({format: 'jwk'})};
}

// --- channels ---

/* One end of a channel of a service.  Over mutual TLS its credential is {}; relay: a proof first, then its jwk alone. */
export class ServiceChannel {
    /* credential: instead of the right one.  tls: whose certificate the connection shows, null for none.  {channel} or {refused} */
    static async try(who, {relay = false, credential, tls = relay ? null : who, own = ephemeral(), shown = own, members = {}} = {}) {
        const {key} = await server();
        const ch = Object.assign(new ServiceChannel(), {who, relay, tls, clientId: `https://services.example/${randomUUID()}`});
        credential ??= relay ? {jwk: {...publicJwk(who), x5c: x5cOf(who)}, proof: proof(who, shown.jwk)} : {};
        const body = {client: {clientId: ch.clientId, credential}, method: 'create', uri: '/ecdhe', requestId: randomUUID(), jwk: own.jwk, ...members};
        const cek = randomBytes(32);
        const ek = publicEncrypt({key: createPublicKey({key, format: 'jwk'}), padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: 'sha256'}, cek);
        ch.first = seal(cek, {alg: 'RSA-OAEP-256', enc: 'A256GCM', kid: key.kid}, body, ek);
        const created = await signed((await send([ch.first], agentOf(tls)))[0]);
        if (created.status !== 201) return {refused: created, first: ch.first};
        assert.equal(created.requestId, body.requestId);
        ch.created = created;
        ch.uri = created.key.uri;
        const theirs = createPublicKey({key: created.key.jwk, format: 'jwk'});
        ch.key = Buffer.from(hkdfSync('sha256', diffieHellman({privateKey: own.pair.privateKey, publicKey: theirs}), '', '', 32));
        return {channel: ch};
    }

    static async open(who, how) {
        const {channel, refused} = await ServiceChannel.try(who, how);
        assert.ok(channel, `no channel: ${JSON.stringify(refused)}`);
        return channel;
    }

    /* as: {credential, tls} of this request alone.  The answer's body; signed says that it came signed. */
    async ask(method, uri, members = {}, {credential = this.relay ? {jwk: publicJwk(this.who)} : {}, tls = this.tls} = {}) {
        const requestId = randomUUID();
        const body = {client: {clientId: this.clientId, credential}, method, uri, requestId, ...members};
        const [answer] = await send([seal(this.key, {alg: 'dir', enc: 'A256GCM', kid: this.uri}, body)], agentOf(tls));
        if (answer.split('.').length === 3) return Object.defineProperty(await signed(answer), 'signed', {value: true});
        const opened = unseal(this.key, answer);
        assert.equal(opened.requestId, requestId);
        return opened;
    }

    retrieve(uri, members, as) { return this.ask('retrieve', uri, members, as); }
}

/* Several requests at once, one POST. */
export async function askAll(ch, requests) {
    const bodies = requests.map(([method, uri, members]) => ({
        client: {clientId: ch.clientId, credential: ch.relay ? {jwk: publicJwk(ch.who)} : {}}, method, uri, requestId: randomUUID(), ...members}));
    const answers = await send(bodies.map((b) => seal(ch.key, {alg: 'dir', enc: 'A256GCM', kid: ch.uri}, b)), agentOf(ch.tls));
    return answers.map((a) => unseal(ch.key, a));
}

/* A first message sent once more, as whoever has recorded it can. */
export async function replay(first, tls = null) {
    return signed((await send([first], agentOf(tls)))[0]);
}

export const keyOf = (who) => createPrivateKey(who.key);
