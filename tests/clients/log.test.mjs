// The audit log, checked by an independent verifier (lib/tlog.mjs): exports, proofs, and that both sides agree.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'

import { env } from './lib/env.mjs'
import { checkProof, consistency, inclusion, leafHash, makeProof, nodeHash, parseKey, readLog, root, signedBy, tilePath } from './lib/tlog.mjs'

const dir = mkdtempSync(join(tmpdir(), 'kms-log-'))
after(() => rmSync(dir, { recursive: true, force: true }))

function kmsctl(...args) {
    const r = spawnSync(env.KMSCTL, args, { encoding: 'utf8', maxBuffer: 1 << 28 })
    return { status: r.status, out: r.stdout, err: r.stderr }
}
function ok(...args) {
    const r = kmsctl(...args)
    assert.equal(r.status, 0, `kmsctl ${args.join(' ')}: ${r.err}`)
    return r.out
}
const sleep = ms => new Promise(done => setTimeout(done, ms))

// Until all that was written so far is under a checkpoint.
async function settled(org) {
    for (let i = 0; i < 100; i++) {
        const log = JSON.parse(ok('audit', 'key', org, '--json'))
        if (log.note !== null && log.size === log.signed_size) return log
        await sleep(300)
    }
    throw new Error('no checkpoint in half a minute')
}

let key
let log
let tail
before(async () => {
    // Entries: an operator looks at what is not there.
    for (let i = 0; i < 5; i++) kmsctl('org', 'suspend', env.KMS_ORG2), kmsctl('org', 'resume', env.KMS_ORG2)
    await sleep(2500)
    await settled(env.KMS_ORG2)
    key = parseKey(ok('audit', 'key', env.KMS_ORG2))
    ok('audit', 'export', join(dir, 'log'), env.KMS_ORG2)
    log = readLog(join(dir, 'log'), key)
    tail = JSON.parse(ok('audit', 'tail', env.KMS_ORG2, '--limit', '1000', '--json')).entries
})

test('the export is a tiled log as C2SP has it, and its entries make the signed roots', () => {
    assert.ok(log.entries.length >= 11)
    assert.ok(log.history.length >= 1)
    assert.deepEqual(log.history.map(h => h.size), log.history.map(h => h.size).sort((a, b) => a - b))
})

test('a checkpoint names its time', () => {
    const [line] = log.checkpoint.extensions
    assert.match(line, /^time [1-9][0-9]*$/)
    assert.ok(Math.abs(Number(line.slice(5)) - Date.now() / 1000) < 120)
})

test('each entry of the log stands in it once, as JSON without names', () => {
    const leaves = log.entries.map(e => JSON.parse(e.toString()))
    assert.equal(new Set(leaves.map(l => l.entry)).size, leaves.length)
    for (const t of tail.filter(x => leaves.some(l => l.entry === x.entry))) {
        const leaf = leaves.find(l => l.entry === t.entry)
        assert.equal(leaf.v, 1)
        assert.equal(leaf.action, t.action)
        assert.equal(leaf.op, t.op)
        assert.equal(leaf.verdict, t.verdict)
        assert.ok(Math.abs(leaf.at / 1000 - t.at) <= 1)
        assert.ok(!log.entries.some(e => e.toString().includes(`"${t.subject}"`)) || t.kind === 'keeper', 'a name in a leaf')
    }
})

test('the server verifies what this verifier verifies', () => {
    const file = join(dir, 'vkey')
    writeFileSync(file, ok('audit', 'key', env.KMS_ORG2))
    assert.equal(kmsctl('audit', 'verify', join(dir, 'log'), '--key', file).status, 0)
})

test('its inclusion proofs hold here, for each entry', () => {
    const leaves = log.entries.map(e => JSON.parse(e.toString()))
    for (const leaf of leaves.slice(0, 12)) {
        const text = ok('audit', 'prove', String(leaf.entry), env.KMS_ORG2)
        const proven = checkProof(text, key)
        assert.equal(JSON.parse(proven.entry.toString()).entry, leaf.entry)
        if (proven.size === log.hashes.length) assert.deepEqual(proven.proof.map(String), inclusion(proven.index, log.hashes).map(String))
    }
})

