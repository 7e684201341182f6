// psql as a co-process: statements go in as text, rows come out; errors are caught by their SQLSTATE.
import {spawn} from 'node:child_process';
import {randomUUID} from 'node:crypto';

/* Values as literals; arrays as ARRAY[...] of `type`. */
export const lit = (v) => v === null || v === undefined ? 'NULL'
    : typeof v === 'number' || typeof v === 'bigint' ? String(v)
    : typeof v === 'boolean' ? String(v)
    : Buffer.isBuffer(v) ? `'\\x${v.toString('hex')}'::bytea`
    : typeof v === 'object' ? `'${JSON.stringify(v).replaceAll("'", "''")}'::jsonb`
    : `'${String(v).replaceAll("'", "''")}'`;
export const array = (type, list) => `ARRAY[${list.map(lit).join(',')}]::${type}[]`;

export class SqlError extends Error {
    constructor(state, text) {
        super(`${state}: ${text}`);
        this.state = state;
    }
}

export class Psql {
    /* role: who logs in, in place of the owner. */
    constructor(url = process.env.KMS_DATABASE_URL, role) {
        if (role) url = url.replace(/^postgresql:\/\/[^@]*@/, `postgresql://${role}@`);
        this.waiting = [];
        this.parts = []; // what came since the last mark, and the end of it
        this.tail = '';
        // One pipe for both, in order.
        this.child = spawn('sh', ['-c', 'exec psql -XqAt -v VERBOSITY=verbose -d "$1" 2>&1', 'sh', url], {stdio: ['pipe', 'pipe', 'inherit']});
        this.child.stdout.setEncoding('utf8').on('data', (d) => {
            // Only what is new is searched: an answer may be a hundred megabytes.
            this.parts.push(d);
            for (let part = d; this.waiting.length; part = this.parts[0]) {
                const w = this.waiting[0], tail = this.tail + part, at = tail.indexOf(w.mark);
                if (at < 0) {
                    this.tail = tail.slice(-w.mark.length);
                    return;
                }
                const text = this.parts.join(''), from = text.length - tail.length + at;
                const out = text.slice(0, from);
                this.parts = [text.slice(from + w.mark.length + 1)];
                this.tail = '';
                this.waiting.shift();
                const error = /^(?:psql:[^:]*:\d+: )?(?:ERROR|FATAL):\s+([0-9A-Z]{5}): (.*)$/m.exec(out);
                if (error) w.reject(new SqlError(error[1], error[2]));
                else w.resolve(out.split('\n').filter((l) => l !== ''));
            }
        });
        this.child.on('exit', () => { for (const w of this.waiting.splice(0)) w.reject(new Error(`psql has ended: ${this.parts.join('')}`)); });
    }

    /* Rows as lines of text. */
    run(sql) {
        const mark = `--${randomUUID()}--`;
        return new Promise((resolve, reject) => {
            this.waiting.push({mark, resolve, reject});
            this.child.stdin.write(`${sql}\n;\n\\echo ${mark}\n`);
        });
    }

    /* Rows as objects. */
    async rows(sql) {
        return (await this.run(`SELECT to_jsonb(q) FROM (${sql}) q`)).map((l) => JSON.parse(l));
    }

    async one(sql) {
        return (await this.rows(sql))[0];
    }

    end() { this.child.stdin.end('\\q\n'); }
}
