// What survives kmsd: channels, keys and authorisations, for node-kms and for the SDK, and what a stop does to requests on their way.
import assert from 'node:assert/strict';
import {test} from 'node:test';
import {setTimeout as sleep} from 'node:timers/promises';
import {notOurs, start, stop} from './lib/instance.mjs';
import {User} from './lib/tokens.mjs';
import {env} from './lib/env.mjs';
import {Channel, ok, open, post, postRaw, refused, sealStatic} from './lib/kms.mjs';
import {sdk} from './lib/webex.mjs';

test('channels, keys and authorisations survive a restart', {skip: notOurs}, async () => {
    const [alice, bob] = [new User(), new User()];
    const [a, b, dead] = await Promise.all([Channel.open(alice), Channel.open(bob), Channel.open(alice)]);
    const [unbound] = await a.keys();
    const resource = await a.resource({authIds: [bob.sub]});
    const key = ok(await a.retrieve(resource.keyUris[0])).key;
    ok(await dead.delete(dead.uri), 204);
    const me = sdk(new User());
    const [mine] = await me.kms.createUnboundKeys({count: 1});

    await stop();
    await start();

    assert.deepEqual(ok(await b.retrieve(key.uri)).key, key);
    assert.deepEqual(ok(await a.retrieve(unbound.uri)).key, unbound);
    assert.equal(ok(await b.retrieve(`${resource.uri}/authorizations`)).authorizations.length, 2);
    refused(await dead.update('/ping'), 499001);

    const before = me.trace.length;
    const seen = await me.kms.fetchKey({uri: mine.uri});
    assert.deepEqual(seen.jwk.toJSON(true), mine.jwk.toJSON(true));
    assert.equal(me.trace.slice(before).filter((r) => r.uri.includes('/ecdhe')).length, 0, 'on the channel it had');
});

for (const signal of ['SIGTERM', 'SIGKILL'])
    test(`${signal} under load: what was answered with 201 is there afterwards`, {skip: notOurs}, async () => {
        const channels = await Promise.all(Array.from({length: 8}, () => Channel.open(new User())));
        const kept = [];
        let going = true;
        const load = channels.map(async (ch) => {
            while (going) {
                const answer = await ch.create('/keys', {count: 3}).catch(() => undefined);
                if (!answer) return; /* the connection broke: the outcome is unknown */
                if (answer.status === 201) kept.push(...answer.keys.map((key) => [ch, key]));
                else assert.ok(answer.status >= 500, JSON.stringify(answer));
            }
        });
        await sleep(400);
        const stopped = stop(signal);
        await sleep(signal === 'SIGTERM' ? 3000 : 0);
        going = false;
        await Promise.all([stopped, ...load]);
        await start();
        assert.ok(kept.length > 0);
        for (const [ch, key] of kept) assert.deepEqual(ok(await ch.retrieve(key.uri)).key, key);
    });

test('without hsmd: what cannot be opened does not disturb its neighbours', {skip: notOurs}, async () => {
    const ch = await Channel.open(new User());
    const first = await sealStatic({method: 'create', uri: '/ecdhe', requestId: '1', client: ch.client()});
    await stop('SIGKILL', env.HSMD_PID_FILE);
    const ping = ch.seal({method: 'update', uri: '/ping', requestId: '2', client: ch.client()});
    const [opened, pinged, junk] = await Promise.all((await post([first, ping, 'junk'])).map((c) => ch.open(c)));
    assert.ok(opened.signed && junk.signed);
    refused(opened.body, 503001);
    assert.ok(!('requestId' in opened.body), 'it could not be read');
    refused(junk.body, 400001);
    if (pinged.signed) refused(pinged.body, 503001); /* this worker did not have the channel's key */
    else ok(pinged.body);
    const alone = await postRaw([first]);
    assert.equal(alone.status, 503);
    assert.ok(Number(alone.headers['retry-after']) > 0);

    await start();
    refused((await open((await post([first]))[0], ch.ctx)).body, 400002);
    ok(await ch.update('/ping'));
});
