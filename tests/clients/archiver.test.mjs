// kms-client as a cloud service, and node-jose as the archiver that opens what is sealed to its public key (protocol section 8).
import assert from 'node:assert/strict';
import {spawnSync} from 'node:child_process';
import {createPublicKey, generateKeyPairSync, randomUUID} from 'node:crypto';
import {mkdtempSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {after, before, test} from 'node:test';
import {env, require} from './lib/env.mjs';
import {User} from './lib/tokens.mjs';
import {Channel, DATE} from './lib/kms.mjs';

const jose = require('node-jose');
const dir = mkdtempSync(join(tmpdir(), 'kms-archiver-'));
after(() => rmSync(dir, {recursive: true, force: true}));

function run(command, args, more = {}) {
    const r = spawnSync(command, args, {encoding: 'utf8', cwd: dir, maxBuffer: 1 << 26, ...more});
    return {status: r.status, out: r.stdout, err: r.stderr};
}
function must(command, args, more) {
    const r = run(command, args, more);
    assert.equal(r.status, 0, `${command} ${args.join(' ')}: ${r.err}`);
    return r.out;
}
const ctl = (...args) => must(env.KMSCTL, args);

/* What one officer asks for, another agrees to. */
function agreed(...args) {
    const {approval, state} = JSON.parse(ctl('--json', ...args));
    if (state === 'done') return;
    must(env.KMSCTL_OFFICER2, ['--json', 'approvals', 'show', approval], {cwd: '/'});
    const p = JSON.parse(must(env.KMSCTL_OFFICER2, ['--json', 'approvals', 'approve', approval], {cwd: '/'}));
    assert.equal(p.state, 'done', JSON.stringify(p));
}

/* A service with a certificate of that kind of key, and a public key of that kind to which its keys are sealed. */
function archiver(kind) {
    const name = `archiver-${kind}-${randomUUID().slice(0, 8)}`, identity = `spiffe://archive.example/${name}`;
    const [cert, key] = [join(dir, `${name}.pem`), join(dir, `${name}.key`)];
    const algorithm = kind === 'rsa' ? ['rsa:2048'] : ['ec', '-pkeyopt', 'ec_paramgen_curve:P-256'];
    must('openssl', ['req', '-new', '-newkey', ...algorithm, '-nodes', '-keyout', key, '-out', `${name}.csr`, '-subj', `/CN=${name}`]);
    writeFileSync(join(dir, `${name}.ext`), `subjectAltName=URI:${identity}\nextendedKeyUsage=clientAuth\n`);
    must('openssl', ['x509', '-req', '-in', `${name}.csr`, '-CA', env.KMS_SERVICE_CA_FILE, '-CAkey', env.KMS_SERVICE_CA_KEY_FILE,
        '-set_serial', `0x1${randomUUID().replaceAll('-', '')}`, '-days', '2', '-extfile', `${name}.ext`, '-out', cert]);
    const seal = kind === 'rsa' ? generateKeyPairSync('rsa', {modulusLength: 3072}) : generateKeyPairSync('ec', {namedCurve: 'P-256'});
    const pem = seal.privateKey.export({type: 'pkcs8', format: 'pem'}), openWith = join(dir, `${name}.seal`), jwk = join(dir, `${name}.jwk`);
    writeFileSync(openWith, pem);
    writeFileSync(jwk, JSON.stringify(createPublicKey(seal.publicKey.export({type: 'spki', format: 'pem'})).export({format: 'jwk'})));
    agreed('service', 'add', name, '--identity', identity, '--purpose', 'archival', '--org', org.name, '--public-key', jwk);
    return {kind, name, cert, key, pem, openWith};
}

/* kms-client as that service. */
function client(who, ...args) {
    const {KMS_TOKEN, ...rest} = process.env;
    const at = {...rest, KMS_URL: env.KMS_URL, KMS_DOMAIN: env.KMS_DOMAIN, KMS_CA_FILE: env.KMS_CA_FILE};
    const {status, out, err} = run(env.KMS_CLIENT, ['--cert', who.cert, '--key', who.key, '--state', join(dir, 'state'), ...args], {env: at});
    let json;
    try { json = JSON.parse(out); } catch { /* no answer, or one for people */ }
    return {status, out, err, json};
}

const org = {name: `archive-${randomUUID().slice(0, 8)}`};
const archivers = [];
let channel, maker;
const keys = [];
before(async () => {
    ctl('org', 'add', org.name);
    agreed('purpose', 'enable', org.name, 'archival');
    for (const kind of ['rsa', 'ec']) archivers.push(archiver(kind));
    maker = new User({org: org.name});
    channel = await Channel.open(maker);
    for (let i = 0; i < 5; i++) {
        const [key] = await channel.keys();
        const made = await channel.create('/resources', {authIds: [], keyUris: [key.uri], kind: i % 2 ? 'file' : 'space'});
        assert.equal(made.status, 201);
        keys.push({uri: key.uri, k: key.jwk.k, resource: made.resource.uri});
    }
});

for (const way of [[], ['--relay']]) {
    const how = way.length ? 'behind a relay' : 'over mutual TLS';

    test(`an archiver walks from page to page ${how}, and node-jose opens each key`, async () => {
        for (const who of archivers) {
            const opener = await jose.JWK.asKey(who.pem, 'pem');
            const seen = [];
            let cursor = [];
            for (let page = 0; page < 4; page++) {
                const {json, err} = client(who, ...way, 'purpose', 'keys', 'archival', '--json', '--count', '2', ...cursor);
                assert.equal(json?.status, 200, err);
                assert.equal(json.service, who.name);
                assert.equal(json.purpose, 'archival');
                assert.equal(json.keys.length, [2, 2, 1, 0][page]);
                for (const key of json.keys) {
                    assert.equal(key.jwk, undefined, 'never bare');
                    const opened = await jose.JWE.createDecrypt(opener).decrypt(key.jwe);
                    assert.equal(opened.header.alg, who.kind === 'rsa' ? 'RSA-OAEP-256' : 'ECDH-ES');
                    assert.equal(opened.header.enc, 'A256GCM');
                    assert.equal(opened.header.cty, 'jwk+json');
                    const jwk = JSON.parse(opened.payload);
                    assert.deepEqual(Object.keys(jwk).sort(), ['k', 'kid', 'kty']);
                    assert.equal(jwk.kid, key.uri);
                    seen.push({uri: key.uri, k: jwk.k, resource: key.resourceUri});
                }
                cursor = ['--cursor', json.cursor];
            }
            assert.deepEqual(seen, keys, 'each once, in the order in which they were bound');
        }
    });

    test(`--open-with opens what node-jose does ${how}`, () => {
        for (const who of archivers) {
            const {json, err} = client(who, ...way, 'key', 'get', keys[0].uri, '--purpose', 'archival', '--open-with', who.openWith, '--json');
            assert.equal(json?.status, 200, err);
            assert.deepEqual(json.key.jwk, {kid: keys[0].uri, kty: 'oct', k: keys[0].k});
            const other = archivers.find((a) => a !== who);
            const wrong = client(who, ...way, 'key', 'get', keys[0].uri, '--purpose', 'archival', '--open-with', other.openWith, '--json');
            assert.equal(wrong.status, 3, 'sealed to another key');
            assert.equal(wrong.out, '');
        }
    });

    test(`what was not asked for is not given ${how}`, () => {
        for (const [code, ...args] of [
            [403005, 'key', 'get', keys[0].uri],
            [403005, 'key', 'get', keys[0].uri, '--purpose', 'dlp'],
            [403005, 'purpose', 'keys', 'indexing'],
            [403005, 'purpose', 'keys', 'no such purpose'],
            [403005, 'resource', 'show', keys[0].resource],
            [403005, 'key', 'create'],
            [404001, 'key', 'get', `/keys/${randomUUID()}`, '--purpose', 'archival'],
            [400002, 'purpose', 'keys', 'archival', '--count', '1001'],
            [400002, 'purpose', 'keys', 'archival', '--cursor', 'AAAA'],
        ]) {
            const {status, json, err} = client(archivers[0], ...way, ...args, '--json');
            assert.equal(status, 1, err);
            assert.equal(json.errorCode, code, `${args.join(' ')}: ${JSON.stringify(json)}`);
        }
    });
}

test('another cursor than one of this walk is refused', () => {
    const {json} = client(archivers[0], 'purpose', 'keys', 'archival', '--json', '--count', '1');
    const {json: refused} = client(archivers[1], 'purpose', 'keys', 'archival', '--json', '--cursor', json.cursor);
    assert.equal(refused.errorCode, 400002);
});

test('who is authorised on a resource sees that it was archived', () => {
    const token = maker.token();
    const at = {...process.env, KMS_TOKEN: token, KMS_URL: env.KMS_URL, KMS_DOMAIN: env.KMS_DOMAIN, KMS_CA_FILE: env.KMS_CA_FILE};
    const {releases} = JSON.parse(must(env.KMS_CLIENT, ['--no-state', 'resource', 'releases', keys[0].resource, '--json'], {env: at}));
    assert.deepEqual(new Set(releases.map((r) => r.name)), new Set(archivers.map((a) => a.name)));
    for (const r of releases) {
        assert.equal(r.by, 'service');
        assert.equal(r.purpose, 'archival');
        assert.match(r.date, DATE);
        assert.deepEqual(r.keyUris, [keys[0].uri]);
    }
});

test('a certificate and its key belong together, and go with no token', () => {
    const [one, other] = archivers;
    assert.equal(client({cert: one.cert, key: other.key}, 'ping').status, 2);
    assert.equal(client({cert: join(dir, 'none'), key: one.key}, 'ping').status, 2);
    assert.equal(client(one, '--token', 'x', 'ping').status, 2);
    assert.equal(client(one, '--on-behalf-of', 'x', 'ping').status, 2);
});
