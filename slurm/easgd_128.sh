#!/bin/bash -e
#SBATCH --job-name=easgd-128
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%j.log

# Elastic averaging SGD on 128 ranks, with one GPU each if there are any:
# sbatch slurm/easgd_128.sh [train options]
job=(jobs/resnet50_imagenet.toml jobs/easgd.toml)
. slurm/lib.sh
