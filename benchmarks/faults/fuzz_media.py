"""Sound, video and pictures for `fuzz.py`: small whole files, and files whose chunks or boxes are damaged as such.

A WAV, AIFF or AVI file is made of chunks, an MP4 file of boxes; each begins with its size and its kind. A wrong size leads a
reader to another place than a flipped bit does, so these are changed one by one: sizes, kinds, order, and the numbers inside.
"""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import soundfile
from fuzz_seeds import Seed, into
from PIL import Image

SIDE, RATE = 16, 8000
NUMBERS = (0, 1, 2, 7, 8, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**24, 2**31 - 1, 2**31, 2**32 - 8, 2**32 - 1)
SOUNDS = (
    *(("WAV", kind) for kind in ("PCM_16", "PCM_24", "FLOAT", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610")),
    *(("FLAC", kind) for kind in ("PCM_16", "PCM_24")),
    *(("OGG", kind) for kind in ("VORBIS", "OPUS")),
    *(("AIFF", "PCM_16"), ("WAVEX", "DOUBLE"), ("MP3", "MPEG_LAYER_III")),
)
"""Formats and encodings that the reader of sound takes and soundfile writes."""
VIDEOS = (
    *(("mp4", "mpeg4", "aac"), ("mp4", "libx264", None), ("matroska", "libvpx", "libopus"), ("matroska", "ffv1", None)),
    *(("avi", "mpeg4", "mp3"), ("avi", "mjpeg", "pcm_s16le"), ("avi", "huffyuv", None), ("flv", "flv", "aac")),
)
"""Containers with codecs of pictures and sound; None for a video without sound."""
INSIDE = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta", b"meta", b"RIFF", b"LIST", b"FORM")
"""Boxes and chunks that hold others."""


def media_seeds() -> list[Seed]:
    """Whole files, each for the reader of tables and for that of clips."""
    seeds = []
    for form, kind in SOUNDS:
        content = sound(form, kind)
        seeds += [Seed("audio", role, "", content) for role in ("table sound", "clip sound")]
    for container, picture, audio in VIDEOS:
        content = video(container, picture, audio)
        seeds += [Seed("video", role, "", content) for role in ("table video", "clip video")]
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        content = into(lambda file, f=form: Image.fromarray(_pictures(1)[0]).save(file, f))
        seeds += [Seed("picture", role, "", content) for role in ("table picture", "clip picture")]
    wide = into(lambda file: Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16)).save(file, "TIFF"))
    turned = Image.Exif()
    turned[0x0112] = 6
    exif = into(lambda file: Image.fromarray(_pictures(1)[0]).save(file, "JPEG", exif=turned))
    return [*seeds, *(Seed("picture", "table picture", "", content) for content in (wide, exif))]


def sound(form: str, kind: str) -> bytes:
    """Returns a twentieth of a second of a tone, with one or two channels."""
    wave = 0.3 * np.sin(np.arange(RATE // 20) / 3)
    if form in ("FLAC", "AIFF"):
        wave = np.stack([wave, -wave], 1)
    rate = 48_000 if kind == "OPUS" else RATE
    return into(lambda file: soundfile.write(file, wave, rate, format=form, subtype=kind))


def video(container: str, picture: str, audio: str | None) -> bytes:
    """Returns three frames of 16 x 16 pixels, with a tenth of a second of sound or without."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as made:
        stream: Any = made.add_stream(picture, rate=30)
        stream.width = stream.height = 32 if picture in ("libx264", "libvpx") else SIDE
        stream.pix_fmt = {"mjpeg": "yuvj420p", "huffyuv": "yuv422p"}.get(picture, "yuv420p")
        rate = 48_000 if audio == "libopus" else 16_000
        speech: Any = None if audio is None else made.add_stream(audio, rate=rate, layout="mono")
        for pixels in _pictures(3):
            made.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        made.mux(stream.encode())
        if speech is not None:
            wave = (0.3 * np.sin(np.arange(rate // 10) / 3)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
            frame.sample_rate = rate
            for one in (frame, None):
                made.mux(speech.encode(one))
    return file.getvalue()


def with_damaged_parts(seeds: list[Seed], draw: random.Random) -> Seed:
    """Returns a file one to three of whose chunks or boxes are damaged; files without any are damaged in their headers."""
    chosen = draw.choice(seeds)
    content = bytearray(chosen.content)
    for _ in range(draw.choice((1, 1, 2, 3))):
        found = list(parts(bytes(content)))
        if found:
            _damage(content, *draw.choice(found), draw)
        else:
            _header(content, draw)
    return Seed(chosen.group, chosen.role, chosen.suffix, bytes(content))


def parts(content: bytes) -> Iterator[tuple[int, int, str]]:
    """Yields start, end and byte order of all chunks of a RIFF or AIFF file, or of all boxes of an MP4 file."""
    if content[:4] in (b"RIFF", b"FORM"):
        yield from _chunks(content, 0, len(content), "<" if content[:4] == b"RIFF" else ">")
    elif content[4:8] == b"ftyp":
        yield from _boxes(content, 0, len(content))


def _chunks(content: bytes, place: int, end: int, order: str) -> Iterator[tuple[int, int, str]]:
    while place + 8 <= end:
        (size,) = struct.unpack_from(f"{order}I", content, place + 4)
        stop = min(end, place + 8 + size + size % 2)
        yield place + 4, stop, order
        if content[place : place + 4] in INSIDE:
            yield from _chunks(content, place + 12, stop, order)
        place = stop


def _boxes(content: bytes, place: int, end: int) -> Iterator[tuple[int, int, str]]:
    while place + 8 <= end:
        (size,) = struct.unpack_from(">I", content, place)
        stop = min(end, place + max(size, 8))
        yield place, stop, ">"
        if content[place + 4 : place + 8] in INSIDE:
            yield from _boxes(content, place + 8, stop)
        place = stop


def _damage(content: bytearray, place: int, end: int, order: str, draw: random.Random) -> None:
    """Damages the part whose size lies at a place."""
    kind = draw.random()
    if kind < 0.25:
        (size,) = struct.unpack_from(f"{order}I", content, place)
        wrong = draw.choice((*NUMBERS, max(0, size - 1), min(2**32 - 1, size + 1), min(2**32 - 1, 2 * size)))
        struct.pack_into(f"{order}I", content, place, wrong)
    elif kind < 0.7 and end > place + 8:
        # A number inside: a count, a rate, an offset, a number of channels or of bits.
        width, form = draw.choice(((1, "B"), (2, "H"), (4, "I")))
        inner = place + 8 + draw.randrange(max(1, min(64, end - place - 8)))
        if inner + width <= len(content):
            struct.pack_into(f"{order}{form}", content, inner, draw.choice(NUMBERS) % 2 ** (8 * width))
    elif kind < 0.8:
        content[place : place + 4] = draw.choice(
            (b"free", b"moov", b"mdat", b"LIST", b"data", b"fmt ", draw.randbytes(4))
        )
    elif kind < 0.9:
        del content[place:end]
    else:
        content[end:end] = content[place:end] * draw.choice((1, 2, 100))


def _header(content: bytearray, draw: random.Random) -> None:
    if len(content) < 8:
        return
    width, form = draw.choice(((1, "B"), (2, "H"), (4, "I")))
    place = draw.randrange(min(200, len(content) - 4))
    struct.pack_into(f"{draw.choice('<>')}{form}", content, place, draw.choice(NUMBERS) % 2 ** (8 * width))


def _pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
