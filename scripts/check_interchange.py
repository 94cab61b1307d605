#!/usr/bin/env python3
"""Holds our weights' interchange against open_clip and transformers (docs/compatibility.md has its output).

    python3 scripts/check_interchange.py [--programs build/apps] [--golden tests/golden/interchange]

Needs PyTorch, open-clip-torch, transformers, safetensors and numpy (CPU; on a machine without them: a virtual
environment), and the built programs clip_convert and clip_features. Small models with random weights in every
parameter, LayerNorm gains and biases too, so that no mistake hides behind a 0 or a 1.

For each of: exact GELU, QuickGELU, CustomTextCLIP, layer-scale, a logit bias:
  their weights, our forward pass      open_clip's .pt (with "module." and an optimizer beside), .safetensors and
                                       folder; transformers' folder
  our export, their forward pass       clip_convert --to open-clip, loaded by open_clip strictly; --to hugging-face,
                                       loaded by transformers with no missing and no unexpected name
  resized positions                    another image size and text length, against open_clip's resizing
The greatest difference of normalised features is printed; above 1e-4 the script fails. --golden writes the small
files that tests/models/test_interchange.cpp reads.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(1, 3, 1, 1)
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(1, 3, 1, 1)
BOUND = 1e-4

SMALL = {"embed_dim": 12,
         "vision_cfg": {"image_size": 16, "layers": 2, "width": 24, "head_width": 12, "patch_size": 4},
         "text_cfg": {"context_length": 10, "vocab_size": 64, "width": 16, "heads": 2, "layers": 2}}
failures = []


def variant(**changes):
    config = copy.deepcopy(SMALL)
    for key, value in changes.items():
        if key == "layer_scale":
            config["vision_cfg"]["ls_init_value"] = config["text_cfg"]["ls_init_value"] = value
        elif key in ("image_size", "patch_size"):
            config["vision_cfg"][key] = value
        elif key == "context_length":
            config["text_cfg"][key] = value
        else:
            config[key] = value
    return config


def open_clip_model(config, seed):
    """An open_clip model of this config with random values in every parameter."""
    torch.manual_seed(seed)
    config = copy.deepcopy(config)
    custom = config.pop("custom_text", False)
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    model = kind(**config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            draw = torch.randn_like(p)
            if name == "logit_scale":
                p.fill_(2.3)
            elif name == "logit_bias":
                p.fill_(-1.7)
            elif name.endswith("gamma"):
                p.copy_(0.7 + 0.3 * draw)
            elif ".ln_" in "." + name and name.endswith("weight"):
                p.copy_(1 + 0.3 * draw)
            elif name.endswith("bias"):
                p.copy_(0.2 * draw)
            elif "embedding" in name:
                p.copy_(0.5 * draw)
            else:
                rows = p.shape[0] if name.endswith(("text_projection", "visual.proj")) else p[0].numel()
                p.copy_(draw * rows**-0.5)
    return model.eval()


def inputs(config, seed, batch=4):
    random = np.random.default_rng(seed)
    size, length = config["vision_cfg"]["image_size"], config["text_cfg"]["context_length"]
    vocabulary = config["text_cfg"]["vocab_size"]
    images = random.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    tokens = random.integers(1, vocabulary - 2, (batch, length), dtype=np.int32)
    tokens[:, 0] = vocabulary - 2
    for row in range(batch):  # the end-of-text token, then padding
        place = int(random.integers(1, length))
        tokens[row, place] = vocabulary - 1
        tokens[row, place + 1:] = 0
    return torch.from_numpy(images), torch.from_numpy(tokens)


def pixels(images):
    return (images.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


@torch.no_grad()
def features_of_open_clip(model, images, tokens):
    return (F.normalize(model.encode_image(pixels(images)), dim=-1),
            F.normalize(model.encode_text(tokens.long()), dim=-1))


@torch.no_grad()
def features_of_transformers(model, images, tokens):
    image = model.get_image_features(pixel_values=pixels(images))
    text = model.get_text_features(input_ids=tokens.long())
    image, text = (getattr(f, "pooler_output", f) for f in (image, text))
    return F.normalize(image, dim=-1), F.normalize(text, dim=-1)


class Programs:
    def __init__(self, folder):
        self.folder = folder

    def run(self, name, *arguments):
        done = subprocess.run([os.path.join(self.folder, name), *map(str, arguments)], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{name} {' '.join(map(str, arguments))}\n{done.stderr}")

    def features(self, folder, weights, images, tokens, *flags):
        given, result = os.path.join(folder, "inputs.safetensors"), os.path.join(folder, "features.safetensors")
        save_file({"images": images.contiguous(), "tokens": tokens.contiguous()}, given)
        self.run("clip_features", "--checkpoint", weights, *flags, given, result)
        out = load_file(result)
        return out["image_features"], out["text_features"]


def compare(what, ours, theirs):
    worst = max((a - b).abs().max().item() for a, b in zip(ours, theirs))
    same = "ok" if worst < BOUND else "TOO MUCH"
    print(f"{what:78s} {worst:9.1e}  {same}", flush=True)
    if worst >= BOUND:
        failures.append(what)


def write_config(path, config):
    with open(path, "w") as file:
        json.dump(config, file)
    return path


def trainer_checkpoint(model, path):
    """As open_clip's trainer saves one that ran distributed: "module." before every name, an optimizer beside."""
    optimizer = torch.optim.AdamW(model.parameters())
    model.zero_grad()
    sum(p.sum() for p in model.parameters()).backward()
    state = {"module." + name: value for name, value in model.state_dict().items()}
    torch.save({"epoch": 3, "name": "golden", "state_dict": state, "optimizer": optimizer.state_dict()}, path)


