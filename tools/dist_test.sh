#!/usr/bin/env bash
# Test with one process per GPU (on a machine without GPU: GPUS processes over gloo).
#
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py]
#
# NNODES, NODE_RANK, MASTER_ADDR, PORT and PYTHON as for dist_train.sh.
set -euo pipefail

if (( $# < 3 )) || ! [[ ${3} =~ ^[1-9][0-9]*$ ]]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
config=$1 checkpoint=$2 gpus=$3
shift 3
here=$(dirname "${BASH_SOURCE[0]}")
exec "$here/torchrun.sh" "$gpus" "$here/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
