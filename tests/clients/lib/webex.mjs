// The Webex JS SDK as it is on npm, with only the cloud replaced: device registration, push socket, tokens, service catalogue.
//
// Everything between kms.fetchKey() and the TLS socket is the SDK's own: KMS class, batcher, interceptors, certificate
// validation, HTTP.  The real cloud answers a POST with an empty body and pushes the KMS's answers through a web socket;
// here they stand in the HTTP answer, and are handed to the plugin as the socket would.
import {setTimeout as sleep} from 'node:timers/promises';
import {X509Certificate} from 'node:crypto';
import {base, ca, require} from './env.mjs';

process.env.NODE_ENV ??= 'production'; /* else the SDK prints every request */
const WebexCore = require('@webex/webex-core').default;
const {KmsError} = require('@webex/internal-plugin-encryption');

/* The batcher hangs a then() without a catch() on every request, so each refusal also is an unhandled rejection. */
const emit = process.emit;
process.emit = (event, reason, ...rest) =>
    event === 'unhandledRejection' && (reason instanceof KmsError || reason?.kmsError) ? true : emit.call(process, event, reason, ...rest);

export const caroots = [new X509Certificate(ca).raw.toString('base64')];

const quiet = Object.fromEntries(['error', 'warn', 'log', 'info', 'debug', 'trace'].map((level) => [level, () => undefined]));

/*
 * A signed-in user with a device.  encryption: of its configuration.  token: what the token service hands out.
 * services: more of the catalogue, by name.  posts: how many messages each POST had.  trace: every request that was prepared.  push.delay: milliseconds.
 */
export function sdk(user, {encryption = {}, services: more = {}, token = () => user.token()} = {}) {
    const config = {
        encryption: {caroots, ...encryption},
        services: {discovery: {}, override: {encryption: new URL('/encryption/api/v1', base).href, ...more}},
        metrics: {enabled: false},
    };
    const webex = new WebexCore({config});
    const {device, mercury, services, metrics, encryption: plugin} = webex.internal;

    device.set({userId: user.sub, url: user.clientId});
    mercury.connect = () => Promise.resolve();
    services.collectPreauthCatalog = () => Promise.resolve();
    metrics.submitClientMetrics = () => Promise.resolve();
    webex.credentials.getUserToken = async () => {
        const text = token();
        return {access_token: text, toString: () => `Bearer ${text}`};
    };
    Object.assign(webex.logger, quiet);

    const {kms} = plugin;
    const out = {webex, kms, encryption: plugin, user, posts: [], trace: [], push: {delay: 0, errors: []}};
    kms.batcher.handleHttpSuccess = (res) => {
        (async () => {
            if (out.push.delay) await sleep(out.push.delay);
            await plugin.processKmsMessageEvent({encryption: {kmsMessages: res.body.kmsMessages}});
        })().catch((error) => out.push.errors.push(error));
        return Promise.resolve();
    };
    spy(kms.batcher, 'submitHttpRequest', (payload) => out.posts.push(payload.kmsMessages.length));
    spy(kms, 'prepareRequest', (payload) => out.trace.push(payload));
    return out;
}

export function spy(object, name, seen) {
    const was = object[name];
    object[name] = function spied(...args) {
        seen(...args);
        return was.apply(this, args);
    };
    return () => { object[name] = was; };
}
