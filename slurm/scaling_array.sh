#!/bin/bash -e
#SBATCH --job-name=scaling
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=02:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%A-%a.log
#SBATCH --array=0-34

# Images/s against ranks, one run for each point of a grid: sbatch slurm/scaling_array.sh [train options]
job=("${DSGD_GRID:-jobs/scaling.toml}") grid_point=$SLURM_ARRAY_TASK_ID
. slurm/lib.sh
