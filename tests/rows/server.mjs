// Rows changed in the database beneath a running server: it must not open them, and must go on opening all others.
import {idOf, unb64, unseal} from '../purposes/lib/client.mjs';
import {lit} from '../purposes/lib/psql.mjs';
import {TABLES} from './world.mjs';

const BATCH = 40, BESIDE = 10;
const bytes = (hex) => `'\\x${hex}'::bytea`;
const LENGTHS = [['content_keys', 'blob', 61], ['recordings', 'blob', 61], ['channels', 'blob', 61], ['wrapping_keys', 'wrapped', 40]];

export class Server {
    /* below(n): a random number; report: {passed(n), fail(text)} */
    constructor(owner, world, below, report) {
        Object.assign(this, {owner, world, below, report, tally: new Map()});
        this.victims = world.keys.filter((k) => k.kind !== 'channel' && !k.opens);
    }

    pick(list) { return list[this.below(list.length)]; }
    some(list, n) {
        const out = new Set();
        while (out.size < Math.min(n, list.length)) out.add(this.pick(list));
        return [...out];
    }

    sql(statements) { return this.owner.run(`BEGIN;\nSET LOCAL session_replication_role = replica;\n${statements.join(';\n')};\nCOMMIT`); }

    /* Nothing that the database itself would refuse stands in the way. */
    async begin() {
        for (const [t, c] of LENGTHS) await this.owner.run(`ALTER TABLE kms.${t} DROP CONSTRAINT ${t}_${c}_check`);
        this.sums = await this.checksums();
    }
    async end() {
        for (const [t, c, n] of LENGTHS) await this.owner.run(`ALTER TABLE kms.${t} ADD CONSTRAINT ${t}_${c}_check CHECK (octet_length(${c}) = ${n})`);
        this.is('every row is as it was', await this.checksums(), this.sums);
    }
    async checksums() {
        const out = [];
        for (const [t, columns, where = ''] of [['content_keys', 'org_id, key_id, generation, blob, resource_id'], ['recordings', 'org_id, recording_id, generation, blob, key_id'],
            ['channels', 'org_id, channel_id, generation, blob'],
            // Where a main key came into force the keeper takes months away when they are empty.
            ['wrapping_keys', 'org_id, generation, root_id, wrapped', `WHERE month IS NULL OR org_id <> ${lit(this.world.orgs[2].id)}`], ['roots', 'root_id, kcv, wrapped, sentinel, state'],
            ['main_keys', 'main_key_id, kcv'], ['period_keys', 'key_id, month, kcv']])
            out.push((await this.owner.one(`SELECT md5(string_agg(md5(ROW(${columns})::text), '' ORDER BY md5(ROW(${columns})::text))) AS sum FROM kms.${t} ${where}`)).sum);
        return out.join(' ');
    }

    is(what, got, wanted) {
        if (got === wanted) {
            this.report.passed(1);
            console.log(`ok   ${what}`);
        } else this.report.fail(`${what}: ${got}, not ${wanted}`);
    }

    // --- asking ---

    /* What came back for a key: its value, null where it was refused. */
    value(k, body) {
        if (body.status >= 400 && body.errorCode && !body.key && !body.keys && !body.recording) return null;
        if (k.kind === 'content') return unb64(body.key.jwk.k);
        return unb64(unseal(k.opener, body.recording.message).key);
    }

    /* [{k, channel, uri}] -> the answers in that order; those of one channel in one POST. */
    async ask(list) {
        const out = new Array(list.length), by = new Map();
        list.forEach((q, i) => by.set(q.channel, [...by.get(q.channel) ?? [], i]));
        await Promise.all([...by].map(async ([channel, places]) => {
            const answers = await channel.askAll(places.map((i) => ({method: 'retrieve', uri: list[i].uri})));
            places.forEach((i, n) => { out[i] = answers[n]; });
        }));
        return out;
    }
    own = (k) => ({k, channel: k.ask.channel, uri: k.ask.uri});

