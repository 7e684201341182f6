// Reporter for node --test: one line a test, what went wrong below it, and "N passed, N failed" as the last line.
import {inspect} from 'node:util';

export default async function* report(source) {
    let passed = 0, failed = 0, skipped = 0;
    for await (const {type, data} of source) {
        if (type === 'test:diagnostic' && /^note: /.test(data.message)) yield `       ${data.message}\n`;
        if (type !== 'test:pass' && type !== 'test:fail') continue;
        const suite = data.details?.type === 'suite';
        const pad = '  '.repeat(data.nesting);
        if (type === 'test:pass') {
            if (suite) continue;
            const skip = data.skip !== undefined;
            if (skip) skipped++; else passed++;
            yield `${skip ? 'skip' : 'ok  '} ${pad}${data.name}${skip && data.skip !== true ? ` (${data.skip})` : ''}\n`;
            continue;
        }
        const error = data.details?.error;
        const own = error?.code !== 'ERR_TEST_FAILURE' || error.failureType !== 'subtestsFailed';
        if (suite && !own) continue;
        failed++;
        const cause = error?.cause ?? error;
        yield `FAIL ${pad}${data.name} (${data.file?.split('/').pop()}:${data.line})\n`;
        const text = typeof cause?.stack === 'string' ? cause.stack : inspect(cause);
        yield `${text.split('\n').filter((l) => l.trim() && !/ node:internal/.test(l)).slice(0, 14).map((l) => `       ${l}`).join('\n')}\n`;
    }
    if (skipped) yield `${skipped} skipped\n`;
    yield `${passed} passed, ${failed} failed\n`;
}
