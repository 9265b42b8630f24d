#!/usr/bin/env bash
# The native contract tests under AddressSanitizer and UndefinedBehaviorSanitizer, on every ISA of this machine.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v c++ >/dev/null; then
  echo "SKIPPED: no C++ compiler, so no sanitizer build"
  exit 0
fi
python=$PWD/.venv/bin/python
build=build/sanitize
.venv/bin/cmake -S . -B $build -G Ninja -DCMAKE_MAKE_PROGRAM="$PWD/.venv/bin/ninja" -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_CXX_FLAGS_RELEASE="-O1 -g1" -DPENSTOCK_SANITIZE=address,undefined -DPython_EXECUTABLE="$python" \
  -Dnanobind_DIR="$($python -m nanobind --cmake_dir)" >/dev/null
.venv/bin/ninja -C $build >/dev/null
overlay=$build/overlay
rm -rf $overlay && mkdir -p $overlay/penstock
for entry in src/penstock/*; do ln -s "$PWD/$entry" "$overlay/penstock/$(basename "$entry")"; done
rm -f $overlay/penstock/_native*.so
cp $build/_native*.so $overlay/penstock/
export LD_PRELOAD="$(c++ -print-file-name=libasan.so):$(c++ -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
PYTHONPATH=$overlay $python -m pytest -q -p no:cacheprovider tests/contracts -k "not distribution" -m "not slow and not oracle"
