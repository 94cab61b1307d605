#!/usr/bin/env python3
"""Writes tests/golden/tokenizer.bin.gz: strings and the ids that open_clip's own SimpleTokenizer gives them.

usage: make_tokenizer_golden.py FOLDER [--count 4000] [--seed 1] > tests/golden/tokenizer.bin.gz

FOLDER holds the unpacked open-clip-torch wheel (pip download --no-deps open-clip-torch; unzip it). Needs the
packages ftfy and regex; PyTorch is not needed, since only encode() is called.

The strings are made, not collected: words of many scripts, emoji, combining marks, right-to-left text, HTML
references, contractions, special tokens, width forms, wrongly decoded text, control characters, broken UTF-8,
long runs. Layout, little endian, all of it gzip: uint32 count; per string uint32 size, its bytes, uint16 id
count, uint16 ids (start and end included, cut to 77, no padding).
"""
import argparse
import gzip
import html.entities
import importlib.util
import itertools
import random
import struct
import sys
import types

CONTEXT = 77
WORDS = '''a photo of the cat dog tench, type fish. Mountain LAKE at Sunset painting by Monet 1984 iPhone
12 Pro-Max T-shirt rock'n'roll it's don't we're I'VE they'll he'd I'm y'all's o'clock "quoted" (brackets)
#hashtag @user e-mail www.example.com/path?x=1&y=2 50% off!!! $19.99 ... -- ~ ^_^ :-) <3 C++ AT&T R&D
naïve café über Ångström façade São Zürich Łódź İstanbul ıssız ΟΔΥΣΣΕΥΣ ΣΊΣΥΦΟΣ Σ ΑΣ. ΑΣ'Α αθήνα Москва
ЁЖИК Київ 東京タワー 日本語 中文字符 한국어 서울 עברית שלום العربية مرحبا ١٢٣ हिन्दी नमस्ते தமிழ் ไทยแลนด์ ქართული հայերեն
አማርኛ ភាសាខ្មែរ Tiếng Việt ĐẶC BIỆT ½ ² Ⅷ ⅷ ① ㊗ ㍿ ẞ ß ŒUVRE œuvre cœur ſoft 'ſ K Å ǅ ǆ ﬁne ﬂow oﬃce ﬆ ŉ ĳ Ĳ
ＦＵＬＬ ＷＩＤＴＨ １２３ ｶﾀｶﾅ ﾊﾟ ￣ ￥ “curly” ‘single’ „low“ ‚x‛ ʼ… — – • · × ÷ ± © ® ™ € £ ¥ ¢ § ¶ ° ¬ ¦ ¡hola!
¿qué? «guillemets» ‹x› † ‡ ‰ ▀▄█ ║═ (╯°□°)╯︵ ┻━┻ ʕ•ᴥ•ʔ <start_of_text> <end_of_text> <START_OF_TEXT>
<|endoftext|> <ſtart_of_text> </w> <b>bold</b> <br/> Ġ ġ Ċ supercalifragilisticexpialidocious
Donaudampfschifffahrtsgesellschaft aaaaaaaa !!!!!! ?!?! 0000 3.14159 1e-3 0x1F600'''.split()
EMOJI = ('😀 😂 🎉 ❤️ ❤ ☺️ 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 🇺🇸 1️⃣ #️⃣ 🏴󠁧󠁢󠁷󠁬󠁳󠁿 👨🏿‍🚀 🧑‍🤝‍🧑 🫠 ♻️ ™️ ㊙️ ⌚ ✂️ 🀄 🃏 🦄🦄🦄').split()
SPACES = [' ', ' ', ' ', ' ', '  ', '\t', '\n', '\r\n', '\r', '\u00a0', '\u2003', '\u3000', '\u200b',
          '\u2028', '\x0b', '\x0c', '\x1c', '\x85', '\u202f', '\u1680', '\u180e', '\ufeff', '\u200d',
          '\u00ad', '']
CONTROLS = ['\x00', '\x07', '\x1a', '\x1b', '\x1b[31m', '\x1b[0;1;4m', '\x1b[١m', '\x1b[', '\x7f',
            '\x80', '\x99', '\x9d', '\u206a', '\ufff9', '\ufffc', '\ufffd', '\u200e', '\u202e', '\u2066',
            '\ufeff', '\ufffe', '\U000e0041']