    /* How many of these open, and with the right value? */
    async opening(keys) {
        const answers = await this.ask(keys.map(this.own));
        return keys.filter((k, i) => this.value(k, answers[i])?.equals(k.value)).length;
    }

    /* Are all changed ones refused, while those beside them open?  wanted: {k, channel, uri} of changed rows. */
    async judge(what, wanted, beside) {
        const answers = await this.ask([...wanted, ...beside.map(this.own)]);
        const t = this.tally.get(what) ?? {rows: 0, beside: 0, wrong: 0, codes: {}};
        this.tally.set(what, t);
        const count = (good, text) => {
            if (good) return this.report.passed(1);
            t.wrong++;
            return this.report.fail(text);
        };
        wanted.forEach(({k}, i) => {
            let value;
            try { value = this.value(k, answers[i]); } catch (e) { value = e; }
            const code = answers[i].errorCode;
            t.rows++;
            t.codes[code] = (t.codes[code] ?? 0) + 1;
            count(value === null, `${what}: ${k.kind} ${k.id} ${value instanceof Buffer ? (value.equals(k.value) ? 'opens' : 'opens as another key') : `is answered with ${JSON.stringify(answers[i])}`}`);
        });
        beside.forEach((k, i) => {
            t.beside++;
            let right = false;
            try { right = this.value(k, answers[wanted.length + i])?.equals(k.value); } catch { /* said below */ }
            count(right, `${what}: ${k.kind} ${k.id}, which was not changed, does not open: ${JSON.stringify(answers[wanted.length + i])}`);
        });
    }

    /* What judge() says of rows in which nothing was changed. */
    async control() {
        const {report, tally} = this, keys = this.some(this.victims, BATCH);
        let noticed = 0;
        Object.assign(this, {report: {passed: () => {}, fail: () => { noticed++; }}, tally: new Map()});
        await this.sql(keys.map((k) => this.update(k, {blob: bytes(k.now.blob)})));
        await this.judge('nothing', keys.map(this.own), []);
        Object.assign(this, {report, tally});
        this.is('a change that is none would be noticed', noticed, keys.length);
    }

    // --- rows of keys ---

    /* New columns of a key's row; its key columns among them where it moves. */
    update(k, set) {
        const {table, id} = TABLES[k.kind];
        return `UPDATE kms.${table} SET ${Object.entries(set).map(([c, v]) => `${c} = ${v}`).join(', ')} WHERE org_id = ${lit(k.org.id)} AND ${id} = ${lit(k.id)}`;
    }
    /* And the way back; at: where it is now. */
    restore(k, {org = k.org.id, id = k.id} = {}) {
        const {table, id: column} = TABLES[k.kind];
        const bound = k.kind === 'channel' ? '' : `, resource_id = ${lit(k.resource)}`;
        return `UPDATE kms.${table} SET org_id = ${lit(k.org.id)}, ${column} = ${lit(k.id)}, generation = ${k.now.generation}, blob = ${bytes(k.now.blob)}${bound}
            WHERE org_id = ${lit(org)} AND ${column} = ${lit(id)}`;
    }

    flipped(hex, bits = 1) {
        const b = Buffer.from(hex, 'hex');
        for (let i = 0; i < bits; i++) {
            const bit = this.below(8 * b.length);
            b[bit >> 3] ^= 1 << (bit & 7);
        }
        return b.toString('hex');
    }
    /* Too short or too long, never right. */
    resized(hex) {
        if (this.below(2)) return hex.slice(0, 2 * this.below(hex.length / 2));
        let more = '';
        for (let n = 1 + this.below(40); n > 0; n--) more += this.below(256).toString(16).padStart(2, '0');
        return hex + more;
    }
    uuid() {
        const h = Array.from({length: 32}, (_, i) => (i === 12 ? '4' : i === 16 ? '8' : this.below(16).toString(16))).join('');
        return h.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
    }
    otherOrg(k) { return this.pick(this.world.orgs.filter((o) => o !== k.org)); }
    generations(org) { return this.world.wrappings.filter((w) => w.org === org.id).map((w) => w.generation); }

