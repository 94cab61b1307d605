#!/usr/bin/env python3
"""Reads the event files of a run back with TensorBoard's own reader.

    scripts/check_tensorboard.py [--programs build/apps]

Needs the package tensorboard. A small model trains on synthetic pairs, is stopped and goes on; every scalar that
open_clip writes must be there under open_clip's tag, once per step, with the value that train.jsonl has.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

from tensorboard import __version__
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# tag: key of train.jsonl, or None where the log's own means are written
TAGS = {"train/data_time": None, "train/batch_time": None, "train/samples_per_second": None,
        "train/samples_per_second_per_gpu": None, "train/scale": "logit_scale", "train/lr": "lr",
        "train/contrastive_loss": "loss", "train/loss": "loss", "train/grad_norm": "gradient_norm"}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", default="build/apps")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = [os.path.join(arguments.programs, "clip_train"), "--dataset-type", "synthetic", "--train-num-samples", "80",
                 "--model", "tiny", "--batch-size", "8", "--warmup", "2", "--report-to", "tensorboard", "--logs", folder,
                 "--name", "run", "--log-every-n-steps", "100", "--log-metric-every-n-steps", "1"]
        for more in (["--max-steps", "12"], ["--max-steps", "20", "--resume", "latest"]):
            subprocess.run(words + more, check=True, capture_output=True)
        records = {}
        with open(os.path.join(folder, "run", "train.jsonl")) as file:
            for line in file:
                record = json.loads(line)
                if record.get("kind") == "step":
                    records[record["step"]] = record
        events = EventAccumulator(os.path.join(folder, "run", "tensorboard"), size_guidance={"scalars": 0})
        events.Reload()
        there = events.Tags()["scalars"]
        points = 0
        for tag, key in TAGS.items():
            if tag not in there:
                sys.exit(f"check_tensorboard: no {tag} among {there}")
            scalars = events.Scalars(tag)
            if [s.step for s in scalars] != list(range(20)):
                sys.exit(f"check_tensorboard: {tag} has steps {[s.step for s in scalars]}")
            for s in scalars:
                wanted = records[s.step][key] if key else s.value
                if not s.value >= 0 or abs(s.value - wanted) > 1e-6 * abs(wanted):
                    sys.exit(f"check_tensorboard: {tag} at step {s.step} is {s.value}, not {wanted}")
                points += 1
        print(f"tensorboard {__version__} reads {points} points of {len(TAGS)} tags, equal to train.jsonl, over a resumed run")


if __name__ == "__main__":
    main()
