#!/usr/bin/env python3
"""Images per second of Pillow and of switchback over the same files, one core each, in one run.

    bench/images_baseline.py BENCH_IMAGES FOLDER [SECONDS]

BENCH_IMAGES is the built bench/bench_images. Pillow does what open_clip's training pipeline does: open, load,
convert("RGB"), the crop of torchvision's RandomResizedCrop(224, scale=(0.9, 1), ratio=(3/4, 4/3)), bicubic
resize. The last line is the ratio. --generate FOLDER writes photograph-like JPEGs (1/f noise) of 500x375 and
1024x768 instead.
"""

import io
import math
import os
import pathlib
import random
import re
import subprocess
import sys
import time

import PIL
from PIL import Image


def random_resized_crop(width, height, scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3)):
    area = width * height
    for _ in range(10):
        target = area * random.uniform(*scale)
        aspect = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = int(round(math.sqrt(target * aspect))), int(round(math.sqrt(target / aspect)))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, height - h), random.randint(0, width - w), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = int(round(w / ratio[0]))
    elif width / height > ratio[1]:
        w = int(round(h * ratio[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def decode(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    return image.convert("RGB")


def whole(data):
    image = decode(data)
    top, left, height, width = random_resized_crop(*image.size)
    return image.crop((left, top, left + width, top + height)).resize((224, 224), Image.BICUBIC)


def rate(files, seconds, work):
    """Per second of processor time, of the fastest pass over the files, as bench_images does it."""
    best, start = 0.0, time.process_time()
    while best == 0.0 or time.process_time() - start < seconds:
        begin = time.process_time()
        for data in files:
            work(data)
        best = max(best, len(files) / (time.process_time() - begin))
    return best


def photograph(rng, width, height):
    """1/f noise, strong in brightness and weak in colour, with a little grain."""
    import numpy as np

    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1
    planes = []
    for strength in (55, 18, 18):
        plane = np.fft.irfft2(
            np.fft.rfft2(rng.standard_normal((height, width))) / frequency**1.15, (height, width)
        )
        planes.append(plane / plane.std() * strength)
    y, cb, cr = planes[0] + 128 + 2 * rng.standard_normal((height, width)), planes[1], planes[2]
    pixels = np.stack([y + 1.402 * cr, y - 0.344 * cb - 0.714 * cr, y + 1.772 * cb], -1)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def generate(folder):
    import numpy as np

    rng = np.random.default_rng(0)
    for width, height in ((500, 375), (1024, 768)):
        target = pathlib.Path(folder) / f"{width}x{height}"
        target.mkdir(parents=True, exist_ok=True)
        for i in range(24):
            photograph(rng, width, height).save(target / f"{i:03d}.jpg", quality=90 if i % 2 == 0 else 95)


def main():
    if len(sys.argv) >= 3 and sys.argv[1] == "--generate":
        return generate(sys.argv[2])
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    program, folder = sys.argv[1:3]
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 2.0
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core, for the child too
    paths = sorted(p for p in pathlib.Path(folder).rglob("*") if p.suffix in (".jpg", ".png", ".webp"))
    files = [p.read_bytes() for p in paths]
    random.seed(1)
    theirs, ours = (0.0, 0.0), (0.0, 0.0)
    for _ in range(3):  # by turns, the best of each
        theirs = tuple(map(max, theirs, (rate(files, seconds / 3, decode), rate(files, seconds / 3, whole))))
        out = subprocess.run(
            [program, folder, str(seconds / 3)], check=True, capture_output=True, text=True
        ).stdout
        found = re.search(r"decode ([0-9.]+) decode\+crop\+resize ([0-9.]+)", out)
        ours = tuple(map(max, ours, map(float, found.groups())))
    for name, rates in ((f"Pillow {PIL.__version__}", theirs), ("switchback", ours)):
        print(f"{name}: files {len(files)} decode {rates[0]:.1f} decode+crop+resize {rates[1]:.1f} images/s")
    ratios = [mine / other for mine, other in zip(ours, theirs)]
    print(f"ratio {pathlib.Path(folder).name}: decode {ratios[0]:.2f}x, decode+crop+resize {ratios[1]:.2f}x")


if __name__ == "__main__":
    main()
