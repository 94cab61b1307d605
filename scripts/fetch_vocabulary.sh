#!/bin/sh
# Gets what CLIP needs and nobody else should copy out of the Python package open-clip-torch, whose wheel
# carries it: the byte-pair vocabulary, and ImageNet's class names and templates (for --imagenet-val).
#
#   scripts/fetch_vocabulary.sh [FILE]
#
# FILE is where the vocabulary goes; by default ~/.cache/switchback/bpe_simple_vocab_16e6.txt.gz, where the
# programs look for it. imagenet_classnames.txt and imagenet_templates.txt go beside it. Needs python3 with pip
# and a network (or a pip that is set up to use a mirror); installs nothing.
set -eu

name=bpe_simple_vocab_16e6.txt.gz
sha256=924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a
target=${1:-${HOME:?set HOME, or name the file to write}/.cache/switchback/$name}
beside=$(dirname "$target")

stop() {
  echo "fetch_vocabulary.sh: $*" >&2
  exit 1
}

is_right() { [ "$(sha256sum <"$1" | cut -d ' ' -f 1)" = "$sha256" ]; }

if [ -f "$target" ] && is_right "$target" && [ -f "$beside/imagenet_classnames.txt" ] &&
  [ -f "$beside/imagenet_templates.txt" ]; then
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
import ast, glob, sys, zipfile
folder, name = sys.argv[1:]
with zipfile.ZipFile(glob.glob(folder + '/*.whl')[0]) as wheel:
    with open(f'{folder}/{name}', 'wb') as file:
        file.write(wheel.read('open_clip/' + name))
    try:
        source = wheel.read('open_clip/zero_shot_metadata.py').decode()
    except KeyError:
        sys.exit(0)  # only --imagenet-val needs it
lists = {node.targets[0].id: node.value for node in ast.parse(source).body
         if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)}
def template(function):  # lambda c: f'a photo of a {c}.'
    return ''.join(part.value if isinstance(part, ast.Constant) else '{c}' for part in function.body.values)
def write(name, lines):
    with open(f'{folder}/{name}', 'w', encoding='utf-8') as file:
        file.writelines(line + '\n' for line in lines)
write('imagenet_classnames.txt', ast.literal_eval(lists['IMAGENET_CLASSNAMES']))
write('imagenet_templates.txt', [template(f) for f in lists['OPENAI_IMAGENET_TEMPLATES'].elts])
PYTHON
is_right "$folder/$name" ||
  stop "the vocabulary in the package is not the one that CLIP was trained with (its sha256 differs)"
mkdir -p "$beside"
# Under its final name only when complete.
for file in imagenet_classnames.txt imagenet_templates.txt; do
  [ -f "$folder/$file" ] && cp "$folder/$file" "$beside/$file.part" && mv "$beside/$file.part" "$beside/$file"
done
cp "$folder/$name" "$target.part"
mv "$target.part" "$target"
echo "$target"
