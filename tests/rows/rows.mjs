// Rows that were changed do not open: of hsmd (open_changed), and of the whole server.  run.sh starts it, and says what with.
import {spawn} from 'node:child_process';
import {readFileSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {createInterface} from 'node:readline';
import {setTimeout as sleep} from 'node:timers/promises';
import {env, forgetConnections} from '../purposes/lib/client.mjs';
import {ctl} from '../purposes/lib/fixture.mjs';
import {Psql} from '../purposes/lib/psql.mjs';
import {Server} from './server.mjs';
import {lines, make} from './world.mjs';

const {ROWS_WORK: work, ROWS_OPENER: opener, ROWS_SOCKET: socket, ROWS_PROCESS_SOCKET: processSocket, ROWS_QUICKSTART: quickstart} = env;
const seed = Number(env.ROWS_SEED) >>> 0, short = env.ROWS_SHORT === '1', count = Number(env.ROWS_COUNT);

let passed = 0, failed = 0, shown = 0;
const report = {
    passed: (n) => { passed += n; },
    fail: (text) => {
        failed++;
        if (shown++ < 30) console.log(`FAIL ${text}`);
    },
};

/* mulberry32: the same seed, the same changes of the same rows. */
let state = seed;
function below(n) {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % n;
}

/* Its lines as they come; its last one is counted. */
function openChanged(at, ...args) {
    return new Promise((resolve, reject) => {
        const child = spawn(opener, [at, '--seed', String(seed), ...args], {stdio: ['pipe', 'pipe', 'pipe']});
        let last = '', errors = '';
        child.stderr.setEncoding('utf8').on('data', (d) => { errors += d; });
        createInterface({input: child.stdout}).on('line', (line) => {
            if (/^\d+ passed, \d+ failed$/.test(line)) last = line;
            else console.log(line);
        }).on('close', () => {
            const m = /^(\d+) passed, (\d+) failed$/.exec(last);
            if (!m) return reject(new Error(`open_changed broke off: ${errors}`));
            passed += Number(m[1]);
            failed += Number(m[2]);
            return resolve();
        });
        child.on('error', reject);
        child.stdin.end(readFileSync(join(work, 'rows')));
    });
}

/* A server that remembers nothing. */
async function restart() {
    const pid = Number(readFileSync(env.KMSD_PID_FILE, 'utf8'));
    const alive = () => {
        try { return process.kill(pid, 0); } catch { return false; }
    };
    process.kill(pid, 'SIGTERM');
    for (const end = Date.now() + 30000; alive() && Date.now() < end;) await sleep(50);
    if (alive()) throw new Error('kmsd does not end');
    await new Promise((resolve, reject) => spawn(quickstart, ['--detach', '--dir', join(work, 'server')], {stdio: 'ignore'})
        .on('exit', (code) => (code === 0 ? resolve() : reject(new Error(`the server was not started again (${code})`)))));
    forgetConnections();
}

/* 'whole', or what is found of the key of this id. */
async function backupCheck(id) {
    const {code, json, stderr} = await ctl(['backup', '--check', '--hsm-socket', socket, '--json']);
    if (!json?.keys) throw new Error(`kmsctl backup --check: ${stderr}`);
    return code === 0 && json.whole ? 'whole' : code === 0 || json.whole ? 'unclear' : String(json.keys.find((k) => k.id === id)?.token);
}

const owner = new Psql();
try {
    console.log(`     seed ${seed}`);
    let begun = Date.now();
    const w = await make(owner, short ? 20 : 60);
    writeFileSync(join(work, 'rows'), lines(w));
    console.log(`     ${w.keys.length} keys of ${w.orgs.length} organisations, ${w.wrappings.length} wrapping keys: ${((Date.now() - begun) / 1000).toFixed(1)} s`);

    console.log('--- hsmd, wrapping keys in the token');
    await openChanged(socket, '--count', String(count), ...(short ? ['--seconds', '4'] : []));
    console.log('--- hsmd, wrapping keys in its memory');
    await openChanged(processSocket, '--count', String(Math.ceil(count / 5)), ...(short ? ['--seconds', '1'] : []));

    console.log('--- the whole server');
    const s = new Server(owner, w, below, report);
    const openers = s.victims;
    for (let i = 0; i < openers.length; i += 100) s.is(`${Math.min(100, openers.length - i)} rows open with the right value`, await s.opening(openers.slice(i, i + 100)), Math.min(100, openers.length - i));
    await s.metadata(backupCheck);
    await s.begin();
    await s.control();
    begun = Date.now();
    const deadline = (seconds) => (short ? Date.now() + seconds * 1000 : Infinity);
    await s.keys(short ? 2000 : 5000, deadline(4));
    await s.wrappings(short ? 150 : 1500, deadline(2));
    await s.containers(short ? 10 : 50);
    await s.channelRows(restart);
    s.tell((Date.now() - begun) / 1000);
    await s.end();
    for (let i = 0; i < openers.length; i += 100) s.is(`${Math.min(100, openers.length - i)} rows open again`, await s.opening(openers.slice(i, i + 100)), Math.min(100, openers.length - i));
} catch (e) {
    report.fail(`broke off: ${e.stack}`);
}
owner.end();
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 ? 0 : 1);
