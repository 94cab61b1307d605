#!/usr/bin/env python3
"""One training step in PyTorch, timed like bench_step times ours; and both in turns, with the ratio.

On a GPU the rival is what a user would run instead: open_clip's model and loss (`pip install open_clip_torch`),
amp_bf16 (f32 masters, bf16 autocast), fused AdamW, whole-model torch.compile. On a CPU it is the module of
scripts/make_clip_golden.py, which the golden tests hold the engine against, in f32. No data loading on either
side: random pixels and tokens lie on the device.

    python3 bench/framework_baseline.py                                       # CPU: mini-28, batch 256
    python3 bench/framework_baseline.py --against build/bench/bench_step      # the same in turns with ours
    python3 bench/framework_baseline.py --device cuda --model ViT-B-32 --batch-size 1024 [--eager]
    python3 bench/framework_baseline.py --device cuda --against build/bench/bench_step --json lines.jsonl \
      --models ViT-B-32:1024,ViT-B-16:512,ViT-L-14:224,ViT-H-14:128 --order ABAB

With --against every run is a process of its own, in the given order: A is ours, B compiled PyTorch (eager on a
CPU), E eager PyTorch; S ours with StableAdamW, Q with --linear switchback, C ours as clip_train does it, where the
last block computes only the rows that are read (the others compute all of them, as open_clip does). The ratio is
the row's median speed to B's. Every run appends a JSON line to --json; bench_plot makes a picture of that file.
torch.compile takes minutes for a large model: with --prepare the first B of every model starts at once, compiles
beside the others in little GPU memory, and waits for its turn.

--ddp, under torchrun, is open_clip's step over several GPUs: DistributedDataParallel around the model, torch.compile
around that, the features gathered with their gradients and a loss of local rows (--local-loss --gather-with-grad).
Started in the background with --prepare --turn FILE it compiles and waits until FILE is there:

    torchrun --standalone --nproc-per-node 2 bench/framework_baseline.py --device cuda --ddp --model ViT-L-14 --batch-size 224

One thing is changed in PyTorch's favour: open_clip gives its text tower the causal mask as numbers, which
PyTorch's fastest attention kernels do not take; here it is told that the mask is the causal one (--as-shipped
leaves that out).
"""

import argparse
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time

PEAK_TFLOPS = 989.4  # dense bf16 of an H100 SXM
GIB = 2.0**30


# torch is imported by the functions that use it: the process that only compares does without.
# ---- the two steps -------------------------------------------------------------------------------------------
def cpu_step(o):
    """f32 on the CPU. Returns a function that takes one step and returns the loss."""
    import numpy as np
    import torch
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "scripts"))
    from make_clip_golden import Clip, Config, Tower, parameter_groups
    models = {
        "tiny": Config(16, 16, 8, Tower(32, 2, 2, 64), Tower(24, 2, 2, 96), 12, 259),
        "mini-28": Config(64, 28, 7, Tower(128, 4, 4, 512), Tower(64, 2, 2, 256), 32, 259),
        "ViT-B-32": Config(512, 224, 32, Tower(768, 12, 12, 3072), Tower(512, 12, 8, 2048)),
    }
    if o.model not in models:
        sys.exit(f"framework_baseline: --model is one of {', '.join(models)} on a CPU, got {o.model}")
    config = models[o.model]
    torch.set_num_threads(o.threads)
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
        return loss
    return step


def name_the_causal_mask(open_clip):
    def attention(self, q_x, k_x=None, v_x=None, attn_mask=None):
        k_x, v_x = (q_x if x is None else x for x in (k_x, v_x))
        mask = None if attn_mask is None else attn_mask.to(q_x.dtype)
        return self.attn(q_x, k_x, v_x, need_weights=False, attn_mask=mask, is_causal=mask is not None)[0]
    open_clip.transformer.ResidualAttentionBlock.attention = attention


