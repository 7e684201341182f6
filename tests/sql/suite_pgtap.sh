# suite_pgtap.sh - each file of pgTAP tests, in a transaction that is rolled back.  Part of run.sh.

# Not by a template: that would leave out the database's own privileges.
sql postgres -c "CREATE DATABASE pgtap"
migrate pgtap >/dev/null
sql pgtap -c "CREATE EXTENSION pgtap"
tap=$(PGHOST=$(cat "$dir/socket-dir") PGUSER=postgres pg_prove --verbose -d pgtap "$here"/*.sql 2>&1)
tap_status=$?
tap_bad=$(printf '%s\n' "$tap" | grep -c '^not ok ')
passed=$((passed + $(printf '%s\n' "$tap" | grep -c '^ok ')))
failed=$((failed + tap_bad))
if [ $tap_status != 0 ]; then
    # A file that breaks off, or does not keep its plan, fails without a "not ok".
    [ "$tap_bad" != 0 ] || failed=$((failed + 1))
    printf '%s\n' "$tap" | grep -vE '^ok |^1\.\.' | head -n 100
fi
