#!/usr/bin/env bash
# Train with one process per GPU (on a machine without GPU: GPUS processes over gloo).
#
#   tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
#
# Several machines: the same command on each, with NNODES, NODE_RANK (0, 1, ...), MASTER_ADDR and
# PORT in the environment. PYTHON names the interpreter (default: python).
#
# Ctrl-C or SIGTERM to this process stops all ranks after the same step, with a checkpoint; a rank
# that fails stops the others; the ranks of a launcher that is killed end with it.
set -euo pipefail

if (( $# < 2 )) || ! [[ ${2} =~ ^[1-9][0-9]*$ ]]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
config=$1 gpus=$2
shift 2
here=$(dirname "${BASH_SOURCE[0]}")
exec "$here/torchrun.sh" "$gpus" "$here/train.py" "$config" --launcher pytorch "$@"
