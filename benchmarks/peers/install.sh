#!/usr/bin/env bash
# Make the peers' own environment, with the product's torch and transformers beside them.
#
#   benchmarks/peers/install.sh [FOLDER]      default: .bench/peers
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=${1:-.bench/peers}
[ -f "$folder/.done" ] && exit 0
product=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
.venv/bin/python -m venv "$folder"
# torch, transformers, peft and numpy are those of the product: all run the same kernels.
echo "$product" >"$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/product.pth"
"$folder/bin/pip" --disable-pip-version-check install --quiet --no-input --no-deps \
  bergson==2.5.1 bitsandbytes datasets dill docstring-parser fsspec graphviz jaxtyping multiprocess natsort \
  optree pandas petname simple-parsing torchopt tqdm wadler-lindig xxhash aiohttp \
  kronfluence==1.0.1 accelerate einconv einops opt-einsum
touch "$folder/.done"
