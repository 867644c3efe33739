#!/usr/bin/env bash
# Train on a Slurm cluster, one task per GPU.
#
#   tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]
#
# In the environment: GPUS in all (default 8), GPUS_PER_NODE (at most 8), CPUS_PER_TASK (10), SRUN_ARGS
# (more arguments for srun), PORT (29500), PYTHON (python).
#
# SIGTERM stops the run after its step, with a checkpoint. At the time limit Slurm gives it 30 s
# (KillWait) until the kill; in a batch script, #SBATCH --signal=TERM@300 gives it 5 minutes.
set -euo pipefail

if (( $# < 3 )); then
    sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
partition=$1 job=$2 config=$3
shift 3

here=$(dirname "${BASH_SOURCE[0]}")
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$(( gpus < 8 ? gpus : 8 ))}
cpus=${CPUS_PER_TASK:-10}
read -ra more <<< "${SRUN_ARGS:-}"
export MASTER_PORT=${PORT:-29500}
exec srun --partition="$partition" --job-name="$job" --gres="gpu:$per_node" --ntasks="$gpus" \
    --ntasks-per-node="$per_node" --cpus-per-task="$cpus" --kill-on-bad-exit=1 ${more[@]+"${more[@]}"} \
    "${PYTHON:-python}" -u "$here/train.py" "$config" --launcher slurm "$@"
