#!/bin/bash -e
#SBATCH --job-name=gossip-128
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%j.log

# Pull-gossip SGD on 128 ranks, with one GPU each if there are any:
# sbatch slurm/gossip_128.sh [train options]
job=(jobs/resnet50_imagenet.toml jobs/gossip.toml)
. slurm/lib.sh
