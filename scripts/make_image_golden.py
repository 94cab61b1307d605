#!/usr/bin/python3
"""Writes tests/golden/images.bin: what Pillow makes of 210 small pictures, for tests/data/test_image.cpp.

Run with Debian's python3-pil (/usr/bin/python3 scripts/make_image_golden.py): it links the system's libjpeg
and libwebp, the same that switchback links, so that the pixels must be equal to the last bit. Everything is
drawn from a fixed seed.

The file, little-endian:
  magic "SWBIMG01", count (u32), then per picture
    name      u8 length, bytes
    file      u32 length, bytes               the encoded picture
    height, width (u32), hash (u64)           of Image.open(file).convert("RGB")
    results   u8 count, then per result
      kind            u8: 0 resize, 1 crop and resize, 2 evaluation transform (size = height = width)
      interpolation   u8: 0 bilinear, 1 bicubic
      mode            u8: evaluation: 0 shortest, 1 longest, 2 squash
      box             4 x i32: top, left, height, width (kind 1)
      height, width   2 x i32
      hash            u64
A hash is FNV-1a of 64 bits over the bytes of the (height, width, 3) pixels.
"""

import io
import struct
import sys
import zlib

import numpy as np
from PIL import Image

BILINEAR, BICUBIC = Image.BILINEAR, Image.BICUBIC


def fnv(pixels):
    """FNV-1a; Python's integers are slow, so 64 KiB are as much as should be hashed at a time."""
    value = 0xCBF29CE484222325
    for byte in pixels:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def hash_of(image):
    assert image.mode == "RGB"
    return fnv(image.tobytes())


def noise(rng, height, width, channels=3):
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def gradient(rng, height, width):
    y, x = np.mgrid[0:height, 0:width]
    a, b = rng.uniform(1, 8, 2)
    planes = [x * a, y * b, (x + y) * (a + b) / 2]
    return np.stack([p % 256 for p in planes], -1).astype(np.uint8)


def blobs(rng, height, width):
    """Smooth shapes with a hard edge or two: something like a photograph."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    planes = []
    for _ in range(3):
        f = rng.uniform(2, 9, 4)
        planes.append(
            127 + 70 * np.sin(f[0] * x + f[1]) * np.cos(f[2] * y + f[3]) + 50 * (x * f[0] + y > f[3] / 3)
        )
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def encode(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(height, width, depth, colour, rows, chunks=(), interlace=0):
    """A PNG from packed rows (bytes each): for the depths and chunks that Pillow does not write."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    body = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows), 9)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + b"".join(chunk(n, d) for n, d in chunks)
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


def interlaced(array):
    """The seven passes of Adam7, for 8-bit samples (height, width, channels)."""
    passes = [
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ]
    rows = []
    for top, left, down, across in passes:
        part = array[top::down, left::across]
        if part.size:
            rows += [row.tobytes() for row in part]
    return rows


