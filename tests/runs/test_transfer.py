"""A backbone on other columns: what it knows stays, what it lacks or does not know is nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference.jets import SIZES, random_batch, random_scaling, schema, tiny_config, tiny_encoder

from jetssl_cli.data.recipe import load_recipe, schema_of
from jetssl_cli.data.scaling import Scaling
from jetssl_cli.data.schema import Feature, Schema
from jetssl_cli.encoder.encoder import Encoder
from jetssl_cli.errors import RunError
from jetssl_cli.runs.transfer import Transfer, adapted, transfer

KNOWN = schema()
RUN = Path("runs/ssfm")
ROUNDED = {"rtol": 1e-4, "atol": 1e-4}
"""Sums over other columns are rounded otherwise, and on each CPU in its own way."""


def rebuilt(encoder: Encoder, new: Schema, fitted: Scaling | None = None) -> Encoder:
    """The encoder for data of another schema."""
    target = tiny_config().build(
        Scaling.unfitted(new), len(new.constituents), len(new.ids), len(new.jets)
    )
    target.load_state_dict(adapted(encoder.state_dict(), Transfer(new, KNOWN), fitted))
    return target


def with_features(constituents, jets):
    return KNOWN.model_copy(update={"constituents": tuple(constituents), "jets": tuple(jets)})


def columns(batch, constituents, jets):
    return replace(batch, features=batch.features[:, constituents], jets=batch.jets[:, jets])


def test_columns_go_by_name():
    """In another order they mean the same."""
    encoder, batch = tiny_encoder(), random_batch(SIZES)
    order, of_jets = [3, 0, 6, 2, 1, 5, 4], [4, 2, 0, 1, 3]
    new = with_features((KNOWN.constituents[i] for i in order), (KNOWN.jets[i] for i in of_jets))
    found = rebuilt(encoder, new)(columns(batch, order, of_jets))
    torch.testing.assert_close(found.tokens, encoder(batch).tokens, **ROUNDED)


def test_a_missing_feature_is_one_in_the_middle():
    encoder, batch = tiny_encoder(), random_batch(SIZES)
    kept, of_jets = [0, 1, 2, 4, 6], [0, 3, 4]
    new = with_features((KNOWN.constituents[i] for i in kept), (KNOWN.jets[i] for i in of_jets))
    found = rebuilt(encoder, new)(columns(batch, kept, of_jets))
    scaled = encoder.scale(batch)
    scaled.features[:, [3, 5]] = 0
    scaled.jets[:, [1, 2]] = 0
    torch.testing.assert_close(found.tokens, encoder.encode(scaled).tokens, **ROUNDED)
    assert Transfer(new, KNOWN).missing == ["d0", "dz", "jet_eta", "jet_phi"]
    assert not Transfer(new, KNOWN).unknown


def test_an_unknown_feature_has_no_weight_but_a_gradient():
    encoder, batch = tiny_encoder(), random_batch(SIZES)
    extra = Feature(name="charge", unit="1")
    new = with_features((extra, *KNOWN.constituents), (*KNOWN.jets, extra))
    fitted = Scaling(new, torch.randn(8, 500).sort(1)[0], torch.randn(6, 500).sort(1)[0])
    target = rebuilt(encoder, new, fitted)
    more = replace(
        batch,
        features=torch.cat([torch.randn(len(batch.features), 1), batch.features], 1),
        jets=torch.cat([batch.jets, torch.randn(len(batch.jets), 1)], 1),
    )
    found = target(more)
    torch.testing.assert_close(found.tokens, encoder(batch).tokens, **ROUNDED)
    found.tokens.square().sum().backward()
    assert target.embed[0].weight.grad[:, 0].abs().max() > 0
    assert torch.equal(target.scaling.constituents.quantiles[0], fitted.constituents.quantiles[0])
    assert torch.equal(
        target.scaling.constituents.quantiles[1], encoder.scaling.constituents.quantiles[0]
    )
    assert Transfer(new, KNOWN).unknown == ["charge", "charge"]


def test_without_particle_classes_all_are_charged_hadrons():
    """Half way between the two charges."""
    encoder, batch = tiny_encoder(), random_batch(SIZES)
    new = KNOWN.model_copy(update={"ids": (), "neutral_ids": ()})
    found = rebuilt(encoder, new)(replace(batch, ids=torch.zeros_like(batch.ids)))
    with torch.no_grad():
        encoder.embed_id.weight[1] = encoder.embed_id.weight[[1, 3]].mean(0)
    same = encoder(replace(batch, ids=torch.ones_like(batch.ids)))
    torch.testing.assert_close(found.tokens, same.tokens, **ROUNDED)


def test_particle_classes_that_the_backbone_does_not_know():
    bare = KNOWN.model_copy(update={"ids": (), "neutral_ids": ()})
    cfg = tiny_config()
    encoder = cfg.build(random_scaling(), 7, 0, 5)
    target = cfg.build(Scaling.unfitted(KNOWN), 7, 8, 5)
    target.load_state_dict(adapted(encoder.state_dict(), Transfer(KNOWN, bare)))
    assert target.embed_id.weight.abs().max() == 0


def test_b_tagging_data_fit_a_backbone_of_jetclass():
    btag, reduced = (schema_of(load_recipe(name)) for name in ("btag", "btag_reduced"))
    assert transfer(btag, KNOWN, "b.h5", RUN).told() == (
        "missing: jet_sdmass; unknown to the backbone: jet_mass"
    )
    assert transfer(reduced, KNOWN, "b.h5", RUN).told() == (
        "missing: d0_err, dz_err, jet_sdmass; unknown to the backbone: jet_mass; "
        "no particle classes: all constituents count as charged hadrons"
    )
    assert transfer(KNOWN, btag, "b.h5", RUN).missing == ["jet_mass"]
    assert not transfer(KNOWN, KNOWN, "b.h5", RUN).told()


def test_columns_that_cannot_be_matched():
    other = [
        feature.model_copy(update={"name": f"{feature.name}2"}) for feature in KNOWN.constituents
    ]
    with pytest.raises(
        RunError, match=r"b\.h5: its constituents are pt2, .*no feature is the same"
    ):
        transfer(with_features(other, KNOWN.jets), KNOWN, "b.h5", RUN)
    mev = KNOWN.jets[0].model_copy(update={"unit": "MeV"})
    with pytest.raises(RunError, match=r"b\.h5: jet_pt is in MeV, runs/ssfm was trained with GeV"):
        transfer(with_features(KNOWN.constituents, (mev,)), KNOWN, "b.h5", RUN)
