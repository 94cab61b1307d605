#!/usr/bin/env python3
"""Kills a training run with SIGKILL at random moments and holds every checkpoint against a run that nobody killed.

    scripts/check_kills.py [--programs build/apps] [--kills 50] [--steps 400] [--seed 0] [--folder FOLDER]

A small model trains on pairs of noise and saves after every step, so that kills fall into every part of a save as
well as of a step. The undisturbed run keeps all of its checkpoints. The other one is killed again and again, each
time at a random moment, and goes on with --resume latest, another number of loader threads and another number of
CPU threads. After every kill
  - no folder looks like a checkpoint but is none: each step_* has the weights and the moments of the undisturbed
    run's step, byte for byte (the header of the moments, which holds the options, apart);
  - the numbers of all steps in train.jsonl are those of the undisturbed run.
Then SIGTERM and SIGUSR1: the run must end with 0 within 5 seconds and leave a checkpoint of its last step. The last
line is what was counted. Status 1 at the first difference.
"""

import argparse
import io
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib


def check(condition, *words):
    if not condition:
        sys.exit("check_kills: " + " ".join(map(str, words)))


def write_shards(folder):
    """Two shards of 30 pairs: small noise pictures, each with a caption of its own."""
    rng = random.Random(1)

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for shard in range(2):
        with tarfile.open(os.path.join(folder, f"{shard}.tar"), "w") as tar:
            for i in range(30):
                width, height = rng.randrange(18, 26), rng.randrange(18, 26)
                rows = b"".join(b"\0" + rng.randbytes(3 * width) for _ in range(height))
                header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
                picture = (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) +
                           chunk(b"IEND", b""))
                for suffix, data in ((".png", picture), (".txt", f"number {30 * shard + i}".encode())):
                    member = tarfile.TarInfo(f"{shard}{i:04d}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


class Run:
    """clip_train on the same data, in a run folder of its own."""

    def __init__(self, arguments, folder, name):
        self.program = os.path.join(arguments.programs, "clip_train")
        self.path = os.path.join(folder, name)
        self.words = ["--train-data", folder + "/{0..1}.tar", "--shuffle-window", "16", "--model", "tiny", "--batch-size", "8",
                      "--warmup", "10", "--lr", "1e-3", "--force-patch-dropout", "0.5", "--max-steps",
                      str(arguments.steps), "--save-every-n-steps", "1", "--log-every-n-steps", "1", "--logs", folder,
                      "--name", name]

    def start(self, *more):
        with open(self.path + ".out", "w") as out:  # the last one only
            return subprocess.Popen([self.program, *self.words, *map(str, more)], stdout=out, stderr=out)

    def output(self):
        with open(self.path + ".out") as file:
            return file.read()

    def checkpoints(self):
        folder = os.path.join(self.path, "checkpoints")
        if not os.path.isdir(folder):
            return []
        return sorted(name for name in os.listdir(folder) if name.startswith("step_"))

    def bits(self, checkpoint):
        """Weights, and moments without their header."""
        folder = os.path.join(self.path, "checkpoints", checkpoint)
        with open(os.path.join(folder, "open_clip_model.safetensors"), "rb") as file:
            weights = file.read()
        with open(os.path.join(folder, "training_state.safetensors"), "rb") as file:
            state = file.read()
        return weights, state[8 + struct.unpack("<Q", state[:8])[0]:]

    def numbers(self):
        """Of every step: what the log says about it, times and memory apart. The last line may be cut by a kill."""
        steps = []
        path = os.path.join(self.path, "train.jsonl")
        if not os.path.exists(path):
            return steps
        with open(path, errors="replace") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if "loss" in record:
                    steps.append(tuple(record.get(key) for key in (
                        "step", "samples", "loss", "lr", "logit_scale", "gradient_norm")))
        return steps


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", default="build/apps")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="for the runs (default: a temporary one)")
    arguments = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="switchback-kills-", dir=arguments.folder)
    rng = random.Random(arguments.seed)

    write_shards(folder)
    whole = Run(arguments, folder, "whole")
    begin = time.time()
    check(whole.start().wait() == 0, "the undisturbed run failed:", whole.output())
    seconds = time.time() - begin
    expected = {step[0]: step for step in whole.numbers()}
    check(len(expected) == arguments.steps, "the undisturbed run logged", len(expected), "steps")

    killed = Run(arguments, folder, "killed")
    compared, in_save, resumed_at = 0, 0, []
    count = 0
    while count < arguments.kills:
        workers = rng.choice((1, 2, 3, 5))
        process = killed.start("--resume", "latest", "--keep-last-k", 3, "--workers", workers, "--threads",
                               rng.choice((1, 2)))
        # From the first line of main() to a few steps after the start; early ones among them on purpose.
        time.sleep(rng.random() ** 2 * max(0.3, 3 * seconds / arguments.kills))
        ended = process.poll()
        process.kill()
        process.wait()
        if ended is not None:
            check(ended == 0, "a run failed by itself:", killed.output())
            if killed.checkpoints()[-1:] == [f"step_{arguments.steps:08d}"]:  # through: once more from the start
                shutil.rmtree(killed.path)
            continue
        count += 1
        folder_of_run = os.path.join(killed.path, "checkpoints")
        if os.path.isdir(folder_of_run):
            in_save += any(name.startswith(("unfinished-", "removed-")) for name in os.listdir(folder_of_run))
        for name in killed.checkpoints():
            check(killed.bits(name) == whole.bits(name), "after kill", count, name, "differs")
            compared += 1
        for step in killed.numbers():
            check(expected[step[0]] == step, "after kill", count, "step", step[0], "is", step, "not",
                  expected[step[0]])
        resumed_at.append(killed.checkpoints()[-1] if killed.checkpoints() else "none")
    check(killed.start("--resume", "latest").wait() == 0, "the last resume failed:", killed.output())
    last = f"step_{arguments.steps:08d}"
    check(killed.bits(last) == whole.bits(last), "the last checkpoint differs")

    slowest = 0
    for number in (signal.SIGTERM, signal.SIGUSR1):
        stopped = Run(arguments, folder, f"signal{int(number)}")
        process = stopped.start("--save-every-n-steps", 100000, "--max-steps", 100000)
        while "Train Epoch" not in stopped.output():
            check(process.poll() is None, "the run ended before the signal:", stopped.output())
            time.sleep(0.05)
        begin = time.time()
        process.send_signal(number)
        check(process.wait() == 0, signal.Signals(number).name, "ended with", process.returncode, stopped.output())
        slowest = max(slowest, time.time() - begin)
        check(slowest < 5, signal.Signals(number).name, "took", slowest, "s")
        step = max(number for number, *_ in stopped.numbers()) + 1
        check(stopped.checkpoints()[-1] == f"step_{step:08d}", "no checkpoint of step", step, stopped.checkpoints())
    shutil.rmtree(folder)
    print(f"{count} kills of a run of {arguments.steps} steps that saves after each ({in_save} of them while a checkpoint "
          f"was being written or removed, from {len(set(resumed_at))} different checkpoints): {compared} checkpoints "
          f"and all logged steps are those of the undisturbed run, bit for bit; SIGTERM and SIGUSR1: saved and "
          f"ended with 0 within {slowest:.2f} s")


if __name__ == "__main__":
    main()
