#!/bin/bash
# Does a small CLIP learn as well with low-precision linears? Trains one with every recipe and several seeds on one
# GPU, in about five minutes:
#
#   bench/learning_study.sh FOLDER_OF_PROGRAMS RESULTS TRAIN_SHARDS VALIDATION_SHARDS TOKENIZER
#   bench/learning_study.sh build/bench study 'emoji/train/{000000..000004}.tar' emoji/val/000000.tar merges.txt.gz
#
# The folder holds clip_train and learning_table (or is build/bench: then clip_train is taken from beside it).
# RESULTS: learning.jsonl (a line a run, written when the run ends), learning.md (the table), learning.svg and
# learning.log. $PROCESSES runs at a time, seed by seed, until $LIMIT seconds are over: a run that is not through by
# then is dropped, and the table is of what is there. Started again, it does the runs that learning.jsonl has not.
#
# The model has 6 blocks of width 256 on 64 + 1 tokens: a batch of 512 makes weight gradients sums of 33,280 terms, as
# long as a large model's on one GPU, and inner dimensions of 256 and 1024. A run is 720 TFLOP, 552 steps, and 280,000
# pictures to decode, some 8,000 a second and core. It does not fill an H100; its memory is estimated at 3 GiB.
set -u
programs=${1:?folder of clip_train and learning_table}
results=${2:?folder for results}
train_data=${3:?training shards}
val_data=${4:?validation shards}
tokenizer=${5:?tokenizer}
recipes=${RECIPES:-standard switchback switchback-m switchback-q llm-int8 fp8-sim switchback-fp8-sim switchback-fp8 fp8}
zero_init=${ZERO_INIT-standard fp8-sim fp8}  # these once more, with zero-init layer-scale
seeds=${SEEDS:-1 2 3 4}
device=${DEVICE:-cuda}
epochs=${EPOCHS:-24}
scratch=${SCRATCH:-/tmp/learning_study}

clip_train=$programs/clip_train
[[ -x $clip_train ]] || clip_train=$programs/../apps/clip_train
mkdir -p "$results" "$scratch"
model=${MODEL:-$scratch/model.json}
if [[ -z ${MODEL:-} && -z ${DEADLINE:-} ]]; then
  cat >"$model" <<'MODEL'
{"embed_dim": 256, "vision_cfg": {"image_size": 64, "layers": 6, "width": 256, "head_width": 64, "patch_size": 8},
 "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 4}}
MODEL
fi

if [[ $# == 6 ]]; then  # one run: RECIPE:LAYER_SCALE:SEED, started below
  IFS=: read -r recipe layer_scale seed <<<"$6"
  name=$recipe${layer_scale:+-scale$layer_scale}-seed$seed
  left=$((DEADLINE - $(date +%s)))
  if ((left < 5)); then exit; fi
  rm -rf "${scratch:?}/$name"
  started=$(date +%s)
  # Without tuning a product is always computed by the same kernel, and seeds differ in nothing but the seed.
  SWITCHBACK_GEMM_TUNING=0 timeout "$left" "$clip_train" --train-data "$train_data" --val-data "$val_data" \
    --tokenizer "$tokenizer" --model "$model" --device "$device" --linear "$recipe" \
    ${layer_scale:+--layer-scale "$layer_scale"} --seed "$seed" \
    --batch-size 512 --epochs "$epochs" --warmup 100 --lr 1e-3 --wd 0.5 --opt stableadamw \
    --aug-cfg 'scale=(0.7,1.0)' 'color_jitter=(0.4,0.4,0.4,0.1)' gray_scale_prob=0.2 \
    --workers "${WORKERS:-2}" --val-frequency "$epochs" --save-frequency 0 --log-every-n-steps 1 \
    ${EXTRA:-} --logs "$scratch" --name "$name" >"$scratch/$name.log" 2>&1
  status=$?
  rm -rf "$scratch/$name"/checkpoints/step_*
  if line=$("$programs/learning_table" run "$scratch/$name" 2>&1); then
    echo "$line" >>"$results/learning.jsonl"
    said=${line%%,\"curve\"*}
  else
    said="status $status: $(tail -1 "$scratch/$name.log" | cut -c1-200) ($line)"
  fi
  echo "$(date +%T) $name, $(($(date +%s) - started)) s: $said" | tee -a "$results/learning.log"
  exit
fi

# Whether the line of this run is there.
is_done() {
  local scale=${2:-null}
  if [[ -n ${2:-} && $2 != *.* ]]; then scale=$2.0; fi
  grep -qsF "{\"recipe\":\"$1\",\"layer_scale\":$scale,\"seed\":$3," "$results/learning.jsonl"
}
list_runs() {
  local seed recipe
  for seed in $seeds; do
    for recipe in $recipes; do is_done "$recipe" "" "$seed" || echo "$recipe::$seed"; done
    for recipe in $zero_init; do is_done "$recipe" 0 "$seed" || echo "$recipe:0:$seed"; done
  done
}
export DEADLINE=$(($(date +%s) + ${LIMIT:-330}))
export EPOCHS=$epochs DEVICE=$device SCRATCH=$scratch MODEL=$model
list_runs | xargs -r -P "${PROCESSES:-8}" -I{} "$0" "$programs" "$results" "$train_data" "$val_data" "$tokenizer" {}
[[ -s $results/learning.jsonl ]] || { echo "no run has ended"; exit 1; }
"$programs/learning_table" table "$results/learning.jsonl" "$results/learning.svg" | tee "$results/learning.md"
