#!/usr/bin/env python3
"""The published SwitchBack layer (Triton kernels of bitsandbytes) beside ours: a linear, forward and backward.

    pip download --no-deps bitsandbytes==0.42.0 && unzip -q bitsandbytes-0.42.0*.whl -d FOLDER
    python3 bench/triton_switchback.py --bitsandbytes FOLDER --against build/bench/bench_linear

Of FOLDER only bitsandbytes/triton/*.py and bitsandbytes/nn/triton_based_modules.py are read. The rival is its
SwitchBackLinear with one scale a weight (the paper's algorithm 1) in fp16, the type its kernels write; beside
it nn.Linear in fp16 and bf16. Everything is recorded as a CUDA graph, so the host costs nothing; layers take
turns, 4 calls each, 0.3 seconds before it counts (under load the chip lowers its clock) and then 9 rounds,
medians; bench_linear does the same, with fewer calls and rounds where one is long. Random normal values. With
--against, bench_linear is run before and after in a process of its own (--lines: what it wrote with --json
just before counts as the run before); the ratio is of the averages of both runs.

The code is of 2023 and does not run with today's Triton as it is. It is changed while it is loaded, in no
other way than PATCHES says; where there is a choice, it is made in its favour.

--prepare compiles its kernels by many processes (their binaries go to Triton's cache) and times nothing: 20 s
that leave the GPU alone.
"""

import argparse
import importlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

# (file, published text, text that takes its place); "*": every file
PATCHES = [
    # Triton 3 has no model of a product's time, by which the published code chooses ten of its configurations
    # to try. Here all 18 that are meant for large products are tried; the others have 16 or 32 rows.
    ("*", "from triton.ops.matmul_perf_model import early_config_prune, estimate_matmul_time\n",
     "from triton.language.extra import libdevice\n"
     "    def early_config_prune(configs, named_args, **kwargs):\n"
     "        return [c for c in configs if c.kwargs['BLOCK_M'] >= 64 and c.kwargs['SPLIT_K'] == 1]\n"),
    ("int8_matmul", "            'perf_model': estimate_matmul_time,\n            'top_k': 10\n", ""),
    # The name that libdevice has now.
    ("*", "tl.libdevice.llrint", "libdevice.llrint"),
    # 127.0 * fp16 was f32, and is fp16 in Triton 3, which llrint does not take.
    ("quantize_global", "127. * (x * absmax_inv)", "127. * (x * absmax_inv).to(tl.float32)"),
    ("quantize_global", "127. * (a * absmax_inv)", "127. * (a * absmax_inv).to(tl.float32)"),
    # Twelve configurations of which eight are the same: no loop, so stages mean nothing.
    ("quantize_rowwise", "triton.Config({}, num_stages=2, num_warps=8),", ""),
    ("quantize_rowwise", "triton.Config({}, num_stages=4, num_warps=8),", ""),
    ("quantize_rowwise", "triton.Config({}, num_stages=8, num_warps=8),", ""),
    ("quantize_rowwise", "triton.Config({}, num_stages=1),", ""),
    ("quantize_rowwise", "triton.Config({}, num_stages=2),", ""),
    ("quantize_rowwise", "triton.Config({}, num_stages=4),", ""),
    ("quantize_rowwise", "triton.Config({}, num_stages=8),", ""),
    ("quantize_rowwise", "triton.Config({}, num_warps=1),", ""),  # hundreds of elements a thread
    ("quantize_rowwise", "triton.Config({}, num_warps=8),", ""),  # there is one with num_stages=1
]
MODULES = ["triton_utils", "dequantize_rowwise", "quantize_rowwise", "quantize_columnwise_and_transpose",
           "int8_matmul_rowwise_dequantize", "quantize_global", "int8_matmul_mixed_dequantize"]


def patched_package(published, to):
    """bitsandbytes' Triton modules, changed, as a package without the rest of it."""
    used = set()
    os.makedirs(os.path.join(to, "bitsandbytes", "triton"))
    os.makedirs(os.path.join(to, "bitsandbytes", "nn"))
    for module in MODULES:
        with open(os.path.join(published, "bitsandbytes", "triton", module + ".py")) as file:
            text = file.read()
        for i, (where, old, new) in enumerate(PATCHES):
            if (where == "*" or module.startswith(where)) and old in text:
                text = text.replace(old, new)
                used.add(i)
        with open(os.path.join(to, "bitsandbytes", "triton", module + ".py"), "w") as file:
            file.write(text)
    for i, (where, old, _) in enumerate(PATCHES):
        if i not in used:
            sys.exit(f"triton_switchback: this is not bitsandbytes 0.42: {where} has no {old.strip()!r}")
    shutil.copy(os.path.join(published, "bitsandbytes", "nn", "triton_based_modules.py"),
                os.path.join(to, "bitsandbytes", "nn"))
    sys.path.insert(0, to)


