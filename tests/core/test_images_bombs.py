"""Pictures that are small as files and huge in memory: one sentence or a small picture, in a process of 2 GB."""

import subprocess
import sys
from pathlib import Path

BOMBS = """
import io, resource, struct, sys, time, zlib
from PIL import Image
from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.images import check_image, decode_image

resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

def png(width, height, *chunks):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\\x89PNG\\r\\n\\x1a\\n" + header + b"".join(chunks) + chunk(b"IEND", b"")

def deep(size):
    packer, zeros = zlib.compressobj(1), bytes(1 << 20)
    return b"".join(packer.compress(zeros) for _ in range(size >> 20)) + packer.flush()

def frames(kind, count, size=(64, 64), **more):
    colours = [Image.new("RGB", size, (i % 256, i // 256, 0)) for i in range(count)]
    sink = io.BytesIO()
    colours[0].save(sink, kind, save_all=True, append_images=colours[1:], **more)
    return sink.getvalue()

def riff(*parts):
    body = b"WEBP" + b"".join(k + struct.pack("<I", len(d)) + d + bytes(len(d) % 2) for k, d in parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body

def webp_header(side):
    return struct.pack("<I", 2) + (side - 1).to_bytes(3, "little") * 2

def tiff_loop():
    entries = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 64)]
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\\0" + struct.pack("<I", 8) + table + struct.pack("<I", 8)

filled = deep(1 << 28)
frame = bytes(16)
small = chunk(b"IDAT", zlib.compress(bytes((3 * 8 + 1) * 8)))
still = io.BytesIO()
Image.new("RGB", (64, 64)).save(still, "WEBP")
bombs = {
    "huge header": png(60_000, 60_000, chunk(b"IDAT", deep(1 << 24))),
    "thin and long": png(1, 2_000_000_000, chunk(b"IDAT", b"")),
    "deep pixels": png(8, 8, chunk(b"IDAT", filled)),
    "deep text": png(8, 8, chunk(b"zTXt", b"a\\0\\0" + filled), small),
    "deep unicode text": png(8, 8, chunk(b"iTXt", b"a\\0\\1\\0\\0\\0" + filled), small),
    "deep profile": png(8, 8, chunk(b"iCCP", b"a\\0\\0" + filled), small),
    "long animated GIF": frames("GIF", 400),
    "long animated PNG": frames("PNG", 400),
    "animated WebP": frames("WEBP", 60),
    "giant WebP": riff((b"VP8X", webp_header(16_384)), (b"ANIM", bytes(6)), (b"ANMF", frame + still.getvalue()[12:])),
    "giant BMP": b"BM" + struct.pack("<IHHIIiiHHIIIIII", 54, 0, 0, 54, 40, 90_000, 90_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "giant PPM": b"P6\\n90000 90000\\n255\\n",
    "pages in a circle": tiff_loop(),
}
for name, data in bombs.items():
    begun, told = time.process_time(), "read"
    for look in (check_image, decode_image):
        try:
            picture = look(data, "it")
        except SourceError as error:
            assert str(error).startswith("it: ") and len(str(error)) < 300, error
            told = "refused"
        else:
            assert picture is None or picture.width * picture.height <= 4096, name
    spent = time.process_time() - begun
    assert spent < 20, (name, spent)
    assert len(data) < 4_000_000, (name, len(data))
    print(f"{name}: {told}", flush=True)
with open("/proc/self/status") as status:  # ru_maxrss begins at what the process that started this one had
    [peak] = [int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM")]
assert 10 < peak < 1200, peak
"""
REFUSED = ("huge header", "thin and long", "giant WebP", "giant BMP", "giant PPM", "deep text", "deep unicode text")


def test_bombs_are_one_sentence_or_a_small_picture() -> None:
    """A signal, a hang or more memory than that would be a failure."""
    ended = subprocess.run([sys.executable, "-c", BOMBS], capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, (ended.returncode, ended.stdout, ended.stderr[-2000:])
    told = dict(line.split(": ") for line in ended.stdout.splitlines())
    assert len(told) == 13
    assert {name for name in REFUSED if told[name] != "refused"} == set(), told


def test_two_modules_alone_look_into_archives() -> None:
    """`models/released.py` and `sources/archives.py`, whose tests have bombs of their own; `exporting` writes tars."""
    import diffaug_datasets

    words = ("import zipfile", "import tarfile", "unpack_archive", "import pickle", "import gzip", "import lzma")
    files = [path for path in Path(diffaug_datasets.__file__).parent.rglob("*.py") if "assets" not in path.parts]
    assert len(files) > 80
    found = [(path.name, word) for path in files for word in words if word in path.read_text("utf-8")]
    assert sorted(found) == [
        ("archives.py", "import tarfile"),
        ("archives.py", "import zipfile"),
        ("exporting.py", "import tarfile"),
        ("released.py", "import zipfile"),
    ]