    /* what -> (k) => {set, at, asked} or nothing where it is not possible. */
    changes = {
        'a bit of the blob': (k) => ({set: {blob: bytes(this.flipped(k.now.blob))}}),
        'a blob of another length': (k) => ({set: {blob: bytes(this.resized(k.now.blob))}}),
        'the blob of another key of the organisation': (k) => this.blobOf(k, (o) => o.org === k.org && o.kind === k.kind),
        'the blob of another organisation\'s key': (k) => this.blobOf(k, (o) => o.org !== k.org),
        'the blob of a recording for a key, or reverse': (k) => this.blobOf(k, (o) => o.org === k.org && o.kind !== k.kind),
        'another generation': (k) => ({set: {generation: this.pick([...this.generations(k.org), 77].filter((g) => g !== k.now.generation))}}),
        'old blob, new generation': (k) => k.was && {set: {blob: bytes(k.was.blob)}},
        'new blob, old generation': (k) => k.was && {set: {generation: k.was.generation}},
        'another id': (k) => {
            const id = this.uuid();
            return {set: {[TABLES[k.kind].id]: lit(id)}, at: {id}, asked: {channel: k.ask.channel, uri: k.ask.uri.replace(idOf(k.ask.uri), id)}};
        },
        // With all that makes somebody there entitled to it.
        'moved to another organisation': (k) => {
            const org = this.otherOrg(k), set = {org_id: lit(org.id)};
            if (k.kind === 'recording') Object.assign(set, {resource_id: lit(idOf(org.meeting.uri)), key_id: lit(idOf(org.meeting.keys[0].uri))});
            else set.resource_id = lit(idOf(org.container.uri));
            if (!this.generations(org).includes(k.now.generation)) set.generation = 2;
            return {set, at: {org: org.id}, asked: {channel: org.maker, uri: k.ask.uri},
                undo: k.kind === 'recording' ? [`UPDATE kms.recordings SET key_id = ${lit(idOf(k.org.meeting.keys[0].uri))} WHERE recording_id = ${lit(k.id)}`] : []};
        },
    };
    blobOf(k, like) {
        const others = this.victims.filter((o) => o !== k && like(o));
        return others.length > 0 && {set: {blob: bytes(this.pick(others).now.blob)}};
    }

    async keys(rows, deadline) {
        const names = Object.keys(this.changes);
        for (let done = 0, turn = 0; done < rows && Date.now() < deadline; turn++) {
            const what = names[turn % names.length];
            const picked = this.some(this.victims, BATCH).map((k) => ({k, ...this.changes[what](k)})).filter((c) => c.set);
            const changed = new Set(picked.map((c) => c.k));
            const beside = this.some(this.victims.filter((k) => !changed.has(k)), BESIDE);
            await this.sql(picked.map((c) => this.update(c.k, c.set)));
            await this.judge(what, picked.map((c) => ({k: c.k, ...(c.asked ?? c.k.ask)})), beside);
            await this.sql(picked.flatMap((c) => [this.restore(c.k, c.at), ...c.undo ?? []]));
            done += picked.length;
        }
    }

    // --- a container of many keys, one of them changed ---

    async containers(times) {
        for (let i = 0; i < times; i++) {
            const org = this.pick(this.world.orgs);
            const all = this.victims.filter((k) => k.resource === idOf(org.container.uri));
            const k = this.pick(all), uri = `${org.container.uri}/keys`;
            await this.sql([this.update(k, this.changes['a bit of the blob'](k).set)]);
            await this.judge('all keys of a container, one of them changed', [{k, channel: org.maker, uri}], []);
            await this.sql([this.restore(k)]);
            if (i % 10) continue;
            const {keys = []} = (await org.maker.askAll([{method: 'retrieve', uri}]))[0];
            this.is('all of them when it is put back', keys.filter((got) => all.some((o) => o.ask.uri === got.uri && unb64(got.jwk.k).equals(o.value))).length, all.length);
        }
    }

