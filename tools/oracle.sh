#!/usr/bin/env bash
# Tests that compare with transformers, in an environment of their own: the product's stays free of torch.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv-oracle
if [ ! -e $venv/.installed ]; then
  "${PYTHON:-python3}" -m venv $venv
  $venv/bin/pip install -q --disable-pip-version-check "torch==2.13.0"
  $venv/bin/pip install -q --disable-pip-version-check "scikit-build-core>=0.10"
  $venv/bin/pip install -q --disable-pip-version-check --no-build-isolation -e '.[dev,oracle,train]' \
    --config-settings=wheel.cmake=false # the oracle judges goldens and training: no native build
  touch $venv/.installed
fi
grep -rl --include="test_*.py" "mark.oracle" tests | xargs $venv/bin/pytest -m oracle # others may need the native build
