#!/bin/sh
# Runs pyright on the installed package: as a user's editor sees it.
set -eu
venv=$1
config=$(mktemp -d)
trap 'rm -rf "$config"' EXIT
package=$(cd "$config" && "$venv/bin/python" -c 'import os, refold; print(os.path.relpath(os.path.dirname(refold.__file__)))')
cat >"$config/pyrightconfig.json" <<JSON
{"include": ["$package"], "pythonVersion": "3.11", "typeCheckingMode": "standard", "useLibraryCodeForTypes": true}
JSON
cd "$config" && "$venv/bin/pyright" --project pyrightconfig.json --pythonpath "$venv/bin/python"
