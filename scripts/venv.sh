#!/bin/sh
# Makes .venv with the first Python >= 3.11 it finds, or with $PYTHON.
set -eu
cd "$(dirname "$0")/.."

fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

python=
candidates=${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}
for candidate in $candidates; do
    if fits "$candidate"; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
    echo "meshaudit needs Python 3.11 or newer; tried: $candidates" >&2
    echo "hint: install it, or name one: make PYTHON=/path/to/python3 ..." >&2
    exit 1
fi
[ ! -x .venv/bin/python ] || ! fits .venv/bin/python || exit 0

# Debian ships venv without ensurepip unless python3-venv is installed.
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing python3-venv"
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y python3-venv; } \
            >/dev/null
    else
        echo "$python cannot make virtual environments" >&2
        echo "hint: install the package python3-venv" >&2
        exit 1
    fi
fi
echo "making .venv with $("$python" --version)"
"$python" -m venv --clear .venv
