#!/usr/bin/env bash
# Predict with one process per GPU (on a machine without GPU: PROCESSES processes).
#
#   tools/dist_predict.sh CONFIG CHECKPOINT PROCESSES SCENE... -o OUT [arguments of tools/predict.py]
#
# The bytes of the output are those of one process with as many threads on the same kind of device.
# NNODES, NODE_RANK, MASTER_ADDR, PORT and PYTHON as for dist_train.sh; several machines need OUT on
# a disk that all of them see.
set -euo pipefail

if (( $# < 4 )) || ! [[ ${3} =~ ^[1-9][0-9]*$ ]]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
config=$1 checkpoint=$2 processes=$3
shift 3
here=$(dirname "${BASH_SOURCE[0]}")
exec "$here/torchrun.sh" "$processes" "$here/predict.py" "$config" "$checkpoint" --launcher pytorch "$@"
