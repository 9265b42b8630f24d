# Read by the setup_*.sh beside it, with the caller's arguments: FOLDER MODEL...
# A model is a case of benchmarks/cases; penstock itself, which writes it, is the one that PENSTOCK_PYTHON has.
folder=$(mkdir -p "$1" && cd "$1" && pwd)
models=${*:2}
root=$(cd "$here/../.." && pwd)

# make_venv FOLDER REQUIREMENT...: torch first and alone where it is named, so that the CPU build is taken.
make_venv() {
  local venv=$1
  shift
  if [ -e "$venv/.ready" ]; then return; fi
  "${PYTHON:-python3}" -m venv "$venv"
  local rest=()
  for requirement in "$@"; do
    case $requirement in
    torch==*) "$venv/bin/pip" install -q "$requirement" ;;
    *) rest+=("$requirement") ;;
    esac
  done
  "$venv/bin/pip" install -q "${rest[@]}"
  touch "$venv/.ready"
}

make_model() {
  mkdir -p "$folder/models"
  if [ -d "$root/src/penstock/models/$1" ]; then ln -sfn "$root/src/penstock/models/$1" "$folder/models/$1"; fi
  if [ -e "$folder/models/$1/model.safetensors" ]; then return; fi
  (cd "$root" && "${PENSTOCK_PYTHON:-$root/.venv/bin/python}" -m benchmarks.models "$1" --out "$folder/models/$1")
}
