#!/usr/bin/env bash
# Make .venv with Python 3.11 and install the packages of Pipfile.lock, checked by hash.
# Quick if that is done already. One setup at a time: a second one waits. After an interruption it
# starts over. An active environment, or Pipenv's own, that has these packages already takes the
# place of .venv. Where there is no Python 3.11, uv or pyenv gets it.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

readonly VENV="$PWD/.venv"
readonly PYTHON="$VENV/bin/python"
readonly DONE="$VENV/.installed.lock"      # a copy of the lock that is installed
readonly UNFINISHED="$VENV/.unfinished"    # there while something is being installed
readonly LOG="$PWD/.cache/setup.log"
readonly LOCK="$PWD/.cache/setup.lock"     # locked while .venv is changed, by the process in it
readonly WANTED="3.11"
readonly UV="$PWD/.cache/uv"               # uv from the package index

keep_with=""    # the module that still has to work for a finished .venv to stay after a failure

say() { printf 'Setup: %s\n' "$*" >&2; }

fail() {
    say "$*"
    exit 1
}

# Print a Python of any version that runs, if there is one.
any_python() {
    local python
    for python in python3 python "$PYTHON"; do
        "$python" -c '' 2>/dev/null && echo "$python" && return
    done
    return 1
}

# Wait until no other setup changes .venv, and keep others waiting. It is the open file 9 that is
# locked, so the lock ends with this script and all that it started, however they end. macOS has no
# flock, so Python locks it; where there is none at all, there is no lock.
lock_setup() {
    local python
    python="$(any_python)" || return 0
    exec 9>>"$LOCK"
    "$python" - "$LOCK" <<'PYTHON'
import errno
import fcntl
import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except IOError as error:
    if error.errno != errno.EWOULDBLOCK:
        sys.exit()  # no locks on this file system
    with open(sys.argv[1]) as lock:
        process = lock.read().strip()
    sys.stderr.write("Setup: another setup (process %s) is running, so this one waits\n" % process)
    fcntl.flock(9, fcntl.LOCK_EX)
PYTHON
    echo "$$" >"$LOCK"
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
    python_of_pyenv && return
    if command -v uv >/dev/null; then
        python_of_uv uv && return
    elif command -v pyenv >/dev/null; then
        say "no Python $WANTED here, so pyenv builds one; this takes minutes"
        pyenv install --skip-existing "$WANTED" >"$LOG" 2>&1 && python_of_pyenv && return
    fi
    uv_of_the_index && python_of_uv "$UV/bin/uv" && return
    fail "expected Python $WANTED with its venv module. Received: none as python$WANTED, python3 or" \
        "python, and none from pyenv or uv. Install it:" \
        "apt install python$WANTED python$WANTED-venv (Debian, Ubuntu)," \
        "brew install python@$WANTED (macOS), uv python install $WANTED, or from python.org."
}

# Print a Python that pyenv has.
python_of_pyenv() {
    local candidate
    command -v pyenv >/dev/null || return 1
    for candidate in "$(pyenv root)/versions/$WANTED".*/bin/python; do
        base_python "$candidate" && return
    done
    return 1
}

# Print a Python that the uv at $1 has or downloads.
python_of_uv() {
    local find=("$1" python find --no-project --system "$WANTED")
    base_python "$("${find[@]}" 2>/dev/null)" && return
    say "no Python $WANTED here, so uv downloads one"
    UV_PYTHON_INSTALL_BIN=0 "$1" python install "$WANTED" >"$LOG" 2>&1 || return 1
    base_python "$("${find[@]}" 2>/dev/null)"
}

# Install uv, of whatever Python there is, into .cache/.
uv_of_the_index() {
    local python requirements="$UV.txt" pip
    [ -x "$UV/bin/uv" ] && return
    for python in python3 python; do
        locked_requirements "$python" python >"$requirements" 2>/dev/null || continue
        say "no Python $WANTED here, so uv is fetched to get it"
        pip=(-m pip install --disable-pip-version-check --require-hashes --no-deps
            --only-binary=:all: --target "$UV" --requirement "$requirements")
        "$python" "${pip[@]}" >"$LOG" 2>&1 && return
        # Debian's Python has no pip of its own where a package is missing.
        "$python" -m venv "$UV-venv" >>"$LOG" 2>&1 &&
            "$UV-venv/bin/python" "${pip[@]}" >>"$LOG" 2>&1 && return
    done
    return 1
}

# Run command $2... and only where it fails show what it printed; $1 says what it does.
quietly() {
    local what="$1" status=0
    shift
    "$@" >"$LOG" 2>&1 || status=$?
    if [ "$status" -ne 0 ]; then
        tail -n 40 -- "$LOG" >&2
        if [ -n "$keep_with" ] && [ "$status" -le 128 ] &&
            "$PYTHON" -m "$keep_with" --version >/dev/null 2>&1; then
            rm -f -- "$UNFINISHED"
        fi
        fail "$what failed with exit code $status; all it said is in $LOG." \
            "Put right what it names, then run this again."
    fi
}

# Refuse a lock that cannot be read, before anything is changed.
check_lock() {
    local python defect
    python="$(any_python)" || return 0
    defect="$("$python" - 2>&1 <<'PYTHON'
import json
import sys

try:
    with open("Pipfile.lock") as lock:
        content = json.load(lock)
    content["default"], content["develop"]
except (ValueError, KeyError, TypeError) as error:
    sys.exit("%s: %s" % (type(error).__name__, error))
PYTHON
)" || fail "expected the JSON of pipenv in Pipfile.lock. Received: $defect. Restore the file, after a" \
        "merge conflict with git checkout HEAD -- Pipfile.lock, then run this again."
}

