#!/usr/bin/env python3
"""Images per second of processor time: open_clip's own input pipeline and ours over the same shards, by turns.

    bench/loader_baseline.py BENCH_LOADER VOCABULARY SHARDS [SHARDS ...] [--rounds 3] [--images 2048]
    bench/loader_baseline.py --generate FOLDER           shards of photograph-like JPEGs of two sizes

The other side is open_clip_train.data.get_wds_dataset as it is (webdataset, Pillow, open_clip's training transform
of torchvision, its tokenizer, batches of 64), in this process without workers, one thread: what one loader process
of open_clip does. Needs open-clip-torch, webdataset, torchvision and Pillow from PyPI. Processor time is that of the
whole process, the fastest of the rounds counts on both sides. open_clip hands out normalised f32, we hand out bytes
that the model's first kernel normalises; both are what the training loop gets.
"""

import argparse
import io
import os
import re
import subprocess
import sys
import tarfile
import time
import types


def generate(folder):
    import numpy as np

    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from images_baseline import photograph

    rng = np.random.default_rng(0)
    for width, height in ((341, 256), (500, 375), (1024, 768)):
        os.makedirs(folder, exist_ok=True)
        with tarfile.open(os.path.join(folder, f"{width}x{height}.tar"), "w") as tar:
            for i in range(64):
                out = io.BytesIO()
                photograph(rng, width, height).save(out, "JPEG", quality=90 if i % 2 == 0 else 95)
                members = ((".jpg", out.getvalue()), (".txt", f"a photograph of noise, number {i}".encode()))
                for suffix, data in members:
                    info = tarfile.TarInfo(f"{i:06d}{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def versions():
    import open_clip
    import PIL
    import torch
    import torchvision
    import webdataset
    from PIL import features

    return (f"open_clip {open_clip.__version__}, webdataset {webdataset.__version__}, Pillow {PIL.__version__} "
            f"(libjpeg-turbo {features.version('libjpeg_turbo')}), torchvision {torchvision.__version__}, "
            f"PyTorch {torch.__version__}, Python {sys.version.split()[0]}")


class Theirs:
    """One loader process of open_clip, endlessly over the shards."""

    def __init__(self, shards, images, batch_size=64):
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2
        from open_clip_train.data import get_wds_dataset

        transform = image_transform_v2(PreprocessCfg(size=224), is_train=True)
        arguments = types.SimpleNamespace(
            train_data=shards, train_num_samples=images, dataset_resampled=False, seed=0, batch_size=batch_size,
            train_data_upsampling_factors=None, world_size=1, workers=0)
        self.loader = get_wds_dataset(arguments, transform, True,
                                      tokenizer=open_clip.get_tokenizer("ViT-B-32")).dataloader
        self.batch_size = batch_size
        self.rate()  # the first pass warms up

    def rate(self):
        start, images = time.process_time(), 0
        for pixels, tokens in self.loader:
            assert pixels.shape[1:] == (3, 224, 224) and tokens.shape[1:] == (77,)
            images += len(pixels)
        return images / (time.process_time() - start)


def ours(program, shards, vocabulary, images, more=()):
    done = subprocess.run([program, shards, vocabulary, "--passes", "3", "--max-images", str(images), *more],
                          capture_output=True, text=True)
    found = re.search(r"([0-9.]+) images per second of processor time", done.stdout)
    if not found:
        sys.exit(done.stdout + done.stderr)
    return float(found.group(1))


def samples_in(shards):
    names = set()
    match = re.search(r"\{(\d+)\.\.(\d+)\}", shards)
    paths = [shards] if not match else [
        shards.replace(match.group(0), str(i).zfill(len(match.group(1))))
        for i in range(int(match.group(1)), int(match.group(2)) + 1)]
    for path in paths:
        with tarfile.open(path) as tar:
            names.update((path, name.rsplit(".", 1)[0]) for name in tar.getnames())
    return len(names)


def main():
    if sys.argv[1:2] == ["--generate"]:
        return generate(sys.argv[2])
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("vocabulary")
    parser.add_argument("shards", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=2048, help="of a pass, at most")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    print(versions())
    for shards in arguments.shards:
        images = min(samples_in(shards), arguments.images) // 64 * 64 or 64
        pipeline, other, mine, fast = Theirs(shards, images), [], [], []
        for _ in range(arguments.rounds):
            other.append(pipeline.rate())
            mine.append(ours(arguments.program, shards, arguments.vocabulary, images))
            fast.append(ours(arguments.program, shards, arguments.vocabulary, images, ["--fast-decode"]))
        name = os.path.join(os.path.basename(os.path.dirname(shards)), os.path.basename(shards))
        print(f"{name}: {images} images a pass; images per second of processor time: open_clip {max(other):.1f} "
              f"({min(other):.1f} to {max(other):.1f}), switchback {max(mine):.1f} ({min(mine):.1f} to "
              f"{max(mine):.1f}), ratio {max(mine) / max(other):.2f}x; with --fast-decode {max(fast):.1f}, "
              f"{max(fast) / max(other):.2f}x", flush=True)


if __name__ == "__main__":
    main()
