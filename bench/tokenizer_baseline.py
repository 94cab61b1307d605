#!/usr/bin/env python3
"""Times open_clip's own tokenizer and ours on the same captions, one core each, and compares every id.

usage: tokenizer_baseline.py FOLDER BENCH_TOKENIZER VOCABULARY SHARD.tar...

FOLDER holds the unpacked open-clip-torch wheel; needs the packages ftfy and regex (as
scripts/make_tokenizer_golden.py does). Captions are the .txt members of the shards. Both sides run over all
captions again and again, so their word caches are warm; the best pass counts.
Python's time covers encode() only, without making a tensor of the ids.
"""
import os
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'scripts'))
from make_tokenizer_golden import ids_of, reference  # noqa: E402


def captions_of(shards):
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith('.txt'):
                    yield tar.extractfile(member).read()


def main():
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    folder, program, vocabulary, *shards = sys.argv[1:]
    tokenizer = reference(folder)
    captions = list(captions_of(shards))
    packed = [struct.pack('<I', len(captions))]
    for data in captions:
        ids = ids_of(tokenizer, data)
        packed.append(struct.pack('<I', len(data)) + data + struct.pack(f'<H{len(ids)}H', len(ids), *ids))

    texts = [data.decode('utf-8', 'replace') for data in captions]
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        for text in texts:
            tokenizer.encode(text)
        best = max(best, len(texts) / (time.perf_counter() - start))
    print(f'open_clip:  {len(texts)} captions, {best:.0f} captions/s on one core (best of 5)')

    with tempfile.NamedTemporaryFile(suffix='.bin') as cases:
        cases.write(b''.join(packed))
        cases.flush()
        result = subprocess.run([program, vocabulary, cases.name], capture_output=True, text=True)
    print(result.stdout, end='')
    if not result.stdout:
        sys.exit(result.stderr)
    ours = float(re.search(r'([0-9.]+) captions/s', result.stdout).group(1))
    print(f'ratio: {ours / best:.1f}x')
    sys.exit(result.returncode)


if __name__ == '__main__':
    main()
