#!/bin/sh
# Fuzzes the readers of files with libFuzzer under AddressSanitizer and UndefinedBehaviorSanitizer (needs clang).
#
#   scripts/fuzz.sh [SECONDS] [TARGET ...]
#
# Targets: tar safetensors pickle tables tokenizer image (default: all), SECONDS each (default 600). Corpora are kept
# in build-fuzz/corpus/TARGET and grow from run to run; a finding is left in build-fuzz/findings.
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-600}
[ $# -gt 0 ] && shift
targets=${*:-tar safetensors pickle tables tokenizer image}
out=build-fuzz
mkdir -p "$out/findings"
compiler=${CXX:-clang++}
command -v "$compiler" >/dev/null || { echo "fuzz.sh: clang++ is needed (apt install clang)" >&2; exit 1; }

sources() {
  case $1 in
    tar) echo data/tar.cpp data/shards.cpp data/shard_pattern.cpp data/input_file.cpp data/reasons.cpp \
      data/utf8_repair.cpp data/sample_source.cpp data/csv.cpp data/png_writer.cpp runtime/file.cpp ;;
    safetensors) echo runtime/safetensors.cpp runtime/file.cpp ;;
    pickle) echo models/pickle.cpp models/state_dict.cpp models/torch_file.cpp models/zip_archive.cpp \
      runtime/safetensors.cpp runtime/file.cpp ;;
    tables) echo data/csv.cpp data/image_folder.cpp data/input_file.cpp data/reasons.cpp data/sample_source.cpp \
      data/shards.cpp data/shard_pattern.cpp data/tar.cpp data/utf8_repair.cpp data/png_writer.cpp models/config.cpp \
      models/presets.cpp models/interchange_config.cpp runtime/file.cpp ;;
    tokenizer) echo data/bpe.cpp data/clip_tokenizer.cpp data/html_entities.cpp data/mojibake.cpp \
      data/mojibake_signs.cpp data/text_cleaning.cpp data/tokenizer.cpp data/unicode.cpp data/word_scanner.cpp \
      data/utf8_repair.cpp runtime/file.cpp ;;
    image) echo data/augment.cpp data/decode_jpeg.cpp data/decode_png.cpp data/decode_webp.cpp data/image.cpp data/jpeg_codes.cpp \
      data/resize.cpp data/resize_passes.cpp ;;
    *) echo "fuzz.sh: unknown target $1" >&2; exit 1 ;;
  esac
}

# A few inputs to start from.
seeds() {
  mkdir -p "$out/corpus/$1"
  [ -z "$(ls -A "$out/corpus/$1")" ] || return 0
  python3 - "$1" "$out/corpus/$1" <<'PYTHON'
import io, json, os, struct, sys, tarfile, zlib
target, folder = sys.argv[1:]
def write(name, data):
    with open(os.path.join(folder, name), "wb") as file:
        file.write(data)
def png(width, height, color, depth, rows):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)) +
            chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
small = png(2, 2, 2, 8, b"\0" + b"\1\2\3" * 2 + b"\0" + b"\4\5\6" * 2)
if target == "tar":
    for name, kind in (("ustar", tarfile.USTAR_FORMAT), ("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
            for member, data in (("a.png", small), ("a.txt", b"caption"), ("a.cls", b"3"), ("a.json", b'{"caption":"c"}'),
                                 ("b" * 40 + "/" + "b" * 80 + ".jpg", b"x"), ("\u00e9.txt", b"y")):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        write(name, out.getvalue()[:8192])
elif target == "safetensors":
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
                         "h": {"dtype": "F16", "shape": [], "data_offsets": [16, 18]}}).encode()
    write("two", struct.pack("<Q", len(header)) + header + bytes(18))
elif target == "pickle":
    data = open("tests/golden/interchange/custom_text.pt", "rb").read()
    write("whole", b"\0" + data)
    start = data.index(b"\x80\x02")
    end = data.index(b"PK\x03\x04", start)
    for first in (1, 2):
        write(f"pickle{first}", bytes([first]) + data[start:end])
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x10tQ"
    write("tensor", b"\2\x80\x02}(X\1\0\0\0w" + rebuild + b"(" + storage + b"K\0K\2K\3\x86K\3K\1\x86\x89}tRu.")
elif target == "tables":
    write("csv", b"\0filepath\ttitle\na.jpg\t\"x\ty\"\n")
    write("list", b"\1a.jpg\tcat\nb.jpg 1\n")
    write("open_clip", b"\2" + open("tests/golden/interchange/model.json", "rb").read())
    write("hf", b"\3" + open("tests/golden/interchange/hugging_face/config.json", "rb").read())
elif target == "tokenizer":
    for i, text in enumerate(("a photo of a cat", "It's 2024 &amp; <b>caf\u00c3\u00a9</b> \u2019", "\u65e5\u672c \U0001f600 e\u0301")):
        write(str(i), text.encode())
elif target == "image":
    write("png", b"\0" + small)
    write("grey", b"\1" + png(3, 1, 0, 16, b"\0" + bytes(6)))
    golden = open("tests/golden/images.bin", "rb").read()
    count = 0
    for magic in (b"\xff\xd8\xff", b"\x89PNG", b"RIFF"):
        at = 0
        while count % 40 < 39:
            at = golden.find(magic, at)
            if at < 0:
                break
            write(f"golden{count}", b"\0" + golden[at:at + 6000])
            count += 1
            at += 100
        count += 1
PYTHON
}

libraries="-ljpeg -lpng -lz -lutf8proc"
webp=""
if echo '#include <webp/decode.h>' | "$compiler" -x c++ -fsyntax-only - 2>/dev/null; then
  webp=-DSWITCHBACK_WEBP
  libraries="$libraries -lwebp"
fi
for target in $targets; do
  files=$(sources "$target")
  program=$out/fuzz_$target
  # shellcheck disable=SC2086
  if [ ! -x "$program" ] || [ -n "$(find $files "tests/fuzz/fuzz_$target.cpp" tests/fuzz/fuzz.h -newer "$program")" ]; then
    "$compiler" -std=c++20 -g -O1 -I. $webp -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
      "tests/fuzz/fuzz_$target.cpp" $files -o "$program" $libraries
  fi
  seeds "$target"
  echo "== $target: $seconds s"
  "$program" "$out/corpus/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=65536 \
    -artifact_prefix="$out/findings/$target-" -print_final_stats=1 >"$out/$target.log" 2>&1 ||
    { tail -n 30 "$out/$target.log"; echo "fuzz.sh: $target has a finding, see $out/findings" >&2; exit 1; }
  grep -E "stat::(number_of_executed_units|average_exec_per_sec|peak_rss_mb)" "$out/$target.log"
done
