"""Small files of media that say, or are, far more than they should: they are refused, or read in little memory."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

av = pytest.importorskip("av")
soundfile = pytest.importorskip("soundfile")
LEAST, MOST = 64, 400
"""MiB that a file may take, and that a minute at 384 kHz may, which is 88 MiB of one channel before it is resampled."""
READ = """
import json, resource, sys
from pathlib import Path
import scipy.signal
from cggm_ray.core.errors import one_line
from cggm_ray.data.datasets.table.audio import waveform
from cggm_ray.data.datasets.table.video import frames
from cggm_ray.data.formats.untrusted import image_memory, open_image

def picture(path):
    with open_image(path) as opened, image_memory(opened):
        opened.load()

readers = {"sound": lambda path: waveform(path, 600.0), "film": lambda path: frames(path, 4, 16), "picture": picture}
for line in sys.stdin:
    kind, path = json.loads(line)
    before, said = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, ""
    try:
        readers[kind](Path(path))
    except Exception as error:
        said = one_line(f"{type(error).__name__}: {error}")
    print(json.dumps([said, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024]))
"""


def silence(seconds: int) -> Callable[[Path], object]:
    """Eight channels at 384 kHz: 12 MB a second in memory, and 3 KB in the file."""

    def write(path: Path) -> None:
        with soundfile.SoundFile(path, "w", 384_000, 8, format="FLAC", subtype="PCM_16") as file:
            second = np.zeros((384_000, 8), np.int16)
            for _ in range(seconds):
                file.write(second)

    return write


def claiming(path: Path) -> None:
    """A FLAC whose head says 2^36 samples, 50 days."""
    soundfile.write(path, np.zeros(1000), 16_000, format="FLAC")
    content = bytearray(path.read_bytes())
    content[18:26] = (int.from_bytes(content[18:26], "big") | (2**36 - 1)).to_bytes(8, "big")
    path.write_bytes(content)


def riff(path: Path) -> None:
    """A WAV whose head says 4 GB of sound."""
    soundfile.write(path, np.zeros(1000), 16_000, format="WAV")
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = struct.pack("<I", 2**32 - 1)
    path.write_bytes(content)


def film(sides: Sequence[int]) -> Callable[[Path], object]:
    """Motion JPEG in a file whose head says 32 x 32; the frames have these sides."""

    def write(path: Path) -> None:
        with av.open(str(path), "w", format="avi") as container:
            stream = container.add_stream("mjpeg", rate=10)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
            for place, side in enumerate(sides):
                packed = io.BytesIO()
                Image.new("L", (side, side)).save(packed, "JPEG", quality=1)
                packet = av.Packet(packed.getvalue())
                packet.stream, packet.time_base = stream, Fraction(1, 10)
                packet.pts = packet.dts = place
                container.mux(packet)

    return write


def mp4(path: Path) -> None:
    """A film whose head says 60,000 x 60,000 pixels."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    place = content.index(b"mp4v") + 28
    assert content[place : place + 4] == struct.pack(">HH", 32, 32)
    content[place : place + 4] = struct.pack(">HH", 60_000, 60_000)
    path.write_bytes(content)


def webp(path: Path) -> None:
    """A canvas of 16,383 x 16,383 pixels around a picture of 4 x 4."""
    packed = io.BytesIO()
    Image.new("RGB", (4, 4)).save(packed, "WEBP", lossless=True)
    size = (16_382).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + size + packed.getvalue()[12:]
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)


def png(path: Path) -> None:
    """A head that says 2^31 - 1 pixels along both sides."""
    Image.new("L", (4, 4)).save(path, "PNG")
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def comment(path: Path) -> None:
    """A text of 512 MB of zeros, compressed, in a PNG of four pixels."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(2**20)) for _ in range(512)) + packer.flush()
    Image.new("L", (2, 2)).save(path, "PNG")
    content = path.read_bytes()
    chunk = b"zTXtx\0\0" + packed
    made = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(content[:33] + made + content[33:])


# A peak hides smaller ones after it, so the file that may take most is the last but one.
BOMBS: dict[str, tuple[str, str, Callable[[Path], object], str]] = {
    "half a second of sound": ("sound", "good.flac", lambda path: soundfile.write(path, np.zeros(8000), 16_000), ""),
    "three small frames": ("film", "good.avi", film([32, 32, 32]), ""),
    "FLAC that says 50 days": ("sound", "days.flac", claiming, "Error"),
    "WAV that says 4 GB": ("sound", "long.wav", riff, ""),
    "a frame that is larger than the head says": ("film", "grow.avi", film([32, 12_000, 32]), "Error"),
    "a film that says 60,000 pixels": ("film", "wide.mp4", mp4, ""),
    "WebP with a large canvas": ("picture", "canvas.webp", webp, "pixels"),
    "PNG that says 2^62 pixels": ("picture", "wide.png", png, "pixels"),
    "PNG with a text of 512 MB": ("picture", "text.png", comment, "Error"),
    "a minute that is long": ("sound", "minute.flac", silence(60), ""),
    "minutes that are too long": ("sound", "minutes.flac", silence(200), "--audio_seconds reads less"),
}


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, float]]:
    """What a process of its own says about every file, and the MiB by which its peak of memory grew."""
    folder = tmp_path_factory.mktemp("bombs")
    lines = []
    for kind, name, write, _ in BOMBS.values():
        write(folder / name)
        assert (folder / name).stat().st_size < 4 * 2**20
        lines.append(json.dumps([kind, str(folder / name)]))
    done = subprocess.run(
        [sys.executable, "-c", READ], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {case: (said, grown) for case, (said, grown) in zip(BOMBS, found, strict=True)}


@pytest.mark.parametrize("case", BOMBS)
def test_small_files_take_little_memory(read: dict[str, tuple[str, float]], case: str) -> None:
    said, grown = read[case]
    expected = BOMBS[case][3]
    assert expected in said
    assert bool(said) == bool(expected)
    assert grown < (MOST if case == "a minute that is long" else LEAST)
