// receiver.mjs - a syslog collector: RFC 5424 over TLS, framed by octet counts (RFC 5425).
//
//   node receiver.mjs PORT CERT KEY FILE      appends what it gets to FILE, one message a line; says "ready"
import { appendFileSync, readFileSync } from 'node:fs'
import { createServer } from 'node:tls'

const [port, cert, key, file] = process.argv.slice(2)
createServer({ cert: readFileSync(cert), key: readFileSync(key) }, socket => {
    let data = Buffer.alloc(0)
    socket.on('data', chunk => {
        data = Buffer.concat([data, chunk])
        for (;;) {
            const space = data.indexOf(0x20)
            if (space < 0) return
            const head = data.subarray(0, space).toString()
            if (!/^[1-9][0-9]*$/.test(head)) {
                appendFileSync(file, `BROKEN FRAME ${head}\n`)
                socket.destroy()
                return
            }
            const end = space + 1 + Number(head)
            if (data.length < end) return
            appendFileSync(file, `${data.subarray(space + 1, end)}\n`)
            data = data.subarray(end)
        }
    })
    socket.on('error', () => {})
}).listen(Number(port), '127.0.0.1', () => console.log('ready'))