test('and ours hold there, and only the right ones', () => {
    for (const i of [0, 1, log.entries.length - 1, Math.floor(log.entries.length / 2)]) {
        const good = makeProof(i, log.entries[i], inclusion(i, log.hashes), log.checkpointNote)
        const file = join(dir, 'proof')
        writeFileSync(file, good)
        assert.equal(kmsctl('audit', 'verify', file, '--key', join(dir, 'vkey')).status, 0)
        const wrong = inclusion(i, log.hashes)
        wrong[0] = nodeHash(wrong[0], wrong[0])
        for (const bad of [
            makeProof(i, Buffer.from('{"v":1}'), inclusion(i, log.hashes), log.checkpointNote),
            makeProof(i ^ 1, log.entries[i], inclusion(i, log.hashes), log.checkpointNote),
            makeProof(i, log.entries[i], wrong, log.checkpointNote),
            makeProof(i, log.entries[i], inclusion(i, log.hashes).slice(1), log.checkpointNote),
            good.replace(/\ntime (\d+)\n/, (_, t) => `\ntime ${Number(t) + 1}\n`),
        ]) {
            writeFileSync(file, bad)
            assert.equal(kmsctl('audit', 'verify', file, '--key', join(dir, 'vkey')).status, 1)
        }
    }
})

test('an export goes on, and the later checkpoint continues the earlier one', async () => {
    for (let i = 0; i < 3; i++) kmsctl('org', 'suspend', env.KMS_ORG2), kmsctl('org', 'resume', env.KMS_ORG2)
    await sleep(2500)
    await settled(env.KMS_ORG2)
    ok('audit', 'export', join(dir, 'log'), env.KMS_ORG2)
    const later = readLog(join(dir, 'log'), key)
    assert.ok(later.checkpoint.size > log.checkpoint.size)
    assert.ok(root(later.hashes.slice(0, log.checkpoint.size)).equals(log.checkpoint.root))
    // By RFC 9162's consistency proof as well: rebuild both roots from it.
    const m = log.checkpoint.size
    const proof = consistency(m, later.hashes)
    const known = [...proof]
    let fr = (m & (m - 1)) === 0 ? log.checkpoint.root : known.shift()
    let sr = fr
    let fn = m - 1
    let sn = later.checkpoint.size - 1
    while (fn % 2 === 1) (fn >>= 1), (sn >>= 1)
    for (const c of known) {
        if (fn % 2 === 1 || fn === sn) {
            fr = nodeHash(c, fr)
            sr = nodeHash(c, sr)
            while (fn % 2 === 0 && fn !== 0) (fn >>= 1), (sn >>= 1)
        } else {
            sr = nodeHash(sr, c)
        }
        fn >>= 1
        sn >>= 1
    }
    assert.ok(fr.equals(log.checkpoint.root))
    assert.ok(sr.equals(later.checkpoint.root))
})

test('what was tampered with is not intact to either', () => {
    const name = join(dir, 'log', tilePath('entries', 0, Math.min(256, readLog(join(dir, 'log'), key).checkpoint.size)))
    const data = readFileSync(name)
    const bad = Buffer.from(data)
    bad[40] ^= 1
    writeFileSync(name, bad)
    assert.throws(() => readLog(join(dir, 'log'), key))
    assert.equal(kmsctl('audit', 'verify', join(dir, 'log'), '--key', join(dir, 'vkey')).status, 1)
    writeFileSync(name, data)
    assert.equal(kmsctl('audit', 'verify', join(dir, 'log'), '--key', join(dir, 'vkey')).status, 0)
})

test('another key is not believed', () => {
    const other = parseKey(ok('audit', 'key', env.KMS_ORG))
    assert.equal(signedBy(log.checkpointNote, other), false)
    const r = kmsctl('audit', 'verify', join(dir, 'log'), '--key', ok('audit', 'key', env.KMS_ORG).trim())
    assert.equal(r.status, 1)
    assert.ok(leafHash(Buffer.alloc(0)).length === 32)
})
