"""What a short pretraining makes of the encoder: signs of collapse, and what a linear probe reads.

    python benchmarks/collapse.py METHOD FOLDER [--size tiny] [--steps 200] [--times 2]
                                                [--fit 6000] [--test 3000] [section.key=value ...]

FOLDER has train.h5 and test.h5, as ``make demo`` leaves them. The method is trained as by ``jetssl
pretrain``, on 100 jets of at most 32 constituents in a step; with ``--steps 0`` the encoder stays
as it begins. Before, and ``--times`` times on the way (half-way and at the end), one JSON object is
printed: the loss (mean of 30 steps), and of ``--test`` jets the method's diagnostics, effective
rank and standard deviation of the exported encoder's jets, and accuracies of logistic regressions
fitted on ``--fit`` training jets, of

    vectors        means of registers and of constituents, standard deviation of constituents
    jet_features   of the data file alone: the scaled values, their products, and steps in each
    both           less that of ``--steps 0``, it is what pretraining adds to the jet features
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from jetssl_cli.batch import JetBatch
from jetssl_cli.config import Layer
from jetssl_cli.data.sample import Sample
from jetssl_cli.data.scaling import fitted_scaling
from jetssl_cli.data.tokenizer import TokenizeConfig, fitted_tokenizer
from jetssl_cli.encoder.encoder import Encoder
from jetssl_cli.objectives.objective import Objective
from jetssl_cli.runs.prepared import read_schema
from jetssl_cli.runs.pretrain import build_encoder, load_config
from jetssl_cli.runs.probe import effective_rank, feature_std, jet_vectors

PENALTIES = (1e-3, 1e-2)
"""Of the squared weights of the regressions; the better one counts."""


def main() -> None:
    """Train, and print what was found."""
    args, overrides = arguments()
    data = {"train": str(args.folder / "train.h5"), "val": str(args.folder / "test.h5")}
    data |= {"batch_size": 100, "max_constituents": 32, "in_memory": True}
    options = Layer("here", {"data": data, "out": "none", "optim": {"lr": 1e-3}})
    cfg = load_config(args.method, args.size, options, overrides=overrides)
    torch.manual_seed(cfg.train.seed)
    scaling = fitted_scaling(Sample(cfg.data.train, max_constituents=cfg.data.max_constituents))
    encoder = build_encoder(cfg.encoder, scaling, read_schema(cfg.data))
    tokens = TokenizeConfig(
        files=cfg.data.train,
        clusters=cfg.objective.clusters or 1,
        max_constituents=cfg.data.max_constituents,
    )
    tokenizer = fitted_tokenizer(tokens, scaling) if cfg.objective.clusters else None
    objective: Objective = cfg.objective.build(encoder, tokenizer)
    read = cfg.data.model_copy(update={"batch_size": 500, "num_val_jets": args.test})
    test = list(read.val_stream())
    read = read.model_copy(update={"val": cfg.data.train, "num_val_jets": args.fit})
    found = [measured(objective, list(read.val_stream()), test) | {"step": 0}]
    print(json.dumps(found[0]), flush=True)

    optimizer = cfg.optim.build(objective)
    batches = iter(cfg.data.endless(cfg.data.train_reader(), cfg.train.seed))
    rng = torch.Generator().manual_seed(cfg.train.seed)
    losses: list[dict[str, float]] = []
    looked_at = {round(args.steps * k / args.times) for k in range(1, args.times + 1)}
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = cfg.optim.lr * cfg.optim.factor(step, args.steps)
        optimizer.zero_grad()
        terms = objective.loss(next(batches), rng)
        torch.stack(list(terms.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), cfg.optim.clip_norm)
        optimizer.step()
        objective.after_step((step + 1) / args.steps)
        losses.append({name: term.item() for name, term in terms.items()})
        if step + 1 in looked_at:
            line = measured(objective, list(read.val_stream()), test) | {"step": step + 1}
            line["loss"] = {key: mean(row[key] for row in losses[-30:]) for key in losses[0]}
            print(json.dumps(line), flush=True)


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """Options, and settings as ``section.key=value``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--fit", type=int, default=6000)
    parser.add_argument("--test", type=int, default=3000)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_intermixed_args()
    return args, args.overrides


def measured(
    objective: Objective, train: list[JetBatch], test: list[JetBatch]
) -> dict[str, object]:
    """Diagnostics, signs of collapse and accuracies."""
    objective.eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for batch in test:
            objective.loss(batch, rng)
    diagnostics = objective.diagnostics()
    objective.train()
    encoder = objective.exported()
    vectors, _, features, labels = described(encoder, train)
    test_vectors, test_jets, test_features, test_labels = described(encoder, test)
    inputs = {
        "vectors": (vectors, test_vectors),
        "jet_features": (features, test_features),
        "both": (torch.cat([vectors, features], 1), torch.cat([test_vectors, test_features], 1)),
    }
    return {
        "diagnostics": diagnostics,
        "effective_rank": effective_rank(test_jets),
        "feature_std": feature_std(test_jets),
        "accuracy": {
            name: max(accuracy(*pair, labels, test_labels, penalty) for penalty in PENALTIES)
            for name, pair in inputs.items()
        },
    }


@torch.no_grad()
def described(encoder: Encoder, batches: list[JetBatch]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the regressions read, the mean vectors of the jets, their features and labels."""
    rows = []
    for batch in batches:
        encoded, jets = encoder(batch), encoder.scale(batch).jets
        owner, count = batch.packing.owner, batch.packing.sizes[:, None].clamp_min(1)
        nothing = torch.zeros(batch.packing.num_jets, encoder.width)
        all_tokens = nothing.index_add(0, encoded.packing.owner, encoded.tokens)
        constituents = nothing.index_add(0, owner, encoded.constituents)
        squares = nothing.index_add(0, owner, encoded.constituents.square())
        registers = (all_tokens - constituents) / max(encoder.cfg.registers, 1)
        spread = (squares / count - (constituents / count).square()).clamp_min(0).sqrt()
        products = [jets[:, [k]] * jets[:, k:] for k in range(jets.shape[1])]
        levels = torch.linspace(-2.5, 2.5, 21)
        above = [(jets[:, [k]] > levels).float() for k in range(jets.shape[1])]
        vectors = torch.cat([registers, constituents / count, spread], 1)
        features = torch.cat([jets, *products, *above], 1)
        rows.append((vectors, jet_vectors(encoded), features, batch.labels))
    vectors, means, features, labels = (torch.cat(column) for column in zip(*rows, strict=True))
    return vectors, means, features, labels


def accuracy(
    x: Tensor, other: Tensor, labels: Tensor, other_labels: Tensor, penalty: float
) -> float:
    """Of a logistic regression fitted on ``x``, on ``other``."""
    centre, scale = x.mean(0), x.std(0) + 1e-6
    x, other = (x - centre) / scale, (other - centre) / scale
    weight = torch.zeros(x.shape[1], int(labels.max()) + 1, requires_grad=True)
    bias = torch.zeros(weight.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(x @ weight + bias, labels) + penalty * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return mean(((other @ weight + bias).argmax(1) == other_labels).tolist())


def mean(values: Iterable[float]) -> float:
    """The mean, to four digits."""
    numbers = list(values)
    return round(sum(numbers) / len(numbers), 4)


if __name__ == "__main__":
    main()
