#!/usr/bin/env python3
"""Reads the machine code of the hot CUDA kernels and holds it to what is promised of them: nothing spilled
from registers to memory, and the instructions that make them fast.

    scripts/check_kernels.py [BUILD FOLDER]      default: build

The last line is "N passed, N failed" (", N skipped" where the objects or cuobjdump are missing). cuobjdump
and nvdisasm are looked for in $PATH, beside nvcc, and in BUILD/tools, where pip puts them if need be.
"""
import json
import os
import re
import shutil
import subprocess
import sys

AMPERE, HOPPER = "sm_80", "sm_90a"
CLIP_HEADS = r"ILi(64|80|88|104)E"  # ViT-B and L, H, g, bigG; those of odd models promise nothing
LOADS_16 = r"LDG\.E\.128"
STORES_16 = r"STG\.E\.128"

# object, kernels (a pattern in the mangled name), architectures, what each of them must contain
HOT = [
    ("attention_forward", "attention_forward_kernel" + CLIP_HEADS, (AMPERE, HOPPER),
     [r"HMMA\.16816\.F32\.BF16", r"LDSM\.16\.MT88", r"LDGSTS\.E\.BYPASS\.128"]),
    ("attention_backward", "attention_backward_(short_)?kernel" + CLIP_HEADS, (AMPERE, HOPPER),
     [r"HMMA\.16816\.F32\.BF16", r"LDSM\.16\.MT88", r"LDGSTS\.E\.BYPASS\.128"]),
    ("attention_forward_sm90", "attention_forward_sm90_kernel", (HOPPER,),
     [r"HGMMA\.64x\d+x16\.F32\.BF16", r"UTMALDG", r"SYNCS\.PHASECHK"]),
    ("attention_backward_sm90", "attention_backward_sm90_kernel", (HOPPER,),
     [r"HGMMA\.64x\d+x16\.F32\.BF16", r"UTMALDG", r"SYNCS\.PHASECHK"]),
    ("gemm_bf16_sm90", "gemm_kernel", (HOPPER,),
     [r"HGMMA\.64x\d+x16\.F32\.BF16", r"UTMALDG\.2D", r"UTMASTG\.2D", r"STSM\.16\.M88\.4"]),
    ("gemm_bf16_gelu_sm90", "gemm_kernel", (HOPPER,),
     [r"HGMMA\.64x\d+x16\.F32\.BF16", r"UTMALDG\.2D", r"UTMASTG\.2D", r"STSM\.16\.M88\.4"]),
    ("gemm_weight_gradient_sm90", "gemm_kernel", (HOPPER,), [r"HGMMA\.64x\d+x16\.F32\.BF16", r"UTMALDG\.2D"]),
    ("gemm_int8_sm90", "gemm_kernel", (HOPPER,),
     [r"IGMMA\.64x\d+x32\.S8\.S8", r"UTMALDG\.2D", r"UTMASTG\.2D", r"STSM\.16\.M88\.4"]),
    ("gemm_int8_mma", "gemm_int8_mma_kernel", (AMPERE, HOPPER),
     [r"IMMA\.16832\.S8\.S8", r"LDSM\.16\.M88\.4", r"LDGSTS\.E\.BYPASS\.128"]),
    ("quantize", "quantize_held_rows|quantize_and_sum_rows|quantize_tiles", (AMPERE, HOPPER), [LOADS_16]),
    ("quantize_beside_sm90", "quantize_from_ring", (HOPPER,), [r"UBLKCP\.S\.G", r"LDS\.128", r"SYNCS\.PHASECHK"]),
    ("quantize_weights", "quantize_weight_tiles", (AMPERE, HOPPER), [LOADS_16]),
    ("gelu_quantized", "forwardI|backwardI|backward_with_sums", (AMPERE, HOPPER), [LOADS_16]),
    ("layernorm_rows_forward", "forwardI13__nv_bfloat16", (AMPERE, HOPPER), [LOADS_16, STORES_16]),
    ("layernorm_rows_backward", "backwardI13__nv_bfloat16", (AMPERE, HOPPER), [LOADS_16, STORES_16]),
    ("adam", "update_allI|update_momentsI|update_mastersI", (AMPERE, HOPPER), [LOADS_16, STORES_16]),
]


