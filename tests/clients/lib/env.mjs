// The instance under test: what its env file says, and the npm packages that run.sh has installed beside the source tree.
import {readFileSync} from 'node:fs';
import {createRequire} from 'node:module';

function unquote(value) {
    if (/^'.*'$/.test(value)) return value.slice(1, -1).replaceAll("'\\''", "'");
    if (/^".*"$/.test(value)) return value.slice(1, -1).replace(/\\(["\\$`])/g, '$1');
    return value.replace(/\\(.)/g, '$1');
}

function parse(text) {
    const out = {};
    for (const line of text.split('\n')) {
        const m = /^\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*?)\s*$/.exec(line);
        if (m) out[m[1]] = unquote(m[2]);
    }
    return out;
}

if (!process.env.KMS_ENV_FILE || !process.env.KMS_TEST_MODULES)
    throw new Error('start the tests with run.sh: KMS_ENV_FILE and KMS_TEST_MODULES are not set');

export const env = parse(readFileSync(process.env.KMS_ENV_FILE, 'utf8'));
export const ca = readFileSync(env.KMS_CA_FILE, 'utf8');
export const base = new URL(env.KMS_URL);
export const cluster = `kms://${env.KMS_DOMAIN}`;
export const require = createRequire(`${process.env.KMS_TEST_MODULES}/`);
