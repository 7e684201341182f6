# postgres.sh - a private, throw-away PostgreSQL cluster on a Unix socket.  Sourced by test scripts, sh or bash.
#
#   pg_start DIR [SETTING=VALUE ...]   makes the cluster in DIR when there is none, starts it, waits until it answers,
#                                      prints a connection string of its superuser
#   pg_stop DIR [MODE]                 stops it (fast; immediate is a crash); it may be started again
#   pg_url DIR DATABASE [ROLE]         prints a connection string
#   pg_remove DIR                      stops it and removes DIR
#
# PostgreSQL refuses to run as root: then it runs as the user "postgres", or "nobody".  DIR is given to that user, and
# the folders above it must let him pass.  fsync is off unless asked for (fsync=on): nothing here outlives a crash of the
# machine.  Nobody but root and that user gets at the socket.

# The newest server's programs, wherever the distribution keeps them.
pg_bindir() {
    for pg_d in $(ls -d /usr/lib/postgresql/*/bin /usr/pgsql-*/bin 2>/dev/null | sort -rV); do
        [ -x "$pg_d/initdb" ] && { echo "$pg_d"; return; }
    done
    pg_d=$(command -v initdb) && dirname "$pg_d"
}

pg_account() {
    if id postgres >/dev/null 2>&1; then echo postgres; else echo nobody; fi
}

# Runs a command as who owns the cluster.
pg_as() {
    if [ "$(id -u)" = 0 ]; then
        (cd / && exec setpriv --reuid="$(pg_account)" --regid="$(id -g "$(pg_account)")" --clear-groups \
            env HOME=/ LC_ALL=C.UTF-8 "$@")
    else
        env LC_ALL=C.UTF-8 "$@"
    fi
}

pg_url() {
    echo "host=$(cat "$1/socket-dir") dbname=$2 user=${3:-postgres}"
}

pg_start() {
    pg_dir=$1
    shift
    pg_bin=$(pg_bindir)
    [ -n "$pg_bin" ] || { echo "postgres.sh: no PostgreSQL server is installed" >&2; return 1; }
    if [ ! -d "$pg_dir/data" ]; then
        mkdir -p "$pg_dir" && chmod 700 "$pg_dir" || return 1
        # A socket's path has at most 107 characters.
        if [ ${#pg_dir} -le 80 ]; then
            echo "$pg_dir" >"$pg_dir/socket-dir"
        else
            mktemp -d "${TMPDIR:-/tmp}/pg.XXXXXX" >"$pg_dir/socket-dir" || return 1
        fi
        if [ "$(id -u)" = 0 ]; then
            chown "$(pg_account)" "$pg_dir" "$(cat "$pg_dir/socket-dir")" || return 1
        fi
        pg_as "$pg_bin/initdb" -D "$pg_dir/data" -k -N -A trust -U postgres -E UTF8 --locale=C.UTF-8 \
            >"$pg_dir/initdb.log" 2>&1 || { cat "$pg_dir/initdb.log" >&2; return 1; }
    fi
    {
        echo "listen_addresses = ''"
        echo "unix_socket_directories = '$(cat "$pg_dir/socket-dir")'"
        echo "fsync = off"
        echo "log_line_prefix = '%m %p %u %d '"
        for pg_s; do
            echo "${pg_s%%=*} = '${pg_s#*=}'"
        done
    } | pg_as sh -c 'cat >"$0/postgresql.auto.conf"' "$pg_dir/data" || return 1
    pg_as "$pg_bin/pg_ctl" -D "$pg_dir/data" -l "$pg_dir/log" -w -t 60 start >/dev/null ||
        { tail -n 20 "$pg_dir/log" >&2; return 1; }
    pg_url "$pg_dir" postgres
}

pg_stop() {
    [ -d "$1/data" ] || return 0
    pg_as "$(pg_bindir)/pg_ctl" -D "$1/data" -m "${2:-fast}" -w -t 60 stop >/dev/null 2>&1 || true
}

pg_remove() {
    [ -n "$1" ] && [ -d "$1" ] || return 0
    pg_stop "$1" immediate
    [ ! -f "$1/socket-dir" ] || pg_d=$(cat "$1/socket-dir")
    [ "${pg_d:-$1}" = "$1" ] || rm -rf "$pg_d"
    rm -rf "$1"
}
