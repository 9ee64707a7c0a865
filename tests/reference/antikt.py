"""Anti-kT clustering (arXiv:0802.1189, (1)) of one jet, in O(n^3), straight from the definition."""

from __future__ import annotations

import math


def anti_kt(pt: list[float], y: list[float], phi: list[float], radius: float) -> list[int]:
    """The subjet of each massless constituent; subjets are numbered in descending pT.

    The two nearest in d_ij = min(1 / kt_i^2, 1 / kt_j^2) DR_ij^2 / R^2 are added as four-momenta
    (E-scheme); where 1 / kt_i^2 is smaller than all of these, i is finished.
    """
    left = [
        ((p * math.cos(f), p * math.sin(f), p * math.sinh(r), p * math.cosh(r)), {i})
        for i, (p, r, f) in enumerate(zip(pt, y, phi, strict=True))
    ]
    finished = []
    while left:
        to_beam = [(1 / kt2(p), i, i) for i, (p, _) in enumerate(left)]
        to_other = [
            (min(1 / kt2(p), 1 / kt2(q)) * distance2(p, q) / radius**2, i, j)
            for i, (p, _) in enumerate(left)
            for j, (q, _) in enumerate(left[:i])
        ]
        _, i, j = min(to_beam + to_other)
        p, members = left.pop(i)
        if i == j:
            finished.append((-kt2(p), members))
        else:
            q, others = left.pop(j)
            left.append((tuple(map(sum, zip(p, q, strict=True))), members | others))
    number = {}
    for index, (_, members) in enumerate(sorted(finished, key=lambda subjet: subjet[0])):
        number |= dict.fromkeys(members, index)
    return [number[i] for i in range(len(pt))]


def kt2(p):
    """Squared transverse momentum."""
    return p[0] ** 2 + p[1] ** 2


def distance2(p, q):
    """Squared distance in rapidity and azimuth."""
    difference = abs(math.atan2(p[1], p[0]) - math.atan2(q[1], q[0]))
    return (rapidity(p) - rapidity(q)) ** 2 + min(difference, 2 * math.pi - difference) ** 2


def rapidity(p):
    """1/2 ln((E + pz) / (E - pz))."""
    return 0.5 * math.log((p[3] + p[2]) / (p[3] - p[2]))
