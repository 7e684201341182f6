// A small KMS client on node's own crypto alone, quick enough for tens of thousands of requests: users with tokens, services with certificates.
// That unmodified clients get along with the server is tests/clients' matter; here the question is who gets what.
import {execFileSync} from 'node:child_process';
import {
    constants, createCipheriv, createDecipheriv, createECDH, createHash, createPrivateKey, createPublicKey, diffieHellman, hkdfSync, privateDecrypt, publicEncrypt,
    randomBytes, randomUUID, sign, verify,
} from 'node:crypto';
import {mkdtempSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import https from 'node:https';
import {tmpdir} from 'node:os';
import {join} from 'node:path';

export const env = process.env;
export const cluster = `kms://${env.KMS_DOMAIN}`;
const ca = readFileSync(env.KMS_CA_FILE, 'utf8');
const b64 = (v) => Buffer.from(typeof v === 'string' || Buffer.isBuffer(v) ? v : JSON.stringify(v)).toString('base64url');
const unb64 = (s) => Buffer.from(s, 'base64url');
const messages = '/encryption/api/v1/kms/messages';

// --- principals ---

const issuer = createPrivateKey(readFileSync(env.KMS_TOKEN_KEY_FILE));

export function token({org = env.KMS_ORG, sub, roles}) {
    const now = Math.floor(Date.now() / 1000);
    const claims = {iss: env.KMS_TOKEN_ISSUER, aud: env.KMS_TOKEN_AUDIENCE, iat: now, exp: now + 86400, jti: randomUUID(), scope: 'spark:kms', org, sub, roles};
    const input = `${b64({alg: 'ES256', typ: 'JWT', kid: env.KMS_TOKEN_KID})}.${b64(claims)}`;
    return `${input}.${sign('sha256', Buffer.from(input), {key: issuer, dsaEncoding: 'ieee-p1363'}).toString('base64url')}`;
}

/* Certificates of services under the instance's CA for them: {cert, key} in PEM for each identity. */
export function certificates(identities) {
    const dir = mkdtempSync(join(tmpdir(), 'kms-certs-'));
    const ssl = (...args) => execFileSync('openssl', args, {cwd: dir, stdio: ['ignore', 'pipe', 'ignore']});
    try {
        return identities.map((identity) => {
            ssl('req', '-new', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', 'k', '-out', 'r', '-subj', '/CN=service');
            writeFileSync(join(dir, 'x'), `subjectAltName=URI:${identity}\nbasicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=clientAuth\n`);
            const serial = randomBytes(15).toString('hex');
            const cert = ssl('x509', '-req', '-in', 'r', '-CA', env.KMS_SERVICE_CA_FILE, '-CAkey', env.KMS_SERVICE_CA_KEY_FILE, '-set_serial', `0x1${serial}`,
                '-days', '30', '-extfile', 'x').toString();
            return {cert, key: readFileSync(join(dir, 'k'), 'utf8'), serial: `1${serial}`};
        });
    } finally {
        rmSync(dir, {recursive: true});
    }
}

// --- HTTP ---

const agents = new Map();
function agentFor(url, certificate) {
    const name = `${url} ${certificate?.serial ?? ''}`;
    if (!agents.has(name)) agents.set(name, new https.Agent({keepAlive: true, maxSockets: 8, ca, cert: certificate?.cert, key: certificate?.key}));
    return agents.get(name);
}
export function forgetConnections() {
    for (const a of agents.values()) a.destroy();
    agents.clear();
}

export function http(method, path, body, {url = env.KMS_URL, certificate} = {}) {
    const at = new URL(url), data = body === undefined ? undefined : JSON.stringify(body);
    return new Promise((resolve, reject) => {
        const headers = data === undefined ? {} : {'content-type': 'application/json', 'content-length': Buffer.byteLength(data)};
        const req = https.request({host: at.hostname, port: at.port, path, method, agent: agentFor(url, certificate), headers}, (res) => {
            const parts = [];
            res.on('error', reject).on('data', (d) => parts.push(d)).on('end', () => resolve({status: res.statusCode, text: Buffer.concat(parts).toString()}));
        });
        // A connection that was idle for long may be closed just when it is used again: then nothing was heard, and it is asked anew.
        req.on('error', (e) => (req.reusedSocket && e.code === 'ECONNRESET' ? http(method, path, body, {url, certificate}).then(resolve, reject) : reject(e))).end(data);
    });
}

export async function post(kmsMessages, where) {
    const res = await http('POST', messages, {destination: cluster, kmsMessages}, where);
    if (res.status !== 200) throw new Error(`HTTP ${res.status}: ${res.text.slice(0, 300)}`);
    const list = JSON.parse(res.text).kmsMessages;
    if (list.length !== kmsMessages.length) throw new Error(`${list.length} answers to ${kmsMessages.length} messages`);
    return list;
}

let details;
async function staticKey() {
    details ??= http('GET', `/encryption/api/v1/kms/${randomUUID()}`).then(({text}) => {
        const jwk = JSON.parse(JSON.parse(text).rsaPublicKey);
        return {kid: jwk.kid, key: createPublicKey({key: jwk, format: 'jwk'})};
    });
    return details;
}

// --- JOSE ---

function seal(key, header, body, ek = '') {
    const head = b64(header), iv = randomBytes(12), c = createCipheriv('aes-256-gcm', key, iv);
    c.setAAD(Buffer.from(head));
    const text = Buffer.concat([c.update(JSON.stringify(body)), c.final()]);
    return [head, b64(ek), b64(iv), b64(text), b64(c.getAuthTag())].join('.');
}

function unseal(key, compact) {
    const [head, , iv, text, tag] = compact.split('.');
    const d = createDecipheriv('aes-256-gcm', key, unb64(iv));
    d.setAAD(Buffer.from(head));
    d.setAuthTag(unb64(tag));
    return JSON.parse(Buffer.concat([d.update(unb64(text)), d.final()]));
}

/* What was sealed to a public key: RSA-OAEP-256, or ECDH-ES (RFC 7518, 4.6) on P-256. */
export function unsealed(compact, key) {
    const [head, ek, iv, text, tag] = compact.split('.');
    const header = JSON.parse(unb64(head));
    let cek;
    if (header.alg === 'RSA-OAEP-256') cek = privateDecrypt({key, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: 'sha256'}, unb64(ek));
    else if (header.alg === 'ECDH-ES' && ek === '') {
        const z = diffieHellman({privateKey: key, publicKey: createPublicKey({key: header.epk, format: 'jwk'})});
        const number = (n) => Buffer.from([0, 0, 0, n]), part = (t) => Buffer.concat([number(t.length), Buffer.from(t)]);
        cek = createHash('sha256').update(Buffer.concat([number(1), z, part(header.enc), part(''), part(''), Buffer.from([0, 0, 1, 0])])).digest();
    } else throw new Error(`alg ${header.alg}`);
    if (header.enc !== 'A256GCM') throw new Error(`enc ${header.enc}`);
    const d = createDecipheriv('aes-256-gcm', cek, unb64(iv));
    d.setAAD(Buffer.from(head));
    d.setAuthTag(unb64(tag));
    return JSON.parse(Buffer.concat([d.update(unb64(text)), d.final()]));
}

async function verified(compact) {
    const [head, body, signature] = compact.split('.');
    const {kid, key} = await staticKey();
    if (JSON.parse(unb64(head)).kid !== kid ||
        !verify('sha256', Buffer.from(`${head}.${body}`), {key, padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: 32}, unb64(signature)))
        throw new Error('not signed by the server');
    return JSON.parse(unb64(body));
}

// --- channels ---

/* One end of a channel.  who: {org, sub, roles, clientId} of a user, {certificate, clientId} of a service. */
export class Channel {
    static async try(who, where = {}) {
        const {kid, key} = await staticKey();
        const ch = Object.assign(new Channel(), {who, where: {...where, certificate: who.certificate}, clientId: who.clientId ?? `https://clients.example/${randomUUID()}`});
        ch.bearer = who.certificate ? undefined : token(who);
        const ecdh = createECDH('prime256v1');
        const point = ecdh.generateKeys();
        const jwk = {kty: 'EC', crv: 'P-256', x: b64(point.subarray(1, 33)), y: b64(point.subarray(33, 65))};
        const cek = randomBytes(32), ek = publicEncrypt({key, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: 'sha1'}, cek);
        const body = {client: ch.client(), method: 'create', uri: '/ecdhe', requestId: randomUUID(), jwk};
        const [answer] = await post([seal(cek, {alg: 'RSA-OAEP', enc: 'A256GCM', kid}, body, ek)], ch.where);
        const created = await verified(answer);
        if (created.status !== 201) return {refused: created};
        const theirs = created.key.jwk;
        const shared = ecdh.computeSecret(Buffer.concat([Buffer.from([4]), unb64(theirs.x), unb64(theirs.y)]));
        ch.uri = created.key.uri;
        ch.key = Buffer.from(hkdfSync('sha256', shared, '', '', 32));
        return {channel: ch};
    }

    static async open(who, where) {
        const {channel, refused} = await Channel.try(who, where);
        if (!channel) throw new Error(`no channel for ${who.sub ?? who.name}: ${JSON.stringify(refused)}`);
        return channel;
    }

    client(more = {}) {
        return {clientId: this.clientId, credential: {...(this.bearer ? {bearer: this.bearer} : {}), ...more}};
    }

    /* One POST: the answers' bodies in order.  A request may have `behalf` (onBehalfOf). */
    async askAll(requests, where = {}) {
        const ids = requests.map(() => randomUUID());
        const answers = await post(requests.map(({behalf, ...r}, i) =>
            seal(this.key, {alg: 'dir', enc: 'A256GCM', kid: this.uri},
                {client: this.client(behalf === undefined ? {} : {onBehalfOf: behalf}), requestId: ids[i], ...r})), {...this.where, ...where});
        return Promise.all(answers.map(async (compact, i) => {
            if (compact.split('.').length === 3) return {...await verified(compact), signed: true};
            const body = unseal(this.key, compact);
            if (body.requestId !== ids[i]) throw new Error('an answer to another request');
            return body;
        }));
    }

    async ask(method, uri, members = {}, where = {}) {
        return (await this.askAll([{method, uri, ...members}], where))[0];
    }
}

export function ok(body, status = 200) {
    if (body.status !== status) throw new Error(`${status} expected: ${JSON.stringify(body)}`);
    return body;
}
export const idOf = (uri) => uri.slice(uri.lastIndexOf('/') + 1);
export {b64, unb64, unseal};
