#!/usr/bin/env python3
"""Runs the command lines that open_clip's README, DataComp, MobileCLIP and a benchmark publish, on the CPU.

    scripts/check_command_lines.py --shards 'DIR/{0..3}.tar' [--more-shards ...] [--programs build/apps] [--steps 8]
                                   [--imagenet-names FOLDER]

What stands behind each launcher (python -m open_clip_train.main and its like) goes to clip_train word for word, its
batch size included. Only what this machine cannot have is replaced, by flags at the end of the line (the last one
counts, as in argparse): the model by a small preset (mini-28), the place of the data, the length, the log folder.
Each line runs twice, on synthetic data and on the shards (the CSV line: on a table of the shards' pictures). Lines
for RN50 are first run as they are and must end in the error that says so. FOLDER holds imagenet_classnames.txt and
imagenet_templates.txt (scripts/fetch_vocabulary.sh gets them); without it the lines' --imagenet-val is emptied.
Prints a table; status 1 when a line fails.
"""

import argparse
import os
import random
import re
import shlex
import struct
import subprocess
import sys
import tarfile
import tempfile
import zlib

# name, the words after the launcher; LOGS stands for the place that the publisher leaves open
LINES = (
    ("open_clip's README, several GPUs",
     "--train-data '/data/cc12m/cc12m-train-{0000..2175}.tar' --train-num-samples 10968539 --dataset-type webdataset "
     "--batch-size 320 --precision amp --workers 4 --imagenet-val /data/imagenet/validation/"),
    ("open_clip's README, SLURM",
     "--save-frequency 1 --report-to tensorboard --train-data=\"/data/LAION-400M/{00000..41455}.tar\" --warmup 2000 "
     "--batch-size=256 --epochs=32 --workers=8 --model ViT-B-32 --name \"ViT-B-32-Vanilla\" --seed 0 --local-loss "
     "--gather-with-grad"),
    ("open_clip's README, CSV",
     "--save-frequency 1 --zeroshot-frequency 1 --report-to tensorboard --train-data=\"/path/to/train_data.csv\" "
     "--val-data=\"/path/to/validation_data.csv\" --csv-img-key filepath --csv-caption-key title "
     "--imagenet-val=/path/to/imagenet/root/val/ --warmup 10000 --batch-size=128 --lr=1e-3 --wd=0.1 --epochs=30 "
     "--workers=8 --model RN50"),
    ("DataComp's train.py",
     "--save-frequency 0 --ddp-static-graph --local-loss --gather-with-grad --grad-checkpointing --train-data D "
     "--train-num-samples 1600000 --warmup 500 --dataset-type webdataset --precision amp --workers 4 --model ViT-B-32 "
     "--batch-size 512 --epochs 8 --lr 5e-4 --logs L --name X --seed 0 --accum-freq 1 --log-every-n-steps 100 "
     "--save-most-recent --resume latest --dataset-resampled --beta2 0.95 --train-data-upsampling-factors 1::2 "
     "--grad-clip-norm 1"),
    ("MobileCLIP's run_datacomp12m.sh",
     "--save-frequency 1 --local-loss --gather-with-grad --grad-checkpointing --train-data D --train-num-samples "
     "12288000 --warmup 1000 --dataset-type webdataset --precision amp --workers 4 --model ViT-B-16 --batch-size 1024 "
     "--epochs 20 --lr 1.e-3 --beta2 0.95 --wd 0.2 --grad-clip-norm 1.0 --zeroshot-frequency 1 --log-every-n-steps 20 "
     "--seed 0 --accum-freq 1 --save-most-recent --resume latest --name M --dataset-resampled"),
    ("MMoCLIP benchmark, synthetic",
     "--dataset-type synthetic --train-num-samples 3200000 --epochs 1 --batch-size=512 --model ViT-L-14 "
     "--dist-url=\"env://\" --name test --logs logs --local-loss --gather-with-grad --grad-checkpointing "
     "--log-every-n-steps 1"),
)


def expand(pattern):
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not match:
        return [pattern]
    return [pattern.replace(match.group(0), str(i).zfill(len(match.group(1))))
            for i in range(int(match.group(1)), int(match.group(2)) + 1)]


def write_csv(folder, pattern, samples=600):
    """A table of pictures that are files, as open_clip's CSV data are."""
    os.makedirs(os.path.join(folder, "pictures"))
    path = os.path.join(folder, "pairs.csv")
    pairs = {}
    for shard in expand(pattern):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                if suffix not in ("jpg", "png", "txt") or len(pairs) > samples:
                    continue
                data = tar.extractfile(member).read()
                if suffix == "txt":
                    pairs.setdefault(key, {})["title"] = " ".join(data.decode().split()).replace('"', "'")
                else:
                    pairs.setdefault(key, {})["filepath"] = picture = os.path.join(folder, "pictures", f"{key}.{suffix}")
                    with open(picture, "wb") as out:
                        out.write(data)
    with open(path, "w") as out:
        out.write("filepath\ttitle\n")
        for pair in pairs.values():
            if len(pair) == 2:
                out.write(f"{pair['filepath']}\t\"{pair['title']}\"\n")
    return path


