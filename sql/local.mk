# The schema's migrations, and the C function that applies them (kmsctl database migrate).
noinst_LIBRARIES += sql/libsql.a
MIGRATIONS = \
	$(srcdir)/sql/0001_schema.sql \
	$(srcdir)/sql/0002_worker_functions.sql \
	$(srcdir)/sql/0003_keeper_functions.sql \
	$(srcdir)/sql/0004_log.sql \
	$(srcdir)/sql/0005_policy.sql \
	$(srcdir)/sql/0006_release.sql \
	$(srcdir)/sql/0007_control.sql \
	$(srcdir)/sql/0008_explain.sql \
	$(srcdir)/sql/0009_lifecycle.sql \
	$(srcdir)/sql/0010_containers.sql \
	$(srcdir)/sql/0011_main_keys.sql \
	$(srcdir)/sql/0012_rotation.sql \
	$(srcdir)/sql/0013_destruction.sql \
	$(srcdir)/sql/0014_freeze.sql \
	$(srcdir)/sql/0015_backup.sql
sql_libsql_a_SOURCES = sql/migrate.c sql/migrate.h sql/migrations.h
nodist_sql_libsql_a_SOURCES = sql/migrations.c
sql_libsql_a_CFLAGS = $(AM_CFLAGS) $(PQ_CFLAGS)
# What a program that links libsql.a needs besides.
SQL_LIBS = sql/libsql.a $(PQ_LIBS)

sql/migrations.c: $(MIGRATIONS) sql/embed.sh sql/local.mk
	$(AM_V_GEN)$(MKDIR_P) sql && sh $(srcdir)/sql/embed.sh $(MIGRATIONS) >$@.tmp && mv $@.tmp $@
CLEANFILES += sql/migrations.c sql/migrations.c.tmp
EXTRA_DIST += $(MIGRATIONS) sql/embed.sh sql/README.md

# migrate-tool DO CONNINFO: what tests/sql/run.sh runs migrate() with.
check_PROGRAMS += tests/sql/migrate-tool
tests_sql_migrate_tool_SOURCES = tests/sql/migrate_tool.c
tests_sql_migrate_tool_CFLAGS = $(AM_CFLAGS)
tests_sql_migrate_tool_LDADD = $(SQL_LIBS)
EXTRA_DIST += \
	tests/lib/postgres.sh \
	tests/sql/run.sh tests/sql/redefined.sh tests/sql/redefined.list \
	tests/sql/suite_migrate.sh tests/sql/suite_pgtap.sh tests/sql/suite_races.sh tests/sql/suite_plans.sh \
	tests/sql/fixture.psql tests/sql/officers.psql tests/sql/races.psql \
	tests/sql/authorizations.sql tests/sql/channels.sql tests/sql/containers.sql tests/sql/control.sql tests/sql/destruction.sql tests/sql/explain.sql tests/sql/freeze.sql tests/sql/keeper.sql tests/sql/keys_bind.sql \
	tests/sql/keys_create.sql tests/sql/keys_release.sql tests/sql/log.sql tests/sql/main_keys.sql tests/sql/matters.sql tests/sql/nested.sql tests/sql/officers.sql tests/sql/operations.sql tests/sql/privileges.sql tests/sql/rotation.sql \
	tests/sql/recordings.sql tests/sql/refusals.sql tests/sql/services.psql tests/sql/services.sql tests/sql/resource_keys.sql tests/sql/resources.sql tests/sql/sweep.sql tests/sql/walks.sql \
	tests/bench/seed.sql tests/bench/pgbench_release_50.sql tests/bench/pgbench_release_1.sql \
	tests/bench/pgbench_create_10.sql tests/bench/pgbench_service_50.sql
