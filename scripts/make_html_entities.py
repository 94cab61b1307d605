#!/usr/bin/env python3
"""Writes data/html_entities.inc: the named character references of HTML 5, from Python's html.entities.

usage: make_html_entities.py > data/html_entities.inc

Two lists, each sorted by name so that it can be searched by halves:
  kHtmlEntities        every name of the standard, the 106 that may lack their semicolon included
  kUppercaseEntities   names in capitals of which only the lower-case form is an entity: P&EACUTE;REZ
"""
import html
from html.entities import html5


def literal(text):
    return '"' + ''.join(f'\\x{byte:02x}' for byte in text.encode()) + '"'


def write(name, table):
    print(f'constexpr Entity {name}[] = {{')
    line = ''
    for key in sorted(table):
        entry = f'{{"{key}", {literal(table[key])}}},'
        if len(line) + len(entry) > 109:
            print(line)
            line = ''
        line += entry if not line else ' ' + entry
    print(line)
    print('};')


capitals = {}
for entity, text in html5.items():
    if entity.endswith(';') and entity == entity.lower():
        upper = '&' + entity.upper()
        if html.unescape(upper) == upper:
            capitals[upper[1:]] = text.upper()

print('// Made by scripts/make_html_entities.py. Name and UTF-8 text.')
write('kHtmlEntities', html5)
write('kUppercaseEntities', capitals)