def gpu_step(o):
    """open_clip's training step (open_clip_train/train.py) in amp_bf16 with the options that make it fastest."""
    import torch
    try:
        import open_clip
    except ImportError as error:
        sys.exit(f"framework_baseline: {error}; pip install open_clip_torch")
    if not o.as_shipped:
        name_the_causal_mask(open_clip)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    with torch.device("cuda"):  # initialised there: seconds instead of half a minute for ViT-H-14
        model = open_clip.create_model(o.model, device="cuda", output_dict=True).train()
    no_decay = [p for n, p in model.named_parameters() if p.ndim < 2 or "ln" in n or "bias" in n]
    decay = [p for n, p in model.named_parameters() if not (p.ndim < 2 or "ln" in n or "bias" in n)]
    optimizer = torch.optim.AdamW([{"params": no_decay, "weight_decay": 0.0}, {"params": decay, "weight_decay": 0.2}],
                                  lr=1e-4, betas=(0.9, 0.98), eps=1e-6, fused=True)
    over_ranks = {}
    if o.ddp:
        over_ranks = dict(local_loss=True, gather_with_grad=True, rank=torch.distributed.get_rank(),
                          world_size=torch.distributed.get_world_size())
    loss_of = open_clip.loss.ClipLoss(cache_labels=True, **over_ranks)
    size = open_clip.get_model_config(o.model)
    text = size["text_cfg"]
    pixels = size["vision_cfg"]["image_size"]
    # Already normalised floats, as its loader hands them over: ours starts from bytes.
    images = torch.randn(o.batch_size, 3, pixels, pixels, device="cuda")
    shape = (o.batch_size, text.get("context_length", 77))
    tokens = torch.randint(0, text.get("vocab_size", 49408), shape, device="cuda")
    logit_scale = model.logit_scale
    # The backward pass is compiled with the forward pass rather than after it: then --prepare need not run it.
    if hasattr(torch._functorch.config, "force_non_lazy_backward_lowering"):
        torch._functorch.config.force_non_lazy_backward_lowering = True
    forward = model
    if o.compile == "blocks" and not o.eager:
        for block in [*model.visual.transformer.resblocks, *model.transformer.resblocks]:
            block.compile()
    if o.ddp:
        forward = torch.nn.parallel.DistributedDataParallel(model, device_ids=[torch.cuda.current_device()])
    if o.compile == "model" and not o.eager:
        forward = torch.compile(forward)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = loss_of(**forward(images, tokens))
        if o.prepare:
            return None
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            logit_scale.clamp_(0, math.log(100))
        return loss
    return step


# ---- timing --------------------------------------------------------------------------------------------------
def times_on_cpu(step, steps):
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        loss = step().item()
        times.append(time.perf_counter() - start)
    return times, loss


def times_on_gpu(step, steps):
    """Between events at the steps' borders: nothing is waited for, so the CPU runs ahead as in training."""
    import torch
    borders = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    borders[0].record()
    for border in borders[1:]:
        loss = step()
        border.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) * 1e-3 for a, b in zip(borders, borders[1:])], loss.item()


def measure(o):
    import torch
    gpu = o.device == "cuda"
    start = time.perf_counter()
    rank, ranks = 0, 1
    if o.ddp:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group("nccl")
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.manual_seed(1 + rank)
    if o.prepare:
        torch.cuda.set_per_process_memory_fraction(0.1)  # others work beside it
    step = gpu_step(o) if gpu else cpu_step(o)
    if o.prepare:
        try:
            step()
        except torch.OutOfMemoryError:
            pass  # at its first activations: everything is compiled by then
        gc.collect()
        torch.cuda.empty_cache()
        print(f"prepared {o.model} in {time.perf_counter() - start:.0f} s", flush=True)
        if o.turn:
            while not os.path.exists(o.turn):
                time.sleep(0.1)
        elif not sys.stdin.readline():
            return
        o.prepare = False
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        step()
    if gpu:
        torch.cuda.synchronize()
    ready = time.perf_counter() - start
    times, loss = (times_on_gpu if gpu else times_on_cpu)(step, o.steps)
    median = statistics.median(times)
    where = torch.cuda.get_device_name() if gpu else f"{torch.get_num_threads()} threads"
    precision = "amp_bf16" if gpu else "fp32"
    mode = "eager" if o.eager or not gpu else "compiled" if o.compile == "model" else "compiled by block"
    if o.ddp:
        mode += f", DDP of {ranks} ranks"
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if rank > 0:
        return
    rate = ranks * o.batch_size / median
    line = {"program": f"PyTorch {torch.__version__}", "mode": mode, "model": o.model, "batch": o.batch_size,
            "precision": precision, "optimizer": "adamw", "device": where, "step_ms": median * 1e3,
            "fastest_ms": min(times) * 1e3, "samples_per_second": rate, "ranks": ranks, "loss": loss}
    memory = ""
    if gpu:
        free, total = torch.cuda.mem_get_info()
        line.update(peak_gib=torch.cuda.max_memory_allocated() / GIB,
                    held_gib=torch.cuda.max_memory_reserved() / GIB, device_gib=(total - free) / GIB)
        memory = (f", memory {line['peak_gib']:.2f} GiB (held {line['held_gib']:.2f}, device {line['device_gib']:.2f}), "
                  f"ready after {ready:.0f} s")
    print(f"PyTorch {torch.__version__} {mode}, {o.model}, batch {o.batch_size}, {precision}, adamw, {where}: "
          f"median step {median * 1e3:.3f} ms (fastest {min(times) * 1e3:.3f}), {rate:.1f} samples/s"
          f"{memory}, loss {loss:.4f}", flush=True)
    if o.json:
        with open(o.json, "a") as file:
            file.write(json.dumps(line) + "\n")


