"""How an input is changed: valid files with a few things wrong find more than random bytes.

All take the content, a generator of random numbers and whether the content is a valid input, and
return other content.
"""

from __future__ import annotations

import io
import json
import struct
from contextlib import suppress
from random import Random
from typing import Any

import h5py
import numpy as np
import torch
from safetensors.torch import load, save

from jetssl_cli.data.hdf5 import LAYOUT
from jetssl_cli.runs import snapshot

NUMBERS = (0, 1, -1, 2, 127, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1)
TEXTS = (
    "", "~", "0", "-1", "1e400", ".nan", ".inf", "-.inf", "true", "off", "0x" + "f" * 5000,
    "9" * 5000, "1:60:60", "2020-02-30", "2020-01-01T00:00:00+99:99", "[]", "{}", "[1, 2]",
    "{a: b}", "&a [*a]", "&a {x: *a}", "*a", "<<: 1", "<<: [1]", "<<: {name: gpt}", "? [a]",
    "!!int ''",
    "!!int x", "!!float ''", "!!bool x", "!!timestamp x", "!!binary x", "!!binary AAAA",
    "!!set {a}",
    "!!omap [a]", "!!pairs [{a: b}]", "!!null x", "!!str 3", "!!map []", "!!seq {}",
    "!!python/name:os",
    "!local x", '"\\ud800"', '"\\0"', '"a\\nb"', '"\\e[31m"', "|\n  a\n  b", "- a", "%YAML 9.9",
    "%TAG ! !", "--- a", "...", "'", '"', "[" * 3000, "{a: " * 900, "- " * 1500, "# x", "a: b: c",
    "\t",
    "name: dino", "name: jet", "ssfm", "supervised", "../x", "/", "\0", "\x85", "\ufeff",
    "\U0001f600",
    "1h", "99999999999999999999d", "1e999h", "formula: pt", "inputs: {}", "absent: true",
)  # fmt: skip
BOMB = "&a [x, x, x, x, x, x, x, x, x]"
for _letter, _next in zip("abcdefghijklm", "bcdefghijklmn", strict=True):
    BOMB = f"[{BOMB}, &{_next} [{', '.join([f'*{_letter}'] * 9)}]]"
WORDS = (*TEXTS, BOMB)


def bits(content: bytes, rng: Random) -> bytes:
    """One change that knows nothing of the format."""
    if not content:
        return rng.randbytes(rng.randrange(1, 40))
    size = len(content)
    spoiled = bytearray(content)
    a, b = sorted((rng.randrange(size), rng.randrange(size)))
    length = min(rng.choice((1, 2, 4, 8, 16, 64, 512)), size - a)
    kind = rng.randrange(9)
    if kind <= 1:
        spoiled[a] ^= 1 << rng.randrange(8)
    elif kind == 2:
        spoiled[a] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    elif kind == 3:
        raw = struct.pack(rng.choice("<>") + "q", rng.choice(NUMBERS))
        width = rng.choice((2, 4, 8))
        spoiled[a : a + width] = raw[:width]
    elif kind == 4:
        del spoiled[a:]
    elif kind == 5:
        del spoiled[a : a + length]
    elif kind == 6:
        spoiled[b:b] = spoiled[a : a + length]
    elif kind == 7:
        one, other = spoiled[a : a + length], spoiled[b : b + length]
        spoiled[a : a + len(other)], spoiled[b : b + len(one)] = other, one
    else:
        spoiled[a : a + length] = rng.randbytes(length)
    return bytes(spoiled)


