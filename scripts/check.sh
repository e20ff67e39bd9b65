#!/bin/sh
# Judges the code: ruff on the whole repository; import-linter, mypy and pyright on the installed package, as its users see it,
# and on programs that use it: the examples, and what checkers must know of the public face (tests/typed.py).
# Usage: scripts/check.sh VENV   (a virtual environment with a copy of refold, not an editable one)
set -eu
venv=$1
root=$(pwd)
config=$root/pyproject.toml
failed=0
"$venv/bin/ruff" check . || failed=1

# From elsewhere: at the root of the repository, the folders would pass for modules of their own.
elsewhere=$(mktemp -d)
trap 'rm -rf "$elsewhere"' EXIT
cd "$elsewhere"
"$venv/bin/lint-imports" "$config" --no-cache --no-logo || failed=1
"$venv/bin/mypy" --config-file "$config" --cache-dir "$venv/.mypy_cache" -p refold || failed=1
cp -r "$root/tests/typed.py" "$root/examples" .
"$venv/bin/mypy" --config-file "$config" --cache-dir "$venv/.mypy_cache" typed.py examples/*.py || failed=1
package=$("$venv/bin/python" -c 'import os, refold; print(os.path.relpath(os.path.dirname(refold.__file__)))')
cat >pyrightconfig.json <<JSON
{"include": ["$package", "typed.py", "examples"], "exclude": [], "pythonVersion": "3.11", "typeCheckingMode": "standard"}
JSON
"$venv/bin/pyright" --project pyrightconfig.json --pythonpath "$venv/bin/python" || failed=1
exit $failed
