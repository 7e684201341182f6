// mklog.mjs - makes up an export of many entries, signed by a key of its own: node mklog.mjs DIR ENTRIES
// Prints the verifier key.
import { generateKeyPairSync, randomUUID, sign } from 'node:crypto'
import { mkdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'

import { keyId, leafHash, nodeHash, root, tilePath, vkey } from '../clients/lib/tlog.mjs'

const [dir, text] = process.argv.slice(2)
const size = Number(text)
const name = 'bench.example/log/1'
const { privateKey, publicKey } = generateKeyPairSync('ed25519')
const raw = publicKey.export({ format: 'der', type: 'spki' }).subarray(-32)
const write = (path, data) => {
    mkdirSync(dirname(join(dir, path)), { recursive: true })
    writeFileSync(join(dir, path), data)
}
const id = randomUUID()
let level = []
for (let i = 0; i < size; i += 256) {
    const parts = []
    for (let k = i; k < Math.min(size, i + 256); k++) {
        // As long as a release's.
        const leaf = Buffer.from(
            `{"v":1,"org":"${id}","entry":${k + 1000000},"at":${1763800000000000 + k},"op":"${id}","action":"key.get","verdict":0,"kind":"user","person":"${id}","client":"${id}","channel":"${id}","resource":"${id}","keys":["${id}"],"path":[],"request":"${id}"}`)
        const length = Buffer.alloc(2)
        length.writeUInt16BE(leaf.length)
        parts.push(length, leaf)
        level.push(leafHash(leaf))
    }
    write(tilePath('entries', i / 256, Math.min(256, size - i)), Buffer.concat(parts))
}
// Full tiles' roots, level by level; the signed root from what is left on each.
const rest = []
for (let l = 0; level.length > 0; l++) {
    const up = []
    for (let i = 0; i < level.length; i += 256) {
        const hashes = level.slice(i, i + 256)
        write(tilePath(l, i / 256, hashes.length), Buffer.concat(hashes))
        if (hashes.length === 256) up.push(root(hashes))
        else rest.push({ level: l, hashes })
    }
    level = up
}
// A root over complete subtrees of different heights: largest first, as RFC 9162 splits.
const peaks = []
for (const { level: l, hashes } of rest) {
    let at = 0
    const here = []
    for (let bit = 7; bit >= 0; bit--) {
        if ((hashes.length >> bit) & 1) {
            here.push(root(hashes.slice(at, at + (1 << bit))))
            at += 1 << bit
        }
    }
    peaks.unshift(...here)
}
let top = peaks.pop()
while (peaks.length > 0) top = nodeHash(peaks.pop(), top)
const body = `${name}\n${size}\n${top.toString('base64')}\n`
const note = `${body}\n— ${name} ${Buffer.concat([keyId(name, 1, raw), sign(null, Buffer.from(body), privateKey)]).toString('base64')}\n`
write('checkpoint', note)
write('checkpoints', `${note}\n`)
console.log(vkey(name, 1, raw))
