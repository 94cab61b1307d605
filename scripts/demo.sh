#!/bin/sh
# From nothing to a trained CLIP: installs what is missing, builds, packs Fashion-MNIST into captioned shards, trains
# a small CLIP on the CPU for a few minutes, and lets it name the 10,000 test images from class names alone.
#   scripts/demo.sh [folder]    default: demo/
set -eu
cd "$(dirname "$0")/.."
folder=${1:-demo}
sh scripts/install_packages.sh dataset-fashion-mnist
[ -f build/build.ninja ] || meson setup build
ninja -C build apps/clip_train apps/clip_eval apps/data_pack

images=/usr/share/datasets/fashion-mnist
[ -d "$images" ] || images=$(dirname "$(dpkg -L dataset-fashion-mnist | grep train-images | head -n 1)")
mkdir -p "$folder"
cat > "$folder/classnames.txt" <<'NAMES'
t-shirt
trouser
pullover
dress
coat
sandal
shirt
sneaker
bag
ankle boot
NAMES
cat > "$folder/templates.txt" <<'TEMPLATES'
a photo of a {c}
a picture of a {c}
a {c} from a catalogue
the {c} is for sale
TEMPLATES
for set in train t10k; do
  [ -f "$folder/$set/sizes.json" ] || build/apps/data_pack --images "$images/$set-images-idx3-ubyte.gz" \
    --labels "$images/$set-labels-idx1-ubyte.gz" --class-names "$folder/classnames.txt" \
    --templates "$folder/templates.txt" --samples-per-shard 10000 --overwrite --output "$folder/$set"
done

run=$(date +%Y%m%d-%H%M%S)
build/apps/clip_train --train-data "$folder/train/{000000..000005}.tar" --zeroshot-data "$folder/t10k/000000.tar" \
  --device cpu --model mini-28 --tokenizer bytes --batch-size 256 --epochs 4 --lr 2e-3 --warmup 100 --wd 0.1 --opt stableadamw \
  --aug-cfg 'scale=(0.9,1.0)' --workers 1 --zeroshot-frequency 1 --log-every-n-steps 50 \
  --logs "$folder/logs" --name "$run" --keep-last-k 1
checkpoint=$(ls -d "$folder/logs/$run"/checkpoints/step_* | tail -n 1)
echo "picture of the run: $folder/logs/$run/training.svg"
grep -o '[0-9.]*/s/gpu' "$folder/logs/$run/out.log" | tail -n 1 | sed 's|\(.*\)/s/gpu|samples/s: \1|'
build/apps/clip_eval --checkpoint "$checkpoint" --zeroshot-data "$folder/t10k/000000.tar" --workers 2
