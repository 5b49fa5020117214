# SPDX-License-Identifier: GPL-2.0-only
"""The guest's first process: a script for busybox's shell, and the protocol it speaks with whoever started the guest.

The kernel command line tells it what to do (`arguments` writes these words):

``anykvm.run=MODE``
    ``shell`` (if nothing is said): an interactive shell with job control on the console; when it ends, power off.
    ``poweroff``: power off at once.
    ``hackbench``: run hackbench, power off.
    ``exec``: run a shell script, power off.
``anykvm.args=A,B,...``
    Options for hackbench, with commas for spaces. It runs once with processes and once with threads, or only as they
    say if one of them is ``-T``, ``--threads``, ``-P`` or ``--process``.
``anykvm.cmd=BASE64``
    The script of ``exec``. Without it the file /anykvm.sh of the image is run.

What it prints on the console, each on a line of its own (UPTIME is the first number of /proc/uptime: seconds since the
guest's clock started, two decimals; STATUS is an exit status, 0..255; lines end in CR LF on a serial console)::

    anykvm-ready MODE UPTIME            user space is up
    anykvm-begin NAME UPTIME            NAME: hackbench-process, hackbench-thread, exec
    ...                                 what the program prints
    anykvm-end NAME STATUS UPTIME
    anykvm-error WORDS...               the command line asked for something there is not
    anykvm-poweroff UPTIME              the last line; then the guest powers off

From ``anykvm-ready`` on, in all modes but ``shell``, only kernel messages of level error and worse reach the console.

Kernel modules: /etc/anykvm/modules has lines ``PATTERN PATH...``: if a device's modalias fits the shell pattern, the
modules at these paths are inserted in this order; with ``-`` as pattern, always. Those with a pattern are looked at in
``shell`` and ``exec`` only: the other modes use no device, and their time is what is measured.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

from .errors import GuestError

MODES = ("shell", "poweroff", "hackbench", "exec")

MODULE_TABLE = "etc/anykvm/modules"
SCRIPT = "anykvm.sh"

APPLETS = ("sh", "mount", "insmod", "poweroff", "setsid", "cttyhack", "base64", "busybox")
"""What the script starts by name. Modes that run other people's scripts install all the others first."""

# The kernel's own limit, COMMAND_LINE_SIZE, is 2048 on arm64 and x86, with all words and the final zero byte.
_MAX_ARGUMENTS = 1900

# Only builtins where possible: each started program costs milliseconds on an emulated CPU.
INIT = r"""#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=${TERM:-vt100}
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
set -f

mode=shell args= cmd=
read -r line < /proc/cmdline
for word in $line; do
    case $word in
    anykvm.run=*) mode=${word#*=} ;;
    anykvm.args=*) args=${word#*=} ;;
    anykvm.cmd=*) cmd=${word#*=} ;;
    esac
done

uptime() { read -r now idle < /proc/uptime; }

off() {
    uptime
    echo "anykvm-poweroff $now"
    exec poweroff -f
}

run() {
    name=$1; shift
    uptime
    echo "anykvm-begin $name $now"
    "$@" < /dev/null 2>&1
    status=$?
    uptime
    echo "anykvm-end $name $status $now"
}

loaded=' '
insert() {
    for module in "$@"; do
        case $loaded in *" $module "*) continue ;; esac
        loaded="$loaded$module "
        insmod "$module" || echo "anykvm-error insmod $module: $?"
    done
}

named() {
    while read -r pattern paths; do
        if [ "$pattern" = - ]; then insert $paths; fi
    done < /etc/anykvm/modules
}

# A device of one bus (platform, pci) may be the transport of another's (virtio): buses in this order.
probed() {
    for bus in platform pci virtio; do
        set +f
        set -- /sys/bus/$bus/devices/*/modalias
        set -f
        aliases=' '
        for file in "$@"; do
            read -r alias 2>/dev/null < "$file" || continue
            case $aliases in *" $alias "*) continue ;; esac
            aliases="$aliases$alias "
        done
        while read -r pattern paths; do
            if [ "$pattern" = - ]; then continue; fi
            for alias in $aliases; do
                case $alias in $pattern) insert $paths ;; esac
            done
        done < /etc/anykvm/modules
    done
}

case $mode in
shell) ;;
*) echo 4 > /proc/sys/kernel/printk ;;
esac
if [ -e /etc/anykvm/modules ]; then
    named
    case $mode in shell|exec) probed ;; esac
fi

uptime
echo "anykvm-ready $mode $now"
case $mode in
poweroff) ;;
hackbench)
    if [ ! -x /usr/bin/hackbench ]; then
        echo "anykvm-error this image has no hackbench"
        off
    fi
    IFS=,
    set -- $args
    IFS=' '
    kinds='process thread'
    for word in "$@"; do
        case $word in
        -T|--threads) kinds=thread-given ;;
        -P|--process) kinds=process-given ;;
        esac
    done
    for kind in $kinds; do
        case $kind in
        process) run hackbench-process hackbench "$@" ;;
        thread) run hackbench-thread hackbench "$@" -T ;;
        *-given) run hackbench-${kind%-given} hackbench "$@" ;;
        esac
    done
    ;;
exec)
    busybox --install -s
    script=/anykvm.sh
    if [ -n "$cmd" ]; then
        script=/run/anykvm.sh
        echo "$cmd" | base64 -d > $script || echo "anykvm-error anykvm.cmd is not base64"
    fi
    if [ -e $script ]; then run exec sh $script; else echo "anykvm-error no anykvm.cmd and no /anykvm.sh"; fi
    ;;
shell)
    busybox --install -s
    # Without -f they would ask an init that is not there; and a halted machine stands still until someone ends it.
    echo "alias poweroff='poweroff -f' halt='poweroff -f' reboot='reboot -f'" > /run/anykvm.rc
    cd /root
    ENV=/run/anykvm.rc setsid cttyhack sh
    ;;
*)
    echo "anykvm-error anykvm.run=$mode is not one of shell poweroff hackbench exec"
    ;;
esac
off
"""


def arguments(mode: str = "shell", *, args: Sequence[str] = (), script: str | None = None) -> str:
    """Words for the kernel command line: `args` for ``hackbench``, the shell `script` for ``exec``.

    ``GuestError`` if the mode is unknown, an argument has a space or comma in it, or the script is too long for a
    command line; then it goes into the image, as the extra file /anykvm.sh.
    """
    if mode not in MODES:
        raise GuestError(f"no guest mode {mode!r}: choose one of {', '.join(MODES)}")
    words = [f"anykvm.run={mode}"]
    if args:
        if any(not arg or not arg.isascii() or set(arg) & set(" ,\t\n\"'\\") for arg in args):
            raise GuestError(
                "an argument for the guest is empty or has a space, comma, quote or foreign letter: leave it out"
            )
        words.append(f"anykvm.args={','.join(args)}")
    if script is not None:
        words.append(f"anykvm.cmd={base64.b64encode(script.encode()).decode()}")
    line = " ".join(words)
    if len(line) > _MAX_ARGUMENTS:
        raise GuestError(f"{len(line)} bytes do not fit the kernel command line: put the script into a file /{SCRIPT}")
    return line
