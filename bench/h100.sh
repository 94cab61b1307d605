#!/bin/bash
# The figures of docs/benchmarks/h100.md's training steps, on one H100, in about seven minutes:
#
#   bench/h100.sh FOLDER_OF_PROGRAMS [RESULTS]      build/bench, h100-results
#   PHASES="kernels steps prepare turns" BATCH_H=128 bench/h100.sh build/bench
#
# prepare   torch.compile of all models, side by side, in the background
# steps     meanwhile the steps of the two small models, with a profile, with StableAdamW, with recomputation (they
#           are replayed graphs, which a busy CPU does not slow down)
# kernels   and every op against the roofline
# turns     then PyTorch and switchback in turns, the small models first; the large ones with their profiles
# Needs pip install open_clip_torch. Every program has a time limit, every result is written at once.
set -u
programs=${1:?folder of bench_step, bench_kernels}
results=${2:-h100-results}
phases=${PHASES:-prepare kernels steps turns}
here=$(dirname "$0")
mkdir -p "$results"
export PYTHONUNBUFFERED=1
batch_h=${BATCH_H:-128}
models=ViT-B-32:1024,ViT-B-16:512,ViT-H-14:$batch_h,ViT-L-14:224
baseline="python3 $here/framework_baseline.py --device cuda --against $programs/bench_step --json $results/lines.jsonl"
step="--precision amp_bf16 --device cuda --json $results/steps.jsonl"

say() { echo "== $(date +%T) $*" | tee -a "$results/log.txt"; }
limited() {  # seconds, command: its output to the log as well
  say "$@"
  timeout "$@" 2>&1 | grep --line-buffered -v "No pretrained weights" | tee -a "$results/log.txt"
}

preparing=
if [[ $phases == *prepare* ]]; then
  say prepare
  timeout 290 $baseline --models $models --prepare --order "" --timeout 280 >"$results/prepare.txt" 2>&1 &
  preparing=$!
fi
# What is tuned while others compile is not what the turns shall use.
export SWITCHBACK_GEMM_CACHE=$results/gemm-tuned-beside.txt
if [[ $phases == *steps* ]]; then
  for model in ViT-B-32:1024 ViT-B-16:512; do
    size="--model ${model%:*} --batch-size ${model#*:}"
    limited 60 "$programs/bench_step" $size $step --profile
    limited 60 "$programs/bench_step" $size $step --opt stableadamw
    limited 60 "$programs/bench_step" $size $step --recompute gelu
  done
fi
if [[ $phases == *kernels* ]]; then
  limited 60 "$programs/bench_kernels" --device cuda >/dev/null
fi
if [[ -n $preparing ]]; then
  wait $preparing
  say prepared
  cat "$results/prepare.txt" >>"$results/log.txt"
fi
export SWITCHBACK_GEMM_CACHE=$results/gemm-tuned.txt
if [[ $phases == *turns* ]]; then
  limited 150 $baseline --models ViT-B-32:1024 --order ABA --timeout 100
  limited 150 $baseline --models ViT-B-16:512 --order ABA --timeout 100
  for model in ViT-H-14:$batch_h ViT-L-14:224; do
    limited 180 $baseline --models $model --order BAS --ours=--profile --steps 12 --timeout 120
    size="--model ${model%:*} --batch-size ${model#*:}"
    limited 60 "$programs/bench_step" $size $step --recompute gelu --steps 12
  done
fi
say done
