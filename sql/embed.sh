#!/bin/sh
# embed.sh - writes the migrations as a C file, so that kmsctl carries them: embed.sh FILE.sql... >migrations.c
# Bytes, not string literals: C promises no literal longer than 4095 characters.
set -eu

echo '/* Made by sql/embed.sh from the migrations in sql; change those. */'
echo '#include "sql/migrations.h"'
echo
echo '#include <stddef.h>'
list=
for file; do
    name=$(basename "$file")
    number=$(expr "$name" : '\([0-9][0-9][0-9][0-9]\)_[a-z0-9_]*\.sql$') || {
        echo "embed.sh: $file: not named like 0001_schema.sql" >&2
        exit 1
    }
    echo
    echo "static const char text_$number[] = {"
    od -An -v -tu1 "$file" | sed 's/^ *//; s/  */, /g; s/$/,/'
    echo '0};'
    list="$list    {$(expr "$number" + 0), \"$name\", text_$number},
"
done
echo
echo 'const struct migration migrations[] = {'
printf '%s' "$list"
echo '    {0, NULL, NULL},'
echo '};'
