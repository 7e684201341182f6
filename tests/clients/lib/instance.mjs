// An instance of our own: kmsd or hsmd stopped by a signal, and started again as the quickstart starts it.
import {execFile} from 'node:child_process';
import {readFileSync} from 'node:fs';
import {setTimeout as sleep} from 'node:timers/promises';
import {promisify} from 'node:util';
import {base, env} from './env.mjs';

const {KMS_TEST_OWN: dir, KMS_TEST_QUICKSTART: quickstart} = process.env;

/* Why not, where the instance is somebody else's. */
export const notOurs = dir ? false : 'the instance is not our own';

const alive = (pid) => {
    try { return process.kill(pid, 0); } catch { return false; }
};

export async function stop(signal = 'SIGTERM', pidFile = env.KMSD_PID_FILE) {
    const pid = Number(readFileSync(pidFile, 'utf8'));
    process.kill(pid, signal);
    for (let i = 0; alive(pid); i++) {
        if (i > 600) throw new Error(`${pid} of ${pidFile} does not end`);
        await sleep(50);
    }
}

export async function start() {
    await promisify(execFile)(quickstart, ['--detach', '--dir', dir, '--port', base.port], {timeout: 120000});
}
