#!/usr/bin/env bash
# transformers in FOLDER/transformers.        benchmarks/peers/setup_transformers.sh FOLDER MODEL...        1.5 GB
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/setup.sh"
make_venv "$folder/transformers/venv" "torch==2.13.0" "transformers==5.23.0" "accelerate==1.15.0"
for model in $models; do make_model "$model"; done
