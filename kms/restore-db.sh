#!/bin/sh
# restore-db.sh - a throw-away PostgreSQL made from a backup, for kmsctl, which carries this file: restore-db.sh BACKUP
#
# BACKUP is what pg_dump wrote (plain, also gzipped; custom, tar or directory format) or a directory of pg_basebackup (plain,
# or its tar files).  Prints a connection string when the database answers, then waits for the end of its standard
# input, stops the server and removes all that it made.  The server listens on a private Unix socket only; since
# PostgreSQL refuses to run as root, it then runs as "postgres", or "nobody".  The backup itself is only read.
set -u
umask 077
say() { echo "restore check: $*" >&2; }
fail() {
    say "$*"
    exit 1
}
backup=$(realpath -e -- "$1") || fail "$1: no such file or directory"

dir=$(mktemp -d "${TMPDIR:-/tmp}/kms-restore.XXXXXX") || exit 1
bin=
account=
if [ "$(id -u)" = 0 ]; then
    account=postgres
    id postgres >/dev/null 2>&1 || account=nobody
    chown "$account" "$dir" || exit 1
fi
# As whoever owns the throw-away server.
as() {
    if [ -n "$account" ]; then
        (cd / && exec setpriv --reuid="$account" --regid="$(id -g "$account")" --clear-groups env -i HOME=/ PATH="$PATH" LC_ALL=C.UTF-8 "$@")
    else
        (cd / && exec env -i HOME=/ PATH="$PATH" LC_ALL=C.UTF-8 "$@")
    fi
}
finish() {
    [ -z "$bin" ] || as "$bin/pg_ctl" -D "$dir/data" -m immediate -w stop >/dev/null 2>&1
    rm -rf "$dir"
}
trap finish EXIT
trap 'exit 1' INT TERM HUP

# The programs of one major version, or the newest.
find_bin() {
    for d in /usr/lib/postgresql/"$1"/bin /usr/pgsql-"$1"/bin; do
        [ -x "$d/pg_ctl" ] && [ "$1" != '*' ] && { echo "$d"; return; }
    done
    for d in $(ls -d /usr/lib/postgresql/*/bin /usr/pgsql-*/bin 2>/dev/null | sort -rV); do
        [ -x "$d/pg_ctl" ] && { [ "$1" = '*' ] || [ "$("$d/postgres" --version | sed 's/.* \([0-9]*\).*/\1/')" = "$1" ]; } && { echo "$d"; return; }
    done
    d=$(command -v initdb) && [ "$1" = '*' ] && dirname "$d"
}
user=postgres
psql() { as "$bin/psql" -X -q -v ON_ERROR_STOP=1 -h "$dir" -U "$user" "$@"; }
configure() {
    # What a backup says of ports, archives or libraries is not for here.
    printf '%s\n' "listen_addresses = ''" "unix_socket_directories = '$dir'" 'fsync = off' 'full_page_writes = off' \
        'max_connections = 20' 'archive_mode = off' 'autovacuum = off' "hba_file = '$dir/hba'" "ident_file = '$dir/ident'" \
        >"$dir/conf"
    echo 'local all all trust' >"$dir/hba"
    : >"$dir/ident"
    [ -z "$account" ] || chown "$account" "$dir/conf" "$dir/hba" "$dir/ident"
    as sh -c ': >"$0/data/postgresql.auto.conf"' "$dir"
}
start() {
    if ! as "$bin/pg_ctl" -D "$dir/data" -l "$dir/log" -w -t 86400 -o "-c config_file=$dir/conf" start >/dev/null 2>&1; then
        tail -n 20 "$dir/log" >&2
        fail "PostgreSQL does not start from it"
    fi
}
# Its roles are not in a dump: those that it names, and no others.
roles() {
    psql -d postgres -c "SELECT 1" >/dev/null || exit 1
    sed -n -e 's/^ALTER .* OWNER TO \([^;]*\);$/\1/p' -e 's/^GRANT .* TO \([^;]*\);$/\1/p' -e 's/^REVOKE .* FROM \([^;]*\);$/\1/p' \
        -e 's/^ALTER DEFAULT PRIVILEGES FOR ROLE \([^ ]*\) .*/\1/p' |
        sort -u | grep -vx -e PUBLIC -e postgres | sed 's/.*/CREATE ROLE & NOLOGIN;/' >"$dir/roles.sql"
    psql -d postgres -f - <"$dir/roles.sql" || fail "its roles cannot be made"
}
fresh() {
    bin=$(find_bin '*')
    [ -n "$bin" ] || fail "no PostgreSQL server is installed here: apt-get install postgresql"
    as "$bin/initdb" -D "$dir/data" -N -A trust -U postgres -E UTF8 --locale=C.UTF-8 >"$dir/initdb.log" 2>&1 || {
        cat "$dir/initdb.log" >&2
        fail "initdb failed"
    }
    configure
    start
    psql -d postgres -c 'CREATE DATABASE restored'
}
# From a directory of pg_basebackup, or of its tar files.
base_backup() {
    mkdir "$dir/data" || exit 1
    if [ -f "$backup/PG_VERSION" ]; then
        cp -a "$backup/." "$dir/data/" || fail "it cannot be copied to $dir"
    else
        for t in "$backup"/base.tar*; do tar -C "$dir/data" -xf "$t" || fail "$t cannot be unpacked"; done
        for t in "$backup"/pg_wal.tar*; do
            [ ! -f "$t" ] || tar -C "$dir/data/pg_wal" -xf "$t" || fail "$t cannot be unpacked"
        done
        [ ! -f "$backup/backup_manifest" ] || cp "$backup/backup_manifest" "$dir/data/"
    fi
    # Such a link leads to the tablespace of the server that is in use.
    [ -z "$(ls -A "$dir/data/pg_tblspc" 2>/dev/null)" ] || fail "it has tablespaces of its own, which are not restored here"
    [ ! -L "$dir/data/pg_wal" ] || fail "its pg_wal is a link to somewhere else"
    rm -f "$dir/data/postmaster.pid" "$dir/data/recovery.signal" "$dir/data/standby.signal"
    [ -z "$account" ] || chown -R "$account" "$dir/data"
    chmod 700 "$dir/data"
    bin=$(find_bin "$(cat "$dir/data/PG_VERSION")")
    [ -n "$bin" ] || fail "it was made by PostgreSQL $(cat "$dir/data/PG_VERSION"), which is not installed here"
    if [ -f "$dir/data/backup_manifest" ]; then
        say "comparing it with its manifest"
        as "$bin/pg_verifybackup" -e -i postgresql.auto.conf "$dir/data" >"$dir/verify.log" 2>&1 || {
            tail -n 20 "$dir/verify.log" >&2
            fail "it is not what pg_basebackup wrote"
        }
    fi
    configure
    # Nobody here knows what its superuser is called.
    user=kms_restore_check
    echo "CREATE ROLE $user SUPERUSER LOGIN" |
        as "$bin/postgres" --single -D "$dir/data" -c config_file="$dir/conf" template1 >"$dir/single.log" 2>&1 || {
        tail -n 20 "$dir/single.log" >&2
        fail "PostgreSQL does not start from it"
    }
    start
    database=
    for d in $(psql -d postgres -At -c "SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname"); do
        [ "$(psql -d "$d" -At -c "SELECT to_regclass('kms.wrapping_keys') IS NOT NULL")" != t ] || database=$d
    done
    [ -n "$database" ] || fail "no database in it has the schema kms"
}

