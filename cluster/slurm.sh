#!/usr/bin/env bash
# kd_jax on SLURM: one process per node, which takes all of the node's GPUs, or its cores.
#
#   sbatch cluster/slurm.sh --config=configs/movielens.py:1m --workdir=/shared/runs/ml1m \
#     --config.data.movielens.path=/shared/ml-1m
#
# Submit from the repository's folder; arguments after the script's name are passed to launch.py.
# The repository, its environment, the data and --workdir must be on a file system that all nodes
# share.
#
# Adapt the #SBATCH lines: set --nodes, --time, --cpus-per-task and --gpus-per-node for your nodes
# (remove the --gpus-per-node line for CPU), and add --partition and --account if your cluster
# requires them. KD_JAX_PYTHON is the Python to run, by default that of `make quickstart`; for GPUs
# install '.[cuda]' there.
#
# 90 s before the time limit, and when the job is preempted, SLURM sends SIGTERM to the processes:
# the run saves, exits with 143 and is requeued, and the next start resumes. Preemption needs a
# partition with PreemptMode=REQUEUE and a GraceTime; without a GraceTime a run is killed and
# loses the steps since its last checkpoint.
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
# This shell outlives the processes; it gets the signal only if the whole job ends.
trap 'signalled=yes' TERM

cd "${SLURM_SUBMIT_DIR:?this is a batch script: sbatch cluster/slurm.sh}" || exit 2

# srun kills all processes when it gets SIGTERM itself, so SLURM signals the processes, not this
# script. When one process ends the others have a minute: they may still be writing the checkpoint.
srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  "${KD_JAX_PYTHON:-.venv/bin/python}" -u launch.py "$@"
status=$?

if [[ $status -eq 143 && -z $signalled ]]; then # not after scancel
  echo "saved; back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