# ---- in turns ------------------------------------------------------------------------------------------------
def torch_command(o, model, batch, *flags):
    return [sys.executable, os.path.abspath(__file__), "--threads", str(o.threads), "--model", model, "--batch-size",
            str(batch), "--steps", str(o.steps), "--device", o.device, *flags] + ["--as-shipped"] * o.as_shipped


def run_once(o, letter, model, batch, prepared):
    """One process. Its JSON line, or None when it failed."""
    if letter in "ASQC":
        command = [o.against, "--model", model, "--batch-size", str(batch), "--steps", str(o.steps), "--device", o.device]
        command += ["--opt", "stableadamw" if letter == "S" else "adamw"] + o.ours.split()
        command += ["--whole-last-block"] * (letter != "C") + ["--linear", "switchback"] * (letter == "Q")
        if o.device == "cuda":
            command += ["--precision", "amp_bf16"]
    else:
        command = torch_command(o, model, batch, "--compile", o.compile, *["--eager"] * (letter == "E"))
    environment = dict(os.environ, SWITCHBACK_CPU_THREADS=str(o.threads)) if o.device == "cpu" else None
    file = tempfile.NamedTemporaryFile(mode="r", suffix=".jsonl")
    was_prepared = letter == "B" and (model, batch) in prepared
    try:
        if was_prepared:
            process, file = prepared.pop((model, batch))
            try:
                print(process.communicate("go\n", timeout=o.timeout)[0], end="", flush=True)
            finally:
                process.kill()
            if process.returncode:
                raise subprocess.SubprocessError(f"exit status {process.returncode}")
        else:
            subprocess.run(command + ["--json", file.name], env=environment, check=True, timeout=o.timeout)
        line = dict(json.loads(file.read().splitlines()[-1]), letter=letter)
    except (subprocess.SubprocessError, OSError, IndexError) as error:
        print(f"failed: {error}", flush=True)
        # What a prepared process has compiled lies in PyTorch's cache: a fresh one is ready sooner.
        return run_once(o, letter, model, batch, prepared) if was_prepared else None
    finally:
        file.close()
    if o.json:
        with open(o.json, "a") as lines:
            lines.write(json.dumps(line) + "\n")
    return line


def row(model, batch, letter, runs, rival, flops):
    """A row of the table: samples/s, how many times the rival's that is, and what follows from it."""
    rate = statistics.median(r["samples_per_second"] for r in runs)
    name = {"A": "switchback", "S": "switchback StableAdamW", "C": "switchback clip_train",
            "Q": "switchback int8"}.get(letter, f"PyTorch {runs[0]['mode']}")
    text = f"{model:<10} {batch:>6} {name:<23} {rate:>10.1f} {f'{rate / rival:.2f}x' if rival else '':>7}"
    if "peak_gib" in runs[0]:
        peak, held = (max(r[key] for r in runs) for key in ("peak_gib", "held_gib"))
        text += f" {peak:>8.2f} {held:>8.2f}"
        if flops:
            text += f" {rate * flops * 1e-12:>8.1f} {rate * flops * 1e-12 / PEAK_TFLOPS:>6.1%}"
    return text


