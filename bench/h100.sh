#!/bin/bash
# The figures of docs/benchmarks/h100.md's training steps, on one H100, in about five minutes:
#
#   bench/h100.sh FOLDER_OF_PROGRAMS [RESULTS]      build/bench, h100-results
#
# PyTorch's processes for all models start first and compile, side by side, on the CPU. Meanwhile: $ALSO (a command),
# then the smaller models' steps as clip_train does them, with StableAdamW, with GELU recomputed (they are replayed
# graphs, which a busy CPU does not slow down), and every op against the roofline. Then PyTorch and switchback in
# turns, in the $ORDER of framework_baseline.py, with profiles; at last ViT-H/14's variants, which want the GPU's
# memory for themselves. Needs pip install open_clip_torch. Every program has a time limit, every result is written
# at once.
set -u
programs=${1:?folder of bench_step, bench_kernels}
results=${2:-h100-results}
here=$(dirname "$0")
mkdir -p "$results"
export PYTHONUNBUFFERED=1
models=${MODELS:-ViT-B-32:1024,ViT-B-16:512,ViT-L-14:224,ViT-H-14:128}
step="--precision amp_bf16 --device cuda --json $results/steps.jsonl"

say() { echo "== $(date +%T) $*" | tee -a "$results/log.txt"; }
limited() {  # seconds, command: its output to the log as well
  say "$@"
  timeout "$@" 2>&1 | grep --line-buffered -v "No pretrained weights" | tee -a "$results/log.txt"
}

variants() {  # model:batch
  local run="$programs/bench_step --model ${1%:*} --batch-size ${1#*:} $step --steps 12"
  limited 40 $run
  limited 40 $run --opt stableadamw --whole-last-block
  if [[ $1 == *-14:* ]]; then limited 40 $run --recompute gelu --whole-last-block; fi
}

if [[ ${3:-} == meanwhile ]]; then
  if [[ -n ${ALSO:-} ]]; then limited "${ALSO_LIMIT:-120}" bash -c "$ALSO"; fi
  export SWITCHBACK_GEMM_CACHE=$results/gemm-tuned-beside.txt  # not what the turns shall use
  for model in ${models//,/ }; do [[ $model == ViT-H-14:* ]] || variants "$model"; done
  limited 40 "$programs/bench_kernels" --device cuda >"$results/kernels.txt"
  exit
fi

export SWITCHBACK_GEMM_CACHE=$results/gemm-tuned.txt
limited "${LIMIT:-420}" python3 "$here/framework_baseline.py" --device cuda --against "$programs/bench_step" \
  --json "$results/lines.jsonl" --models "$models" --order "${ORDER:-ABQ}" --prepare \
  --meanwhile "$0 $programs $results meanwhile" --timeout 150 --steps 12 --ours=--profile
for model in ${models//,/ }; do [[ $model != ViT-H-14:* ]] || variants "$model"; done
say done
