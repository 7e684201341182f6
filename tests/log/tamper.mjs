// tamper.mjs - edits, removes, inserts, swaps and cuts at random, in an export and in the database, and wants each found and
// named rightly.
//
//   node tamper.mjs export DIR KEYFILE COUNT [SEED]       DIR is changed and put back
//   node tamper.mjs database ORG COUNT [SEED]             with KMSCTL and KMS_DATABASE_URL of an instance
//
// Prints what was missed, and at the end "N found, M missed".  Exit status 0: none was missed.
import { execFileSync, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'

const [mode, ...args] = process.argv.slice(2)
const kmsctl = process.env.KMSCTL ?? 'kmsctl'
const seed = args[mode === 'export' ? 3 : 2] ?? String(Date.now())

// A generator of our own, so that a run can be repeated.
let state = createHash('sha256').update(seed).digest()
function random(n) {
    state = createHash('sha256').update(state).digest()
    return state.readUInt32LE(0) % n
}
const pick = list => list[random(list.length)]

function check(...words) {
    const r = spawnSync(kmsctl, ['audit', ...words, '--json'], { encoding: 'utf8', maxBuffer: 1 << 28 })
    let report = null
    try {
        report = JSON.parse(r.stdout)
    } catch {}
    return { status: r.status, report, err: r.stderr }
}
const covers = (f, i) => f.first <= i && i <= f.last
// The entry's number as a leaf says it; null: it says none.
const numberOf = l => {
    const text = l.toString('latin1')
    const at = text.indexOf('"entry":')
    const m = at < 0 ? null : text.slice(at).match(/^"entry":(\d+)[,}]/)
    return m === null || m[1] === '0' ? null : Number(m[1])
}
const says = (f, l) => (f.entry ?? null) === numberOf(l) && (f.now_says ?? false) === (numberOf(l) !== null)
const isOf = (f, l) => f.entry === numberOf(l) && f.now_says === undefined
const isBehind = (f, l) => f.behind_entry === (l === undefined ? undefined : numberOf(l)) && f.entry === undefined
const SPANS = ['changed', 'removed', 'cut off', 'moved', 'changed in span']

let found = 0
let missed = 0
function judge(what, result, right) {
    const list = result.report?.findings ?? []
    if (result.status === 1 && (list.length > 0 || result.report?.strays?.length > 0) && right(list, result.report)) {
        found++
    } else {
        missed++
        console.log(`missed: ${what} (seed ${seed}): status ${result.status}, ${JSON.stringify(list.slice(0, 5))} ${result.err}`)
    }
}

// --- an export ---