def find_tool(name, build):
    for folder in os.environ.get("PATH", "").split(os.pathsep) + ["/usr/local/cuda/bin"] + [
            os.path.join(build, "tools", "nvidia", version, "bin") for version in ("cu13", "cuda_" + name)]:
        path = os.path.join(folder, name)
        if os.access(path, os.X_OK):
            return path
    return None


def install_tools(build):
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target",
               os.path.join(build, "tools"), "nvidia-cuda-cuobjdump", "nvidia-cuda-nvdisasm"]
    try:
        subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        pass


def built_architectures(build):
    """What -Dgpu_architectures asks for: its default is both."""
    with open(os.path.join(build, "meson-info", "intro-buildoptions.json")) as file:
        options = {option["name"]: option["value"] for option in json.load(file)}
    return ["sm_" + architecture for architecture in options["gpu_architectures"]]


class Kernel:
    def __init__(self):
        self.registers, self.stack, self.local, self.instructions = 0, 0, 0, set()


def read_object(path, cuobjdump):
    """{(architecture, mangled name): Kernel}"""
    kernels = {}

    def lines_of(option):
        out = subprocess.run([cuobjdump, option, path], check=True, capture_output=True, text=True).stdout
        architecture = name = None
        for line in out.splitlines():
            if found := re.match(r"arch = (\S+)", line.strip()):
                architecture = found[1]
            elif found := re.match(r"Function\s*:?\s*([^\s:]+)", line.strip()):
                name = found[1]
            elif name:
                yield kernels.setdefault((architecture, name), Kernel()), line

    for kernel, line in lines_of("--dump-resource-usage"):
        if found := re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line):
            kernel.registers, kernel.stack, kernel.local = map(int, found.groups())
    for kernel, line in lines_of("--dump-sass"):
        if found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)", line):
            kernel.instructions.add(found[1])
    return kernels


def main():
    build = sys.argv[1] if len(sys.argv) > 1 else "build"
    folder = os.path.join(build, "kernels", "cuda")
    cuobjdump, nvdisasm = find_tool("cuobjdump", build), find_tool("nvdisasm", build)
    if os.path.isdir(folder) and not (cuobjdump and nvdisasm):
        install_tools(build)
        cuobjdump, nvdisasm = find_tool("cuobjdump", build), find_tool("nvdisasm", build)
    if not os.path.isdir(folder) or not (cuobjdump and nvdisasm):
        print("skipped: machine code of the CUDA kernels: " +
              ("no cuobjdump" if os.path.isdir(folder) else f"{folder} does not exist"))
        print("0 passed, 0 failed, 1 skipped")
        return 0
    os.environ["PATH"] = os.path.dirname(nvdisasm) + os.pathsep + os.environ["PATH"]

    passed = failed = 0

    def check(right, what):
        nonlocal passed, failed
        passed, failed = passed + right, failed + (not right)
        if not right:
            print("FAILED: " + what)

    objects, built = {}, built_architectures(build)
    for file, pattern, architectures, instructions in HOT:
        path = os.path.join(folder, file + ".o")
        if file not in objects:
            objects[file] = read_object(path, cuobjdump) if os.path.exists(path) else {}
        for architecture in architectures:
            if architectures != (HOPPER,) and architecture not in built:
                continue  # *_sm90 are always built for Hopper
            where = f"{file}, {architecture}"
            kernels = {name: kernel for (a, name), kernel in objects[file].items()
                       if a == architecture and re.search(pattern, name)}
            check(bool(kernels), f"{where}: {path} has no kernel {pattern}")
            if not kernels:
                continue
            spilling = [f"{name} (stack {k.stack}, local {k.local} bytes)" for name, k in kernels.items()
                        if k.stack or k.local]
            check(not spilling, f"{where}: registers are spilled in " + ", ".join(spilling))
            for instruction in instructions:
                without = [name for name, k in kernels.items()
                           if not any(re.match(instruction, i) for i in k.instructions)]
                check(not without, f"{where}: no {instruction} in " + ", ".join(without))
            print(f"{where}: {len(kernels)} kernels {pattern}, at most "
                  f"{max(k.registers for k in kernels.values())} registers")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
