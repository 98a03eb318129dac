# What the batch scripts share: sets up the environment, starts the trainer on all ranks, and makes a job that was stopped
# early resume where it stopped. A script sets `job`, an array of job files, and sources this with the train options that
# were given to sbatch. Those options win over the job files, and a further --config wins key by key.
#
#   DSGD_VENV          virtual environment           [.venv, if there is one]
#   DSGD_MODULES       modules to load, e.g. "gcc openmpi cuda"
#   DSGD_ENV           shell file of site settings, sourced after the modules: UCX_*, SLURM_MPI_TYPE, ...
#   DSGD_CONTAINER     Apptainer image to run in
#   DSGD_LAUNCH        srun, or mpirun inside the allocation          [srun]
#   DSGD_MAX_RESTARTS  how many times a job is requeued               [10]
#   DSGD_DATA_DIR      where data sets are found by their names       [~/.cache/dsgd_mpi]
#   DSGD_STAGE         folder on a disk of each node to which the data are copied first, e.g. '$TMPDIR'
#
# A run that was asked to stop (by USR1, USR2, TERM, or its own clock: --time-left) exits with status 75 and is requeued;
# one that exits with 0 is finished, and starting it again does nothing. Any other status is a failure; but if a node no
# longer answers, the job is requeued, to go on from its newest checkpoint, as SLURM itself does once it has noticed.
# shellcheck shell=bash

set -euo pipefail
: "${job:?must be set by the script that sources this}"
STOPPED=75
KILLED=128                                  # and above: by a signal
STRAGGLERS_S=20                             # grace for the other ranks once one has exited; a crash ends all of them
ANSWER_S=60                                 # by when each node has started a step, if it is there
REFUSED=2 DIVERGED=3                        # statuses that no node is to blame for
CHOOSE="name a file with 'export MPIR_CVAR_CH4_NETMOD=ofi' in DSGD_ENV, or set DSGD_LAUNCH=mpirun"

say() { echo "$(date '+%F %T') job $SLURM_JOB_ID: $*"; }
refuse() { echo "Error: $*" >&2; exit 2; }

environment() {
    set +eu                                 # modules and site files are not written for these
    if [ -n "${DSGD_MODULES:-}" ]; then
        type module >/dev/null 2>&1 || . /etc/profile
        # shellcheck disable=SC2086         # several words
        module load $DSGD_MODULES || refuse "module load $DSGD_MODULES failed; see module avail"
    fi
    # shellcheck source=/dev/null
    [ -z "${DSGD_ENV:-}" ] || . "$DSGD_ENV" || refuse "DSGD_ENV=$DSGD_ENV cannot be read, or failed"
    set -eu
    python=(python3)
    if [ -n "${DSGD_CONTAINER:-}" ]; then
        python=(apptainer exec "$DSGD_CONTAINER" python3)
        [ -z "${SLURM_GPUS_ON_NODE:-}" ] || export APPTAINER_NV=1
    elif [ -d "${DSGD_VENV:-.venv}" ]; then
        PATH=$(cd "${DSGD_VENV:-.venv}" && pwd)/bin:$PATH
    elif [ -n "${DSGD_VENV:-}" ]; then
        refuse "DSGD_VENV=$DSGD_VENV is not a directory; create it with python3 -m venv and pip install dsgd_mpi into it"
    fi
    "${python[@]}" -c 'import dsgd_mpi' ||
        refuse "${python[*]} cannot import dsgd_mpi; create .venv here, or set DSGD_VENV, DSGD_MODULES or DSGD_CONTAINER"
}

wheel() {                                   # is the MPI that Python loads the MPICH from PyPI?
    [ -z "${MPI4PY_LIBMPI:-}" ] && "${python[@]}" -c '
import importlib.metadata, mpi4py
importlib.metadata.version("mpich")
assert not mpi4py.get_config()              # built from source: linked to an MPI of its own
' 2>/dev/null
}

netmod() {                                  # with UCX that wheel often fails to start across nodes by srun
    local name
    for name in MPIR_CVAR_CH4_NETMOD MPICH_CH4_NETMOD "${!UCX_@}"; do
        [ -z "${!name:-}" ] || return 0     # somebody has chosen
    done
    if wheel; then
        export MPIR_CVAR_CH4_NETMOD=ofi
        say "MPICH from PyPI: MPIR_CVAR_CH4_NETMOD=ofi (libfabric), since neither that nor UCX_* is set"
    fi
}

