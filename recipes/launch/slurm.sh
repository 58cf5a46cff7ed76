#!/bin/bash
# One run as a SLURM job on one host that survives preemption and the time limit: told to end, the run saves and the job is queued again;
# begun again, it goes on from its newest checkpoint, with as many GPUs as it then gets. A run that stopped itself is not queued again.
#   sbatch --export=ALL,RECIPE=recipes/zero_gsm8k.toml,OUT=/shared/runs/gsm8k recipes/launch/slurm.sh model.path=Qwen/Qwen2.5-7B
# From the repository's folder. OUT must be a folder that every host sees. PY: the Python with the packages, .venv's by default.
#SBATCH --job-name=grpo
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
#SBATCH --open-mode=append
#SBATCH --output=grpo-%j.log
set -uo pipefail

RECIPE=${RECIPE:-recipes/zero_gsm8k.toml}
OUT=${OUT:-runs/grpo-$SLURM_JOB_ID} # the number stays the same when a job is queued again
PY=${PY:-.venv/bin/python}
PROCESSES=${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}} # ranks of the learner

command=("$PY" -m recipes.run)
more=()
if [ "$PROCESSES" -gt 1 ]; then
    command=("$PY" -m accelerate.commands.launch --config_file recipes/accelerate/fsdp2.yaml --num_processes "$PROCESSES" -m recipes.run)
    more=(rollout.placement=processes)
fi
[ -e "$OUT/config.json" ] && more+=(--resume)

told=0
trap 'told=1; kill -TERM "$run"' TERM
srun "${command[@]}" "$RECIPE" "run.out=$OUT" "${more[@]}" "$@" &
run=$!
wait "$run"
code=$?
while kill -0 "$run" 2>/dev/null; do # the trap cut the wait short
    wait "$run"
    code=$?
done

if [ "$told" = 1 ] && [ ! -e "$OUT/result.json" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
