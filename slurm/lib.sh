# What the batch scripts have in common: makes the environment, starts the trainer on all ranks, and has a job that was
# stopped before its end go on where it stopped. A script sets `job`, its job file, and sources this with the train
# options that sbatch was given; those win over the job file, and so does another --config, key by key.
#
#   DSGD_VENV          virtual environment           [.venv, if there is one]
#   DSGD_MODULES       modules to load, e.g. "gcc openmpi cuda"
#   DSGD_ENV           shell file with a site's settings, sourced after the modules: UCX_*, SLURM_MPI_TYPE, ...
#   DSGD_CONTAINER     Apptainer image to run in
#   DSGD_LAUNCH        srun, or mpirun inside the allocation          [srun]
#   DSGD_MAX_RESTARTS  times that a job is put back into the queue    [10]
#
# A run that was asked to stop (by USR1, USR2, TERM, or its own clock: --time-left) ends with status 75 and is put back
# into the queue; one that has ended with 0 is finished, and starting it again does nothing. All else has failed.
# shellcheck shell=bash

set -euo pipefail
: "${job:?is to be set by the script that sources this}"
STOPPED=75
KILLED=128                                  # and more: by a signal
STRAGGLERS_S=20                             # that the other ranks get once one has ended; a crash ends all of them

say() { echo "$(date '+%F %T') job $SLURM_JOB_ID: $*"; }
refuse() { echo "Error: $*" >&2; exit 2; }

environment() {
    set +eu                                 # modules and a site's file are not written for them
    if [ -n "${DSGD_MODULES:-}" ]; then
        type module >/dev/null 2>&1 || . /etc/profile
        # shellcheck disable=SC2086         # several words
        module load $DSGD_MODULES || refuse "module load $DSGD_MODULES failed; see module avail"
    fi
    # shellcheck source=/dev/null
    [ -z "${DSGD_ENV:-}" ] || . "$DSGD_ENV" || refuse "DSGD_ENV=$DSGD_ENV cannot be read or has failed"
    set -eu
    python=(python3)
    if [ -n "${DSGD_CONTAINER:-}" ]; then
        python=(apptainer exec "$DSGD_CONTAINER" python3)
        [ -z "${SLURM_GPUS_ON_NODE:-}" ] || export APPTAINER_NV=1
    elif [ -d "${DSGD_VENV:-.venv}" ]; then
        PATH=$(cd "${DSGD_VENV:-.venv}" && pwd)/bin:$PATH
    elif [ -n "${DSGD_VENV:-}" ]; then
        refuse "DSGD_VENV=$DSGD_VENV is no folder; make it with python3 -m venv and pip install dsgd_mpi into it"
    fi
    "${python[@]}" -c 'import dsgd_mpi' ||
        refuse "${python[*]} has no dsgd_mpi; make .venv here, or set DSGD_VENV, DSGD_MODULES or DSGD_CONTAINER"
}

