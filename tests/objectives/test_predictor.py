"""The predictor: each hidden constituent has a question of its own, jets do not mix."""

from __future__ import annotations

from dataclasses import replace

import torch
from reference.jets import SIZES, random_batch, randomise, tiny_encoder

from jetssl_cli.batch import Packing
from jetssl_cli.objectives.predictor import MASK_TOKENS, Predictor


def setup(sizes, hidden):
    batch = random_batch(sizes)
    encoded = tiny_encoder()(batch)
    predictor = randomise(Predictor(encoder_width=16, width=8, depth=2, heads=2))
    return predictor, encoded, Packing.of(torch.tensor(hidden, dtype=torch.int64))


def test_a_jet_alone_gives_the_same_vectors():
    hidden = [2, 1, 0, 5, 3, 0, 1, 2, 4]
    predictor, encoded, packing = setup(SIZES, hidden)
    together = predictor(encoded, packing)[: packing.total].split(hidden)
    parts = encoded.tokens.split(encoded.packing.sizes.tolist())
    for tokens, number, wanted in zip(parts, hidden, together, strict=True):
        alone = Packing.of(torch.tensor([len(tokens)]))
        found = predictor(
            replace(encoded, rows=alone.pad(tokens), packing=alone),
            Packing.of(torch.tensor([number])),
        )
        torch.testing.assert_close(found[:number], wanted)


def test_hidden_constituents_of_a_jet_get_different_vectors():
    predictor, encoded, packing = setup([4], [6])
    assert torch.pdist(predictor(encoded, packing)).min() > 1e-3


def test_more_hidden_constituents_than_mask_tokens_share_the_last():
    predictor, encoded, packing = setup([2], [MASK_TOKENS + 2])
    vectors = predictor(encoded, packing)[: packing.total]
    torch.testing.assert_close(vectors[-1], vectors[MASK_TOKENS - 1])