function tamperExport(dir, key, count) {
    const size = Number(readFileSync(join(dir, 'checkpoint'), 'utf8').split('\n')[1])
    const files = readdirSync(dir, { recursive: true }).filter(f => statSync(join(dir, f)).isFile())
    const parse = f => {
        const m = f.match(/^tile\/(entries|\d+)\/((?:x\d{3}\/)*\d{3})(?:\.p\/(\d+))?$/)
        if (m === null) return null
        return { file: f, level: m[1], index: Number(m[2].replaceAll(/[x/]/g, '')), width: m[3] === undefined ? 256 : Number(m[3]) }
    }
    // Partial tiles of earlier checkpoints may lie about; only those of the newest are part of the log.
    const level = t => (t.level === 'entries' ? 0 : Number(t.level))
    const live = files.map(parse).filter(t => t !== null && t.width === Math.min(256, Math.floor(size / 256 ** level(t)) - t.index * 256))
    const bundles = live.filter(t => t.level === 'entries').sort((a, b) => a.index - b.index)
    const tiles = live.filter(t => t.level !== 'entries')
    const split = b => {
        const out = []
        for (let at = 0; at < b.length;) {
            const n = b.readUInt16BE(at)
            out.push(b.subarray(at + 2, at + 2 + n))
            at += 2 + n
        }
        return out
    }
    const join2 = list => Buffer.concat(list.flatMap(l => [Buffer.from([l.length >> 8, l.length & 255]), l]))
    const kept = new Map()
    const write = (f, data) => {
        if (!kept.has(f)) kept.set(f, readFileSync(join(dir, f)))
        if (data === null) rmSync(join(dir, f))
        else writeFileSync(join(dir, f), data)
    }
    const restore = () => {
        for (const [f, data] of kept) writeFileSync(join(dir, f), data)
        kept.clear()
    }
    const bundle = t => split(readFileSync(join(dir, t.file)))
    const flip = b => {
        const copy = Buffer.from(b)
        copy[random(copy.length)] ^= 1 << random(8)
        return copy
    }
    const leafHash = l => createHash('sha256').update(Buffer.concat([Buffer.from([0]), l])).digest()
    const hashFile = index => tiles.find(t => t.level === '0' && t.index === index).file

    const acts = {
        change() {
            const t = pick(bundles)
            const list = bundle(t)
            const i = random(list.length)
            list[i] = flip(list[i])
            write(t.file, join2(list))
            return l => l.some(f => f.what === 'changed' && f.first === t.index * 256 + i && f.last === f.first && says(f, list[i])) && l.length === 1
        },
        replaceByAnother() {
            const t = pick(bundles)
            const list = bundle(t)
            if (list.length < 2) return null
            const i = random(list.length)
            const j = (i + 1 + random(list.length - 1)) % list.length
            list[i] = list[j]
            write(t.file, join2(list))
            return l => l.some(f => SPANS.includes(f.what) && covers(f, t.index * 256 + i) && (f.what !== 'changed' || says(f, list[i])))
        },
        remove() {
            const t = pick(bundles)
            const list = bundle(t)
            const i = random(list.length)
            list.splice(i, 1)
            write(t.file, join2(list))
            const at = t.index * 256 + i
            return l => l.length === 1 && l[0].what === (at === size - 1 ? 'cut off' : 'removed') && l[0].first === at && l[0].last === at && isBehind(l[0], list[i - 1])
        },
        insert() {
            const t = pick(bundles)
            const list = bundle(t)
            const i = random(list.length + 1)
            list.splice(i, 0, flip(list[Math.min(i, list.length - 1)]))
            write(t.file, join2(list))
            return l => l.length === 1 && l[0].what === 'inserted' && l[0].first === t.index * 256 + i && says(l[0], list[i])
        },
        swap() {
            const t = pick(bundles)
            const list = bundle(t)
            if (list.length < 2) return null
            const i = random(list.length)
            const j = (i + 1 + random(list.length - 1)) % list.length
            ;[list[i], list[j]] = [list[j], list[i]]
            write(t.file, join2(list))
            return l => l.length === 2 && l.every(f => f.what === 'moved') && l.some(f => f.first === t.index * 256 + i && isOf(f, list[j])) && l.some(f => f.first === t.index * 256 + j && isOf(f, list[i]))
        },
        swapFar() {
            if (bundles.length < 2) return null
            const t = pick(bundles)
            const u = bundles[(bundles.indexOf(t) + 1 + random(bundles.length - 1)) % bundles.length]
            const a = bundle(t)
            const b = bundle(u)
            const i = random(a.length)
            const j = random(b.length)
            ;[a[i], b[j]] = [b[j], a[i]]
            write(t.file, join2(a))
            write(u.file, join2(b))
            return l => l.length === 2 && l.some(f => f.what === 'changed' && f.first === t.index * 256 + i) && l.some(f => f.what === 'changed' && f.first === u.index * 256 + j)
        },
        swapBundles() {
            const full = bundles.filter(t => t.width === 256)
            if (full.length < 2) return null
            const t = pick(full)
            const u = full[(full.indexOf(t) + 1 + random(full.length - 1)) % full.length]
            const a = readFileSync(join(dir, t.file))
            write(t.file, readFileSync(join(dir, u.file)))
            write(u.file, a)
            return l => [t, u].every(x => Array.from({ length: 256 }, (_, i) => x.index * 256 + i).every(i => l.some(f => SPANS.includes(f.what) && covers(f, i))))
        },
        cut() {
            const from = bundles[random(bundles.length)]
            for (const t of bundles) if (t.index >= from.index) write(t.file, null)
            return l => l.some(f => ['cut off', 'removed'].includes(f.what) && f.first === from.index * 256) && l.some(f => f.what === 'cut off' && f.last === size - 1)
        },
        truncate() {
            const t = bundles[bundles.length - 1]
            const b = readFileSync(join(dir, t.file))
            const to = random(b.length)
            let whole = 0
            for (let at = 0; at + 2 <= to && at + 2 + b.readUInt16BE(at) <= to; whole++) at += 2 + b.readUInt16BE(at)
            write(t.file, b.subarray(0, to))
            return l => l.some(f => f.what === 'cut off' && f.first === t.index * 256 + whole && f.last === size - 1 && isBehind(f, split(b)[whole - 1]))
        },
        length() {
            const t = pick(bundles)
            const b = Buffer.from(readFileSync(join(dir, t.file)))
            const list = split(b)
            const i = random(list.length)
            let at = 0
            for (let k = 0; k < i; k++) at += 2 + list[k].length
            b.writeUInt16BE((b.readUInt16BE(at) + 1 + random(65000)) % 65536, at)
            write(t.file, b)
            return l => l.some(f => SPANS.includes(f.what) && covers(f, t.index * 256 + i)) && !l.some(f => f.first < t.index * 256 + i)
        },
        tile() {
            const t = pick(tiles)
            write(t.file, flip(readFileSync(join(dir, t.file))))
            return l => l.length === 1 && l[0].what === 'tile' && l[0].level === level(t) && l[0].first === t.index
        },
        tileGone() {
            const t = pick(tiles)
            write(t.file, random(2) === 0 ? null : readFileSync(join(dir, t.file)).subarray(0, random(t.width * 32)))
            return l => l.length === 1 && l[0].what === 'tile' && l[0].level === level(t) && l[0].first === t.index
        },
        // Whoever changes an entry and its hash has the node above against him.
        changeWithHash() {
            const t = pick(bundles)
            const list = bundle(t)
            const i = random(list.length)
            list[i] = flip(list[i])
            write(t.file, join2(list))
            const h = Buffer.from(readFileSync(join(dir, hashFile(t.index))))
            leafHash(list[i]).copy(h, i * 32)
            write(hashFile(t.index), h)
            return l => l.some(f => SPANS.includes(f.what) && covers(f, t.index * 256 + i)) && !l.some(f => f.what === 'tile')
        },
        checkpoint() {
            const f = random(2) === 0 ? 'checkpoint' : 'checkpoints'
            const text = readFileSync(join(dir, f))
            // A witness's line says nothing to who does not know the witness.
            const lines = text.toString('latin1').split('\n')
            const starts = lines.map((_, i) => lines.slice(0, i).reduce((n, l) => n + l.length + 1, 0))
            const mine = lines.map((l, i) => i).filter(i => lines[i].length > 0 && !Buffer.from(lines[i], 'latin1').toString().startsWith('— witness'))
            const i = pick(mine)
            const bad = Buffer.from(text)
            bad[starts[i] + random(lines[i].length)] ^= 1 << random(7)
            write(f, bad)
            return l => l.some(x => x.what === 'checkpoint')
        },
        checkpointGone() {
            write('checkpoint', null)
            return l => l.length === 1 && l[0].what === 'checkpoint'
        },
        olderCheckpoint() {
            const notes = readFileSync(join(dir, 'checkpoints'), 'utf8').split(/(?<=\n— [^\n]*\n)\n/).filter(n => n.length > 1)
            if (notes.length < 2) return null
            const note = notes[random(notes.length - 1)]
            if (Number(note.split('\n')[1]) === size) return null
            write('checkpoint', note)
            return l => l.some(x => x.what === 'checkpoint')
        },
    }
    for (const act of Object.keys(acts)) if (process.env.ONLY && act !== process.env.ONLY) delete acts[act]
    while (found + missed < count) {
        const name = pick(Object.keys(acts))
        const right = acts[name]()
        if (right !== null) judge(name, check('verify', dir, '--key', key), right)
        restore()
    }
    const after = check('verify', dir, '--key', key)
    if (after.status !== 0) {
        missed++
        console.log(`the log that was put back is not intact: ${JSON.stringify(after.report?.findings)}`)
    }
}

