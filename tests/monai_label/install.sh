#!/usr/bin/env bash
# Make an environment for the MONAI Label acceptance test: install.sh FOLDER [PYTHON]
# 3 to 10 minutes, 3.7 GB. Then: MONAI_LABEL_VENV=FOLDER python -m pytest -m monai_label
set -euo pipefail
venv=${1:?usage: install.sh FOLDER [PYTHON]}
python=${2:-python3.11}
here=$(cd "$(dirname "$0")" && pwd)

"$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --constraint "$venv/constraints.txt")
# Every later step keeps this torch. Where the default package source offers a CUDA build, install torch and
# torchvision of the CPU wheels first.
echo "torch==2.13.0" >"$venv/constraints.txt"
"${pip[@]}" torch==2.13.0 'setuptools<81' wheel ninja 'numpy<2'
# sam2 is built from source: without isolation it uses this torch, and without CUDA it needs no compiler for it.
SAM2_BUILD_CUDA=0 "${pip[@]}" --no-build-isolation --requirement "$here/requirements.txt"

if ! "$venv/bin/python" -c 'import torchvision' 2>/dev/null; then
    packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    cp "$here/torchvision_cpu_shim.py" "$packages/"
    echo "import torchvision_cpu_shim" >"$packages/torchvision_cpu_shim.pth"
    "$venv/bin/python" -c 'import torchvision'
fi
"$venv/bin/python" -c 'import monailabel, monai, torch; print(monailabel.__version__, monai.__version__, torch.__version__)'
