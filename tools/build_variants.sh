#!/usr/bin/env bash
# The native tests on builds that users do not get: tools/build_variants.sh [address] [thread] [clang]
#   address  AddressSanitizer and UndefinedBehaviorSanitizer: every contract, on every ISA of this machine
#   thread   ThreadSanitizer: steps of a model on two threads, against one
#   clang    another compiler (clang++-14 or newer): every contract again
# Without arguments: all that this machine has the tools for; what is skipped is said.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v c++ >/dev/null; then
  echo "SKIPPED: no C++ compiler, so no other builds"
  exit 0
fi
python=$PWD/.venv/bin/python

# build NAME CMAKE_OPTIONS...: build/NAME/overlay/penstock is the package with that build's extension
build() {
  local name=$1 folder=build/$1
  shift
  .venv/bin/cmake -S . -B "$folder" -G Ninja -DCMAKE_MAKE_PROGRAM="$PWD/.venv/bin/ninja" -DCMAKE_BUILD_TYPE=Release \
    -DPython_EXECUTABLE="$python" -Dnanobind_DIR="$($python -m nanobind --cmake_dir)" "$@" >/dev/null
  .venv/bin/ninja -C "$folder" >/dev/null
  overlay=$folder/overlay
  rm -rf "$overlay" && mkdir -p "$overlay/penstock"
  for entry in src/penstock/*; do ln -s "$PWD/$entry" "$overlay/penstock/$(basename "$entry")"; done
  rm -f "$overlay"/penstock/_native*.so
  cp "$folder"/_native*.so "$overlay/penstock/"
  echo "== $name"
}

run() { PYTHONPATH=$overlay "$python" -m pytest -q -p no:cacheprovider -m "not slow and not oracle" "$@"; }

variants=("$@")
[ $# -gt 0 ] || variants=(address thread clang)
for variant in "${variants[@]}"; do
  case $variant in
    address)
      build sanitize-address -DCMAKE_CXX_FLAGS_RELEASE="-O1 -g1" -DPENSTOCK_SANITIZE=address,undefined
      LD_PRELOAD="$(c++ -print-file-name=libasan.so):$(c++ -print-file-name=libubsan.so)" \
        ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
        run tests/contracts -k "not distribution"
      ;;
    thread)
      build sanitize-thread -DCMAKE_CXX_FLAGS_RELEASE="-O1 -g1" -DPENSTOCK_SANITIZE=thread
      LD_PRELOAD="$(c++ -print-file-name=libtsan.so)" TSAN_OPTIONS=halt_on_error=1:exitcode=66 \
        run tests/exactness/test_threads.py
      ;;
    clang)
      compiler=$(command -v clang++ || compgen -c clang++- | sort -t- -k2 -n | tail -1 || true)
      if [ -z "$compiler" ]; then
        echo "SKIPPED: no clang++ here, so no build with it"
        continue
      fi
      build clang -DCMAKE_CXX_COMPILER="$compiler" -DPENSTOCK_WERROR=ON
      run tests/contracts
      ;;
    *)
      echo "no variant $variant; there are: address thread clang" >&2
      exit 64
      ;;
  esac
done