def check_open_clip(programs, folder, name, config, seed):
    model = open_clip_model(config, seed)
    images, tokens = inputs(config, seed)
    theirs = features_of_open_clip(model, images, tokens)
    config_path = write_config(os.path.join(folder, "model.json"), config)
    checkpoint = os.path.join(folder, "epoch_3.pt")
    trainer_checkpoint(model, checkpoint)
    compare(f"{name}: open_clip's .pt, our forward pass",
            programs.features(folder, checkpoint, images, tokens, "--model", config_path), theirs)
    exported = os.path.join(folder, "exported")
    programs.run("clip_convert", checkpoint, exported, "--model", config_path)
    again = open_clip_model({k: v for k, v in config.items() if k != "custom_text"}, seed + 1)
    again.load_state_dict(load_file(os.path.join(exported, "open_clip_model.safetensors")), strict=True)
    compare(f"{name}: our export, open_clip's forward pass", features_of_open_clip(again, images, tokens), theirs)
    own = os.path.join(folder, "own")
    os.makedirs(own, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()},
              os.path.join(own, "open_clip_model.safetensors"))
    write_config(os.path.join(own, "open_clip_config.json"), {"model_cfg": config, "preprocess_cfg": {}})
    compare(f"{name}: open_clip's folder, our forward pass", programs.features(folder, own, images, tokens), theirs)
    hugging = os.path.join(folder, "hugging_face")
    programs.run("clip_convert", exported, hugging, "--to", "hugging-face")
    hf, report = transformers.CLIPModel.from_pretrained(hugging, output_loading_info=True)
    odd = report["missing_keys"] + report["unexpected_keys"] + report["mismatched_keys"]
    odd = [key for key in odd if not key.endswith("position_ids")]
    if odd:
        failures.append(f"{name}: transformers reports {odd}")
    compare(f"{name}: our export, transformers' forward pass",
            features_of_transformers(hf.eval(), images, tokens), theirs)
    back = os.path.join(folder, "back")
    programs.run("clip_convert", hugging, back)
    compare(f"{name}: there and back through transformers' layout",
            programs.features(folder, back, images, tokens), theirs)


