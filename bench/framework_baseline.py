#!/usr/bin/env python3
"""Time of one training step in PyTorch: what bench_step is compared with.

    python3 bench/framework_baseline.py [--model mini-28] [--batch-size 256] [--steps 20] [--threads 2]
    python3 bench/framework_baseline.py --against build/bench/bench_step

The same model, batch, random pixels and tokens, f32, AdamW; the module is that of scripts/make_clip_golden.py,
which the golden tests hold the engine against. With --against both programs run in turns, three times each, and
the last line is the ratio of the medians: above 1 the engine is faster.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "scripts"))
from make_clip_golden import Clip, Config, Tower, parameter_groups  # noqa: E402

MODELS = {
    "tiny": Config(16, 16, 8, Tower(32, 2, 2, 64), Tower(24, 2, 2, 96), 12, 259),
    "mini-28": Config(64, 28, 7, Tower(128, 4, 4, 512), Tower(64, 2, 2, 256), 32, 259),
    "ViT-B-32": Config(512, 224, 32, Tower(768, 12, 12, 3072), Tower(512, 12, 8, 2048)),
}


def measure(o):
    """Median seconds of a step."""
    torch.set_num_threads(o.threads)
    torch.manual_seed(1)
    config = MODELS[o.model]
    model = Clip(config)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.2), lr=1e-4, betas=(0.9, 0.98), eps=1e-6)
    random = np.random.default_rng(1)
    shape = (o.batch_size, config.image, config.image, 3)
    images = torch.from_numpy(random.integers(0, 256, shape, dtype=np.uint8))
    tokens = torch.from_numpy(random.integers(0, config.vocabulary, (o.batch_size, config.context)))

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = model.loss(model.encode_image(images), model.encode_text(tokens))
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        return loss.item()

    for _ in range(3):
        step()
    times = []
    for _ in range(o.steps):
        start = time.perf_counter()
        loss = step()
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    print(f"PyTorch {torch.__version__} {o.model}, batch {o.batch_size}, fp32, adamw, "
          f"{torch.get_num_threads()} threads: median step {median * 1e3:.3f} ms (fastest {min(times) * 1e3:.3f}), "
          f"{o.batch_size / median:.1f} samples/s, loss {loss:.4f}", flush=True)
    return median


def compare(o):
    command = ["--model", o.model, "--batch-size", str(o.batch_size), "--steps", str(o.steps)]
    environment = dict(os.environ, SWITCHBACK_CPU_THREADS=str(o.threads))
    ours, theirs = [], []
    for _ in range(3):
        baseline = [sys.executable, __file__, "--threads", str(o.threads)]
        for times, program in ((ours, [o.against]), (theirs, baseline)):
            line = subprocess.run(program + command, env=environment, check=True, stdout=subprocess.PIPE,
                                  universal_newlines=True).stdout.strip()
            print(line, flush=True)
            times.append(float(re.search(r"median step ([0-9.]+) ms", line).group(1)))
    a, b = statistics.median(ours), statistics.median(theirs)
    print(f"ratio {b / a:.2f}x: switchback {a:.1f} ms, PyTorch {b:.1f} ms per step of {o.batch_size} "
          f"({o.model}, {o.threads} threads; load average {os.getloadavg()[0]:.1f})")


def main():
    parser = argparse.ArgumentParser(description="training step of a small CLIP in PyTorch")
    parser.add_argument("--model", default="mini-28", choices=sorted(MODELS))
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--against", help="path of bench_step: run both in turns and print the ratio")
    o = parser.parse_args()
    compare(o) if o.against else measure(o)


if __name__ == "__main__":
    main()
