#!/bin/sh
# Makes DIR a virtual environment with refold and the dependency groups named: by uv where it is there, else by venv and pip.
# Usage: scripts/venv.sh DIR editable|strict|installed GROUP...
#   editable: the code as it is here. strict: the same, by links that editors and type checkers follow. installed: a copy.
# Done again only when pyproject.toml changed; the copy always.
set -eu
dir=$1 mode=$2
shift 2
groups=""
for group in "$@"; do groups="$groups --group $group"; done

python=""
for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    tried=${PYTHON:-python3}
    found=$(command -v "$tried" >/dev/null && "$tried" -V 2>&1 || echo "not there")
    echo "refold needs Python 3.11 or newer; $tried is $found." >&2
    echo "Install one (python3.11 to python3.14 on PATH are found), or say which: make PYTHON=/where/it/is/python3.12 ..." >&2
    exit 1
fi

place="$dir, $("$python" -V 2>&1):"
wanted="$place $mode $* $(cksum <pyproject.toml)"
made=""
if [ -x "$dir/bin/python" ] && [ -f "$dir/.stamp" ]; then made=$(cat "$dir/.stamp"); fi
if [ "$made" = "$wanted" ] && [ "$mode" != installed ]; then exit 0; fi
case $made in "" | "$place "*) ;; *) rm -rf "$dir" ;; esac # moved (its scripts name the old place), or another Python

if uv pip install --help 2>/dev/null | grep -q -- --group; then
    [ -x "$dir/bin/python" ] || uv venv --quiet --python "$python" "$dir"
    install() { uv pip install --quiet --python "$dir/bin/python" "$@"; }
else
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        minor=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        echo "$python cannot make virtual environments. On Debian and Ubuntu: apt install python$minor-venv (or python3-venv)." >&2
        exit 1
    fi
    "$dir/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv "$dir"
    install() { "$dir/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
    # Dependency groups came with pip 25.1.
    [ -n "$made" ] || install --upgrade 'pip>=25.1'
fi

export PYTHONWARNINGS=ignore # setuptools warns of what every editable install does
# shellcheck disable=SC2086
case $mode in
    editable) install $groups -e . ;;
    strict) install $groups --config-settings editable_mode=strict -e . ;;
    installed)
        rm -rf build/lib build/bdist.* # setuptools would ship modules that were deleted since
        [ "$made" = "$wanted" ] || install $groups .
        install --force-reinstall --no-deps .
        ;;
esac
echo "$wanted" >"$dir/.stamp"
