# The tests of the log.
EXTRA_DIST += tests/log/run.sh tests/log/tamper.mjs tests/log/witness.mjs tests/log/receiver.mjs
# The tests by other people's clients, as the archive has them.
EXTRA_DIST += \
	tests/clients/README.md \
	tests/clients/archiver.test.mjs \
	tests/clients/authorizations.test.mjs \
	tests/clients/byok.test.mjs \
	tests/clients/channel.test.mjs \
	tests/clients/containers.test.mjs \
	tests/clients/http.test.mjs \
	tests/clients/keys.test.mjs \
	tests/clients/log.test.mjs \
	tests/clients/lib/env.mjs \
	tests/clients/lib/instance.mjs \
	tests/clients/lib/officers.mjs \
	tests/clients/lib/service.mjs \
	tests/clients/lib/kms.mjs \
	tests/clients/lib/raw.mjs \
	tests/clients/lib/reporter.mjs \
	tests/clients/lib/tlog.mjs \
	tests/clients/lib/tokens.mjs \
	tests/clients/lib/webex.mjs \
	tests/clients/package-lock.json \
	tests/clients/package.json \
	tests/clients/recordings.test.mjs \
	tests/clients/restart.test.mjs \
	tests/clients/run.sh \
	tests/clients/sdk.test.mjs \
	tests/clients/services.test.mjs \
	tests/clients/tokens.test.mjs \
	tests/clients/transport.test.mjs \
	tests/clients/zerotrust.test.mjs