size() {                                    # of the run: that of the allocation
    nodes=$SLURM_JOB_NUM_NODES
    ranks=${SLURM_NTASKS:-$((nodes * ${SLURM_NTASKS_PER_NODE:-1}))}
    a_node=$(((ranks + nodes - 1) / nodes))
    local cores=${SLURM_JOB_CPUS_PER_NODE%%[(,]*}
    cores=${SLURM_CPUS_PER_TASK:-$((cores / a_node))}
    threads=$((cores > 0 ? cores : 1))
}

point() {                                   # number $1 of the job file's grid: fewer ranks, its options before "$@"
    local words per=$a_node
    words=$("${python[@]}" -m dsgd_mpi grid "$job" --point "$1") || exit 2
    mapfile -t words <<<"$words"
    [ "${words[0]}" -le "$ranks" ] || refuse "point $1 wants ${words[0]} ranks, the job has $ranks; give sbatch --nodes"
    ranks=${words[0]} label=${words[1]} options=("${words[@]:2}")
    a_node=$((ranks < per ? ranks : per)) nodes=$(((ranks + per - 1) / per))
    [ "$nodes" -eq "$SLURM_JOB_NUM_NODES" ] || give_back
}

give_back() {                               # the nodes that a small point leaves idle, where the site allows it
    local after=slurm_job_${SLURM_JOB_ID}_resize
    # shellcheck source=/dev/null
    if scontrol update JobId="$SLURM_JOB_ID" NumNodes="$nodes" >/dev/null; then . "./$after.sh"; fi
    rm -f "$after.sh" "$after.csh"
    export SLURM_NTASKS=$ranks SLURM_TASKS_PER_NODE="$a_node(x$nodes)"
}

launcher() {
    local restart
    case ${DSGD_LAUNCH:-srun} in
        srun)
            # a step of a new number: MPICH names its shared memory by it, and killed ranks may have left theirs
            for ((restart = 0; restart < ${SLURM_RESTART_COUNT:-0}; restart++)); do srun --nodes=1 --ntasks=1 true; done
            launch=(srun --nodes="$nodes" --ntasks="$ranks" --ntasks-per-node="$a_node" --cpus-per-task="$threads"
                    --kill-on-bad-exit=0 --wait="$STRAGGLERS_S")
            # each rank sees all GPUs of its node and takes one; a step of a job that has them by --exclusive must ask
            if [ -n "${SLURM_GPUS_ON_NODE:-}" ] && [ -z "${SLURM_GPUS_PER_TASK:-}" ]; then
                launch+=(--gres="gpu:$SLURM_GPUS_ON_NODE")
            fi ;;
        mpirun) launch=(mpirun -n "$ranks") ;;
        *) refuse "DSGD_LAUNCH: expected srun or mpirun, found $DSGD_LAUNCH" ;;
    esac
}

start() {                                   # the trainer on all ranks; its exit status is in `status`
    local code step woken=1
    asked='' cancelled=''
    "$@" &
    step=$!
    trap 'asked=1 woken=1; kill -USR1 $step' USR1           # sent before the time limit, to this shell alone
    trap 'cancelled=1 woken=1' TERM                         # scancel: the ranks were told as well
    while [ -n "$woken" ]; do               # a trap ends a wait early
        woken='' code=0
        wait "$step" || code=$?
        [ "$code" -eq 127 ] || status=$code # 127: waited for already
    done
    trap - USR1 TERM
}

stopped() {                                 # rather than failed: by a signal, even one before it could listen
    [ -z "$cancelled" ] && { [ "$status" -eq "$STOPPED" ] || { [ -n "$asked" ] && [ "$status" -gt "$KILLED" ]; }; }
}

again() {                                   # back into the queue, for the rest of the run
    local restarts=${SLURM_RESTART_COUNT:-0} most=${DSGD_MAX_RESTARTS:-10}
    if [ "$restarts" -ge "$most" ]; then
        say "stopped, after $restarts restarts; DSGD_MAX_RESTARTS allows no more; go on with the same sbatch and" \
            "--resume ${DSGD_OUT}"
    elif scontrol requeue "$SLURM_JOB_ID"; then
        say "stopped, and in the queue again: restart $((restarts + 1)) of at most $most"
    else
        say "stopped, and cannot be put back into the queue; go on with the same sbatch and --resume $DSGD_OUT"
    fi
}

[ -n "${SLURM_JOB_ID:-}" ] || refuse "this is for sbatch: sbatch $0 $*"
environment
size
label=${SLURM_ARRAY_TASK_ID:-} options=()
[ -z "${grid_point:-}" ] || point "$grid_point"
launcher
export DSGD_OUT=${DSGD_OUT:-runs/$SLURM_JOB_NAME-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${label:+/$label}
export DSGD_AUTO_RESUME=${DSGD_AUTO_RESUME:-true} DSGD_THREADS=${DSGD_THREADS:-$threads}
set -- "${launch[@]}" "${python[@]}" -m dsgd_mpi.train --config "$job" "${options[@]}" "$@"
say "$ranks ranks on $nodes nodes ($SLURM_JOB_NODELIST), $DSGD_THREADS threads each: $*"
start "$@"
if stopped; then again; fi
exit "$status"
