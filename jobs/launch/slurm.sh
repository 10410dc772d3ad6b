#!/usr/bin/env bash
# Slurm, one task a GPU. From the repository root, on a disk that all nodes share, as the data and the workdir are:
#     sbatch --nodes=2 jobs/launch/slurm.sh --config configs/resnet.py --workdir runs/resnet
# Two minutes before the time limit the tasks are told to save, and the job queues itself again; a job that is
# preempted gets SIGTERM, saves in its grace time and is queued again by Slurm. Either way the same command goes on
# from the saved step, on however many nodes it is given. A run that fails is not repeated.
#SBATCH --job-name=pneumoscope
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -euo pipefail

limit_is_near=false
save() {
    limit_is_near=true
    trap '' USR1
    scancel --signal=TERM "$SLURM_JOB_ID" # reaches the tasks, not this script
}
trap save USR1

srun --kill-on-bad-exit=1 .venv/bin/python jobs/train.py "$@" &
code=0
wait $! || code=$?
if "$limit_is_near"; then # the signal ended the first wait, not the tasks
    code=0
    wait $! || code=$?
    if [ "$code" = 0 ]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$code"