def prepare(o, pairs):
    """A process for the first B of each model: it compiles, then waits for a line on its standard input."""
    threads = max(4, 2 * (os.cpu_count() or 1) // len(pairs))  # they compile at different times
    environment = dict(os.environ, TORCHINDUCTOR_COMPILE_THREADS=str(threads))
    prepared = {}
    for model, batch in pairs:
        file = tempfile.NamedTemporaryFile(mode="r", suffix=".jsonl")
        command = torch_command(o, model, batch, "--prepare", "--json", file.name)
        process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   universal_newlines=True)
        prepared[model, batch] = process, file
    return prepared


def await_prepared(prepared):
    """Whoever still compiles also uses the GPU now and then: nothing is timed before all are through."""
    for process, _ in prepared.values():
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith("prepared"):
                break


def compare(o):
    pairs = [(p.rsplit(":", 1)[0], int(p.rsplit(":", 1)[1])) for p in (o.models or f"{o.model}:{o.batch_size}").split(",")]
    prepared = prepare(o, pairs) if o.prepare else {}
    if o.meanwhile:
        subprocess.run(o.meanwhile, shell=True)
    await_prepared(prepared)
    rows = []
    for model, batch in pairs:
        runs = {}
        for letter in o.order:
            line = run_once(o, letter, model, batch, prepared)
            if line:
                runs.setdefault(letter, []).append(line)
        flops = next((r["flops_per_sample"] for letter in "ASQC" for r in runs.get(letter, [])), None)
        rival = statistics.median(r["samples_per_second"] for r in runs["B"]) if "B" in runs else None
        rows += [row(model, batch, letter, runs[letter], rival, flops) for letter in "ASQCBE" if letter in runs]
    print(f"{'model':<10} {'batch':>6} {'':<23} {'samples/s':>10} {'ratio':>7}", end="")
    print(f" {'peak GiB':>8} {'held GiB':>8} {'TFLOP/s':>8} {'MFU':>6}" if o.device == "cuda" else "")
    print("\n".join(rows))
    if o.device == "cpu":
        print(f"{o.threads} threads; load average {os.getloadavg()[0]:.1f}")


def main():
    parser = argparse.ArgumentParser(description="training step of a CLIP in PyTorch, alone or in turns with bench_step")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--model", default="mini-28")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2, help="on a CPU")
    parser.add_argument("--eager", action="store_true", help="on a GPU: without torch.compile")
    parser.add_argument("--compile", default="model", choices=["model", "blocks"],
                        help="on a GPU: the whole model, or one block of each tower for all (minutes less)")
    parser.add_argument("--as-shipped", action="store_true", help="on a GPU: open_clip without the change above")
    parser.add_argument("--prepare", action="store_true", help="with --against: compile all models first, side by side")
    parser.add_argument("--meanwhile", metavar="COMMAND", help="with --prepare: what to run while they compile")
    parser.add_argument("--turn", metavar="FILE", help="with --prepare, alone: go on when this file is there")
    parser.add_argument("--ddp", action="store_true", help="on GPUs, under torchrun: open_clip's data parallel step")
    parser.add_argument("--json", metavar="FILE", help="append a JSON line for each run")
    parser.add_argument("--against", metavar="PATH", help="bench_step: run both in turns and print the ratio")
    parser.add_argument("--models", help="with --against: MODEL:BATCH,... instead of --model and --batch-size")
    parser.add_argument("--order", default=None, help="with --against: A, C, Q, S ours, B compiled, E eager; see above")
    parser.add_argument("--ours", default="", help="with --against: more flags for bench_step, in one string")
    parser.add_argument("--timeout", type=float, default=600, help="with --against: seconds for one run")
    o = parser.parse_args()
    if o.order is None:
        o.order = "ABAB" if o.device == "cuda" else "ABABAB"
    compare(o) if o.against else measure(o)


if __name__ == "__main__":
    main()
