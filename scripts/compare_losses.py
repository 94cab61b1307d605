#!/usr/bin/env python3
"""Compares the loss curves of two runs of clip_train that saw the same batches from the same seed: one in f32
on the CPU and one in bf16 on a GPU, say.

    scripts/compare_losses.py LOGS/A/train.jsonl LOGS/B/train.jsonl [window: 10 steps] [bar: 1 percent]

A step's loss is noisy in the batch; both runs have the same noise, but what bf16 rounds shifts it a little.
So the curves are compared as means over windows of steps that do not overlap, and single steps are reported
beside them. Ends with 1 when a window differs by more than the bar.
"""
import json
import sys


def losses(path):
    with open(path) as file:
        records = [json.loads(line) for line in file]
    return {record["step"]: record["loss"] for record in records if record.get("kind") == "step"}


def main():
    a, b = losses(sys.argv[1]), losses(sys.argv[2])
    window = int(sys.argv[3]) if len(sys.argv) > 3 else 10
    bar = float(sys.argv[4]) if len(sys.argv) > 4 else 1.0
    steps = sorted(a)
    if steps != sorted(b) or not steps:
        sys.exit(f"the runs logged different steps: {len(a)} and {len(b)} (--log-every-n-steps 1?)")
    worst = 0
    for first in range(0, len(steps) - window + 1, window):
        part = steps[first:first + window]
        mean_a, mean_b = (sum(curve[step] for step in part) / window for curve in (a, b))
        difference = 100 * (mean_b - mean_a) / mean_a
        worst = max(worst, abs(difference))
        print(f"steps {part[0]:5d} to {part[-1]:5d}: {mean_a:.4f} {mean_b:.4f}  {difference:+.3f} %")
    single = max(steps, key=lambda step: abs(b[step] - a[step]) / a[step])
    print(f"loss {a[steps[0]]:.4f} -> {a[steps[-1]]:.4f}; largest difference of a mean over {window} steps "
          f"{worst:.3f} %, of a single step {100 * abs(b[single] - a[single]) / a[single]:.3f} % "
          f"(step {single})")
    return 1 if worst > bar else 0


if __name__ == "__main__":
    sys.exit(main())
