"""Subjets: the constituents of each jet, clustered anew with a small radius.

Anti-kT (Cacciari, Salam, Soyez, arXiv:0802.1189) with the E-scheme, by FastJet (arXiv:1111.6097;
cite it where subjets are used), which is an optional dependency.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from jetssl_cli.data.schema import Schema
from jetssl_cli.errors import ConfigError, DataError

COLUMNS = ("pt", "deta", "dphi")
"""The first constituent features that a data set needs to have subjets."""


def subjets(
    pt: Float[np.ndarray, " T"],
    deta: Float[np.ndarray, " T"],
    dphi: Float[np.ndarray, " T"],
    sizes: Int[np.ndarray, " J"],
    radius: float,
) -> Int[np.ndarray, " T"]:
    """The subjet of each constituent: its index in the jet, in descending pT of the subjets.

    Constituents are massless. They lie relative to the axis of their jet, so that ``deta`` stands
    for the rapidity: distances are those of the jet itself. A constituent alone is a
    subjet; those of a jet that have no momentum, and so no direction, are one together.

    Args:
        pt: transverse momentum in GeV, not negative.
        deta: pseudorapidity relative to the jet.
        dphi: azimuth relative to the jet in rad.
        sizes: constituents of each jet, which lie end to end; 0 is allowed.
        radius: of the clustering, in (deta, dphi).

    Raises:
        ConfigError: FastJet is not installed.
        DataError: a value is not finite, or a pt is negative.
    """
    fastjet = require_fastjet()
    import awkward as ak

    columns = [np.asarray(column, np.float64) for column in (pt, deta, dphi)]
    _check(columns)
    transverse, y, phi = columns
    px, py = transverse * np.cos(phi), transverse * np.sin(phi)
    momenta = {"px": px, "py": py, "pz": transverse * np.sinh(y), "E": transverse * np.cosh(y)}
    if not len(px):
        return np.zeros(0, np.int64)
    jets = ak.unflatten(ak.zip(momenta, with_name="Momentum4D"), sizes)
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, radius)
    members = fastjet.ClusterSequence(jets, definition).constituent_index(0)
    return _numbered(px, py, ak.to_packed(members), sizes)


def require_fastjet(need: str = "subjets need FastJet", extra: str = "subjets") -> ModuleType:
    """FastJet, told to print no banner: what a command prints is its result.

    Args:
        need: who needs it, as the error message says.
        extra: of this package, which installs it.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import fastjet
    except ModuleNotFoundError:
        raise ConfigError(
            f"{need}, which is not installed: pip install 'jetssl[{extra}]'"
        ) from None
    fastjet._swig.ClusterSequence.set_fastjet_banner_stream(None)
    found: ModuleType = fastjet
    return found


def check_columns(schema: Schema, source: str) -> None:
    """Refuse data whose first constituent features are not pt, deta and dphi.

    Raises:
        DataError: names the source and what it has instead.
    """
    found = tuple(feature.name for feature in schema.constituents[: len(COLUMNS)])
    if found != COLUMNS:
        raise DataError(
            f"{source}: subjets need {', '.join(COLUMNS)} as the first constituent features; "
            f"found {', '.join(found)}"
        )


def _check(columns: list[NDArray[np.float64]]) -> None:
    for name, column in zip(COLUMNS, columns, strict=True):
        wrong = ~np.isfinite(column) | ((name == "pt") & (column < 0))
        if wrong.any():
            where = int(wrong.argmax())
            rule = "finite and not negative" if name == "pt" else "finite"
            raise DataError(f"subjets: {name} = {column[where]} of constituent {where}: not {rule}")


def _numbered(
    px: NDArray[np.float64], py: NDArray[np.float64], members: Any, sizes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """From the constituents of each subjet (J x var x var) to the subjet of each constituent."""
    import awkward as ak

    in_jet = ak.num(members, axis=1).to_numpy()
    in_subjet = ak.flatten(ak.num(members, axis=2), axis=None).to_numpy()
    jet_of = np.repeat(np.arange(len(sizes)), in_jet)
    subjet_of = np.repeat(np.arange(len(in_subjet)), in_subjet)
    starts = np.cumsum(sizes) - sizes
    rows = ak.flatten(members, axis=None).to_numpy() + starts[jet_of[subjet_of]]
    assert len(rows) == len(px), "every constituent belongs to one subjet"

    count = len(in_subjet)
    pt = np.hypot(np.bincount(subjet_of, px[rows], count), np.bincount(subjet_of, py[rows], count))
    first = np.full(count, len(px))
    np.minimum.at(first, subjet_of, rows)
    order = np.lexsort((first, -pt, jet_of))
    number = np.empty(count, np.int64)
    number[order] = np.arange(count) - np.repeat(np.cumsum(in_jet) - in_jet, in_jet)
    result = np.empty(len(px), np.int64)
    result[rows] = number[subjet_of]
    return result
