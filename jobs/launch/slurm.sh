#!/usr/bin/env bash
# Slurm, one task a GPU. From the repository root, on a disk that all nodes share, as the data and the workdir are:
#     sbatch --nodes=2 jobs/launch/slurm.sh --config configs/resnet.py --workdir runs/resnet
# Two minutes before the time limit the tasks are told to save, as Slurm itself tells them in the grace time before a
# preemption; they end with a code of their own, and the job queues itself again. The same command then goes on from
# the saved step, on however many nodes it is given. A run that fails is not repeated.
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
stopped=75 # the exit code of a run that was told to stop and has saved

save() {
    waiting=true
    scancel --signal=TERM "$SLURM_JOB_ID" # reaches the tasks, not this script
}
trap save USR1

# A task that ends is no reason to kill the others: they notice by themselves, and may still be saving.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 \
    .venv/bin/python jobs/train.py --stopped_exit_code="$stopped" "$@" &
waiting=true
while "$waiting"; do # a signal ends the wait, not the tasks
    waiting=false code=0
    wait $! || code=$?
done
if [ "$code" = "$stopped" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
