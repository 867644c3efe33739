#!/usr/bin/env bash
# Run a script with one process per GPU; what dist_train.sh and dist_test.sh share.
#
#   tools/torchrun.sh GPUS SCRIPT [arguments of SCRIPT]
#
# NNODES, NODE_RANK, MASTER_ADDR, PORT and PYTHON as for dist_train.sh.
set -euo pipefail

gpus=$1
shift
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( cores > gpus ? cores / gpus : 1 ))}
export MKL_NUM_THREADS=${MKL_NUM_THREADS:-$OMP_NUM_THREADS}  # MMEngine would set it to 1, with a warning
if [[ ${NNODES:-1} == 1 && -z ${PORT:-} ]]; then
    rendezvous=(--standalone)  # takes a free port, so two jobs on a machine do not meet
else
    rendezvous=(--nnodes "${NNODES:-1}" --node-rank "${NODE_RANK:-0}"
                --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${PORT:-29500}")
fi
here=$(dirname "${BASH_SOURCE[0]}")
exec "${PYTHON:-python}" "$here/torchrun.py" --nproc-per-node "$gpus" "${rendezvous[@]}" "$@"
