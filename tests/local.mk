# Tests and what they are made of; tests/run.sh runs everything.
EXTRA_DIST += tests/README.md tests/run.sh tests/explain/run.sh tests/restore/run.sh
EXTRA_DIST += tests/purposes/run.sh tests/purposes/model.mjs tests/purposes/world.mjs tests/purposes/cells.mjs tests/purposes/table.mjs \
	tests/purposes/control.mjs tests/purposes/nodes.mjs tests/purposes/sql.mjs \
	tests/purposes/lib/client.mjs tests/purposes/lib/fixture.mjs tests/purposes/lib/psql.mjs
include tests/unit/admin.mk
include tests/unit/client.mk
include tests/unit/hsm.mk
include tests/unit/jose.mk
include tests/unit/msg.mk
include tests/unit/web.mk
include tests/fuzz/hsm.mk
include tests/fuzz/jose.mk
include tests/fuzz/msg.mk
include tests/bench/hsm.mk
include tests/bench/local.mk
include tests/destruction/local.mk
include tests/rows/local.mk
include tests/faults/local.mk
include tests/unit/kms.mk
include tests/unit/log.mk
include tests/clients/local.mk
