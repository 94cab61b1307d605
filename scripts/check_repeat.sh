#!/bin/sh
# Trains a small model from one seed on made-up data four times: twice alike, once with --eager, and once going on
# from the checkpoint in the middle. All must end with the same bits, weights and moments.
#   scripts/check_repeat.sh build/apps/clip_train [--device cuda --model mini-64 ...]
set -eu
program=$1
shift
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# train NAME [flags]: 24 steps, checkpoints at 12 and 24
train() {
  name=$1
  shift
  "$program" --dataset-type synthetic --train-num-samples 20000 --model mini-28 --batch-size 64 --warmup 4 --lr 1e-3 \
    --max-steps 24 --save-every-n-steps 12 --log-every-n-steps 12 --force-patch-dropout 0.25 --seed 3 \
    --logs "$folder" --name "$name" "$@" >"$folder/$name.txt" 2>&1 || { cat "$folder/$name.txt"; exit 1; }
  grep -h "WARNING" "$folder/$name.txt" || true
}
# The tensors of NAME's last checkpoint, without the header, which holds the run's flags.
bits() {
  for file in open_clip_model training_state; do
    path=$folder/$1/checkpoints/step_00000024/$file.safetensors
    header=$(od -An -t u8 -N 8 "$path" | tr -d ' ')
    tail -c "+$((header + 9))" "$path" | sha256sum
  done
}

train first "$@"
train second "$@"
train eager "$@" --eager
mkdir -p "$folder/resumed/checkpoints"
cp -r "$folder/first/checkpoints/step_00000012" "$folder/resumed/checkpoints/"
train resumed "$@" --resume latest
expected=$(bits first)
status=0
for name in second eager resumed; do
  if [ "$(bits $name)" = "$expected" ]; then echo "$name: the same bits"
  else echo "$name: OTHER BITS"; status=1; fi
done
exit $status
