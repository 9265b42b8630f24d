#!/usr/bin/env bash
# Builds llama.cpp (vendored in the llama-cpp-python sdist) for this machine, its driver, and the GGUF files of models,
# in FOLDER/llamacpp: a peer is measured beside penstock, never a dependency of it.
#
#     benchmarks/peers/setup_llamacpp.sh FOLDER MODEL...        about 20 minutes on two cores, 12 GB
#
# GCC 12 drops the stores to the AMX tile configuration (its _tile_loadconfig names only 8 bytes), so the AMX build
# crashes on every quantized model; the memory barrier below mends it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/setup.sh"
version=0.3.36
own=$folder/llamacpp
make_venv "$own/venv" "torch==2.13.0" "transformers==5.23.0" "gguf==0.19.0" sentencepiece protobuf safetensors cmake ninja
source=$own/llama_cpp_python-$version/vendor/llama.cpp
if [ ! -d "$source" ]; then
  (cd "$own" && "$own/venv/bin/pip" download -q --no-deps --no-binary llama-cpp-python "llama-cpp-python==$version" &&
    tar xzf "llama_cpp_python-$version.tar.gz")
fi
if ! grep -q 'asm volatile("" : : "r"(&tc)' "$source/ggml/src/ggml-cpu/amx/mmq.cpp"; then
  sed -i 's|^    _tile_loadconfig(&tc);|    asm volatile("" : : "r"(\&tc) : "memory");\n    _tile_loadconfig(\&tc);|' \
    "$source/ggml/src/ggml-cpu/amx/mmq.cpp"
fi
build=$own/build
if [ ! -x "$build/bin/llama-quantize" ]; then
  amx=OFF
  if grep -q amx_int8 /proc/cpuinfo; then amx=ON; fi
  export PATH=$own/venv/bin:$PATH
  cmake -S "$source" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF \
    -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF \
    -DLLAMA_USE_PREBUILT_UI=OFF -DGGML_AMX_TILE=$amx -DGGML_AMX_INT8=$amx -DGGML_AMX_BF16=$amx
  cmake --build "$build" -j "$(nproc)" --target llama-bench llama-batched-bench llama-quantize llama-server
fi
"${CXX:-g++}" -O2 -std=c++17 -DLLAMA_CPP_PYTHON_VERSION="\"$version\"" -I"$source/include" -I"$source/ggml/include" \
  "$here/drive_llamacpp.cpp" -L"$build/bin" -lllama -lggml -lggml-base -lggml-cpu -Wl,-rpath,"$build/bin" \
  -o "$own/llamacpp_driver"
for model in $models; do
  make_model "$model"
  "$own/venv/bin/python" "$here/convert_gguf.py" "$folder/models/$model" "$own/gguf" "$source" \
    "$build/bin/llama-quantize" Q8_0 Q4_0 Q4_0-pure
done
