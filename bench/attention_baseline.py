"""Attention through PyTorch's scaled_dot_product_attention on CLIP's six shapes: the bar for bench_attention.

    python3 bench/attention_baseline.py

Prints, for the cuDNN and the FlashAttention backend, microseconds of forward and of forward + backward,
measured eagerly (events around calls) and as a CUDA graph (no host in the way), with q, k, v contiguous
(B, H, T, D) or as views of a packed (B, T, 3, H, D); the smallest sum of a backend is the one to beat. Gradients
stop at q, k, v: what a model pays to put them back into one packed tensor is not counted. Also prints the
relative errors against f64.
"""

import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

SHAPES = [  # batch, heads, tokens, head size, causal
    (128, 16, 257, 80, False),
    (224, 16, 257, 64, False),
    (512, 12, 197, 64, False),
    (1024, 12, 50, 64, False),
    (128, 16, 77, 64, True),
    (1024, 8, 77, 64, True),
]
BACKENDS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "Flash": SDPBackend.FLASH_ATTENTION}
CALLS, REPEATS, SETS = 10, 15, 3


def make_inputs(batch, heads, tokens, size, packed):
    if packed:
        qkv = torch.randn(batch, tokens, 3, heads, size, device="cuda", dtype=torch.bfloat16)
        q, k, v = (qkv[:, :, i].transpose(1, 2).detach().requires_grad_() for i in range(3))
        dout = torch.randn(batch, tokens, heads, size, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
    else:
        kind = {"device": "cuda", "dtype": torch.bfloat16}
        q, k, v, dout = (torch.randn(batch, heads, tokens, size, **kind) for _ in range(4))
        q, k, v = (x.requires_grad_() for x in (q, k, v))
    return q, k, v, dout


def median_microseconds(run):
    """Of `run`, which makes CALLS calls."""
    run()
    times = []
    for _ in range(REPEATS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / CALLS)
    return statistics.median(times)


def as_graph(run):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def measure(shape, packed):
    *sizes, causal = shape
    sets = [make_inputs(*sizes, packed) for _ in range(SETS)]

    def forward():
        with torch.no_grad():
            for i in range(CALLS):
                q, k, v, _ = sets[i % SETS]
                scaled_dot_product_attention(q, k, v, is_causal=causal)

    def both():
        for i in range(CALLS):
            q, k, v, dout = sets[i % SETS]
            torch.autograd.grad(scaled_dot_product_attention(q, k, v, is_causal=causal), (q, k, v), dout)

    result = {}
    for mode in ("eager", "graph"):
        try:
            wrap = as_graph if mode == "graph" else (lambda run: run)
            result[mode] = (median_microseconds(wrap(forward)), median_microseconds(wrap(both)))
        except RuntimeError as error:
            result[mode] = None
            print(f"  {mode}: {str(error).splitlines()[0]}")
    return result


def errors(shape):
    batch, heads, tokens, size, causal = shape
    q, k, v, dout = make_inputs(2, heads, tokens, size, False)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    scores = exact[0] @ exact[1].transpose(-1, -2) / size**0.5
    if causal:
        scores = scores.masked_fill(torch.ones(tokens, tokens, device="cuda").triu(1).bool(), float("-inf"))
    want = scores.softmax(-1) @ exact[2]
    wants = (want, *torch.autograd.grad(want, exact, dout.double()))
    got = scaled_dot_product_attention(q, k, v, is_causal=causal)
    gots = (got, *torch.autograd.grad(got, (q, k, v), dout))
    return [((g.double() - w).norm() / w.norm()).item() for g, w in zip(gots, wants)]


def main():
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())
    best = {}
    for shape in SHAPES:
        name = "x".join(map(str, shape[:4])) + (" causal" if shape[4] else "")
        for backend, kind in BACKENDS.items():
            with sdpa_kernel(kind):
                for packed in (False, True):
                    result = measure(shape, packed)
                    text = []
                    for mode, times in result.items():
                        if times:
                            forward, both = times
                            text.append(f"{mode} forward {forward:7.1f} both {both:7.1f}")
                            best[name, backend] = min(best.get((name, backend), 1e9), both)
                    layout = "packed    " if packed else "contiguous"
                    print(f"{name:24} {backend} {layout} {' | '.join(text)}")
                print(f"{name:24} {backend} errors out, dq, dk, dv", *(f"{e:.1e}" for e in errors(shape)))
    for (name, backend), both in best.items():
        print(f"best {backend} {name:24} forward + backward {both:7.1f} us")


if __name__ == "__main__":
    main()
