#!/bin/sh
# Gets CLIP's byte-pair vocabulary out of the Python package open-clip-torch, whose wheel carries it.
#
#   scripts/fetch_vocabulary.sh [FILE]
#
# FILE is where it goes; by default ~/.cache/switchback/bpe_simple_vocab_16e6.txt.gz, where the programs look
# for it. Needs python3 with pip and a network (or a pip that is set up to use a mirror); installs nothing.
set -eu

name=bpe_simple_vocab_16e6.txt.gz
sha256=924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a
target=${1:-${HOME:?set HOME, or name the file to write}/.cache/switchback/$name}

stop() {
  echo "fetch_vocabulary.sh: $*" >&2
  exit 1
}

is_right() { [ "$(sha256sum <"$1" | cut -d ' ' -f 1)" = "$sha256" ]; }

if [ -f "$target" ] && is_right "$target"; then
  echo "$target is there already."
  exit 0
fi
command -v python3 >/dev/null || stop "python3 is not installed; it is needed for its pip"
python3 -m pip --version >/dev/null 2>&1 || stop "python3 has no pip (on Debian: apt install python3-pip)"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
  --dest "$folder" open-clip-torch ||
  stop "pip could not download open-clip-torch (its message is above); is there a network?"
python3 - "$folder" "$name" <<'PYTHON' || stop "the package has no member open_clip/$name any more"
import glob, sys, zipfile
folder, name = sys.argv[1:]
with zipfile.ZipFile(glob.glob(folder + '/*.whl')[0]) as wheel, open(f'{folder}/{name}', 'wb') as file:
    file.write(wheel.read('open_clip/' + name))
PYTHON
is_right "$folder/$name" ||
  stop "the vocabulary in the package is not the one that CLIP was trained with (its sha256 differs)"
mkdir -p "$(dirname "$target")"
# Under its final name only when complete.
cp "$folder/$name" "$target.part"
mv "$target.part" "$target"
echo "$target"