MARKS = ['\u0301', '\u0308', '\u0323', '\u0345', '\u0300\u0316', '\u20dd', '\u05b8', '\u064e', '\u093f',
         '\u0e34', '\u3099', '\u0327\u0301', '\ufe0f', '\u034f']
ENCODINGS = ['latin-1', 'sloppy-windows-1252', 'sloppy-windows-1251', 'sloppy-windows-1250',
             'sloppy-windows-1253', 'sloppy-windows-1254', 'sloppy-windows-1257',
             'iso-8859-2', 'macroman', 'cp437']
NAMES = sorted(html.entities.html5)
CLUES = ('ÂÃÅÎÐÙØàáâãäéíðóв²³½¼ŒœŠšŸžŽ€‚ƒ„…†‡ˆ‰‹›‘’“”•–—˜™'
         '¡¢£¤¥§¨©ª«¬\u00ad®¯°±´µ¶·¸¹º»¿×÷ßøþВГРСЂђЃѓΒΓΞΟβāćĂĄłŁ√≈∂π\u00a0\u0081\u0090 a?')

# What single rules of the detection of wrong decodings look for.
SIGNS = [''.join(pair) for pair in itertools.product('ÂÃÎÐ', '€œŠš¢£Ÿž\u00ad®©°·»–—´¡«‘“”™')]
SIGNS += ['×²', '×³', 'à²', 'àµ', 'à¹', 'à¼', 'à½', 'à¾', 'Ã\u00a0', 'Ã ', 'Â ', 'œ1', 'Œ ', 'É°', '√±',
          '√∂', '√†', '√≠', '√®', '√™', '√´', '√≤', '√≥', '√¥', '√µ', '√ø', '≈°', '≈¢', '‚Äì', '‚Äî',
          '‚Äú', '‚Ä†', '‚Äπ', '‚âà', '‚óä', '‚â°', '‚âê', 'вЂ', 'В°В', 'Рђ', 'С€С', 'ГўВЂВ™a',
          'ГўВЂВў ', 'β€™', 'β€\u00a0', 'β€Ά', 'β€°', 'Β°Β', 'Γ€Ξ', 'ā€', 'Ø§Ù', 'ÙŠØ', 'Ø¹Ø', 'ÙµÙ',
          '█Ö', '▒ü', '£║', '▌»', 'é“1', 'é”“', 'ñ™«', 'aÉ“', 'bÉ£', ' Ê€', 'é¤', '¤é', 'aпˇ', 'þ',
          '¼Á', '²à', 'š€', 'É½']


