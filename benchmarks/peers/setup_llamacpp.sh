#!/usr/bin/env bash
# Builds llama.cpp (vendored in the llama-cpp-python sdist) for this machine and converts MODEL_DIR to GGUF, in
# FOLDER and an environment of its own: a peer is measured beside penstock, never a dependency of it.
#
#     benchmarks/peers/setup_llamacpp.sh FOLDER MODEL_DIR        about 20 minutes on two cores, 10 GB
#
# GCC 12 drops the stores to the AMX tile configuration (its _tile_loadconfig names only 8 bytes), so the AMX build
# crashes on every quantized model; the memory barrier below mends it.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
model=$(cd "$2" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
version=0.3.36
venv=$folder/venv
if [ ! -e "$venv/.ready" ]; then
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/pip" install -q "torch==2.13.0"
  "$venv/bin/pip" install -q transformers==5.23.0 gguf==0.19.0 sentencepiece protobuf safetensors
  touch "$venv/.ready"
fi
source=$folder/llama_cpp_python-$version/vendor/llama.cpp
if [ ! -d "$source" ]; then
  (cd "$folder" && "$venv/bin/pip" download -q --no-deps --no-binary llama-cpp-python "llama-cpp-python==$version" &&
    tar xzf "llama_cpp_python-$version.tar.gz")
  sed -i 's|^    _tile_loadconfig(&tc);|    asm volatile("" : : "r"(\&tc) : "memory");\n    _tile_loadconfig(\&tc);|' \
    "$source/ggml/src/ggml-cpu/amx/mmq.cpp"
fi
build=$folder/build
if [ ! -x "$build/bin/llama-bench" ]; then
  amx=OFF
  if grep -q amx_int8 /proc/cpuinfo; then amx=ON; fi
  cmake -S "$source" -B "$build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
    -DGGML_AMX_TILE=$amx -DGGML_AMX_INT8=$amx -DGGML_AMX_BF16=$amx
  cmake --build "$build" -j "$(nproc)" --target llama-bench llama-batched-bench llama-quantize
fi
"$venv/bin/python" "$here/convert_gguf.py" "$model" "$folder/gguf" "$source" "$build/bin/llama-quantize" Q8_0 Q4_0