    // --- rows of wrapping keys ---

    wrappingChanges = {
        'a bit of a wrapping key': (w) => ({wrapped: bytes(this.flipped(w.wrapped))}),
        'a wrapping key of another length': (w) => ({wrapped: bytes(this.resized(w.wrapped))}),
        'another generation\'s wrapping key': (w) => this.wrappingOf(w, (o) => o.org === w.org && o.generation !== w.generation),
        'another organisation\'s wrapping key': (w) => this.wrappingOf(w, (o) => o.org !== w.org),
        'another root, main or period key': (w) => ({root_id: lit(this.pick(this.world.tops.filter((t) => t !== w.root)))}),
        'a root that there is not': () => ({root_id: lit(this.uuid())}),
        'another month\'s period key': (w) => w.generation > 1e9 && this.columnOf(w, 'root', (o) => o.generation > 1e9 && o.root !== w.root),
        'another month\'s wrapping key': (w) => w.generation > 1e9 && this.wrappingOf(w, (o) => o.generation > 1e9 && o.root !== w.root),
        'the wrapping key of before': (w) => {
            const f = this.world.former.find((o) => o.org === w.org && o.generation === w.generation);
            return f && this.pick([{root_id: lit(f.root)}, {wrapped: bytes(f.wrapped)}, {root_id: lit(f.root), wrapped: bytes(f.wrapped)}]);
        },
    };
    wrappingOf(w, like) {
        const o = this.pick(this.world.wrappings.filter(like));
        return o && (this.below(2) ? {wrapped: bytes(o.wrapped)} : {wrapped: bytes(o.wrapped), root_id: lit(o.root)});
    }
    columnOf(w, column, like) {
        const o = this.pick(this.world.wrappings.filter(like));
        return o && {root_id: lit(o[column])};
    }

    async wrappings(rows, deadline) {
        const names = Object.keys(this.wrappingChanges);
        const put = (w, set) => this.sql([`UPDATE kms.wrapping_keys SET ${Object.entries(set).map(([c, v]) => `${c} = ${v}`).join(', ')} WHERE org_id = ${lit(w.org)} AND generation = ${w.generation}`]);
        for (let done = 0, turn = 0; done < rows && Date.now() < deadline; turn++) {
            const what = names[turn % names.length], w = this.pick(this.world.wrappings);
            const under = this.victims.filter((k) => k.org.id === w.org && k.now.generation === w.generation);
            const set = under.length > 0 && this.wrappingChanges[what](w);
            if (!set) continue;
            await put(w, set);
            await this.judge(what, this.some(under, 3).map(this.own), this.some(this.victims.filter((k) => !under.includes(k) && !(k.opener && k.org.id === w.org)), 3));
            await put(w, {wrapped: bytes(w.wrapped), root_id: lit(w.root)});
            done += 3;
        }
    }

    // --- channels: when no worker remembers them ---

    channelChanges = {
        'a bit of a channel\'s blob': (k) => ({set: {blob: bytes(this.flipped(k.now.blob))}}),
        'a channel\'s blob of another length': (k) => ({set: {blob: bytes(this.resized(k.now.blob))}}),
        'the blob of another channel': (k) => ({set: {blob: bytes(this.pick(this.channels.filter((o) => o !== k && o.org === k.org)).now.blob)}}),
        'the blob of another organisation\'s channel': (k) => ({set: {blob: bytes(this.pick(this.channels.filter((o) => o.org !== k.org)).now.blob)}}),
        'a content key\'s blob for a channel\'s': (k) => ({set: {blob: bytes(this.pick(this.victims.filter((o) => o.org === k.org)).now.blob)}}),
        'another generation of a channel': (k) => ({set: {generation: this.pick([...this.generations(k.org), 77].filter((g) => g !== k.now.generation))}}),
        'a channel moved to another organisation': (k) => {
            const org = this.otherOrg(k);
            return {set: {org_id: lit(org.id), ...(this.generations(org).includes(k.now.generation) ? {} : {generation: 2})}, at: {org: org.id}};
        },
    };