def write_imagenet(folder):
    """A thousand folders with one noise picture each."""
    rng = random.Random(0)

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    root = os.path.join(folder, "imagenet")
    for i in range(1000):
        os.makedirs(os.path.join(root, f"n{i:08d}"))
        rows = b"".join(b"\0" + rng.randbytes(3 * 32) for _ in range(32))
        with open(os.path.join(root, f"n{i:08d}", "0.png"), "wb") as out:
            out.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0)) +
                      chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return root


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", default="build/apps")
    parser.add_argument("--shards", required=True)
    parser.add_argument("--more-shards", help="a second source for DataComp's line (default: the same again)")
    parser.add_argument("--imagenet-names")
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    program = os.path.join(arguments.programs, "clip_train")
    environment = dict(os.environ)
    failed = False
    print("| line | data | end | steps x batch | samples/s | loss, first and last | notices | evaluated |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="switchback-lines-") as folder:
        imagenet = ""
        if arguments.imagenet_names:
            imagenet = write_imagenet(folder)
            environment["HOME"] = folder  # where clip_train looks for them
            os.makedirs(os.path.join(folder, ".cache"))
            os.symlink(os.path.abspath(arguments.imagenet_names), os.path.join(folder, ".cache", "switchback"))
        table = write_csv(folder, arguments.shards)
        for number, (name, line) in enumerate(LINES):
            words = shlex.split(line)
            logs = os.path.join(folder, f"logs{number}")
            if "RN50" in words or "--model" not in words:
                done = subprocess.run([program, *words], capture_output=True, text=True)
                said = (done.stdout + done.stderr).strip().splitlines()[-1]
                good = done.returncode == 1 and "RN50" in said and "ViT-B-32" in said
                failed |= not good
                print(f"| {name} | as it is | {'status 1: ' if good else 'WRONG: '}`{said}` | | | | | |")
            for data in ("synthetic", "shards"):
                if data == "shards" and "synthetic" in words:
                    continue
                run = f"run-{data}"
                more = ["--model", "mini-28", "--max-steps", str(arguments.steps), "--logs", logs, "--name", run, "--device",
                        "cpu", "--log-every-n-steps", "1"]
                if data == "synthetic":
                    more += ["--dataset-type", "synthetic"]
                    more += [] if any(w.startswith("--train-num-samples") for w in words) else ["--train-num-samples", "4000"]
                elif any(w.endswith(".csv") for w in words):
                    more += ["--train-data", table]
                else:
                    second = "::" + (arguments.more_shards or arguments.shards) if "1::2" in words else ""
                    more += ["--train-data", arguments.shards + second]
                if data == "synthetic" and "1::2" in words:
                    more += ["--train-data", "D::D"]
                if any(w.startswith("--val-data") for w in words):
                    more += ["--val-data", table if data == "shards" else ""]
                if any(w.startswith("--imagenet-val") for w in words):
                    more += ["--imagenet-val", imagenet]
                done = subprocess.run([program, *words, *more], capture_output=True, text=True, env=environment)
                text = done.stdout + done.stderr
                steps = re.findall(r"Train Epoch: .*?, ([0-9.e+]+)/s, .*? Loss: ([0-9.]+)", text)
                notices = re.findall(r"(--[a-z-]+)(?: \S+)?(?: has no effect|: bf16)", text)
                saved = os.path.isdir(os.path.join(logs, run, "checkpoints", f"step_{arguments.steps:08d}"))
                good = done.returncode == 0 and len(steps) == arguments.steps and saved
                failed |= not good
                batch = re.search(r"--batch-size[= ](\d+)", line).group(1)
                evaluated = [m for m in ("imagenet-zeroshot-val-top1", "zeroshot-val-top1", "image_to_text_R@1") if m in text][:1]
                if not good:
                    print(text[-2000:], file=sys.stderr)
                rates = sorted(float(rate) for rate, _ in steps[1:]) or [0]
                print(f"| {name} | {data} | {'status 0' if good else 'FAILED'} | {len(steps)} x {batch} | "
                      f"{rates[len(rates) // 2]:.0f} | {steps[0][1] if steps else ''}, {steps[-1][1] if steps else ''} | "
                      f"{len(set(notices))}: {' '.join(sorted(set(notices)))} | {' '.join(evaluated)} |", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
