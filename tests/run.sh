#!/usr/bin/env bash
# The one test command: makes its own environment from nothing, then tests notebooks, site and package.
#
#   bash tests/run.sh           everything
#   bash tests/run.sh --quick   what takes seconds: no notebooks, no site, no browsers, no hosts, no longer trainings
#
# PYTHON          interpreter to use (3.10 or newer); otherwise the first one found
# BEARCLS_VENV    folder of the virtual environment (default .venv-test), used again while the requirements stay the same
# BEARCLS_SHARED  folder with real photographs and cached weights (default ../shared); tests that need it are skipped without it
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
export BEARCLS_SHARED="${BEARCLS_SHARED:-$PWD/../shared}" PYTHONUTF8=1 TQDM_DISABLE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1
unset PYTHONDONTWRITEBYTECODE  # modules are compiled once, when they are first imported, and not by each of some thousand processes
export BEARCLS_CACHE; BEARCLS_CACHE=$(mktemp -d)  # not the user's own
aside="$BEARCLS_CACHE/site" builder=''
trap '[ -z "$builder" ] || kill "$builder" 2> /dev/null; rm -rf "$BEARCLS_CACHE"' EXIT
venv="${BEARCLS_VENV:-$PWD/.venv-test}"
passed=0
case "$*" in
    '') quick='' ;;
    --quick) quick=--quick ;;
    *) echo "tests/run.sh takes --quick or nothing, got: $*" >&2; exit 2 ;;
esac

step() {  # NAME COMMAND...: run one step, say how long it took; the first failure ends the run
    local name=$1 began=$SECONDS; shift
    echo "== $name"
    if ! "$@" < /dev/null; then
        echo "== $name: FAILED after $((SECONDS - began)) s"
        echo "$passed passed, 1 failed"
        exit 1
    fi
    echo "== $name: $((SECONDS - began)) s"
    passed=$((passed + 1))
}

find_python() {
    local p
    for p in "${PYTHON:-python3}" ${PYTHON:+""} python3.13 python3.12 python3.11 python3.10 python; do
        [ -n "$p" ] || break  # a given PYTHON is the only candidate
        "$p" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null && { command -v "$p"; return; }
    done
    echo "No Python 3.10 or newer found; set PYTHON to one" >&2
    return 1
}

environment() {
    local python
    python=$(find_python) || return 1
    [ "$("$(bin python)" -VV 2> /dev/null)" = "$("$python" -VV)" ] || "$python" -m venv --clear "$venv" || return 1
    if ! wanted | cmp -s - "$venv/bearcls-wanted"; then
        install || return 1
        wanted > "$venv/bearcls-wanted"
    fi
    echo "$("$(bin python)" -VV) in $venv"
}

install() {  # uv resolves in seconds what takes pip minutes; where it cannot, pip has its turn
    "$(bin python)" -m pip install -q uv &&
        "$(bin python)" -m uv pip install -q --python "$(bin python)" -e ".[dev]" ||
        "$(bin python)" -m pip install -q -e ".[dev]"
}

wanted() { pwd; cat settings.ini setup.py pyproject.toml; }  # what the installation depends on

bin() { if [ -d "$venv/Scripts" ]; then echo "$venv/Scripts/$1"; else echo "$venv/bin/$1"; fi; }

programs() {  # a browser, and npm, from which pages that need no server get their runtime
    local missing=()
    command -v chromium chromium-browser google-chrome > /dev/null || missing+=(chromium)
    command -v npm > /dev/null || missing+=(npm)
    [ ${#missing[@]} = 0 ] && return
    if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
        { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}"; } > /dev/null && return
    fi
    echo "No ${missing[*]} here and no way to install it: tests that need it are skipped, or say so"
}

build_aside() {  # one process works at the site for minutes, so it begins early: in a copy of the tree, where no notebook that is tested leaves a file
    mkdir "$aside" && tar -cf - --exclude='./.*' --exclude=./_site --exclude=./_proc --exclude=./build . | tar -xf - -C "$aside" || return 1
    python "$aside/nbs/_sphinx/build.py" --out "$aside/_site" > "$aside/site.log" 2>&1 < /dev/null & builder=$!
}

take_site() {  # wait for it; it comes to where it is built by hand
    local status=0
    wait "$builder" || status=$?
    builder=''
    cat "$aside/site.log"
    [ $status = 0 ] && rm -rf _site _proc && mv "$aside/_site" "$aside/_proc" .
}

step environment environment
[ -n "$quick" ] || step programs programs
export PATH="$(dirname "$(bin python)"):$PATH"
step "project in step" python -m pytest -q tests/test_project.py
step lint ruff check bearcls
step "notebook figures" python tests/notebooks.py
cores=$(python -c 'import os; print(max(2, min(4, os.cpu_count() or 2)))')  # a process takes 1 to 2 GB of memory
if [ -n "$quick" ]; then
    OMP_NUM_THREADS=1 exec python -m pytest tests --ignore tests/test_project.py --quick -q -n "$cores" --dist loadfile --durations=10 < /dev/null
fi
build_aside || exit 1
OMP_NUM_THREADS=1 step notebooks python tests/run_notebooks.py --n-workers "$cores" --timing
step site take_site
echo "== pytest ($SECONDS s so far)"  # one process more than cores: those with browsers and servers often wait
OMP_NUM_THREADS=1 BEARCLS_SITE="$PWD/_site" python -m pytest tests --ignore tests/test_project.py -n $((cores + 1)) --dist loadfile --no-loadscope-reorder --durations=10 < /dev/null