def hugging_face_model(seed, activation):
    torch.manual_seed(seed)
    vision, text = SMALL["vision_cfg"], SMALL["text_cfg"]
    config = transformers.CLIPConfig(
        projection_dim=SMALL["embed_dim"],
        text_config={"hidden_size": text["width"], "intermediate_size": 40, "num_hidden_layers": text["layers"],
                     "num_attention_heads": text["heads"], "max_position_embeddings": text["context_length"],
                     "vocab_size": text["vocab_size"], "hidden_act": activation, "projection_dim": SMALL["embed_dim"],
                     "bos_token_id": 62, "eos_token_id": 63, "pad_token_id": 0},
        vision_config={"hidden_size": vision["width"], "intermediate_size": 72, "num_hidden_layers": vision["layers"],
                       "num_attention_heads": 2, "image_size": vision["image_size"],
                       "patch_size": vision["patch_size"], "hidden_act": activation,
                       "projection_dim": SMALL["embed_dim"]})
    model = transformers.CLIPModel(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            draw = torch.randn_like(p)
            norm = "layer_norm" in name or "layernorm" in name or "layrnorm" in name
            if name == "logit_scale":
                p.fill_(2.1)
            elif norm and name.endswith("weight"):
                p.copy_(1 + 0.3 * draw)
            elif name.endswith("bias"):
                p.copy_(0.2 * draw)
            elif "embedding" in name:
                p.copy_(0.5 * draw)
            else:
                p.copy_(draw * p[0].numel() ** -0.5)
    return model.eval()


def check_hugging_face(programs, folder, name, seed, activation):
    model = hugging_face_model(seed, activation)
    images, tokens = inputs(SMALL, seed)
    theirs = features_of_transformers(model, images, tokens)
    own = os.path.join(folder, "transformers")
    model.save_pretrained(own)
    compare(f"{name}: transformers' folder, our forward pass", programs.features(folder, own, images, tokens), theirs)
    exported = os.path.join(folder, "exported")
    programs.run("clip_convert", own, exported)
    with open(os.path.join(exported, "open_clip_config.json")) as file:
        config = json.load(file)["model_cfg"]
    again = open_clip_model(config, seed + 1)
    again.load_state_dict(load_file(os.path.join(exported, "open_clip_model.safetensors")), strict=True)
    compare(f"{name}: transformers -> open_clip, open_clip's forward pass",
            features_of_open_clip(again, images, tokens), theirs)


def check_resizing(programs, folder, seed):
    model = open_clip_model(SMALL, seed)
    checkpoint = os.path.join(folder, "small.safetensors")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, checkpoint)
    for size, length in ((28, 10), (8, 10), (16, 16), (36, 7)):
        config = variant(image_size=size, context_length=length)
        resized = open_clip_model(config, seed + 1)
        state = dict(model.state_dict())
        open_clip.model.resize_pos_embed(state, resized)
        open_clip.model.resize_text_pos_embed(state, resized)
        resized.load_state_dict(state, strict=True)
        images, tokens = inputs(config, seed + size)
        config_path = write_config(os.path.join(folder, "resized.json"), config)
        compare(f"positions 4 x 4 -> {size // 4} x {size // 4} patches, 10 -> {length} tokens",
                programs.features(folder, checkpoint, images, tokens, "--model", config_path),
                features_of_open_clip(resized, images, tokens))


def write_golden(folder):
    """Small files of both programs, and the features that they compute."""
    os.makedirs(folder, exist_ok=True)
    model = open_clip_model(variant(custom_text=True), 11)
    images, tokens = inputs(SMALL, 11)
    trainer_checkpoint(model, os.path.join(folder, "custom_text.pt"))
    image, text = features_of_open_clip(model, images, tokens)
    hf = hugging_face_model(12, "quick_gelu")
    hf.save_pretrained(os.path.join(folder, "hugging_face"))
    hf_image, hf_text = features_of_transformers(hf, images, tokens)
    tensors = {"images": images, "tokens": tokens, "open_clip/image_features": image, "open_clip/text_features": text,
               "hugging_face/image_features": hf_image, "hugging_face/text_features": hf_text}
    state = {k.removeprefix("text."): v for k, v in model.state_dict().items()}
    for grid, length in ((7, 16), (2, 7)):  # resized positions
        resized = open_clip_model(variant(image_size=4 * grid, context_length=length), 0)
        again = dict(state)
        open_clip.model.resize_pos_embed(again, resized)
        open_clip.model.resize_text_pos_embed(again, resized)
        tensors[f"positions/image{grid}"] = again["visual.positional_embedding"]
        tensors[f"positions/text{length}"] = again["positional_embedding"]
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, os.path.join(folder, "expected.safetensors"))
    write_config(os.path.join(folder, "model.json"), SMALL)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", default="build/apps")
    parser.add_argument("--golden")
    arguments = parser.parse_args()
    if arguments.golden:
        write_golden(arguments.golden)
        return
    print(f"PyTorch {torch.__version__}, open_clip {open_clip.__version__}, transformers {transformers.__version__}; "
          "greatest difference of normalised features")
    programs = Programs(arguments.programs)
    variants = {"exact GELU": {}, "QuickGELU": {"quick_gelu": True}, "CustomTextCLIP": {"custom_text": True},
                "layer-scale": {"layer_scale": 0.5},
                "logit bias": {"init_logit_scale": 2.3, "init_logit_bias": -10.0}}
    for number, (name, changes) in enumerate(variants.items()):
        with tempfile.TemporaryDirectory() as folder:
            check_open_clip(programs, folder, name, variant(**changes), 100 + number)
    for number, activation in enumerate(("gelu", "quick_gelu")):
        with tempfile.TemporaryDirectory() as folder:
            check_hugging_face(programs, folder, f"transformers, {activation}", 200 + number, activation)
    with tempfile.TemporaryDirectory() as folder:
        check_resizing(programs, folder, 300)
    if failures:
        sys.exit("FAILED: " + "; ".join(failures))
    print("all agree")


if __name__ == "__main__":
    main()