    /* Whoever's channel it is gets no answer that the channel's key seals; the rest of the row is as it was. */
    async channelRows(restart) {
        this.channels = this.world.keys.filter((k) => k.kind === 'channel');
        await restart();
        for (const [what, change] of Object.entries(this.channelChanges)) {
            const picked = this.channels.map((k) => ({k, ...change(k)}));
            const t = {rows: 0, beside: 0, wrong: 0, codes: {}};
            this.tally.set(what, t);
            await this.sql(picked.map((c) => this.update(c.k, c.set)));
            for (const {k} of picked) {
                let code, good;
                try {
                    const body = await k.ask.channel.ask('retrieve', k.ask.uri);
                    code = body.errorCode;
                    good = body.signed && code === 499001;
                } catch (e) {
                    // Where it cannot be told from an HSM that is away, the whole POST is.
                    code = /^HTTP 503/.test(e.message) ? 503 : e.message;
                    good = code === 503;
                }
                t.rows++;
                t.codes[code] = (t.codes[code] ?? 0) + 1;
                if (good) this.report.passed(1);
                else {
                    t.wrong++;
                    this.report.fail(`${what}: ${k.id} is answered with ${code}`);
                }
            }
            await this.sql(picked.map((c) => this.restore(c.k, c.at)));
        }
        // Users of a channel are strangers to the container, which they are told in an answer that it seals.
        let open = 0;
        for (const k of this.channels) {
            const body = await k.ask.channel.ask('retrieve', k.ask.uri);
            if (!body.signed && body.errorCode === 403001) open++;
        }
        this.is('every channel opens when its row is put back', open, this.channels.length);
    }

    // --- what says which keys of the token there are: a backup is held against it.  (Roots have sentinels instead: open_changed has them.) ---

    async metadata(backupCheck) {
        this.is('backup --check finds every key as it is', await backupCheck(), 'whole');
        const one = async (table, id, k, set, undo, wanted) => {
            await this.sql([`UPDATE kms.${table} SET ${set} WHERE ${id} = ${lit(k)}`]);
            const found = await backupCheck(set.startsWith(id) ? set.slice(-37, -1) : k);
            await this.sql([`UPDATE kms.${table} SET ${undo} WHERE ${id} = ${set.startsWith(id) ? set.slice(-38) : lit(k)}`]);
            this.is(`backup --check: ${set.startsWith(id) ? 'another id' : 'a bit of a check value'} (${table})`, found, wanted);
        };
        for (const [table, id, where] of [['main_keys', 'main_key_id', 'state = \'ACTIVE\''], ['period_keys', 'key_id', 'kcv IS NOT NULL AND ended_at IS NULL']])
            for (const r of await this.owner.rows(`SELECT ${id} AS id, encode(kcv, 'hex') AS kcv FROM kms.${table} WHERE ${where}`)) {
                await one(table, id, r.id, `kcv = ${bytes(this.flipped(r.kcv))}`, `kcv = ${bytes(r.kcv)}`, 'ANOTHER KEY');
                await one(table, id, r.id, `${id} = ${lit(this.uuid())}`, `${id} = ${lit(r.id)}`, 'MISSING');
            }
    }

    tell(seconds) {
        let rows = 0;
        for (const [what, t] of this.tally) {
            rows += t.rows;
            if (!t.wrong)
                console.log(`ok   ${what}: ${t.rows} rows, ${Object.entries(t.codes).map(([c, n]) => `${c} ${n} times`).join(', ')}${t.beside ? `; ${t.beside} beside them open` : ''}`);
        }
        console.log(`     ${rows} changed rows asked of the server: ${seconds.toFixed(1)} s, ${(rows / seconds).toFixed(0)} a second`);
    }
}
