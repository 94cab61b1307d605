#!/usr/bin/env python3
"""No comment of the C++ and CUDA sources goes beyond column 110: clang-format breaks code, and leaves comments alone.

    scripts/check_lines.py [file ...]     all below this folder when none is named

The last line is "1 passed, 0 failed", or the other way round.
"""
import pathlib
import re
import sys
import unicodedata

LIMIT = 110
ENDINGS = (".h", ".cpp", ".cuh", ".cu")
COMMENT = re.compile(r"^\s*//|  // ")


def columns(line):
    return sum(not unicodedata.combining(c) for c in line)


def main():
    files = [pathlib.Path(name) for name in sys.argv[1:]] or sorted(
        path for path in pathlib.Path(".").rglob("*")
        if path.suffix in ENDINGS and not path.parts[0].startswith((".", "build")))
    failed = 0
    for path in files:
        lines = path.read_text(encoding="utf-8").split("\n")
        long = [i for i, line in enumerate(lines, 1) if columns(line) > LIMIT and COMMENT.search(line)]
        for i in long:
            print(f"{path}:{i}: {columns(lines[i - 1])} columns")
        failed += bool(long)
    print(f"{len(files)} files, {failed} with comments beyond column {LIMIT}")
    print("0 passed, 1 failed" if failed or not files else "1 passed, 0 failed")
    return 1 if failed or not files else 0


if __name__ == "__main__":
    sys.exit(main())
