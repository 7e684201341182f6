// witness.mjs - a witness: makes a key, cosigns a checkpoint (C2SP tlog-cosignature, cosignature/v1).
//
//   node witness.mjs key FILE              makes a key in FILE, prints its verifier key
//   node witness.mjs cosign FILE NOTE      prints the note with its cosignature
import { createPrivateKey, createPublicKey, generateKeyPairSync } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'

import { cosign, vkey } from '../clients/lib/tlog.mjs'

const [what, file, note] = process.argv.slice(2)
const name = 'witness.example.org/w1'
if (what === 'key') writeFileSync(file, generateKeyPairSync('ed25519').privateKey.export({ format: 'pem', type: 'pkcs8' }), { mode: 0o600 })
const key = createPrivateKey(readFileSync(file))
const raw = createPublicKey(key).export({ format: 'der', type: 'spki' }).subarray(-32)
if (what === 'key') console.log(vkey(name, 4, raw))
else process.stdout.write(cosign(readFileSync(note, 'utf8'), name, raw, key, Math.floor(Date.now() / 1000)))
