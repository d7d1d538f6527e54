#!/bin/sh
# Debian packages that some tests need: deps.sh [embedded|15|16|17|18|all]
# Installs them where we are root on a Debian-like system; elsewhere says what will be missing.
# DEPS=no installs nothing; DEPS=required fails if a package that apt knows does not get installed.
set -eu

want="sqitch libdbd-pg-perl postgresql-client pgbouncer"
case "${1:-embedded}" in
    15 | all) want="$want postgresql-15 postgresql-15-plpgsql-check postgresql-15-cron postgresql-15-wal2json" ;;
esac
case "${1:-embedded}" in
    16 | 17 | 18 | all) command -v npm >/dev/null || want="$want npm" ;;
esac

have() { dpkg-query -W -f='${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }
missing() { for p in $want; do have "$p" || printf '%s ' "$p"; done; }
# What each package is for, where it is not to be had.
tell() {
    for what in sqitch npm pgbouncer; do
        case " $want " in *" $what "*) command -v $what >/dev/null ||
            echo "note: no $what: tests that need it are skipped or fail" ;;
        esac
    done
}

if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ] || [ "${DEPS:-}" = no ]; then
    tell
    exit 0
fi
absent=$(missing)
[ -n "$absent" ] || exit 0

echo "installing Debian packages: $absent"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt-get update -qq >"$log" 2>&1 || echo "note: apt-get update failed"
# Other releases have other majors of Postgres: take what there is.
available=
for p in $absent; do
    if apt-cache show "$p" >/dev/null 2>&1; then available="$available $p"; fi
done
# shellcheck disable=SC2086
if [ -n "$available" ] &&
    ! apt-get install -qq -y --no-install-recommends $available >>"$log" 2>&1; then
    tail -n 5 "$log"
fi
absent=$(missing)
[ -z "$absent" ] || echo "note: not installed: $absent"
for p in $available; do
    have "$p" || [ "${DEPS:-}" != required ] || exit 1
done
tell
