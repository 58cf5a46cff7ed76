#!/bin/bash
# A learner on the first host and rollout workers on all others, as one SLURM job over a Ray cluster of its own. Preempted or at its time
# limit it is queued again and goes on (see slurm.sh); with fewer hosts, with fewer workers.
#   sbatch --nodes=3 --export=ALL,RECIPE=recipes/zero_gsm8k.toml,OUT=/shared/runs/gsm8k recipes/launch/ray.sh model.path=Qwen/Qwen2.5-7B
# On a Ray cluster that is already there: RAY_ADDRESS=auto python -m recipes.run RECIPE rollout.placement=ray rollout.workers=8
#SBATCH --job-name=grpo-ray
#SBATCH --nodes=2-8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
#SBATCH --open-mode=append
#SBATCH --output=grpo-ray-%j.log
set -uo pipefail

RECIPE=${RECIPE:-recipes/zero_gsm8k.toml}
OUT=${OUT:-runs/grpo-$SLURM_JOB_ID}
PY=${PY:-.venv/bin/python}
PORT=${PORT:-6379}
hosts=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
workers=$(((${#hosts[@]} - 1) * ${SLURM_GPUS_ON_NODE:-1}))
if [ "$workers" -lt 1 ]; then
    echo "ray.sh: ${#hosts[@]} host, but the learner has the first one for itself: ask for --nodes=2 or more" >&2
    exit 2
fi

more=()
[ -e "$OUT/config.json" ] && more=(--resume)

# The head offers no GPUs, so that no worker is placed beside the learner.
srun --nodes=1 --ntasks=1 --overlap --nodelist="${hosts[0]}" "$PY" -m ray.scripts.scripts start --head --port="$PORT" --num-gpus=0 --block &
sleep "${RAY_WAIT:-20}"
for host in "${hosts[@]:1}"; do
    srun --nodes=1 --ntasks=1 --overlap --nodelist="$host" "$PY" -m ray.scripts.scripts start --address="${hosts[0]}:$PORT" --block &
done
sleep "${RAY_WAIT:-20}"

told=0
trap 'told=1; kill -TERM "$run"' TERM
RAY_ADDRESS="${hosts[0]}:$PORT" srun --nodes=1 --ntasks=1 --overlap --nodelist="${hosts[0]}" \
    "$PY" -m recipes.run "$RECIPE" "run.out=$OUT" rollout.placement=ray "rollout.workers=$workers" "${more[@]}" "$@" &
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
exit "$code" # the cluster ends with the job
