#!/usr/bin/env python3
"""Writes tests/golden/clip.safetensors: what PyTorch computes for a small CLIP (tests/models/test_golden.cpp).

    python3 scripts/make_clip_golden.py [tests/golden/clip.safetensors]

Needs numpy and PyTorch (1.13 or later, CPU); no open_clip. The model below is written from CLIP's definition
with PyTorch's own layers (nn.MultiheadAttention, nn.Conv2d, nn.LayerNorm), so it shares nothing with the engine
that it judges; its state-dict keys are open_clip's. bench/framework_baseline.py times the same module.

Every parameter has a random value, LayerNorm gains, biases and layer-scale too: at their usual first values
(0 and 1) many mistakes cannot be seen. Everything is computed in f64 from f32 weights and stored in f32, so
what a test measures is the engine's error alone.

Tensors in the file
    images (B, S, S, 3) u8, tokens (B, T) i32, keep (B, K) i32
    weights/<key>                     all parameters; a variant uses those that it has
    <variant>/image_features, <variant>/text_features (B, E), <variant>/loss (), <variant>/gradient/<key>
        variants: exact, quick_gelu, layer_scale, siglip, patch_dropout (looks at the patches `keep` only)
    exact/adamw1/<key>, exact/adamw3/<key>, exact/stable3/<key>   weights after 1 and 3 optimizer steps
        Step t (0, 1, 2) sees the tokens rolled by t samples (row b is row (b + t) mod B), and its loss is
        multiplied by LOSS_FACTORS[t]: the second moments fall behind and StableAdamW has something to clip.
"""

import json
import struct
import sys
from dataclasses import dataclass, replace
from typing import Optional

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass
class Tower:
    width: int
    layers: int
    heads: int
    mlp: int  # hidden size