def reference(folder):
    """open_clip's tokenizer class, with stand-ins for the packages that encode() does not use."""
    for name in ('torch', 'numpy'):
        stand_in = types.ModuleType(name)
        stand_in.Tensor = stand_in.LongTensor = object
        sys.modules.setdefault(name, stand_in)
    path = f'{folder}/open_clip/tokenizer.py'
    specification = importlib.util.spec_from_file_location('open_clip_tokenizer', path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.SimpleTokenizer()


def ids_of(tokenizer, data):
    text = data.decode('utf-8', 'replace')
    ids = [tokenizer.sot_token_id] + tokenizer.encode(text) + [tokenizer.eot_token_id]
    if len(ids) > CONTEXT:
        ids = ids[:CONTEXT]
        ids[-1] = tokenizer.eot_token_id
    return ids


class Maker:
    def __init__(self, seed):
        self.random = random.Random(seed)

    def some(self, things, most):
        return [self.random.choice(things) for _ in range(self.random.randint(1, most))]

    def sentence(self, most=12):
        return ''.join(word + self.random.choice(SPACES[:5]) for word in self.some(WORDS, most))

    def case(self, text):
        return self.random.choice([str.upper, str.lower, str.title, str.swapcase])(text)

    def reference_to_character(self):
        r = self.random
        number = r.choice([r.randint(0, 300), r.randint(0, 0x2fff), r.randint(0xd7f0, 0xe010),
                           r.randint(0, 0x120000), 0x26])
        form = r.randint(0, 9)
        semicolon = r.choice([';', ';', ';', ''])
        if form == 0:
            return f'&#{number}{semicolon}'
        if form == 1:
            return f'&#{r.choice("xX")}{number:{r.choice("xX")}}{semicolon}'
        if form == 2:
            return r.choice(['&', '&#', '&#x', '&;', '&amp', '&amp;amp;', '&ampamp;', '&#38;lt;',
                             '&#x26;#39;', '&lt', '&notit;', '&#000039;', '&#59;', '&NBSP;', '&nbsp', '&shy;',
                             '&zwj;', '&apos;', '&#65x;', '&#xg;', '&&amp;'])
        name = r.choice(NAMES)
        if form == 3:
            name = name.upper()
        if form == 4:
            name = name.rstrip(';')
        if form == 5:
            name = name[:r.randint(1, len(name))]
        if form == 6:
            name = r.choice(['amp;', 'lt;', 'quot;', 'gt;', '#39;', 'eacute;', 'EACUTE;', 'SZLIG;']) + name
        return '&' + name

    def wrongly_decoded(self, text):
        for _ in range(self.random.choice([1, 1, 1, 2, 3])):
            data = text.encode('utf-8')
            if self.random.random() < 0.2:
                data = data.replace(b'\xa0', b' ')
            encoding = self.random.choice(ENCODINGS[:2] if self.random.random() < 0.6 else ENCODINGS)
            try:
                text = data.decode(encoding)
            except UnicodeDecodeError:
                text = data.decode(encoding, 'replace')
        if self.random.random() < 0.15:
            text = ''.join('\ufffd' if self.random.random() < 0.1 else c for c in text)
        return text

    def nearly_utf8(self):
        """Bytes that are UTF-8 but for a lost, unknown or exotic one, read in a single-byte encoding."""
        r = self.random
        data = b''
        for _ in range(r.randint(1, 4)):
            kind = r.randint(0, 5)
            if kind < 3:
                lead = r.choice(b'\xc0\xc2\xc3\xc5\xce\xd0\xd9\xdf\xe0\xe1\xe2\xe3\xe4\xed\xef'
                                b'\xf0\xf1\xf3\xf4')
                following = 1 if lead < 0xe0 else 2 if lead < 0xf0 else 3
                data += bytes([lead] + [r.choice(b'\x80\x85\x9f\xa0\xa1\xaf\xb0\xbf \x1a?\x93\x99\xa9')
                                        for _ in range(following)])
            elif kind == 3:
                data += bytes([0xed, r.randint(0xa0, 0xaf), r.choice(b'\x80\xbf\x1a?'),
                               0xed, r.randint(0xb0, 0xbf), r.choice(b'\x80\xbf\x1a?\n')])
            else:
                data += r.choice([b'a', b' ', b'the ', b'.', b'\n', b'?', b'\xc0\x80', b'quele', b'\xc3 s '])
        data += r.choice([b'', b'', b'\n', b' ', b'a', b'\xc0\n'])
        encoding = r.choice(ENCODINGS)
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            return data.decode('latin-1')

    def code_point(self):
        r = self.random
        top = r.choice([0x80, 0x100, 0x250, 0x600, 0x1000, 0x3100, 0xa000, 0x10000, 0x20000, 0x110000])
        c = r.randrange(top)
        return chr(c) if not 0xd800 <= c < 0xe000 else '\ufffd'

    def text(self):
        r = self.random
        kind = r.randint(0, 19)
        if kind == 0:
            return self.sentence()
        if kind == 1:
            return self.case(self.sentence())
        if kind == 2:
            return ''.join(self.some(WORDS + EMOJI + EMOJI + SPACES + MARKS, 20))
        if kind == 3:
            return ''.join(word + r.choice(SPACES) for word in self.some(WORDS, 10))
        if kind in (4, 5):
            return ''.join(r.choice([self.reference_to_character(), r.choice(WORDS), ' ',
                                     self.reference_to_character()])
                           for _ in range(r.randint(1, 8)))
        if kind == 6:
            return ''.join(self.some(CONTROLS + WORDS + SPACES, 15))
        if kind in (7, 8):
            plain = self.sentence(5) if r.random() < 0.7 else ''.join(self.some(EMOJI + WORDS, 4))
            return self.wrongly_decoded(plain)
        if kind == 9:
            before, wrong = self.sentence(4), self.wrongly_decoded(''.join(self.some(EMOJI + WORDS, 3)))
            return before + wrong + r.choice(SPACES) + self.sentence(3)
        if kind == 10:
            return ''.join(self.some(CLUES, 12)) + r.choice(['', '\n', ' x', 'Z'])
        if kind == 11:
            return ''.join(self.code_point() for _ in range(r.randint(1, 20)))
        if kind == 12:
            return ''.join(c + r.choice(['', '', '', r.choice(MARKS)]) for c in self.sentence(4))
        if kind == 13:
            return r.choice([r.choice(WORDS) * r.randint(2, 40), r.choice(EMOJI) * r.randint(2, 30),
                             ' '.join(self.some(WORDS, 120)), self.code_point() * r.randint(1, 100),
                             self.sentence(3) * r.randint(2, 60)])
        if kind == 14:
            return ''.join(r.choice("'sStTrRevVEmMlLdDſ!<>|_ \n&;#") for _ in range(r.randint(1, 24)))
        if kind in (15, 16):
            return r.choice(['', '', 'the ']) + self.nearly_utf8()
        if kind in (17, 18):
            return ''.join(r.choice(['', '', 'a', ' ', 'Z', '9', '.', '\n']) + r.choice(SIGNS)
                           for _ in range(r.randint(1, 3))) + r.choice(['', ' ', 'a', '\n', 'é'])
        return ''.join(r.choice([self.code_point(), r.choice(CLUES), r.choice(WORDS),
                                 self.reference_to_character(), r.choice(SPACES), r.choice(CONTROLS),
                                 '<' if r.random() < 0.2 else '\n'])
                       for _ in range(r.randint(1, 12)))

    def data(self):
        data = self.text().encode('utf-8')
        if self.random.random() < 0.08:  # broken UTF-8: lost, changed and added bytes
            broken = bytearray(data)
            for _ in range(self.random.randint(1, 6)):
                place = self.random.randrange(len(broken) + 1)
                if self.random.random() < 0.4:
                    del broken[place:place + 1]
                else:
                    wrong = self.random.choice(b'\x80\xbf\xc0\xc3\xe0\xed\xa0\xf0\xf4\x90\xff\xe2')
                    broken.insert(place, wrong)
            data = bytes(broken)
        return data


FIXED = ['', ' ', '\n', '\ufeff', 'a', '!', 'a diagram', 'Hello World!', "It's 2024 &amp; we're   fine",
         'x' * 10000, 'photo ' * 2000, '!' * 3000, '😀' * 500, "'" * 200 + 's', 'é' * 5000,
         'A photo of a   CAT\n on the\tmat',
         '<end_of_text> is a literal',
         ' '.join(['cat'] * 75), ' '.join(['cat'] * 76), ' '.join(['cat'] * 74), '&lt;br&gt;\n&amp;amp;',
         '<br>\n&EACUTE; &eacute;', '&EACUTE;\n<br> &EACUTE;', 'Ã©À\n', 'a\u0345b \u0345',
         'I\u0307 İ ΑΣ ΑΣΑ Σ',
         '\u1fb3\u0345', 'cafe\u0301', '\u212b \u2126 \u212a']


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('folder')
    parser.add_argument('--count', type=int, default=4000)
    parser.add_argument('--seed', type=int, default=1)
    options = parser.parse_args()
    tokenizer = reference(options.folder)
    maker = Maker(options.seed)
    texts = [text.encode() for text in FIXED]
    while len(texts) < options.count:
        data = maker.data()
        if len(data) <= 3000:
            texts.append(data)
    packed = [struct.pack('<I', len(texts))]
    for data in texts:
        ids = ids_of(tokenizer, data)
        packed.append(struct.pack('<I', len(data)) + data + struct.pack(f'<H{len(ids)}H', len(ids), *ids))
    sys.stdout.buffer.write(gzip.compress(b''.join(packed), 9, mtime=0))


if __name__ == '__main__':
    main()