def pictures(rng):
    """Yields (name, file)."""
    sizes = [
        (1, 1),
        (1, 7),
        (7, 1),
        (2, 2),
        (3, 5),
        (8, 8),
        (9, 17),
        (16, 16),
        (17, 33),
        (31, 64),
        (65, 40),
        (75, 100),
        (101, 57),
        (64, 3),
        (2, 90),
        (90, 2),
    ]
    makers = {"noise": noise, "gradient": gradient, "blobs": blobs}
    # JPEG: sampling (4:4:4, 4:2:2, 4:2:0), quality, progressive, restart markers, odd sizes.
    number = 0
    for height, width in sizes:
        for sampling in (0, 1, 2):
            name = ("noise", "gradient", "blobs")[number % 3]
            quality = (95, 75, 30, 100, 5)[number % 5]
            options = {"progressive": number % 4 == 3, "optimize": number % 7 == 2}
            picture = makers[name](rng, height, width)
            tail = "-progressive" if options["progressive"] else ""
            yield (
                f"jpeg-{name}-{width}x{height}-s{sampling}-q{quality}{tail}",
                encode(Image.fromarray(picture), "JPEG", quality=quality, subsampling=sampling, **options),
            )
            number += 1
    for height, width in (
        (700, 3),
        (3, 700),
        (2, 900),
        (900, 2),
        (1, 600),
        (300, 9),
        (150, 200),
        (200, 300),
        (240, 161),
    ):
        picture = (blobs if height * width > 10000 else noise)(rng, height, width)
        yield f"jpeg-{width}x{height}", encode(Image.fromarray(picture), "JPEG", quality=85)
        if height * width < 10000:
            yield f"png-{width}x{height}", encode(Image.fromarray(picture), "PNG")
    for blocks in (1, 3):
        yield (
            f"jpeg-restart-{blocks}",
            encode(Image.fromarray(blobs(rng, 50, 70)), "JPEG", quality=80, restart_marker_blocks=blocks),
        )
    for height, width in ((1, 1), (13, 21), (40, 56)):
        picture = blobs(rng, height, width)
        for progressive in (False, True):
            tag = f"{width}x{height}{'-progressive' if progressive else ''}"
            yield f"jpeg-grey-{tag}", encode(
                Image.fromarray(picture[..., 0]), "JPEG", quality=90, progressive=progressive
            )
            inks = np.concatenate([picture, noise(rng, height, width, 1)], -1)
            yield f"jpeg-cmyk-{tag}", encode(
                Image.fromarray(inks, "CMYK"), "JPEG", quality=90, progressive=progressive
            )
    # RGB stored as such: an Adobe marker with transform 0 in place of the JFIF one, 4:4:4.
    plain = encode(Image.fromarray(blobs(rng, 24, 40)), "JPEG", quality=90, subsampling=0)
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
    assert plain[2:4] == b"\xff\xe0"
    end = 4 + struct.unpack(">H", plain[4:6])[0]
    for transform in (0, 1):
        yield f"jpeg-adobe-transform-{transform}", plain[:2] + adobe + bytes([transform]) + plain[end:]
    cmyk = encode(Image.fromarray(noise(rng, 16, 24, 4), "CMYK"), "JPEG", quality=90)
    at = cmyk.index(b"Adobe") + 11
    yield "jpeg-ycck", cmyk[:at] + b"\x02" + cmyk[at + 1 :]
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees": not applied
    yield "jpeg-exif-rotated", encode(Image.fromarray(gradient(rng, 20, 44)), "JPEG", quality=90, exif=exif)

    # PNG: every colour type and depth.
    for height, width in ((1, 1), (5, 3), (19, 37), (33, 8)):
        tag = f"{width}x{height}"
        yield f"png-rgb-{tag}", encode(Image.fromarray(noise(rng, height, width)), "PNG")
        yield f"png-rgba-{tag}", encode(Image.fromarray(noise(rng, height, width, 4), "RGBA"), "PNG")
        yield f"png-grey-{tag}", encode(Image.fromarray(noise(rng, height, width, 1)[..., 0]), "PNG")
        yield f"png-grey-alpha-{tag}", encode(Image.fromarray(noise(rng, height, width, 2), "LA"), "PNG")
        yield f"png-1bit-{tag}", encode(
            Image.fromarray(noise(rng, height, width, 1)[..., 0]).convert("1"), "PNG"
        )
        grey16 = rng.integers(0, 600, (height, width)).astype(np.uint16)
        yield f"png-grey16-{tag}", encode(Image.fromarray(grey16), "PNG")
        for colours in (2, 4, 16, 256):
            quantised = Image.fromarray(blobs(rng, height, width)).quantize(colours)
            yield f"png-palette{colours}-{tag}", encode(quantised, "PNG")
            yield (
                f"png-palette{colours}-alpha-{tag}",
                encode(quantised, "PNG", transparency=bytes(range(0, colours % 256))),
            )
        for depth in (2, 4):
            row_bytes = (width * depth + 7) // 8
            rows = [noise(rng, 1, row_bytes, 1).tobytes() for _ in range(height)]
            yield f"png-grey{depth}-{tag}", png(height, width, depth, 0, rows)
            yield f"png-grey{depth}-key-{tag}", png(height, width, depth, 0, rows, [(b"tRNS", b"\0\1")])
            # Fewer colours than the indices reach.
            yield f"png-short-palette{depth}-{tag}", png(
                height, width, depth, 3, rows, [(b"PLTE", bytes([9, 99, 199, 1, 2, 3]))]
            )
        for colour, channels in ((2, 3), (4, 2), (6, 4)):
            rows = [noise(rng, 1, width * channels * 2, 1).tobytes() for _ in range(height)]
            yield f"png-16bit-colour{colour}-{tag}", png(height, width, 16, colour, rows)
        for colour, channels in ((0, 1), (2, 3), (3, 1), (4, 2), (6, 4)):
            chunks = [(b"PLTE", noise(rng, 1, 768, 1).tobytes())] if colour == 3 else []
            yield (
                f"png-interlaced-colour{colour}-{tag}",
                png(height, width, 8, colour, interlaced(noise(rng, height, width, channels)), chunks, 1),
            )
    yield (
        "png-gamma",
        png(
            4,
            4,
            8,
            2,
            [noise(rng, 1, 12, 1).tobytes() for _ in range(4)],
            [(b"gAMA", struct.pack(">I", 45455)), (b"tRNS", b"\0\1\0\2\0\3")],
        ),
    )
    yield "png-photo-like", encode(Image.fromarray(blobs(rng, 60, 80)), "PNG")

    # WebP: lossy and lossless, with and without alpha, and the first frame of an animation.
    for height, width in ((1, 1), (15, 22), (40, 61)):
        picture = blobs(rng, height, width)
        alpha = np.concatenate([picture, noise(rng, height, width, 1)], -1)
        tag = f"{width}x{height}"
        yield f"webp-{tag}", encode(Image.fromarray(picture), "WEBP", quality=70)
        yield f"webp-lossless-{tag}", encode(Image.fromarray(picture), "WEBP", lossless=True)
        yield f"webp-alpha-{tag}", encode(Image.fromarray(alpha, "RGBA"), "WEBP", quality=70)
        yield f"webp-lossless-alpha-{tag}", encode(
            Image.fromarray(alpha, "RGBA"), "WEBP", lossless=True, exact=True
        )
    for lossless in (False, True):
        frames = [
            Image.fromarray(np.concatenate([blobs(rng, 20, 30), noise(rng, 20, 30, 1)], -1), "RGBA")
            for _ in range(3)
        ]
        yield (
            f"webp-animation-{'lossless' if lossless else 'lossy'}",
            encode(
                frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=lossless, duration=40
            ),
        )
    # The first frame of an animation need not fill the canvas: libwebp cuts it to what is not
    # transparent.
    canvas = np.zeros((24, 32, 4), np.uint8)
    canvas[7:15, 9:20] = np.concatenate([blobs(rng, 8, 11), np.full((8, 11, 1), 255, np.uint8)], -1)
    frames = [Image.fromarray(canvas, "RGBA"), Image.fromarray(noise(rng, 24, 32, 4), "RGBA")]
    yield (
        "webp-animation-small-frame",
        encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True, duration=40),
    )


