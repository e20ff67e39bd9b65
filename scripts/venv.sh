#!/bin/sh
# Makes .venv with refold and the dependency groups named: uv where it is there, else venv and pip.
# Usage: scripts/venv.sh DIR editable|installed GROUP...   Done again only when pyproject.toml (or the code) changed.
set -eu
dir=$1 mode=$2
shift 2

python=""
for candidate in "${PYTHON:-python3}" python3.11 python3.12 python3.13 python3.14; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "refold needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2
    exit 1
fi

wanted="$mode $* $(cksum pyproject.toml)"
if [ "$mode" = editable ] && [ -f "$dir/.stamp" ] && [ "$(cat "$dir/.stamp")" = "$wanted" ]; then
    exit 0
fi

if command -v uv >/dev/null 2>&1; then
    [ -x "$dir/bin/python" ] || uv venv --quiet --python "$python" "$dir"
    groups=""
    for group in "$@"; do groups="$groups --group $group"; done
    if [ "$mode" = editable ]; then target="-e ."; else target="--reinstall-package refold ."; fi
    # shellcheck disable=SC2086
    VIRTUAL_ENV="$dir" uv pip install --quiet --python "$dir/bin/python" $groups $target
else
    if [ ! -x "$dir/bin/python" ] && ! "$python" -m venv "$dir"; then
        rm -rf "$dir"
        echo "this Python cannot make virtual environments: install its venv package (Debian, Ubuntu: apt install python3-venv)" >&2
        exit 1
    fi
    # Dependency groups need pip 25.1.
    "$dir/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
    groups=""
    for group in "$@"; do groups="$groups --group $group"; done
    if [ "$mode" = editable ]; then target="-e ."; else target="--force-reinstall --no-deps ."; fi
    # shellcheck disable=SC2086
    if [ "$mode" != editable ]; then "$dir/bin/python" -m pip install --quiet --disable-pip-version-check $groups .; fi
    # shellcheck disable=SC2086
    "$dir/bin/python" -m pip install --quiet --disable-pip-version-check $groups $target
fi
echo "$wanted" >"$dir/.stamp"
