# suite_migrate.sh - migrate(): once, one at a time, and never on what it does not know.  Part of run.sh.

known=$(ls "$top"/sql/[0-9]*.sql | wc -l)
applied() { sql "$1" -c "SELECT count(*) FROM kms.schema_migrations"; }

sql postgres -c "CREATE DATABASE fresh"
out=$(migrate fresh)
is "a fresh database is migrated" "$? $(printf '%s\n' "$out" | grep -c '^applied ')" "0 $known"
out=$(migrate fresh)
is "a second time does nothing" "$? [$out]" "0 []"
is "each migration has its row" "$(applied fresh)" "$known"
for f in "$top"/sql/[0-9]*.sql; do
    is "the checksum of $(basename "$f") is its file's" \
        "$(sql fresh -c "SELECT sha256 FROM kms.schema_migrations WHERE name = '$(basename "$f")'")" "$(sha256sum <"$f" | cut -d' ' -f1)"
done
is "status shows all as applied" "$("$tool" status "$(pg_url "$dir" fresh)" | grep -cvE 'missing|unknown|changed')" "$known"

# See redefined.sh: a function that a later migration copied was changed, and its change is not in the copy.
is "functions are copied from their newest text" "$(diff "$here/redefined.list" <("$here/redefined.sh"))" ""

# Newer than the program.
sql postgres -c "CREATE DATABASE newer TEMPLATE fresh"
sql newer -c "INSERT INTO kms.schema_migrations (number, name, sha256) VALUES (9999, '9999_future.sql', repeat('0', 64))"
out=$(migrate newer)
is "a newer schema is refused" "$?" 1
like "with the reason" "$out" "9999_future.sql.*newer"
is "and left alone" "$(applied newer)" "$((known + 1))"
like "status shows it" "$("$tool" status "$(pg_url "$dir" newer)")" "^9999 9999_future.sql .* unknown"

# Applied with another text.
sql postgres -c "CREATE DATABASE other TEMPLATE fresh"
sql other -c "UPDATE kms.schema_migrations SET sha256 = repeat('0', 64) WHERE number = 2"
out=$(migrate other)
is "another text is refused" "$?" 1
like "with the reason" "$out" "migration 2 .* another text"
like "status shows it" "$("$tool" status "$(pg_url "$dir" other)")" "^2 .* changed"

# One of the middle is missing.
sql postgres -c "CREATE DATABASE gap TEMPLATE fresh"
sql gap -c "DELETE FROM kms.schema_migrations WHERE number = 2"
out=$(migrate gap)
is "a gap is refused" "$?" 1
like "with the reason" "$out" "has migration 3, but not 2"

# A failed migration leaves nothing of itself.
sql postgres -c "CREATE DATABASE half"
sql half -c "CREATE SCHEMA kms"
out=$(migrate half)
is "what is in the way is told" "$?" 1
like "with the reason" "$out" "schema \"kms\" already exists"
is "and nothing stays" "$(sql half -c "SELECT count(*) FROM pg_class WHERE relnamespace = 'kms'::regnamespace")" 0
sql half -c "DROP SCHEMA kms"
out=$(migrate half)
is "then it goes on" "$?" 0

# Two at once: one waits, and finds nothing to do.
sql postgres -c "CREATE DATABASE race"
for i in 1 2 3; do
    migrate race >"$dir/race.$i" &
done
wait $(jobs -p)
is "of three at once one does it" "$(cat "$dir"/race.* | grep -c '^applied ')" "$known"
is "and none fails" "$(cat "$dir"/race.* | grep -c '^error ')" 0

# Not a superuser: the database's owner, who may make roles.  In a cluster of its own, for roles are the cluster's.
pg_start "$dir/plain" >/dev/null
plain() { psql -qXAt -v ON_ERROR_STOP=1 -d "$(pg_url "$dir/plain" "$@")"; }
echo "CREATE ROLE admin LOGIN CREATEROLE; CREATE DATABASE kms OWNER admin" | plain postgres
out=$("$tool" migrate "$(pg_url "$dir/plain" kms admin)" 2>&1)
is "an owner with CREATEROLE can migrate" "$? $(printf '%s\n' "$out" | grep -c '^applied ')" "0 $known"
out=$("$tool" migrate "$(pg_url "$dir/plain" kms admin)" 2>&1)
is "twice" "$? [$out]" "0 []"
is "and the worker works" "$(echo "SELECT kms.server_check() ->> 'schema'" | plain kms kms_worker)" "$known"
is "as no superuser" "$(echo "SELECT rolsuper FROM pg_proc p JOIN pg_roles r ON r.oid = p.proowner WHERE p.proname = 'keys_release'" | plain kms)" f
pg_remove "$dir/plain"

# What cannot be reached.
out=$("$tool" migrate "host=$dir/nowhere dbname=kms user=postgres" 2>&1)
is "no server: told" "$?" 1
like "as unavailable" "$out" "error -18"
for d in newer other gap half race; do
    sql postgres -c "DROP DATABASE $d"
done
