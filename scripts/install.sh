#!/usr/bin/env bash
# Makes .venv ready: system packages, a virtual environment of a system Python, the exact versions of
# requirements/lock.txt, and this package in place. Safe to run again: when nothing changed it ends at once.
#
#   scripts/install.sh          as root: installs missing system packages itself; else: names the one command that does
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022 # the sandbox's user must be able to read what is installed here
unset PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV

lock=requirements/lock.txt
venv=.venv
stamp=$venv/.installed

say() { printf 'install: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# The sandbox binds this very Python into a root file system that another user reads. A Python under a private home
# can't be read by that user, so only the system's own come into question, the newest first.
system_python() {
  local candidate
  for candidate in /usr/bin/python3.13 /usr/bin/python3.12 /usr/bin/python3.11 /usr/bin/python3; do
    if [ -x "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      printf '%s\n' "$candidate"
      return
    fi
  done
}

# "python3" for the distribution's default Python, else e.g. "python3.12": how its -venv and -dev packages are named.
python_package() {
  if [ -z "$1" ] || [ "$(readlink -f "$1")" = "$(readlink -f /usr/bin/python3)" ]; then echo python3; else basename "$1"; fi
}

missing_packages() {
  local name family
  family=$(python_package "$1")
  for name in bubblewrap softhsm2 swtpm swtpm-tools tpm2-tools libtss2-dev libseccomp2 postgresql gcc g++ pkg-config "$family-venv" "$family-dev"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || printf '%s ' "$name"
  done
}

install_system() {
  local missing
  command -v dpkg-query >/dev/null || fail "this installs on Debian and its relatives; elsewhere install bubblewrap, softhsm2, swtpm, tpm2-tools, libtss2 with headers, libseccomp, PostgreSQL, gcc, g++ and pkg-config by hand and make $venv from $lock."
  missing=$(missing_packages "$(system_python)")
  missing=${missing% }
  [ -n "$missing" ] || return 0
  if [ "$(id -u)" -ne 0 ]; then
    say "these system packages are missing; run this, then try again:"
    printf 'sudo apt-get install -y --no-install-recommends %s\n' "$missing" >&2
    exit 1
  fi
  say "installing system packages: $missing"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq || fail "the package lists can't be fetched; check this machine's package sources and its network."
  # shellcheck disable=SC2086 # a list of words on purpose
  apt-get install -y -qq --no-install-recommends $missing >/dev/null || fail "apt-get could not install: $missing"
}

usable_venv() {
  [ -x "$venv/bin/python" ] && "$venv/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

wanted_stamp() {
  { cat "$lock" pyproject.toml scripts/install.sh; "$1" --version; pwd; } | sha256sum | cut -d' ' -f1
}

# As root the workloads run under another user, which has to get to this folder at all.
warn_if_private() {
  local folder
  [ "$(id -u)" -eq 0 ] || return 0
  folder=$(pwd -P)
  while [ "$folder" != / ]; do
    case "$(stat -c %A "$folder")" in
      *[xt]) ;;
      *) say "other users can't enter $folder, so sandboxes can't read this checkout; move it or run chmod o+x on that folder." ;;
    esac
    folder=$(dirname "$folder")
  done
}

main() {
  local python key
  install_system
  python=$(system_python)
  [ -n "$python" ] || fail "no system Python of version 3.11 or newer in /usr/bin; this needs Debian 12 or newer."
  key=$(wanted_stamp "$python")
  if usable_venv && [ "$(cat "$stamp" 2>/dev/null)" = "$key" ]; then return; fi
  warn_if_private
  if ! usable_venv; then
    rm -rf "$venv"
    "$python" -m venv --copies "$venv"
  fi
  rm -f "$stamp"
  say "installing Python packages into $venv (about 3 GB, some minutes the first time)"
  # --no-deps: the lock is complete (pip check below proves it), so nothing gets resolved on this machine.
  "$venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check --no-deps -r "$lock"
  "$venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check --no-deps -e .
  "$venv/bin/python" -m pip check >&2 || fail "the versions in $lock don't fit together; make it again with scripts/lock.py."
  printf '%s\n' "$key" >"$stamp"
  say "done"
}

# One at a time: two make runs that start together must not write into the same environment.
mkdir -p build
exec 9>build/install.lock
flock 9
main
