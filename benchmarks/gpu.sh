#!/usr/bin/env bash
# Times the CUDA kernels on this machine's GPU, in about two minutes on an H100:
#
#     benchmarks/gpu.sh [FOLDER] [options of python -m benchmarks.gpu]
#
# FOLDER (benchmarks/results) gets gpu.json and a figure per part. Needs torch with CUDA, numpy, scipy, matplotlib and
# rich. Where the native module has no CUDA kernels yet it is built for this GPU first, which needs nvcc, cmake, ninja,
# pybind11 and scikit-build-core, and no network. The exit code is that of the benchmarks: 1 if a case failed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
folder=${1:-benchmarks/results}
shift || true

if ! "$python" -c 'import _igm_fast; raise SystemExit(not hasattr(_igm_fast, "execute"))' 2>/dev/null; then
    capability=$("$python" -c 'import torch; print("{}{}".format(*torch.cuda.get_device_capability()))')
    echo "building igm_fast for sm_$capability"
    IGM_FAST_CUDA=ON IGM_FAST_CUDA_ARCHS=$capability-real \
        "$python" -m pip install --quiet --no-build-isolation --no-deps .
fi
exec "$python" -m benchmarks.gpu --out "$folder" "$@"
