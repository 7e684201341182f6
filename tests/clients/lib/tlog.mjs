// A verifier of tiled transparency logs, from RFC 9162 section 2.1 and the C2SP documents signed-note, tlog-checkpoint,
// tlog-tiles, tlog-cosignature and tlog-proof, with node's own crypto.  It shares nothing with the server's code.
import { createHash, createPublicKey, sign, verify } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

const sha256 = (...parts) => createHash('sha256').update(Buffer.concat(parts)).digest()
export const leafHash = data => sha256(Buffer.from([0]), data)
export const nodeHash = (left, right) => sha256(Buffer.from([1]), left, right)

// The largest power of two smaller than n.
function split(n) {
    let k = 1
    while (k * 2 < n) k *= 2
    return k
}

// MTH of a list of leaf hashes, by its definition.
export function root(hashes) {
    if (hashes.length === 0) return sha256()
    if (hashes.length === 1) return hashes[0]
    const k = split(hashes.length)
    return nodeHash(root(hashes.slice(0, k)), root(hashes.slice(k)))
}
export function inclusion(m, hashes) {
    if (hashes.length <= 1) return []
    const k = split(hashes.length)
    if (m < k) return [...inclusion(m, hashes.slice(0, k)), root(hashes.slice(k))]
    return [...inclusion(m - k, hashes.slice(k)), root(hashes.slice(0, k))]
}
export function consistency(m, hashes, whole = true) {
    if (m === hashes.length) return whole ? [] : [root(hashes)]
    const k = split(hashes.length)
    if (m <= k) return [...consistency(m, hashes.slice(0, k), whole), root(hashes.slice(k))]
    return [...consistency(m - k, hashes.slice(k), false), root(hashes.slice(0, k))]
}

// RFC 9162 section 2.1.3.2.
export function rootFromInclusion(index, size, leaf, proof) {
    let fn = index
    let sn = size - 1
    let r = leaf
    for (const p of proof) {
        if (sn === 0) return null
        if (fn % 2 === 1 || fn === sn) {
            r = nodeHash(p, r)
            while (fn % 2 === 0 && fn !== 0) {
                fn = Math.floor(fn / 2)
                sn = Math.floor(sn / 2)
            }
        } else {
            r = nodeHash(r, p)
        }
        fn = Math.floor(fn / 2)
        sn = Math.floor(sn / 2)
    }
    return sn === 0 ? r : null
}

// --- notes ---

const spki = raw => createPublicKey({ key: Buffer.concat([Buffer.from('302a300506032b6570032100', 'hex'), raw]), format: 'der', type: 'spki' })
export function keyId(name, type, raw) {
    return sha256(Buffer.from(`${name}\n`), Buffer.from([type]), raw).subarray(0, 4)
}
export function vkey(name, type, raw) {
    return `${name}+${keyId(name, type, raw).toString('hex')}+${Buffer.concat([Buffer.from([type]), raw]).toString('base64')}`
}
export function parseKey(text) {
    const [name, id, ...rest] = text.trim().split('+')
    const bytes = Buffer.from(rest.join('+'), 'base64')
    const raw = bytes.subarray(1)
    if (!keyId(name, bytes[0], raw).equals(Buffer.from(id, 'hex'))) throw new Error('the id of a key is not its hash')
    return { name, id: Buffer.from(id, 'hex'), type: bytes[0], raw, key: spki(raw) }
}
export function parseNote(note) {
    const at = note.lastIndexOf('\n\n')
    const text = note.slice(0, at + 1)
    const signatures = note.slice(at + 2).split('\n').slice(0, -1).map(line => {
        const m = /^— (\S+) (\S+)$/.exec(line)
        if (m === null) throw new Error(`not a signature line: ${line}`)
        const bytes = Buffer.from(m[2], 'base64')
        return { name: m[1], id: bytes.subarray(0, 4), bytes: bytes.subarray(4) }
    })
    return { text, signatures }
}
export function signedBy(note, key) {
    const { text, signatures } = parseNote(note)
    const mine = signatures.filter(s => s.name === key.name && s.id.equals(key.id))
    if (mine.length === 0) return false
    return mine.every(s => {
        if (key.type === 1) return verify(null, Buffer.from(text), key.key, s.bytes)
        const time = s.bytes.readBigUInt64BE(0)
        return verify(null, Buffer.from(`cosignature/v1\ntime ${time}\n${text}`), key.key, s.bytes.subarray(8))
    })
}
export function parseCheckpoint(note) {
    const lines = parseNote(note).text.split('\n').slice(0, -1)
    if (lines.some(l => l === '')) throw new Error('an empty line in a checkpoint')
    if (!/^(0|[1-9][0-9]*)$/.test(lines[1])) throw new Error('a tree size that is no number')
    return { origin: lines[0], size: Number(lines[1]), root: Buffer.from(lines[2], 'base64'), extensions: lines.slice(3) }
}
export function cosign(note, name, raw, privateKey, time) {
    const { text } = parseNote(note)
    const stamp = Buffer.alloc(8)
    stamp.writeBigUInt64BE(BigInt(time))
    const signature = sign(null, Buffer.from(`cosignature/v1\ntime ${time}\n${text}`), privateKey)
    return `${note}— ${name} ${Buffer.concat([keyId(name, 4, raw), stamp, signature]).toString('base64')}\n`
}

