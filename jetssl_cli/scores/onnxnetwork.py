"""A classifier in operations that ONNX has, on padded jets in physical units.

The scaling is a part of it: the knot below a value is found by bisection, and the normal quantile
by rational functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from jetssl_cli.batch import JetBatch
from jetssl_cli.data.quantiles import LIMIT, QuantileScaler
from jetssl_cli.data.scaling import Scaling
from jetssl_cli.encoder import dense
from jetssl_cli.encoder.encoder import Encoder
from jetssl_cli.encoder.pool import AttentionPool


class DenseNetwork(nn.Module):
    """Padded jets in physical units to scores and logits, by the modules of a classifier."""

    present: Float[Tensor, "classes F"]

    def __init__(self, encoder: Encoder, head: AttentionPool) -> None:
        super().__init__()
        scaling = encoder.scaling
        assert isinstance(scaling, Scaling)
        self.encoder, self.head = encoder, head
        self.scale_constituents = IndexedScaler(scaling.constituents)
        self.scale_jets = IndexedScaler(scaling.jets)
        self.register_buffer("present", (~scaling.absent).float())

    def forward(
        self,
        constituents: Float[Tensor, "J N F"],
        mask: Bool[Tensor, "J N"],
        jets: Float[Tensor, "J G"],
        ids: Int[Tensor, "J N"] | None = None,
    ) -> tuple[Float[Tensor, "J C"], Float[Tensor, "J C"]]:
        """Scores and logits of each jet."""
        ids = mask.long() * 0 if ids is None else ids * mask
        features = self.scale_constituents(constituents.masked_fill(~mask[..., None], 0))
        features = features * self.present[ids]
        tokens, real = dense.encode(self.encoder, features, ids, mask, self.scale_jets(jets))
        logits = dense.pool(self.head, tokens, real)
        return logits.softmax(-1), logits


class IndexedScaler(nn.Module):
    """What a scaler computes, by indexing and arithmetic alone."""

    knots: Float[Tensor, " F_times_M"]
    offsets: Float[Tensor, " F_times_M"]
    slopes: Float[Tensor, " F_times_M"]
    columns: Int[Tensor, " F"]

    def __init__(self, scaler: QuantileScaler) -> None:
        super().__init__()
        count = scaler.knots.shape[1]
        self.steps = (count - 1).bit_length()
        more = 2**self.steps - count
        for name, beyond in (("knots", torch.inf), ("offsets", 0.0), ("slopes", 0.0)):
            table = nn.functional.pad(getattr(scaler, name), (0, more), value=beyond)
            self.register_buffer(name, table.flatten())
        self.register_buffer("columns", torch.arange(len(scaler.knots)) * 2**self.steps)

    def forward(self, values: Float[Tensor, "*rows F"]) -> Float[Tensor, "*rows F"]:
        """Scale physical values."""
        line = torch.zeros_like(values, dtype=torch.int64) + self.columns
        for power in reversed(range(self.steps)):
            line = line + (self.knots[line + 2**power] <= values) * 2**power
        share = self.offsets[line] + self.slopes[line] * values.double()
        return normal_quantile(share).clamp(-LIMIT, LIMIT).to(values.dtype)


# fmt: off
_CENTRAL = (
    (3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125,
     45921.953931549871457, 67265.770927008700853, 33430.575583588128105, 2509.0809287301226727),
    (1.0, 42.313330701600911252, 687.18700749205790830, 5394.1960214247511077,
     21213.794301586595867, 39307.895800092710610, 28729.085735721942674, 5226.4952788528545610),
)
_MIDDLE = (
    (1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550,
     3.64784832476320460504, 1.27045825245236838258, 0.241780725177450611770,
     0.0227238449892691845833, 7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187, 1.67638483018380384940, 0.689767334985100004550,
     0.148103976427480074590, 0.0151986665636164571966, 5.47593808499534494600e-4,
     1.05075007164441684324e-9),
)
_TAIL = (
    (6.65790464350110377720, 5.46378491116411436990, 1.78482653991729133580,
     0.296560571828504891230, 0.0265321895265761230930, 0.00124266094738807843860,
     2.71155556874348757815e-5, 2.01033439929228813265e-7),
    (1.0, 0.599832206555887937690, 0.136929880922735805310, 0.0148753612908506148525,
     7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7,
     2.04426310338993978564e-15),
)
# fmt: on


def normal_quantile(share: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    """sqrt(2) erfinv(share), to 16 digits; Wichura, Applied Statistics 37 (1988) 477, AS 241."""
    half = share / 2
    central = half * _ratio(_CENTRAL, 0.180625 - half.square())
    r = ((1 - share.abs()) / 2).log().neg().sqrt()
    tail = torch.where(r <= 5, _ratio(_MIDDLE, r - 1.6), _ratio(_TAIL, r - 5))
    return torch.where(half.abs() <= 0.425, central, torch.where(half < 0, -tail, tail))


def _ratio(coefficients: tuple[Sequence[float], Sequence[float]], x: Tensor) -> Tensor:
    powers = x[..., None] ** torch.arange(len(coefficients[0]), dtype=x.dtype, device=x.device)
    above, below = (powers @ torch.tensor(coefficients, dtype=x.dtype).T).unbind(-1)
    return above / below


def padded(batch: JetBatch, length: int) -> dict[str, Tensor]:
    """The jets of a batch, padded with zeros to a length, by the names of the inputs."""
    mask, lay = dense.boxes(batch.packing, length)
    return {
        "constituents": lay(batch.features),
        "mask": mask,
        "jets": batch.jets,
        "ids": lay(batch.ids),
    }