def text(content: bytes, rng: Random, *, valid: bool) -> bytes:  # noqa: ARG001
    """Lines, values and characters of a text."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        content = bits(content, rng) if rng.random() < 0.3 else _line(content, rng)
    return content[:40_000]


def _line(content: bytes, rng: Random) -> bytes:
    lines = content.decode(errors="surrogateescape").split("\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    word = rng.choice(WORDS)
    line = lines[at]
    mark = "=" if "=" in line else ":"
    key, _, value = line.partition(mark)
    kind = rng.randrange(9)
    if kind <= 2:
        lines[at] = f"{key}{mark} {word}" if mark == ":" else f"{key}={word}"
    elif kind == 3:
        lines[at] = f"{word}{mark}{value}"
    elif kind == 4:
        lines[at], lines[other] = lines[other], line
    elif kind == 5:
        lines.insert(other, line)
    elif kind == 6:
        del lines[at]
    elif kind == 7:
        lines[at] = " " * rng.randrange(5) + line.lstrip()
    else:
        place = rng.randrange(len(line) + 1)
        lines[at] = line[:place] + word + line[place:]
    return "\n".join(lines).encode(errors="surrogateescape")


IMPOSSIBLE = (OSError, TypeError, ValueError, RuntimeError, LookupError, ArithmeticError)
"""What HDF5 and numpy say to an edit that cannot be made; then there is none."""


def hdf5(content: bytes, rng: Random, *, valid: bool) -> bytes:
    """Attributes and arrays, edited by HDF5 itself in valid files alone, and bytes."""
    if valid and rng.random() < 0.6:
        with suppress(*IMPOSSIBLE), np.errstate(all="ignore"):
            content = _edited(content, rng)
    if rng.random() < 0.6:
        for _ in range(rng.choice((1, 1, 2, 3, 8))):
            content = bits(content, rng)
    return content


def _edited(content: bytes, rng: Random) -> bytes:
    memory = io.BytesIO(content)
    with h5py.File(memory, "r+", libver=LAYOUT) as file:
        for _ in range(rng.choice((1, 1, 2, 3))):
            if rng.random() < 0.4:
                _attribute(file, rng)
            else:
                _array(file, rng)
    return memory.getvalue()


def _attribute(file: h5py.File, rng: Random) -> None:
    name = rng.choice(sorted(file.attrs))
    value = file.attrs[name]
    if isinstance(value, bytes) and value and rng.random() < 0.5:
        file.attrs[name] = np.bytes_(bits(value, rng))
        return
    del file.attrs[name]
    if rng.random() < 0.85:
        file.attrs[name] = rng.choice(_VALUES)


def _array(file: h5py.File, rng: Random) -> None:
    arrays: list[str] = []

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.size is not None and item.size < 10**6:
            arrays.append(name)

    file.visititems(note)
    name = rng.choice(arrays)
    data = file[name]
    kind = rng.randrange(7)
    if kind == 0:
        place = tuple(rng.randrange(n) for n in data.shape)
        data[place] = rng.choice((0, 1, -1, 3, 100, np.nan, np.inf, 1e30, -(2**31)))
    elif kind == 1:
        data.resize(rng.choice((0, 1, 2, len(data) + 1, 1000, *_LARGE)), axis=0)
    elif kind == 2:
        first = (
            rng.randrange(len(data)) // data.chunks[0] * data.chunks[0],
            *(0,) * (data.ndim - 1),
        )
        data.id.write_direct_chunk(first, bits(data.id.read_direct_chunk(first)[1], rng))
    else:
        shape = data.shape
        values = data[()]
        del file[name]
        if kind == 3:
            _replace(file, name, shape, rng)
        elif kind in (4, 5):
            other = rng.choice(
                ("i1", "u1", "i8", "u8", ">i4", "f2", "f4", "f8", "c8", "bool", "S3")
            )
            with np.errstate(all="ignore"):
                file[name] = values.astype(other)
        else:
            file[name] = rng.choice(
                (values[..., None], values[:0], values[:-1], values.reshape(-1))
            )


def _replace(file: h5py.File, name: str, shape: tuple[int, ...], rng: Random) -> None:
    """Something else in the place of an array."""
    kind = rng.randrange(8)
    if kind == 0:
        file.create_group(name)
    elif kind == 1:
        file[name] = h5py.SoftLink(rng.choice((f"/{name}", "/none", "/")))
    elif kind == 2:
        rows = rng.choice(_LARGE)
        chunks = rng.choice((None, (1000, *shape[1:])))
        file.create_dataset(name, (rows, *shape[1:]), rng.choice(("f4", "i8", "i2")), chunks=chunks)
    elif kind == 3:
        file[name] = rng.choice(_VALUES)
    elif kind == 4:
        file.create_dataset(name, data=[b"a"] * (shape[0] if shape else 1))
    elif kind == 5:
        file[name] = np.zeros(shape, [("a", "f4"), ("b", "i8")])
    elif kind == 6:
        file[name] = h5py.Empty("f4")
    else:
        options = rng.choice(({"fletcher32": True}, {"shuffle": True}, {"scaleoffset": 1}, {}))
        file.create_dataset(name, data=np.zeros(shape, "f4"), chunks=shape or None, **options)


_LARGE = (10**7, 2**31, 2**33, 2**40, 2**50, 2**62)
_TEXTS = (
    "", "x", "[]", "{}", "null", "3", "[3]", '["a"]', '["a", "a"]', '["a\\nb", "c"]',
    '["\\ud800", "b"]', '{"a": 1}', '{"a": "b"}', '{"a": 1e400}', "[" * 5000, "a\nb", "\x1b[31m",
    "9" * 5000, "nan", "1e999", "jetssl-scores", "float16", "float32", "track-origin", "vertex",
    "cwola",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    *(np.bytes_(text.encode()) for text in _TEXTS),
    0, 1, 2, -1, 2**63 - 1, 1.5, np.nan, True, False, np.arange(3), np.zeros((2, 2)), np.zeros(0),
    [b"a", b"b"], np.bytes_(b"\xff\xfe"), h5py.Empty("S1"), 1 + 2j,
    np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]),
)  # fmt: skip


def tensors(content: bytes, rng: Random, *, valid: bool) -> bytes:  # noqa: ARG001
    """The header, the facts and the bytes of a safetensors file."""
    for change in (_header, _facts):
        if rng.random() < 0.5:
            with suppress(Exception):  # content that is no valid file any more
                content = change(content, rng)
    if rng.random() < 0.4:
        for _ in range(rng.choice((1, 1, 2, 3))):
            content = bits(content, rng)
    return content


def _header(content: bytes, rng: Random) -> bytes:
    (size,) = struct.unpack("<Q", content[:8])
    raw, body = content[8 : 8 + size], content[8 + size :]
    if rng.random() < 0.3:
        raw = bits(raw, rng)
    else:
        header = json.loads(raw)
        name = rng.choice(sorted(header))
        key = rng.choice(sorted(header[name]))
        header[name][key] = rng.choice((*_HEADER, *NUMBERS, header[name][key]))
        if rng.random() < 0.3:
            header[rng.choice(("weight", "a\nb", "\x1b[31m", "__metadata__"))] = header.pop(name)
        raw = json.dumps(header).encode()
    length = len(raw) if rng.random() < 0.8 else rng.choice(NUMBERS) % 2**64
    return struct.pack("<Q", length) + raw + body


_HEADER: tuple[Any, ...] = (
    "F64", "F32", "F16", "BF16", "I64", "I8", "U8", "BOOL", "C64", "F8_E4M3", "F8_E5M2",
    "F8_E8M0", "F4",
    "F6_E2M3", "U64", "U16", "", "x", "a\nb", "\x1b[31m", "2", None, [], [0], [-1], [2**62, 4],
    [1, 6],
    [0, 2**62], [0, 24], [[0]], [0, 0], {}, {"a": 1}, 1.5, True,
)  # fmt: skip


def _facts(content: bytes, rng: Random) -> bytes:
    """Other facts or tensors in a snapshot, with the hash that belongs to them."""
    (size,) = struct.unpack("<Q", content[:8])
    said = json.loads(content[8 : 8 + size])["__metadata__"]
    facts = json.loads(said[snapshot.FACTS])
    if rng.random() < 0.3:
        plain = rng.choice(("[]", "3", "null", "{}", "[" * 5000, '"a"', "", '{"version": 1}'))
    else:
        held = facts["reader"] if rng.random() < 0.4 else facts
        key = rng.choice(sorted(held))
        if rng.random() < 0.2:
            del held[key]
        else:
            held[key] = rng.choice((*_HEADER, *NUMBERS, "9" * 5000, 1e308, {"a": "b\nc"}))
        plain = json.dumps(facts)
    found = load(content)
    if rng.random() < 0.3:
        name = rng.choice(sorted(found))
        kind = rng.choice((torch.float8_e4m3fn, torch.bool, torch.complex64, torch.int64))
        found[name] = found[name].to(kind)
    hashed = {snapshot.FACTS: plain, snapshot.HASH: snapshot.content_hash(found, plain)}
    return save(found, metadata=hashed)
