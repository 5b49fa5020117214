#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Makes .venv and installs anykvm into it; does again only what has changed since: Python, this folder's place, the sources.
# Argument: an extra of pyproject.toml whose requirements are wanted too, such as "test".
set -eu

cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
extra=${1:-}

failed() {
    echo "anykvm: $1 failed, as said above: is there space here ($(pwd)), and a package index to reach?" >&2
    exit 1
}

if [ ! -w . ] || { [ -e .venv ] && [ ! -w .venv ]; }; then
    echo "anykvm is built in its own folder, and $(id -un) may not write to $(pwd): make a clone of your own" >&2
    exit 1
fi

identity=$("$python" -c 'import sys; print(sys.version, sys.base_prefix)' 2>/dev/null || true)
identity="$identity $(pwd)"
if [ "$(cat .venv/.python 2>/dev/null || true)" != "$identity" ] || ! .venv/bin/python -c '' 2>/dev/null; then
    sh scripts/check-host.sh
    echo "anykvm: making .venv" >&2
    rm -rf .venv
    "$python" -m venv .venv || failed "making .venv"
    printf '%s\n' "$identity" >.venv/.python
fi

sources=$(find src setup.py pyproject.toml README.md -type f ! -path '*/__pycache__/*' ! -path '*.egg-info/*' ! -name '*.so' \
    -exec sha256sum {} + 2>/dev/null | LC_ALL=C sort | sha256sum)
if [ "$(cat .venv/.installed 2>/dev/null || true)" != "$sources" ]; then
    sh scripts/check-host.sh
    echo "anykvm: building and installing (the first time takes a minute)" >&2
    # What setuptools built before may hold modules that are no longer there.
    rm -rf build/lib* build/bdist*
    .venv/bin/python -m pip install --disable-pip-version-check . || failed "installing anykvm"
    printf '%s\n' "$sources" >.venv/.installed
fi

if [ -n "$extra" ]; then
    wanted=$(.venv/bin/python -c '
import sys, tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]], sep="\n")' "$extra")
    if [ "$(cat ".venv/.extra-$extra" 2>/dev/null || true)" != "$wanted" ]; then
        # Not as ".[extra]", which would build everything again.
        printf '%s\n' "$wanted" >.venv/requirements.txt
        .venv/bin/python -m pip install --disable-pip-version-check -r .venv/requirements.txt ||
            failed "installing what the tests need"
        printf '%s\n' "$wanted" >".venv/.extra-$extra"
    fi
fi
