#!/bin/bash -e
# An interactive run on one node for up to an hour: slurm/interactive.sh [salloc options] [-- train options]
# SALLOC_PARTITION and SALLOC_ACCOUNT set partition and account; request GPUs by salloc's --gpus-per-node.
if [ -z "${SLURM_JOB_ID:-}" ]; then
    allocation=()
    while [ $# -gt 0 ] && [ "$1" != -- ]; do allocation+=("$1"); shift; done
    [ $# -eq 0 ] || shift
    exec salloc --job-name=interactive --nodes=1 --ntasks-per-node=8 --exclusive --mem=0 --time=01:00:00 \
        "${allocation[@]}" bash -e "$0" "$@"
fi
export DSGD_MAX_RESTARTS=0                  # there is no queue to return to
job=(jobs/smoke.toml)
. slurm/lib.sh
