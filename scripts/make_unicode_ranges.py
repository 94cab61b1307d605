#!/usr/bin/env python3
"""Writes data/unicode_ranges.inc: the Unicode properties that decide how a caption is cut into words.

usage: make_unicode_ranges.py > data/unicode_ranges.inc       (needs: pip install regex)

Letters and numbers are those of the `regex` package, which open_clip's tokenizer uses; its Unicode version is
newer than that of most C libraries. Spaces are Python's str.isspace. `cased` and `case ignorable` decide
where a capital sigma is final; they are read off Python's own str.lower().
"""
import sys
import unicodedata

import regex

EVERY = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]


def ranges(members):
    found = []
    for code in members:
        if found and code == found[-1][1] + 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return found


def write(name, members):
    print(f'constexpr Range {name}[] = {{')
    line = ''
    for first, last in ranges(members):
        entry = f'{{0x{first:x}, 0x{last:x}}},'
        if len(line) + len(entry) > 109:
            print(line)
            line = ''
        line += entry if not line else ' ' + entry
    print(line)
    print('};')


def matches(pattern):
    compiled = regex.compile(pattern)
    return [code for code in EVERY if compiled.match(chr(code))]


# In a + capital sigma + c the sigma is final unless c is cased; in a + sigma + c + a, unless c is cased or
# ignored.
cased = [code for code in EVERY if ('a\u03a3' + chr(code)).lower()[1] == '\u03c3']
ignored = set(code for code in EVERY if ('a\u03a3' + chr(code) + 'a').lower()[1] == '\u03c3') - set(cased)

print(f'// Made by scripts/make_unicode_ranges.py with regex {regex.__version__} and '
      f'Python {sys.version_info.major}.{sys.version_info.minor} (Unicode {unicodedata.unidata_version}).')
write('kLetters', matches(r'\p{L}'))
write('kNumbers', matches(r'\p{N}'))
write('kSpaces', [code for code in EVERY if chr(code).isspace()])
write('kCased', cased)
write('kCaseIgnorable', sorted(ignored))
