#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Says in one line what this machine lacks to build anykvm, and the Debian package to install. Prints nothing if all is there.
set -u

python=${PYTHON:-python3}
missing=
packages=

lack() {
    missing="${missing:+$missing, }$1"
    packages="${packages:+$packages }$2"
}

if ! command -v "$python" >/dev/null 2>&1; then
    lack "Python ($python)" "python3 python3-venv python3-dev"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
    echo "anykvm needs Python 3.11 or newer, and $python is ${found:-broken}: install python3.11 and run make PYTHON=python3.11" >&2
    exit 1
else
    "$python" -c 'import ensurepip, venv' 2>/dev/null || lack "Python's venv module" "python3-venv"
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
        2>/dev/null || lack "Python.h" "python3-dev"
fi
# The compiler that Python's build tools will call.
cc=${CC:-$("$python" -c 'import sysconfig; print((sysconfig.get_config_var("CC") or "gcc").split()[0])' 2>/dev/null || echo gcc)}
if ! command -v "$cc" >/dev/null 2>&1; then
    lack "a C compiler" "gcc libc6-dev"
elif ! echo '#include <stdlib.h>' | "$cc" -E -x c - >/dev/null 2>&1; then
    lack "the C library's headers" "libc6-dev"
fi

if [ -n "$missing" ]; then
    echo "anykvm cannot be built without $missing: apt install $packages" >&2
    exit 1
fi