// --- tiles ---

export function tilePath(level, index, width = 256) {
    const groups = []
    let n = index
    do {
        groups.unshift(String(n % 1000).padStart(3, '0'))
        n = Math.floor(n / 1000)
    } while (n > 0)
    const path = groups.map((g, i) => (i < groups.length - 1 ? `x${g}` : g)).join('/')
    return `tile/${level}/${path}${width === 256 ? '' : `.p/${width}`}`
}

// Reads an export and checks all of it.  Throws what is wrong; gives entries, their hashes and the checkpoints.
export function readLog(dir, key) {
    const read = name => readFileSync(join(dir, name))
    const checkpointNote = read('checkpoint').toString()
    if (!signedBy(checkpointNote, key)) throw new Error('the checkpoint is not signed by the key')
    const checkpoint = parseCheckpoint(checkpointNote)
    if (checkpoint.origin !== key.name) throw new Error('the checkpoint is of another log')
    const entries = []
    for (let i = 0; i * 256 < checkpoint.size; i++) {
        const b = read(tilePath('entries', i, Math.min(256, checkpoint.size - i * 256)))
        for (let at = 0; at < b.length;) {
            const n = b.readUInt16BE(at)
            if (at + 2 + n > b.length) throw new Error(`bundle ${i} ends within an entry`)
            entries.push(b.subarray(at + 2, at + 2 + n))
            at += 2 + n
        }
        if (entries.length !== Math.min(checkpoint.size, (i + 1) * 256)) throw new Error(`bundle ${i} has the wrong number of entries`)
    }
    const hashes = entries.map(leafHash)
    // Each level's tiles: full subtrees only.
    let level = hashes
    for (let l = 0; level.length > 0; l++) {
        for (let i = 0; i * 256 < level.length; i++) {
            const want = Buffer.concat(level.slice(i * 256, (i + 1) * 256))
            const name = tilePath(l, i, want.length / 32)
            if (!read(name).equals(want)) throw new Error(`${name} is not what the entries make`)
        }
        const up = []
        for (let i = 0; (i + 1) * 256 <= level.length; i++) up.push(root(level.slice(i * 256, (i + 1) * 256)))
        level = up
    }
    if (!root(hashes).equals(checkpoint.root)) throw new Error('the signed root is of other entries')
    // The file of all checkpoints is an addition to C2SP's layout: notes, each followed by an empty line.
    const history = []
    if (existsSync(join(dir, 'checkpoints'))) {
        for (const note of read('checkpoints').toString().split(/(?<=\n\n(?:— [^\n]*\n)+)\n/)) {
            if (note === '') continue
            if (!signedBy(note, key)) throw new Error('an earlier checkpoint is not signed by the key')
            const c = parseCheckpoint(note)
            if (!root(hashes.slice(0, c.size)).equals(c.root)) throw new Error(`the checkpoint of size ${c.size} is of other entries`)
            history.push({ ...c, note })
        }
    }
    return { checkpoint, checkpointNote, entries, hashes, history }
}

// C2SP tlog-proof.  Gives the entry (its extra data), or throws.
export function checkProof(text, key) {
    const [head, ...rest] = text.split('\n\n')
    const lines = head.split('\n')
    if (lines[0] !== 'c2sp.org/tlog-proof@v1') throw new Error('not a proof')
    const extra = lines[1].startsWith('extra ') ? Buffer.from(lines[1].slice(6), 'base64') : null
    const at = extra === null ? 1 : 2
    const index = Number(/^index (0|[1-9][0-9]*)$/.exec(lines[at])[1])
    const proof = lines.slice(at + 1).map(l => Buffer.from(l, 'base64'))
    const note = rest.join('\n\n')
    if (!signedBy(note, key)) throw new Error('the checkpoint is not signed by the key')
    const c = parseCheckpoint(note)
    const got = rootFromInclusion(index, c.size, leafHash(extra), proof)
    if (got === null || !got.equals(c.root)) throw new Error('the proof does not lead to the root')
    return { index, size: c.size, entry: extra, proof }
}
export function makeProof(index, entry, proof, note) {
    return ['c2sp.org/tlog-proof@v1', `extra ${entry.toString('base64')}`, `index ${index}`, ...proof.map(p => p.toString('base64')), '', note].join('\n')
}