def evaluation(image, size, mode, interpolation):
    """torchvision's Resize and CenterCrop, open_clip's ResizeKeepRatio and CenterCropOrPad, with Pillow."""
    width, height = image.size
    if mode == 2:
        return image.resize((size, size), interpolation)
    if mode == 0:
        long = int(size * max(width, height) / min(width, height))
        image = image.resize((size, long) if width <= height else (long, size), interpolation)
    else:
        shrink = max(width, height) / size
        image = image.resize((max(1, round(width / shrink)), max(1, round(height / shrink))), interpolation)
    width, height = image.size
    if width < size or height < size:
        padded = Image.new("RGB", (max(width, size), max(height, size)))
        padded.paste(
            image, ((size - width) // 2 if width < size else 0, (size - height) // 2 if height < size else 0)
        )
        image = padded
        width, height = image.size
    top, left = int(round((height - size) / 2.0)), int(round((width - size) / 2.0))
    return image.crop((left, top, left + size, top + size))


def results(rng, image, number):
    """Yields (kind, interpolation, mode, box, size, image): few per picture, since the pictures are many."""
    width, height = image.size
    filters = (BILINEAR, BICUBIC)
    for i in range(3):
        which = (number + i) % 2 if i < 2 else 1
        target = [(5, 9), (16, 16), (31, 7), (40, 33), (height, 12), (10, width)][
            (2 * number + i * 3 + number // 6) % 6
        ]
        yield 0, which, 0, (0, 0, 0, 0), target, image.resize(target[::-1], filters[which])
    top, left = rng.integers(0, height), rng.integers(0, width)
    box = (
        int(top),
        int(left),
        int(rng.integers(1, height - top + 1)),
        int(rng.integers(1, width - left + 1)),
    )
    cut = image.crop((box[1], box[0], box[1] + box[3], box[0] + box[2]))
    yield 1, 1, 0, box, (24, 24), cut.resize((24, 24), BICUBIC)
    for mode in range(3):
        size, which = (17, 24, 32)[(number + mode) % 3], (number // 2 + mode) % 2
        yield 2, which, mode, (0, 0, 0, 0), (size, size), evaluation(image, size, mode, filters[which])
    if number % 40 == 0:  # the size that models have
        yield 2, 1, 0, (0, 0, 0, 0), (224, 224), evaluation(image, 224, 0, BICUBIC)


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else "tests/golden/images.bin"
    rng = np.random.default_rng(2304)
    records = []
    for number, (name, data) in enumerate(pictures(rng)):
        opened = Image.open(io.BytesIO(data))
        opened.load()
        image = opened.convert("RGB")
        record = struct.pack("<B", len(name)) + name.encode() + struct.pack("<I", len(data)) + data
        record += struct.pack("<IIQ", image.size[1], image.size[0], hash_of(image))
        parts = []
        for kind, which, mode, box, size, result in results(rng, image, number):
            assert result.size == size[::-1], (result.size, size)
            parts.append(struct.pack("<BBB4i2iQ", kind, which, mode, *box, *size, hash_of(result)))
        records.append(record + struct.pack("<B", len(parts)) + b"".join(parts))
    with open(path, "wb") as out:
        out.write(b"SWBIMG01" + struct.pack("<I", len(records)) + b"".join(records))
    print(f"{path}: {len(records)} pictures, {sum(map(len, records))} bytes, Pillow {Image.__version__}")


if __name__ == "__main__":
    main()