size() {                                    # the run is as large as the allocation
    nodes=$SLURM_JOB_NUM_NODES
    ranks=${SLURM_NTASKS:-$((nodes * ${SLURM_NTASKS_PER_NODE:-1}))}
    a_node=$(((ranks + nodes - 1) / nodes))
    local cores=${SLURM_JOB_CPUS_PER_NODE%%[(,]*}
    cores=${SLURM_CPUS_PER_TASK:-$((cores / a_node))}
    threads=$((cores > 0 ? cores : 1))
}

point() {                                   # number $1 of the grid: fewer ranks, its options before "$@"
    local words per=$a_node
    words=$("${python[@]}" -m dsgd_mpi grid "${job[-1]}" --point "$1") || exit 2
    mapfile -t words <<<"$words"
    [ "${words[0]}" -le "$ranks" ] || refuse "point $1 needs ${words[0]} ranks, the job has $ranks; give sbatch --nodes"
    ranks=${words[0]} label=${words[1]} options=("${words[@]:2}")
    a_node=$((ranks < per ? ranks : per)) nodes=$(((ranks + per - 1) / per))
    [ "$nodes" -eq "$SLURM_JOB_NUM_NODES" ] || give_back
}

give_back() {                               # release nodes that a small point leaves idle, where the site allows it
    local after=slurm_job_${SLURM_JOB_ID}_resize
    scontrol update JobId="$SLURM_JOB_ID" NumNodes="$nodes" >/dev/null || say "keeps all of its nodes"
    # shellcheck source=/dev/null
    [ ! -e "$after.sh" ] || . "./$after.sh"
    rm -f "$after.sh" "$after.csh"
    export SLURM_NTASKS=$ranks SLURM_TASKS_PER_NODE="$a_node(x$nodes)"
}

launcher() {
    local restart
    case ${DSGD_LAUNCH:-srun} in
        srun)
            netmod
            # use a new step number: MPICH names its shared memory by it, and killed ranks may have left theirs behind
            for ((restart = 0; restart < ${SLURM_RESTART_COUNT:-0}; restart++)); do srun --nodes=1 --ntasks=1 true; done
            launch=(srun --nodes="$nodes" --ntasks="$ranks" --ntasks-per-node="$a_node" --cpus-per-task="$threads"
                    --kill-on-bad-exit=0 --wait="$STRAGGLERS_S")
            # each rank sees all GPUs of its node and takes one; where the job has them by --exclusive, a step must ask
            if [ -n "${SLURM_GPUS_ON_NODE:-}" ] && [ -z "${SLURM_GPUS_PER_TASK:-}" ]; then
                launch+=(--gres="gpu:$SLURM_GPUS_ON_NODE")
            fi ;;
        mpirun) launch=(mpirun -n "$ranks") ;;
        *) refuse "DSGD_LAUNCH: expected srun or mpirun, found $DSGD_LAUNCH" ;;
    esac
}

start() {                                   # the trainer on all ranks; leaves its exit status in `status`
    local code step woken=1
    asked='' cancelled=''
    "$@" &
    step=$!
    trap 'asked=1 woken=1; kill -USR1 $step' USR1           # sent before the time limit, to this shell alone
    trap 'cancelled=1 woken=1' TERM                         # scancel: the ranks were told as well
    while [ -n "$woken" ]; do               # a trap ends a wait early
        woken='' code=0
        wait "$step" || code=$?
        [ "$code" -eq 127 ] || status=$code # 127: already reaped
    done
    trap - USR1 TERM
}

stopped() {                                 # not failed: stopped by a signal, even one that came before it could listen
    [ -z "$cancelled" ] && { [ "$status" -eq "$STOPPED" ] || { [ -n "$asked" ] && [ "$status" -gt "$KILLED" ]; }; }
}

lost_node() {                               # failed because a node has: is there one that starts nothing any more?
    case $status in 0 | "$REFUSED" | "$DIVERGED") return 1 ;; esac
    [ -z "$cancelled" ] && [ "$nodes" -gt 1 ] &&
        ! timeout "$ANSWER_S" srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 true
}

again() {                                   # requeue, for the rest of the run, this task alone of a job array
    local restarts=${SLURM_RESTART_COUNT:-0} most=${DSGD_MAX_RESTARTS:-10}
    trap '' TERM                            # which a requeue sends to this script: it is to say so first
    if [ "$restarts" -ge "$most" ]; then
        say "stopped, and DSGD_MAX_RESTARTS=$most allows no more restarts; to resume, repeat the sbatch with --resume as above"
    elif scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"; then
        say "stopped and requeued: restart $((restarts + 1)) of at most $most"
    else
        say "stopped, and cannot be requeued; to resume, repeat the sbatch with --resume as above"
    fi
}

log_size() { stat --dereference --format=%s /proc/self/fd/2; }

failed_in_init() {                          # has this start written MPI_Init's error into the job's log?
    [ -f /proc/self/fd/2 ] && tail --bytes=+$((log_before + 1)) /proc/self/fd/2 | grep -qE 'MPI_Init|internal_Init'
}

[ -n "${SLURM_JOB_ID:-}" ] || refuse "submit this with sbatch: sbatch $0 $*"
environment
size
label=${SLURM_ARRAY_TASK_ID:-} options=()
[ -z "${grid_point:-}" ] || point "$grid_point"
launcher
export DSGD_OUT=${DSGD_OUT:-runs/$SLURM_JOB_NAME-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${label:+/$label}
export DSGD_AUTO_RESUME=${DSGD_AUTO_RESUME:-true} DSGD_THREADS=${DSGD_THREADS:-$threads}
files=()
for file in "${job[@]}"; do files+=(--config "$file"); done
set -- "${launch[@]}" "${python[@]}" -m dsgd_mpi.train "${files[@]}" "${options[@]}" "$@"
say "$ranks ranks on $nodes nodes ($SLURM_JOB_NODELIST), $DSGD_THREADS threads each: $*"
log_before=$(log_size)
start "$@"
if stopped; then again
elif lost_node; then say "a node no longer answers" >&2; again
elif [ "$status" -ne 0 ] && [ "${DSGD_LAUNCH:-srun}" = srun ] && failed_in_init; then
    say "ranks failed in MPI_Init; $CHOOSE" >&2
fi
exit "$status"