// --- the database, by its superuser ---

function tamperDatabase(org, count) {
    const sql = text => execFileSync('psql', ['-XqAt', '-v', 'ON_ERROR_STOP=1', process.env.KMS_DATABASE_URL], { input: `SET session_replication_role = replica;\n${text}`, encoding: 'utf8' }).trim()
    const log = JSON.parse(execFileSync(kmsctl, ['audit', 'key', org, '--json'], { encoding: 'utf8' }))
    const id = log.org
    sql(`CREATE SCHEMA IF NOT EXISTS tamper; DROP TABLE IF EXISTS tamper.entries, tamper.log_leaves, tamper.log_nodes, tamper.log_checkpoints, tamper.logs;
         ${['entries', 'log_leaves', 'log_nodes', 'log_checkpoints', 'logs'].map(t => `CREATE TABLE tamper.${t} AS SELECT * FROM kms.${t} WHERE org_id = '${id}';`).join('\n')}`)
    const order = sql(`SELECT u.id FROM kms.log_leaves l, unnest(l.entry_ids) WITH ORDINALITY u(id, n) WHERE l.org_id = '${id}' ORDER BY l.first + u.n`).split('\n').map(Number)
    const size = Number(JSON.parse(execFileSync(kmsctl, ['audit', 'key', org, '--json'], { encoding: 'utf8' })).signed_size)
    const restore = t => sql(`BEGIN; DELETE FROM kms.${t} WHERE org_id = '${id}'; INSERT INTO kms.${t} ${t === 'entries' ? 'OVERRIDING SYSTEM VALUE' : ''} SELECT * FROM tamper.${t}; COMMIT;`)
    const put = ids => sql(`BEGIN; DELETE FROM kms.entries WHERE org_id = '${id}' AND entry_id IN (${ids}); INSERT INTO kms.entries OVERRIDING SYSTEM VALUE SELECT * FROM tamper.entries WHERE entry_id IN (${ids}); COMMIT;`)
    const at = i => `org_id = '${id}' AND entry_id = ${order[i]}`
    const set = ['verdict = (verdict + 1) % 500000', "action = action || 'x'", "at = at + interval '1 microsecond'", 'op_id = gen_random_uuid()', "person = coalesce(gen_random_uuid(), person)", 'client = gen_random_uuid()', 'resource_id = gen_random_uuid()', "key_ids = array_append(key_ids, gen_random_uuid())", "request_id = coalesce(request_id, '') || ' '", "detail = coalesce(detail, '{}') || jsonb_build_object('x', random())", "kind = coalesce(kind, '') || 'x'", 'channel_id = gen_random_uuid()', "path = array_append(coalesce(path, '{}'), gen_random_uuid())", 'behalf_person = gen_random_uuid()', "subject = coalesce(subject, '') || 'x'"]
    const acts = {
        change() {
            const i = random(size)
            sql(`UPDATE kms.entries SET ${pick(set)} WHERE ${at(i)}`)
            return [l => l.length === 1 && l[0].what === 'changed' && l[0].first === i && l[0].entry === order[i] && l[0].now_says, () => put(order[i])]
        },
        remove() {
            const i = random(size)
            sql(`DELETE FROM kms.entries WHERE ${at(i)}`)
            return [l => l.length === 1 && l[0].what === 'removed' && l[0].first === i && l[0].entry === order[i] && !l[0].now_says, () => put(order[i])]
        },
        insert() {
            const [n] = sql(`INSERT INTO kms.entries (org_id, op_id, verdict, action, xact) VALUES ('${id}', gen_random_uuid(), 0, 'key.get', 1) RETURNING entry_id`).split('\n')
            return [(l, r) => r.strays.length === 1 && r.strays[0] === Number(n), () => sql(`DELETE FROM kms.entries WHERE org_id = '${id}' AND entry_id = ${n}`)]
        },
        swap() {
            const i = random(size)
            const j = (i + 1 + random(size - 1)) % size
            sql(`BEGIN; UPDATE kms.entries SET entry_id = DEFAULT WHERE false;
                 CREATE TEMP TABLE two AS SELECT * FROM kms.entries WHERE org_id = '${id}' AND entry_id IN (${order[i]}, ${order[j]});
                 DELETE FROM kms.entries WHERE org_id = '${id}' AND entry_id IN (${order[i]}, ${order[j]});
                 UPDATE two SET entry_id = ${order[i]} + ${order[j]} - entry_id;
                 INSERT INTO kms.entries OVERRIDING SYSTEM VALUE SELECT * FROM two; COMMIT;`)
            return [l => [i, j].every(x => l.some(f => f.first === x && ['changed', 'moved'].includes(f.what))) && l.length === 2, () => put(`${order[i]}, ${order[j]}`)]
        },
        swapPlaces() {
            const i = random(size - 1)
            sql(`UPDATE kms.log_leaves SET entry_ids = (SELECT array_agg(CASE u.id WHEN ${order[i]} THEN ${order[i + 1]} WHEN ${order[i + 1]} THEN ${order[i]} ELSE u.id END ORDER BY u.n)
                   FROM unnest(entry_ids) WITH ORDINALITY u(id, n)) WHERE org_id = '${id}' AND entry_ids && ARRAY[${order[i]}, ${order[i + 1]}]::bigint[]`)
            return [l => [i, i + 1].every(x => l.some(f => f.first === x && ['changed', 'moved'].includes(f.what))), () => restore('log_leaves')]
        },
        hash() {
            const i = random(size)
            sql(`UPDATE kms.log_leaves SET hashes = set_byte(hashes, ((${i} - first) * 32 + ${random(32)})::integer, ${random(256)}) WHERE org_id = '${id}' AND first <= ${i} AND first + cardinality(entry_ids) > ${i}`)
            if (sql(`SELECT count(*) FROM kms.log_leaves a JOIN tamper.log_leaves b USING (org_id, first) WHERE a.hashes <> b.hashes`) === '0') return null
            return [l => l.some(f => f.what === 'tile' && f.level === 0 && f.first === Math.floor(i / 256)) && !l.some(f => f.what !== 'tile'), () => restore('log_leaves')]
        },
        changeWithHash() {
            const i = random(size)
            sql(`UPDATE kms.entries SET ${pick(set)} WHERE ${at(i)};
                 UPDATE kms.log_leaves l SET hashes = overlay(hashes PLACING kms.leaf_hash(kms.entry_leaf(e)) FROM ((${i} - first) * 32 + 1)::integer FOR 32)
                   FROM kms.entries e WHERE e.org_id = '${id}' AND e.entry_id = ${order[i]} AND l.org_id = '${id}' AND l.first <= ${i} AND l.first + cardinality(l.entry_ids) > ${i}`)
            return [l => l.some(f => covers(f, i) && SPANS.includes(f.what)), () => { put(order[i]); restore('log_leaves') }]
        },
        cutEntries() {
            const from = size - 1 - random(Math.min(size - 1, 300))
            sql(`DELETE FROM kms.entries WHERE org_id = '${id}' AND entry_id IN (${order.slice(from, size)})`)
            return [l => order.slice(from, size).every((_, k) => l.some(f => covers(f, from + k) && ['removed', 'cut off'].includes(f.what))), () => put(order.slice(from))]
        },
        cutLeaves() {
            const first = Number(sql(`SELECT first FROM kms.log_leaves WHERE org_id = '${id}' AND first < ${size} ORDER BY first DESC OFFSET ${random(3)} LIMIT 1`))
            sql(`DELETE FROM kms.log_leaves WHERE org_id = '${id}' AND first >= ${first}`)
            return [l => l.some(f => ['removed', 'cut off'].includes(f.what) && f.first <= first && f.last >= first), () => restore('log_leaves')]
        },
        checkpoint() {
            sql(`UPDATE kms.log_checkpoints SET note = regexp_replace(note, '.$', '') || 'x' WHERE ctid = (SELECT ctid FROM kms.log_checkpoints WHERE org_id = '${id}' AND size < ${size} ORDER BY random() LIMIT 1)`)
            if (sql(`SELECT count(*) FROM kms.log_checkpoints WHERE org_id = '${id}' AND size < ${size}`) === '0') return null
            return [l => l.some(f => f.what === 'checkpoint'), () => restore('log_checkpoints')]
        },
    }
    for (const act of Object.keys(acts)) if (process.env.ONLY && act !== process.env.ONLY) delete acts[act]
    while (found + missed < count) {
        const name = pick(Object.keys(acts))
        const act = acts[name]()
        if (act === null) continue
        judge(name, check('check', org), act[0])
        act[1]()
    }
    const after = check('check', org)
    if (after.status !== 0) {
        missed++
        console.log(`the log that was put back is not intact: ${JSON.stringify(after.report)} ${after.err}`)
    }
    sql('DROP SCHEMA tamper CASCADE')
}

if (mode === 'export') tamperExport(args[0], args[1], Number(args[2]))
else tamperDatabase(args[0], Number(args[1]))
console.log(`${found} found, ${missed} missed`)
process.exit(missed === 0 ? 0 : 1)
