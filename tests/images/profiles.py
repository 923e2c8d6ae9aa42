"""Write small ICC profiles (ICC.1:2010)."""

import struct

import numpy as np

ADOBE_RGB = ([0.60974, 0.31111, 0.01947], [0.20528, 0.62567, 0.06087], [0.14919, 0.06322, 0.74457])
DISPLAY_P3 = ([0.51512, 0.24120, -0.00105], [0.29198, 0.69225, 0.04189], [0.15710, 0.06657, 0.78407])
SRGB = ([0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.71410])
"""XYZ of red, green and blue, adapted to D50."""
D50 = (0.9642, 1.0, 0.8249)


def rgb_profile(primaries: tuple[list[float], ...], gamma: float | None = None) -> bytes:
    """A profile with a power curve, or sRGB's curve if `gamma` is None."""
    curve = _gamma(gamma) if gamma else _srgb_curve()
    colours = {f"{name}XYZ": _xyz(xyz) for name, xyz in zip("rgb", primaries, strict=True)}
    curves = {f"{name}TRC": curve for name in "rgb"}
    return profile(b"RGB ", b"XYZ ", {"wtpt": _xyz(D50), **colours, **curves})


def grey_profile(gamma: float) -> bytes:
    return profile(b"GRAY", b"XYZ ", {"wtpt": _xyz(D50), "kTRC": _gamma(gamma)})


def cmyk_profile() -> bytes:
    """One whose ink is grey: lightness falls with the sum of the inks."""
    inks = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), -1).reshape(-1, 4)
    lightness = np.rint(255 * (1 - inks.mean(1)))
    nodes = np.stack([lightness, np.full(16, 128), np.full(16, 128)], -1).astype(np.uint8)
    ramp = bytes(range(256))
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + nodes.tobytes() + ramp * 3
    return profile(b"CMYK", b"Lab ", {"wtpt": _xyz(D50), "A2B0": table})


def profile(space: bytes, connection: bytes, tags: dict[str, bytes]) -> bytes:
    tags = {"desc": b"desc" + bytes(4) + struct.pack(">I", 2) + b"t\0" + bytes(79), **tags}
    at = 128 + 4 + 12 * len(tags)
    index = struct.pack(">I", len(tags))
    body = b""
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        index += name.encode() + struct.pack(">II", at + len(body), len(value))
        body += value
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    head = struct.pack(">I4sI4s4s4s", at + len(body), bytes(4), 0x02400000, kind, space, connection)
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", *(round(v * 65536) for v in D50))
    return head.ljust(128, b"\0") + index + body


def _xyz(values: list[float] | tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


def _gamma(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def _srgb_curve() -> bytes:
    x = np.linspace(0, 1, 1024)
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return b"curv" + bytes(4) + struct.pack(">I", 1024) + np.rint(linear * 65535).astype(">u2").tobytes()
