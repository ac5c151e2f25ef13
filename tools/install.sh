#!/usr/bin/env bash
# Install a requirements file into a virtual environment: install.sh VENV FILE
# gptqmodel builds a C extension (pypcre). Without a compiler or Python.h it is left out, with one line that says the cure;
# everything of bitsandbytes goes on without it.
set -euo pipefail
venv=$1 file=$2
python="$venv/bin/python"
merged=$(mktemp); trap 'rm -f "$merged" "$merged.log"' EXIT
{ [ "$file" = requirements.txt ] || cat requirements.txt; grep -v '^-r ' "$file"; } > "$merged"
header=$("$python" -c 'import os, sysconfig; print(os.path.join(sysconfig.get_paths()["include"], "Python.h"))')
missing=""
command -v "${CC:-cc}" >/dev/null 2>&1 || command -v gcc >/dev/null 2>&1 || missing="a C compiler (cure: apt install gcc)"
[ -e "$header" ] || missing="${missing:+$missing and }the Python headers (cure: apt install python3-dev, or the -dev package of this Python)"
if [ -n "$missing" ]; then
  echo "note: $missing not found: gptqmodel is left out, so GPTQ and AWQ are off; bitsandbytes works. Then run: make env" >&2
  sed -i '/^gptqmodel==/d' "$merged"
fi
echo "installing $(grep -c '==' "$merged") pinned packages into $venv (a few minutes the first time)"
if ! "$python" -m pip install --quiet --disable-pip-version-check -r "$merged" 2>"$merged.log"; then
  tail -n 5 "$merged.log" >&2
  echo "error: pip must install $file, got an error (above): check the network and free disk" >&2
  exit 2
fi
"$python" -m pip check >/dev/null || "$python" -m pip check
