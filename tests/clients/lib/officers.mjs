// What officers do, two of them where it takes two.
import {execFileSync} from 'node:child_process';
import {createHash, randomUUID} from 'node:crypto';
import {env} from './env.mjs';

const psql = (text) => execFileSync('psql', ['-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1', '-d', env.KMS_DATABASE_URL, '-c', text], {encoding: 'utf8'}).trim();
const lit = (v) => (v === null || v === undefined ? 'NULL' : `'${String(typeof v === 'object' ? JSON.stringify(v) : v).replaceAll("'", "''")}'`);
const arr = (list) => `ARRAY[${list.map(lit).join(',')}]::text[]`;
function act(action, args) {
    const a = JSON.parse(psql(`SELECT to_jsonb(x) FROM kms.control_act(${lit(randomUUID())}, ${lit(action)}, ${lit(args)}, 'one(1)', 1, 2) x`));
    if (a.verdict !== 0) throw new Error(JSON.stringify(a));
    if (!a.result.approval) return a.result;
    const p = JSON.parse(psql(`SELECT kms.approval_show(${lit(a.result.approval)}, 'two(2)', 2)`));
    const b = JSON.parse(psql(`SELECT to_jsonb(x) FROM kms.approval_approve(${lit(randomUUID())}, ${lit(a.result.approval)}, NULL, 'two(2)', 2) x`));
    if (b.verdict !== 0) throw new Error(JSON.stringify(b));
    return b.result;
}
export const enable = async (org, purpose) => { if (JSON.parse(psql(`SELECT coalesce(bool_or(enabled), false) FROM kms.purposes p JOIN kms.organisations o USING (org_id) WHERE o.name = ${lit(org)} AND purpose = ${lit(purpose)}`).replace('t', 'true').replace('f', 'false')) !== true) act('purpose.enable', {org, purpose}); };
export const disable = async (org, purpose) => act('purpose.disable', {org, purpose});
export const addService = async (args) => act('service.add', args);
export const changeService = async (args) => act('service.change', args);
export const retireService = async (service) => act('service.retire', {service});
export const revokeCertificate = async (serial) => act('certificate.revoke', {serial});
export const openMatter = async (args) => { const r = act('matter.open', args); return r.matter ?? r.result?.matter ?? r.args?.matter ?? JSON.parse(psql(`SELECT to_jsonb(matter_id) FROM kms.matters WHERE name = ${lit(args.name)} ORDER BY opened_at DESC LIMIT 1`)); };
export const closeMatter = async (matter) => act('matter.close', {matter});
export const setRule = async (org, name, value) => act('setting.set', {org, name, value});
