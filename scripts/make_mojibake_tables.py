#!/usr/bin/env python3
"""Writes data/mojibake_tables.inc: single-byte encodings, and the characters that wrongly decoded text has.

usage: make_mojibake_tables.py > data/mojibake_tables.inc     (needs: pip install ftfy)

The encodings are Python's; bytes that a Windows code page leaves open stand for the character of the same
number, as in browsers. The kinds of characters are those of the ftfy package (Apache License 2.0), which
open_clip cleans with.
"""
import re

import ftfy
from ftfy.badness import MOJIBAKE_CATEGORIES
from ftfy.chardata import UTF8_CLUES

ENCODINGS = ['sloppy-windows-1252', 'sloppy-windows-1251', 'sloppy-windows-1250', 'sloppy-windows-1253',
             'sloppy-windows-1254', 'sloppy-windows-1257', 'iso-8859-2', 'macroman', 'cp437']
KINDS = ['common', 'c1', 'bad', 'law', 'currency', 'start_punctuation', 'end_punctuation', 'numeric',
         'kaomoji', 'upper_accented', 'lower_accented', 'upper_common', 'lower_common', 'box']
CLUES = ['utf8_first_of_2', 'utf8_first_of_3', 'utf8_first_of_4', 'utf8_continuation',
         'utf8_continuation_strict']


def wrap(entries):
    line = ''
    for entry in entries:
        if len(line) + len(entry) > 109:
            print(line)
            line = ''
        line += entry if not line else ' ' + entry
    print(line)


print(f'// Made by scripts/make_mojibake_tables.py with ftfy {ftfy.__version__}.')
assert set(KINDS) == set(MOJIBAKE_CATEGORIES) and set(CLUES) == set(UTF8_CLUES)
print('enum Kind : uint32_t {')
wrap(f'k{name.title().replace("_", "")} = 1u << {bit},' for bit, name in enumerate(KINDS + CLUES))
print('};')

patterns = [re.compile(f'[{members}]') for members in
            [MOJIBAKE_CATEGORIES[name] for name in KINDS] + [UTF8_CLUES[name] for name in CLUES]]
table = []
for code in range(0x10000):
    kinds = sum(1 << bit for bit, pattern in enumerate(patterns) if pattern.match(chr(code)))
    if kinds:
        table.append(f'{{0x{code:x}, 0x{kinds:x}}},')
print('constexpr KindOf kKinds[] = {')
wrap(table)
print('};')

print('// Bytes 0x80 to 0xff; one row per encoding, named above it.')
print(f'constexpr char16_t kEncodings[{len(ENCODINGS)}][128] = {{')
for encoding in ENCODINGS:
    characters = bytes(range(0x80, 0x100)).decode(encoding)
    print('{  // ' + encoding)
    wrap(f'0x{ord(character):x},' for character in characters)
    print('},')
print('};')