def load():
    modules = importlib.import_module("bitsandbytes.nn.triton_based_modules")
    quantize_global = importlib.import_module("bitsandbytes.triton.quantize_global")
    quantize_rowwise = importlib.import_module("bitsandbytes.triton.quantize_rowwise")
    product = importlib.import_module("bitsandbytes.triton.int8_matmul_mixed_dequantize")
    import triton
    kernels = [quantize_rowwise._quantize_rowwise, quantize_global._quantize_global,
               quantize_global._quantize_global_transpose, product._int8_matmul_mixed_dequantize]
    for kernel in kernels:  # short trials: there are many shapes
        kernel._do_bench = lambda call, quantiles: triton.testing.do_bench(
            call, warmup=4, rep=16, quantiles=quantiles)
    return modules, quantize_rowwise, quantize_global, product, kernels


def layers_of(o):
    dims = [int(d) for d in o.dims.split(",")]
    return [(d, a, b) for d in dims for a, b in ((d, 4 * d), (4 * d, d))]


# ---- compiling by many processes ---------------------------------------------------------------------------
def compile_share(o, share, shares):
    import torch
    import triton.language as tl
    half, byte = torch.float16, torch.int8
    _, _, _, product, (rows, all_at_once, transposed, matmul) = load()
    jobs = []
    for _, k, n in layers_of(o):
        m = o.tokens
        for width in (k, n):
            jobs += [(rows, (half, byte, half, m * width),
                      {"BLOCK_SIZE": width, "P2": 2 ** math.ceil(math.log2(width))}, c) for c in rows.configs]
        jobs += [(all_at_once, (half, half, byte, n * k), {}, c) for c in all_at_once.configs]
        jobs += [(transposed, (half, half, byte, k, 1, n, 1, n, k), {}, transposed.configs[0])]
        for bias, (a, b) in ((half, (k, n)), (None, (n, k))):
            jobs += [(matmul, (byte, byte, half, bias, half, half, m, b, a,
                               1. / (127. * 127.), int(bias is not None), a, 1, 1, a, b, 1),
                      {"GROUP_M": 8, "ACC_TYPE": tl.float32}, c)
                     for c in product.early_config_prune(matmul.configs, {})]
    unique = {}
    for job in jobs:
        types = str([a for a in job[1] if not isinstance(a, int) or a == 1])
        unique.setdefault((id(job[0]), types, str(job[2]), str(job[3])), job)
    failed = 0
    for kernel, arguments, meta, config in list(unique.values())[share::shares]:
        try:
            kernel.fn.warmup(*arguments, grid=(1,), **meta, **config.all_kwargs())
        except Exception as error:  # too much shared memory, say: the tuner passes such a configuration by
            failed += 1
            if failed == 1:
                print(f"{kernel.base_fn.__name__} {config}: {type(error).__name__}: {str(error)[:300]}",
                      flush=True)


def prepare(o):
    shares = max(1, min(14, os.cpu_count() - 2))
    command = [sys.executable, __file__, "--bitsandbytes", o.bitsandbytes, "--dims", o.dims,
               "--tokens", str(o.tokens)]
    workers = [subprocess.Popen(command + ["--share", f"{i}/{shares}"]) for i in range(shares)]
    for worker in workers:
        worker.wait()


# ---- timing ----------------------------------------------------------------------------------------------
def times_of(works, rounds=9, calls=4):
    """Seconds of a call of each, medians; they take turns, each recorded as a graph."""
    import torch
    graphs = []
    for work in works:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                work()
        graphs.append(graph)

    def seconds_of(graph):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    loaded = 0
    while loaded < 0.3:
        loaded += sum(seconds_of(graph) for graph in graphs)
    times = [[] for _ in works]
    for _ in range(rounds):
        for graph, of_work in zip(graphs, times):
            of_work.append(seconds_of(graph) / calls)
    return [statistics.median(t) for t in times]


def measure(o, modules, quantize_rowwise, quantize_global, product, k, n):
    import torch
    torch.manual_seed(0)

    def layer(make, dtype):
        linear = make(k, n, bias=True).cuda().to(dtype)
        x = torch.randn(o.tokens, k, device="cuda", dtype=dtype, requires_grad=True)
        dy = torch.randn(o.tokens, n, device="cuda", dtype=dtype) * 1e-3
        return lambda: torch.autograd.grad(linear(x), [x, linear.weight, linear.bias], dy)

    rival = layer(modules.SwitchBackLinear, torch.float16)
    exact = layer(torch.nn.Linear, torch.float16)
    bf16 = layer(torch.nn.Linear, torch.bfloat16)
    rival(), rival()  # the tuner's trials
    whole = times_of([rival, exact, bf16])
    x = torch.randn(o.tokens, k, device="cuda", dtype=torch.float16)
    dy = torch.randn(o.tokens, n, device="cuda", dtype=torch.float16) * 1e-3
    w = torch.randn(n, k, device="cuda", dtype=torch.float16) * k**-0.5
    bias = torch.zeros(n, device="cuda", dtype=torch.float16)
    x_codes, x_scale = quantize_rowwise.quantize_rowwise(x)
    dy_codes, dy_scale = quantize_rowwise.quantize_rowwise(dy)
    w_codes, w_scale = quantize_global.quantize_global(w)
    t_codes, t_scale = quantize_global.quantize_global_transpose(w)
    multiply = product.int8_matmul_mixed_dequantize
    y = multiply(x_codes, w_codes.t(), x_scale, w_scale, bias)
    expected = torch.nn.functional.linear(x, w, bias)
    error = float((y.float() - expected.float()).norm() / expected.float().norm())
    if not error < 0.05:
        sys.exit(f"triton_switchback: the published layer computes something else: {error:.3f} off")
    del y, expected
    names = ["forward", "dx", "dw", "dbias", "quantise x", "quantise dy", "quantise w",
             "quantise w transposed"]
    parts = times_of([
        lambda: multiply(x_codes, w_codes.t(), x_scale, w_scale, bias),
        lambda: multiply(dy_codes, t_codes.t(), dy_scale, t_scale, None),
        lambda: torch.matmul(dy.t(), x),
        lambda: dy.sum(dim=0),
        lambda: quantize_rowwise.quantize_rowwise(x),
        lambda: quantize_rowwise.quantize_rowwise(dy),
        lambda: quantize_global.quantize_global(w),
        lambda: quantize_global.quantize_global_transpose(w),
    ], rounds=5)
    return {"published": whole[0], "fp16": whole[1], "bf16": whole[2], "error": error,
            **{name: seconds for name, seconds in zip(names, parts)}}