# Print category $2 of the lock as pip's requirements, with the help of Python $1.
locked_requirements() {
    "$1" tools/requirements.py "$2" <Pipfile.lock
}

# Print what Python $1 lacks of the lock, in words; nothing where it has everything.
lacking_packages() {
    "$1" - "$WANTED" <<'PYTHON'
import json
import sys
from importlib.metadata import PackageNotFoundError, version

if "%d.%d" % sys.version_info[:2] != sys.argv[1]:
    sys.exit(print("Python " + sys.argv[1]))
with open("Pipfile.lock", encoding="utf-8") as lock:
    content = json.load(lock)
packages = dict(content["default"], **content["develop"])
try:
    from packaging.markers import Marker
except ImportError:
    Marker = None
lacking = []
for name, package in packages.items():
    if Marker and "markers" in package and not Marker(package["markers"]).evaluate():
        continue
    try:
        found = "==" + version(name)
    except PackageNotFoundError:
        found = None
    if found != package["version"]:
        lacking.append(name)
if lacking:
    print("%d of %d packages of Pipfile.lock, such as %s" % (len(lacking), len(packages), lacking[0]))
PYTHON
}

# Make .venv a link to an environment that has all packages already: the active one, or Pipenv's.
adopt_environment() {
    local folder lacking
    for folder in "${VIRTUAL_ENV:-}" "$(env -u VIRTUAL_ENV pipenv --venv 2>/dev/null)"; do
        [ -n "$folder" ] && [ "$folder" != "$VENV" ] && [ -x "$folder/bin/python" ] || continue
        if lacking="$(lacking_packages "$folder/bin/python" 2>/dev/null)" && [ -z "$lacking" ]; then
            ln -s -- "$folder" "$VENV"
            cp -- Pipfile.lock "$DONE" 2>/dev/null || true
            say "using $folder as .venv, since it has the packages of Pipfile.lock"
            return
        fi
        say "$folder lacks ${lacking:-a Python that works}, so .venv is made as well. To use" \
            "that instead: remove .venv, run pipenv sync --dev in it, then this again"
    done
    return 1
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
    locked_requirements "$PYTHON" develop >"$requirements"
    [ -e "$UNFINISHED" ] || keep_with=pip
    touch -- "$UNFINISHED"
    rm -f -- "$DONE"
    say "installing pipenv"
    quietly "installing pipenv" "$PYTHON" -m pip install --disable-pip-version-check \
        --require-hashes --requirement "$requirements"
    rm -f -- "$requirements"
    [ -z "$keep_with" ] || keep_with=pipenv
    say "installing the packages of Pipfile.lock; the first time this takes minutes"
    # Whatever virtualenv is active and whatever pipenv is set up for, it is .venv that is meant.
    quietly "pipenv sync" env -u PIPENV_CUSTOM_VENV_NAME -u PIPENV_PYTHON -u PIPENV_SYSTEM \
        VIRTUAL_ENV="$VENV" PIPENV_IGNORE_VIRTUALENVS=0 PIPENV_VENV_IN_PROJECT=1 \
        PIPENV_PIPFILE="$PWD/Pipfile" PIPENV_DONT_LOAD_ENV=1 PIPENV_NOSPIN=1 PIPENV_YES=1 \
        "$PYTHON" -m pipenv sync --dev
    cp -- Pipfile.lock "$DONE"
    rm -f -- "$UNFINISHED"
}

is_wanted_version() {
    "$PYTHON" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$WANTED')" 2>/dev/null
}

# Programs in .venv/bin begin with the path of their Python, so a .venv that was moved or copied with
# its folder would call the one at the old place. One without an activate of its own is not judged.
is_in_place() {
    [ -L "$VENV" ] || [ ! -e "$VENV/bin/activate" ] || (
        unset VIRTUAL_ENV
        set +eu
        . "$VENV/bin/activate" >/dev/null 2>&1
        [ "${VIRTUAL_ENV:-}" -ef "$VENV" ]
    )
}

up_to_date() {
    [ ! -e "$UNFINISHED" ] && cmp -s -- Pipfile.lock "$DONE" && is_wanted_version && is_in_place
}

main() {
    # pip ends with 1 after Ctrl-C, as if it had failed by itself, so this script ends for it.
    trap 'exit 130' INT
    [ -f Pipfile.lock ] || fail "expected Pipfile.lock in $PWD. Received: none. Check it out again."
    mkdir -p -- "$(dirname -- "$LOG")"
    up_to_date || lock_setup
    if up_to_date; then
        say ".venv is up to date"
        return
    fi
    check_lock
    if [ ! -e "$VENV" ] && [ ! -L "$VENV" ] && adopt_environment; then
        return
    elif [ -e "$UNFINISHED" ] || ! "$PYTHON" -c '' 2>/dev/null; then
        make_venv
    elif ! is_wanted_version; then
        fail "expected .venv to be of Python $WANTED. Received: $("$PYTHON" --version)." \
            "Remove .venv, then run this again."
    elif ! is_in_place; then
        say ".venv was made for another folder, so it is made anew"
        make_venv
    fi
    install_packages
    say "ready in $SECONDS s"
}

main "$@"