@dataclass
class Config:
    embed: int
    image: int
    patch: int
    vision: Tower
    text: Tower
    context: int = 77
    vocabulary: int = 49408
    quick_gelu: bool = False
    layer_scale: Optional[float] = None
    siglip: bool = False

    @property
    def patches(self):
        return (self.image // self.patch) ** 2


class QuickGelu(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class LayerScale(nn.Module):
    def __init__(self, width, value):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), value))

    def forward(self, x):
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, tower, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(tower.width)
        self.attn = nn.MultiheadAttention(tower.width, tower.heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(tower.width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(tower.width, tower.mlp))
        self.mlp.add_module("gelu", QuickGelu() if config.quick_gelu else nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(tower.mlp, tower.width))
        scaled = config.layer_scale is not None
        self.ls_1 = LayerScale(tower.width, config.layer_scale) if scaled else nn.Identity()
        self.ls_2 = LayerScale(tower.width, config.layer_scale) if scaled else nn.Identity()

    def forward(self, x, mask):
        normal = self.ln_1(x)
        x = x + self.ls_1(self.attn(normal, normal, normal, need_weights=False, attn_mask=mask)[0])
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    def __init__(self, tower, config):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(tower, config) for _ in range(tower.layers))

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Vision(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config.vision.width
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(config.patches + 1, width) * width**-0.5)
        self.proj = nn.Parameter(torch.randn(width, config.embed) * width**-0.5)
        self.conv1 = nn.Conv2d(3, width, config.patch, config.patch, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(config.vision, config)
        self.ln_post = nn.LayerNorm(width)

    def forward(self, pixels, keep=None):  # pixels (B, 3, S, S), normalised
        x = self.conv1(pixels).flatten(2).transpose(1, 2)  # (B, N, C)
        first = self.class_embedding.expand(x.shape[0], 1, -1)
        x = torch.cat([first, x], dim=1) + self.positional_embedding
        if keep is not None:
            rows = torch.cat([torch.zeros_like(keep[:, :1]), keep + 1], dim=1)  # the class token stays
            x = torch.gather(x, 1, rows[:, :, None].expand(-1, -1, x.shape[2]))
        x = self.transformer(self.ln_pre(x))
        return self.ln_post(x)[:, 0] @ self.proj


class Clip(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config.text.width
        self.positional_embedding = nn.Parameter(torch.randn(config.context, width) * 0.01)
        self.text_projection = nn.Parameter(torch.randn(width, config.embed) * width**-0.5)
        scale = np.log(10.0 if config.siglip else 1 / 0.07)
        self.logit_scale = nn.Parameter(torch.tensor(scale, dtype=torch.float32))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if config.siglip else None
        self.visual = Vision(config)
        self.transformer = Transformer(config.text, config)
        self.token_embedding = nn.Embedding(config.vocabulary, width)
        self.ln_final = nn.LayerNorm(width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        mask = torch.full((config.context, config.context), float("-inf")).triu(1)
        self.register_buffer("mask", mask, persistent=False)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def encode_image(self, images, keep=None):  # images (B, S, S, 3) u8
        pixels = (images.permute(0, 3, 1, 2).to(self.mean.dtype) / 255 - self.mean) / self.std
        return F.normalize(self.visual(pixels, keep), dim=-1)

    def encode_text(self, tokens):  # tokens (B, T)
        x = self.token_embedding(tokens) + self.positional_embedding
        x = self.ln_final(self.transformer(x, self.mask))
        return F.normalize(x[torch.arange(x.shape[0]), tokens.argmax(dim=-1)] @ self.text_projection, dim=-1)

    def loss(self, images, texts):
        logits = self.logit_scale.exp() * images @ texts.T
        own = torch.arange(len(images))
        if self.logit_bias is None:
            return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        signs = 2 * torch.eye(len(images), dtype=logits.dtype) - 1
        return -F.logsigmoid(signs * (logits + self.logit_bias)).sum() / len(images)


def parameter_groups(model, weight_decay):
    """open_clip's groups up to version 3: no decay for vectors, nor for what sounds like a norm, bias or scale."""
    def decays(name, p):
        return p.ndim >= 2 and not any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
    named = list(model.named_parameters())
    return [{"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0},
            {"params": [p for n, p in named if decays(n, p)], "weight_decay": weight_decay}]


class StableAdamW(torch.optim.Optimizer):
    """Algorithm 2 of arXiv 2304.13013, line by line, tensor by tensor; the unclipped rate decays the weights."""

    def __init__(self, groups, lr, betas, eps, weight_decay):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.t = 0
        self.rms = []

    @torch.no_grad()
    def step(self):
        self.t += 1
        self.rms = []
        for group in self.param_groups:
            beta1, beta2 = (b * (1 - b ** (self.t - 1)) / (1 - b**self.t) for b in group["betas"])
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["v"], state["u"] = torch.zeros_like(p), torch.zeros_like(p)
                v, u, g = state["v"], state["u"], p.grad
                v.copy_(beta1 * v + (1 - beta1) * g)
                u.copy_(beta2 * u + (1 - beta2) * g * g)
                rms = torch.sqrt(torch.mean(g * g / torch.clamp(u, min=group["eps"] ** 2)))
                rate = group["lr"] / max(1.0, rms.item())
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(rate * v / (u.sqrt() + group["eps"]))
                self.rms.append(rms.item())


# ---- the golden file ---------------------------------------------------------------------------------------

SMALL = Config(embed=12, image=16, patch=4, context=10, vocabulary=64,
               vision=Tower(width=24, layers=2, heads=2, mlp=48),
               text=Tower(width=16, layers=2, heads=2, mlp=64))
BATCH = 6
OPTIMIZER = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.2}
LOSS_FACTORS = (1, 3, 9)
DROPOUT = {"probability": 0.4, "seed": 7_000_000_011, "step": 3, "first_sample": 5}


def philox(counter, key):
    """Philox 4x32-10 (Salmon et al. 2011)."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def kept_patches(patches):
    """(B, K): the patches with the largest random keys: component n % 4 of Philox(n/4, sample, 0, step), whose
    key is the seed with the purpose "patch dropout" (0x11) in its top byte."""
    count = max(1, int(patches * (1 - DROPOUT["probability"])))
    seed = DROPOUT["seed"] ^ 0x11 << 56
    rows = []
    for b in range(BATCH):
        sample = DROPOUT["first_sample"] + b
        keys = []
        for block in range((patches + 3) // 4):
            keys += philox((block, sample, 0, DROPOUT["step"]), (seed & 0xFFFFFFFF, seed >> 32))
        order = sorted(range(patches), key=lambda n: (-keys[n], n))
        rows.append(sorted(order[:count]))
    return np.array(rows, dtype=np.int32)


def random_weights(model, random):
    for name, p in model.named_parameters():
        draw = random.standard_normal(tuple(p.shape))
        if name == "logit_scale":
            value = np.array(2.3)
        elif name == "logit_bias":
            value = np.array(-1.7)
        elif name.endswith("gamma"):
            value = 0.7 + 0.3 * draw
        elif ".ln_" in f".{name}" and name.endswith("weight"):
            value = 1 + 0.3 * draw
        elif name.endswith("bias"):
            value = 0.2 * draw
        elif "embedding" in name:
            value = 0.5 * draw
        else:  # matrices; the last sizes are what is summed over, but for the two projections
            rows = p.shape[0] if name in ("text_projection", "visual.proj") else p[0].numel()
            value = draw * rows**-0.5
        yield name, value.astype(np.float32)


def inputs(random):
    images = random.integers(0, 256, (BATCH, SMALL.image, SMALL.image, 3), dtype=np.uint8)
    tokens = random.integers(0, 60, (BATCH, SMALL.context), dtype=np.int32)
    for b, place in enumerate((9, 4, 2, 7, 5)):  # the end-of-text token
        tokens[b, place] = 63
    tokens[1, 8] = 63  # a second one: the first counts
    tokens[5, [3, 6]] = 61  # no end of text: the first largest id counts
    return images, tokens


def model_with(weights, **changes):
    model = Clip(replace(SMALL, **changes)).double()
    # The engine's means and deviations are f32 numbers.
    model.mean.copy_(torch.tensor(MEAN, dtype=torch.float32).view(1, 3, 1, 1))
    model.std.copy_(torch.tensor(STD, dtype=torch.float32).view(1, 3, 1, 1))
    own = {n: torch.from_numpy(weights[n]).double() for n in model.state_dict()}
    model.load_state_dict(own)
    return model


def run_backward(model, images, tokens, keep=None, factor=1):
    model.zero_grad()
    image, text = model.encode_image(images, keep), model.encode_text(tokens)
    loss = model.loss(image, text)
    (factor * loss).backward()
    return image, text, loss


def train(weights, images, tokens, make_optimizer, steps):
    model = model_with(weights)
    optimizer = make_optimizer(parameter_groups(model, OPTIMIZER["weight_decay"]))
    for t in range(steps):
        run_backward(model, images, torch.roll(tokens, -t, dims=0), factor=LOSS_FACTORS[t])
        optimizer.step()
    return model, optimizer


def write_safetensors(path, tensors, metadata):
    kinds = {"float32": "F32", "int32": "I32", "uint8": "U8"}
    header, offset = {"__metadata__": metadata}, 0
    for name, value in tensors.items():
        header[name] = {"dtype": kinds[str(value.dtype)], "shape": list(value.shape),
                        "data_offsets": [offset, offset + value.nbytes]}
        offset += value.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for value in tensors.values():
            out.write(np.ascontiguousarray(value).tobytes())
    print(f"{path}: {len(tensors)} tensors, {8 + len(text) + offset} bytes")


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else "tests/golden/clip.safetensors"
    random = np.random.default_rng(2304_13013)
    weights = dict(random_weights(Clip(replace(SMALL, layer_scale=1.0, siglip=True)), random))
    image_array, token_array = inputs(random)
    keep_array = kept_patches(SMALL.patches)
    images, tokens = torch.from_numpy(image_array), torch.from_numpy(token_array).long()
    keep = torch.from_numpy(keep_array).long()

    out = {"images": image_array, "tokens": token_array, "keep": keep_array}
    out.update({f"weights/{n}": w for n, w in weights.items()})

    def store(name, value):
        out[name] = value.detach().to(torch.float32).numpy()

    variants = {"exact": {}, "quick_gelu": {"quick_gelu": True}, "layer_scale": {"layer_scale": 1.0},
                "siglip": {"siglip": True}, "patch_dropout": {}}
    for variant, changes in variants.items():
        model = model_with(weights, **changes)
        chosen = keep if variant == "patch_dropout" else None
        image, text, loss = run_backward(model, images, tokens, chosen)
        store(f"{variant}/image_features", image)
        store(f"{variant}/text_features", text)
        store(f"{variant}/loss", loss)
        for name, p in model.named_parameters():
            store(f"{variant}/gradient/{name}", p.grad)

        single = model_with(weights, **changes).float()  # PyTorch's own rounding, for comparison
        run_backward(single, images, tokens, chosen)
        errors = [((a.grad.double() - b.grad).norm() / b.grad.norm()).item()
                  for a, b in zip(single.parameters(), model.parameters())]
        print(f"{variant}: loss {loss.item():.6f}; PyTorch's own f32 gradients: relative error {max(errors):.1e}")

    for steps in (1, 3):
        adamw = lambda groups: torch.optim.AdamW(groups, **OPTIMIZER)  # noqa: E731
        model, _ = train(weights, images, tokens, adamw, steps)
        for name, p in model.named_parameters():
            store(f"exact/adamw{steps}/{name}", p)
    model, optimizer = train(weights, images, tokens, lambda groups: StableAdamW(groups, **OPTIMIZER), 3)
    for name, p in model.named_parameters():
        store(f"exact/stable3/{name}", p)
    clipped = sum(rms > 1 for rms in optimizer.rms)
    print(f"StableAdamW clips {clipped} of {len(optimizer.rms)} tensors in step 3, "
          f"largest RMS {max(optimizer.rms):.2f}")
    assert clipped > 0, "without a clipped tensor this tests nothing"

    write_safetensors(path, out, {"format": "pt", "torch": torch.__version__,
                                  "optimizer": json.dumps(OPTIMIZER), "dropout": json.dumps(DROPOUT)})


if __name__ == "__main__":
    main()