def of_dims(o, path):
    with open(path) as file:
        lines = [json.loads(line) for line in file]
    wanted = [x for x in lines if x["tokens"] == o.tokens and x["recipe"] == "switchback"]
    return {line["dim"]: line for line in wanted}


def ours(o):
    """{dim: bench_linear's line}"""
    with tempfile.TemporaryDirectory() as folder:
        lines = os.path.join(folder, "lines.jsonl")
        subprocess.run([o.against, "--dims", o.dims, "--tokens", str(o.tokens), "--recipes", "switchback",
                        "--json", lines], check=True)
        return of_dims(o, lines)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bitsandbytes", required=True, help="folder of the unpacked wheel")
    parser.add_argument("--dims", default="1024,1280,2048,4096")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--against", help="bench_linear")
    parser.add_argument("--lines", help="bench_linear's --json of just before")
    parser.add_argument("--json", help="a line is added for every layer")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--share")
    o = parser.parse_args()
    if o.prepare:
        return prepare(o)
    folder = tempfile.mkdtemp()
    try:
        patched_package(o.bitsandbytes, folder)
        if o.share:
            share, shares = o.share.split("/")
            return compile_share(o, int(share), int(shares))
        runs = [of_dims(o, o.lines)] if o.lines else [ours(o)] if o.against else []
        import torch
        import triton
        modules, rows, of_all, product, kernels = load()
        print(f"bitsandbytes' SwitchBackLinear, Triton {triton.__version__}, PyTorch {torch.__version__}, "
              f"{torch.cuda.get_device_name()}, {o.tokens} tokens; microseconds", flush=True)
        results = {}
        for dim, k, n in layers_of(o):
            r = results[k, n] = measure(o, modules, rows, of_all, product, k, n)
            us = {name: value * 1e6 for name, value in r.items()}
            print(f"published {k:5} -> {n:5} | SwitchBack {us['published']:7.1f}, "
                  f"nn.Linear fp16 {us['fp16']:7.1f} ({r['fp16'] / r['published']:.3f}x), "
                  f"bf16 {us['bf16']:7.1f} | fwd {us['forward']:.1f} dx {us['dx']:.1f} "
                  f"dw {us['dw']:.1f} dbias {us['dbias']:.1f} | x {us['quantise x']:.1f} "
                  f"dy {us['quantise dy']:.1f} w {us['quantise w']:.1f} + {us['quantise w transposed']:.1f} | "
                  f"y off by {r['error']:.4f} | {str(kernels[3].best_config)[:90]}", flush=True)
        if o.against:
            runs.append(ours(o))
        for dim in [int(d) for d in o.dims.split(",")]:
            pair = [results[dim, 4 * dim], results[4 * dim, dim]]
            line = {"dim": dim, "tokens": o.tokens}
            for name in ("published", "fp16", "bf16"):
                line[name] = sum(r[name] for r in pair) / 2 * 1e6
            text = f"dim {dim:5}, average of both layers: published {line['published']:8.1f}"
            if runs:
                own = [statistics.mean(run[dim][name] for run in runs)
                       for name in ("whole", "up whole", "down whole")]
                line.update(ours=own[0], ours_up=own[1], ours_down=own[2])
                up, down = (r["published"] * 1e6 / of for r, of in zip(pair, own[1:]))
                text += (f", ours {own[0]:8.1f}: {line['published'] / own[0]:.3f}x "
                         f"(up {up:.3f}x, down {down:.3f}x)")
            print(text + f"; nn.Linear fp16 {line['fp16']:.1f}, bf16 {line['bf16']:.1f}", flush=True)
            if o.json:
                with open(o.json, "a") as file:
                    file.write(json.dumps({**line, "layers": pair}) + "\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
