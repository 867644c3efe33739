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
set -- "$config" "$checkpoint" --launcher pytorch "$@"

here=$(dirname "${BASH_SOURCE[0]}")
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( cores > gpus ? cores / gpus : 1 ))}
export MKL_NUM_THREADS=${MKL_NUM_THREADS:-$OMP_NUM_THREADS}  # MMEngine would set it to 1, with a warning
if [[ ${NNODES:-1} == 1 && -z ${PORT:-} ]]; then
    rendezvous=(--standalone)  # takes a free port, so two jobs on a machine do not meet
else
    rendezvous=(--nnodes "${NNODES:-1}" --node-rank "${NODE_RANK:-0}"
                --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${PORT:-29500}")
fi
exec "${PYTHON:-python}" -m torch.distributed.run --nproc-per-node "$gpus" "${rendezvous[@]}" \
    "$here/test.py" "$@"
