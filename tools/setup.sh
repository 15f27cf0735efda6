#!/usr/bin/env bash
# Make .venv with Python 3.11 and install the packages of Pipfile.lock, checked by hash.
# Quick if that is done already. After an interruption it starts over.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

readonly VENV="$PWD/.venv"
readonly PYTHON="$VENV/bin/python"
readonly DONE="$VENV/.installed.lock"      # a copy of the lock that is installed
readonly UNFINISHED="$VENV/.unfinished"    # there while something is being installed
readonly LOG="$PWD/.cache/setup.log"
readonly WANTED="3.11"

say() { printf 'Setup: %s\n' "$*" >&2; }

fail() {
    say "$*"
    exit 1
}

# Print the interpreter behind command $1 (of a virtualenv: its base, since .venv itself may be
# about to go), where it is the wanted Python and has venv and pip.
base_python() {
    "$1" - "$WANTED" 2>/dev/null <<'PYTHON'
import sys

if "%d.%d" % sys.version_info[:2] != sys.argv[1]:
    sys.exit(1)
import ensurepip, venv

print(sys._base_executable)
PYTHON
}

find_python() {
    local candidate
    for candidate in "python$WANTED" python3 python; do
        base_python "$candidate" && return
    done
    fail "expected Python $WANTED with its venv module. Received: none as python$WANTED, python3 or" \
        "python. Install it: apt install python$WANTED python$WANTED-venv (Debian, Ubuntu)," \
        "brew install python@$WANTED (macOS), uv python install $WANTED, or from python.org."
}

# Run command $2... and only where it fails show what it printed; $1 says what it does.
quietly() {
    local what="$1" status=0
    shift
    "$@" >"$LOG" 2>&1 || status=$?
    if [ "$status" -ne 0 ]; then
        tail -n 40 -- "$LOG" >&2
        fail "$what failed with exit code $status; all it said is in $LOG." \
            "Put right what it names, then run this again."
    fi
}

# Print the lock's [dev-packages] as pip's requirements. Pipenv and all that it needs are there.
development_requirements() {
    "$PYTHON" - <<'PYTHON'
import json

with open("Pipfile.lock", encoding="utf-8") as lock:
    packages = json.load(lock)["develop"]
for name, package in packages.items():
    extras = ",".join(package.get("extras", []))
    marker = "; " + package["markers"] if "markers" in package else ""
    hashes = "".join(" --hash=" + digest for digest in package["hashes"])
    print(name + ("[" + extras + "]" if extras else "") + package["version"] + marker + hashes)
PYTHON
}

make_venv() {
    local python
    python="$(find_python)"
    say "making .venv with $python"
    rm -rf -- "$VENV"
    mkdir -p -- "$VENV"
    touch -- "$UNFINISHED"
    quietly "making .venv" "$python" -m venv "$VENV"
}

install_packages() {
    local requirements="$VENV/development.txt"
    touch -- "$UNFINISHED"
    rm -f -- "$DONE"
    say "installing pipenv"
    development_requirements >"$requirements"
    quietly "installing pipenv" "$PYTHON" -m pip install --disable-pip-version-check \
        --require-hashes --requirement "$requirements"
    rm -f -- "$requirements"
    say "installing the packages of Pipfile.lock; the first time this takes minutes"
    # Whatever virtualenv is active and whatever pipenv is set up for, it is .venv that is meant.
    quietly "pipenv sync" env -u PIPENV_CUSTOM_VENV_NAME -u PIPENV_PYTHON -u PIPENV_SYSTEM \
        VIRTUAL_ENV="$VENV" PIPENV_IGNORE_VIRTUALENVS=0 PIPENV_VENV_IN_PROJECT=1 \
        PIPENV_PIPFILE="$PWD/Pipfile" PIPENV_DONT_LOAD_ENV=1 PIPENV_NOSPIN=1 PIPENV_YES=1 \
        "$PYTHON" -m pipenv sync --dev
    cp -- Pipfile.lock "$DONE"
    rm -f -- "$UNFINISHED"
}

main() {
    [ -f Pipfile.lock ] || fail "expected Pipfile.lock in $PWD. Received: none. Check it out again."
    mkdir -p -- "$(dirname -- "$LOG")"
    if [ -e "$UNFINISHED" ] || ! "$PYTHON" -c '' 2>/dev/null; then
        make_venv
    elif ! "$PYTHON" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$WANTED')"; then
        fail "expected .venv to be of Python $WANTED. Received: $("$PYTHON" --version)." \
            "Remove .venv, then run this again."
    elif cmp -s -- Pipfile.lock "$DONE"; then
        say ".venv is up to date"
        return
    fi
    install_packages
    say "ready in $SECONDS s"
}

main "$@"
