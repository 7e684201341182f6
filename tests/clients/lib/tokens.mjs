// Access tokens: mints what the organisation's identity provider would, and everything that it never would.
import {createHmac, createPrivateKey, randomUUID, sign} from 'node:crypto';
import {readFileSync} from 'node:fs';
import {env} from './env.mjs';

const issuerKey = createPrivateKey(readFileSync(env.KMS_TOKEN_KEY_FILE));
const b64 = (v) => Buffer.from(typeof v === 'string' ? v : JSON.stringify(v)).toString('base64url');

/* Claims that are undefined are left out.  header, key: to forge one. */
export function mint(claims = {}, {header = {}, key = issuerKey} = {}) {
    const now = Math.floor(Date.now() / 1000);
    const head = {alg: 'ES256', typ: 'JWT', kid: env.KMS_TOKEN_KID, ...header};
    const body = {
        iss: env.KMS_TOKEN_ISSUER, aud: env.KMS_TOKEN_AUDIENCE, iat: now, exp: now + 3600, jti: randomUUID(),
        scope: 'spark:kms', org: env.KMS_ORG, sub: randomUUID(), ...claims,
    };
    const input = `${b64(head)}.${b64(body)}`;
    let signature = Buffer.alloc(0);
    if (head.alg === 'HS256') signature = createHmac('sha256', key).update(input).digest();
    else if (head.alg !== 'none') signature = sign('sha256', Buffer.from(input), {key, dsaEncoding: 'ieee-p1363'});
    return `${input}.${signature.toString('base64url')}`;
}

/* A person with one device.  token() is another one each time, as after a refresh. */
export class User {
    constructor({name = 'user', sub = randomUUID(), org = env.KMS_ORG, roles} = {}) {
        Object.assign(this, {name, sub, org, roles, clientId: `https://devices.example/${randomUUID()}`});
    }

    token(claims = {}, forge = undefined) {
        return mint({sub: this.sub, org: this.org, roles: this.roles, ...claims}, forge);
    }
}

export const officer = (more = {}) => new User({name: 'officer', roles: ['spark.kms_orgagent'], ...more});
