#!/usr/bin/env bash
# OpenVINO GenAI in FOLDER/openvino, and the models as its own files: fp16 (it computes in what the processor has),
# int8 per channel, int4 in groups of 128 with embedding and head in int8, as optimum-cli makes them.
#
#     benchmarks/peers/setup_openvino.sh FOLDER MODEL...        10 minutes, 8 GB, 8 GB of memory
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/setup.sh"
own=$folder/openvino
make_venv "$own/venv" "torch==2.13.0" "openvino-genai==2026.4.1.0" "openvino-tokenizers==2026.4.1.0" \
  "optimum-intel==2.2.0" "nncf==3.4.0"
"$own/venv/bin/pip" uninstall -q -y torchvision # a CUDA build, which breaks `import transformers` beside a CPU torch
for model in $models; do
  make_model "$model"
  group=128
  if grep -q '"hidden_size": 576' "$folder/models/$model/config.json"; then group=64; fi # 128 does not divide it
  for weights in bf16 int8 int4; do
    case $weights in
    bf16) options="--weight-format fp16" ;;
    int8) options="--weight-format int8 --sym" ;;
    int4) options="--weight-format int4 --sym --group-size $group --ratio 1.0" ;;
    esac
    if [ ! -e "$own/ir/$model-$weights/openvino_model.bin" ]; then
      # shellcheck disable=SC2086
      "$own/venv/bin/optimum-cli" export openvino --model "$folder/models/$model" \
        --task text-generation-with-past $options "$own/ir/$model-$weights"
    fi
  done
done