say "restoring $backup"
database=restored
if [ -d "$backup" ] && { [ -f "$backup/PG_VERSION" ] || ls "$backup"/base.tar* >/dev/null 2>&1; }; then
    base_backup
elif [ -d "$backup" ] && [ -f "$backup/toc.dat" ]; then
    fresh
    cp -a "$backup" "$dir/dump" && { [ -z "$account" ] || chown -R "$account" "$dir/dump"; } || fail "it cannot be copied to $dir"
    as "$bin/pg_restore" -s -f - "$dir/dump" | roles
    as "$bin/pg_restore" -e -h "$dir" -U postgres -d restored "$dir/dump" || fail "pg_restore failed"
elif [ -f "$backup" ] && [ "$(head -c 5 "$backup")" = PGDMP ] || [ "$(tar -tf "$backup" 2>/dev/null | head -n 1)" = toc.dat ]; then
    fresh
    as "$bin/pg_restore" -s -f - <"$backup" | roles
    as "$bin/pg_restore" -e -h "$dir" -U postgres -d restored <"$backup" || fail "pg_restore failed"
elif [ -f "$backup" ]; then
    fresh
    cat="cat"
    [ "$(head -c 2 "$backup" | od -An -tx1 | tr -d ' ')" != 1f8b ] || cat="gzip -dc"
    $cat <"$backup" 2>/dev/null | head -n 100 | grep -q '^-- PostgreSQL database dump' || fail "it is neither a dump of one database (pg_dump) nor a base backup"
    $cat <"$backup" | roles
    $cat <"$backup" | psql -d restored -f - >/dev/null || fail "the dump cannot be read back"
else
    fail "it is neither a dump of one database (pg_dump) nor a base backup (pg_basebackup)"
fi
[ "$(psql -d "$database" -At -c "SELECT to_regclass('kms.wrapping_keys') IS NOT NULL")" = t ] || fail "the schema kms is not in it"
echo "host=$dir user=$user dbname=$database"
exec 1>&-
# Until kmsctl has what it wants, or is no more.
cat >/dev/null
