#!/usr/bin/env bash
# kd_jax on SLURM: one process per node, which takes all of the node's GPUs, or its cores.
#
#   sbatch cluster/slurm.sh --config=configs/movielens.py:1m --workdir=/shared/runs/ml1m --config.data.movielens.path=/shared/ml-1m
#
# Submit from the repository's folder; what follows the script's name goes to launch.py. The repository, its
# environment, the data and --workdir must lie on a file system that all nodes see.
#
# Change the #SBATCH lines: --nodes, --time, --cpus-per-task and --gpus-per-node to your nodes (no --gpus-per-node line
# for CPU), and add --partition and --account where your cluster wants them. KD_JAX_PYTHON is the Python to run, by
# default the one that `make quickstart` made; for GPUs install '.[cuda]' there.
#
# 90 s before the time limit, and when the job is preempted, SLURM sends SIGTERM to the processes: the run saves, exits
# with 143 and is put back into the queue, where it resumes. For preemption the partition needs PreemptMode=REQUEUE and
# a GraceTime; without one a run is killed, and loses the steps since its last checkpoint.
#
#SBATCH --job-name=kd_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@90
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail

signalled=
trap 'signalled=yes' TERM # this shell outlives the processes; it is told only when the whole job is to end

cd "${SLURM_SUBMIT_DIR:?this is a batch script: sbatch cluster/slurm.sh}" || exit 2

# srun kills all processes when SIGTERM reaches itself, so SLURM signals them, not this script. A process that ends
# leaves the others a minute: they may still be writing the same checkpoint.
srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  "${KD_JAX_PYTHON:-.venv/bin/python}" -u launch.py "$@"
status=$?

if [[ $status -eq 143 && -z $signalled ]]; then # not after scancel
  echo "saved; back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
