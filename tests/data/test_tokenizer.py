from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jetssl_cli.data import tokenizer as module
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.sample import Sample
from jetssl_cli.data.scaling import SCALING_JETS, fitted_scaling
from jetssl_cli.data.stream import to_batch
from jetssl_cli.data.tokenizer import TokenizeConfig, Tokenizer, fitted_tokenizer, tokenize
from jetssl_cli.errors import DataError


@given(st.integers(0, 40), st.integers(1, 30), st.integers(0, 2**31))
def test_encode_finds_the_nearest_centre(tokens: int, clusters: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, 7, generator=rng, dtype=torch.float64)
    scaled = torch.randn(tokens, 7, generator=rng, dtype=torch.float64)
    tokenizer = Tokenizer(centres)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DISTANCES_AT_ONCE", 5 * clusters)
        found = tokenizer.encode(scaled)
    distances = (scaled[:, None] - centres).square().sum(dim=2)
    assert torch.equal(found, distances.argmin(dim=1))
    assert torch.equal(tokenizer.decode(found), centres[distances.argmin(dim=1)])
    assert torch.equal(tokenizer.encode(centres), torch.arange(clusters))


def test_of_equal_centres_the_first_is_taken() -> None:
    assert Tokenizer(torch.ones(3, 2)).encode(torch.zeros(2, 2)).tolist() == [0, 0]


@pytest.fixture
def data(tmp_path: Path, jagged: Path) -> Path:
    path = tmp_path / "train.h5"
    path.write_bytes((jagged / "train.h5").read_bytes())
    return path


def test_more_tokens_lose_less_and_are_kept_beside_the_data(data: Path) -> None:
    few, many = (tokenize(TokenizeConfig(files=(data,), clusters=k)) for k in (10, 300))
    assert [error.name for error in few.errors][:2] == ["pt", "deta"]
    for coarse, fine in zip(few.errors, many.errors, strict=True):
        assert fine.mean < min(coarse.mean, fine.spread)
        if coarse.name not in ("d0", "dz"):  # tails of decays in flight: few clusters fit none
            assert fine.p90 < coarse.p90
    assert (few.used, few.clusters) == (10, 10)
    assert many.used > 250
    caches = {path.name.split("-")[0] for path in data.parent.glob(".train.*")}
    assert caches == {".train.scaling", ".train.tokenizer"}


def test_the_user_is_told_what_takes_so_long(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = TokenizeConfig(files=(data,), clusters=5, num_jets=100)
    for told in (True, False):  # the second time the tokens are there
        tokenize(cfg)
        found = capsys.readouterr()
        assert ("note: fitting 5 tokens to " in found.err) is told
        assert "tokenize: 100/100 jets" in found.err
        assert not found.out


def test_errors_are_those_of_a_plain_computation(data: Path) -> None:
    cfg = TokenizeConfig(files=(data,), clusters=50, num_jets=100, max_constituents=30)
    report = tokenize(cfg)
    scaling = fitted_scaling(Sample((data,), max_constituents=30))
    tokenizer = fitted_tokenizer(cfg, scaling)
    with JaggedFile(data) as file:
        jets = file.read(0, 100).first(30)
    scaled = scaling(to_batch(jets)).features
    near = tokenizer.centres[tokenizer.encode(scaled)]
    apart = np.abs(scaling.constituents.inverse(near).numpy() - jets.features)
    charged = ~np.isin(jets.ids, (0, 2))
    assert report.errors[0].mean == pytest.approx(apart[:, 0].mean(), rel=1e-5)
    assert report.errors[3].mean == pytest.approx(apart[charged, 3].mean(), rel=1e-5)
    assert report.errors[3].p90 == pytest.approx(np.quantile(apart[charged, 3], 0.9), rel=1e-5)
    assert report.num_constituents == len(jets.ids)


def test_a_tokenizer_is_fitted_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = []
    fit = module._fit

    def spy(*args: object) -> Tokenizer:
        fits.append(1)
        return fit(*args)

    monkeypatch.setattr(module, "_fit", spy)
    configs = [TokenizeConfig(files=(data,), clusters=k, seed=s) for k, s in ((5, 0), (5, 1))]
    centres = []
    for cfg in (*configs, *configs):
        centres.append(fitted_tokenizer(cfg, fitted_scaling(cfg.sample)).centres)
    assert len(fits) == 2
    assert torch.equal(centres[0], centres[2])
    assert not torch.equal(centres[0], centres[1])
    for cache in data.parent.glob(".train.tokenizer-*"):
        cache.unlink()
    assert torch.equal(
        fitted_tokenizer(configs[0], fitted_scaling(configs[0].sample)).centres, centres[0]
    )


def test_another_scaling_has_other_tokens(data: Path) -> None:
    """Of one sample and one cache: whoever comes first does not choose for the other."""
    cfg = TokenizeConfig(files=(data,), clusters=20)
    scalings = [fitted_scaling(Sample((data,), num_jets=count)) for count in (100, 1000)]
    first = [fitted_tokenizer(cfg, scaling).centres for scaling in scalings]
    again = [fitted_tokenizer(cfg, scaling, keep=False).centres for scaling in scalings]
    alone = [fitted_tokenizer(cfg, scaling).centres for scaling in scalings[::-1]][::-1]
    assert not torch.equal(*first)
    for others in (again, alone):
        assert all(map(torch.equal, first, others))
    assert len(list(data.parent.glob(".train.tokenizer-*"))) == 2


def test_the_tokens_are_those_of_a_pretraining(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scaling is that of more jets than the tokens are."""
    cfg = TokenizeConfig(files=(data,), clusters=20, num_jets=300)
    tokenize(cfg)
    monkeypatch.delattr(module, "_fit")
    scaling = fitted_scaling(Sample((data,), num_jets=SCALING_JETS, max_constituents=64))
    fitted_tokenizer(cfg, scaling)


def test_too_few_constituents(data: Path) -> None:
    with pytest.raises(DataError, match=r"train\.h5: \d+ different constituents are too few"):
        tokenize(TokenizeConfig(files=(data,), clusters=1000, num_jets=3))


@pytest.mark.slow
def test_the_command(data: Path, jetssl: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = jetssl("tokenize", data, "--clusters", 20)
    assert done.returncode == 0, done.stderr
    assert "dphi [rad]" in done.stdout
    assert "20 of 20 tokens are used" in done.stdout
    assert jetssl("tokenize", data.with_name("absent.h5")).returncode == 2


def test_half_precision_of_the_network_does_not_reach_the_tokens() -> None:
    rng = torch.Generator().manual_seed(0)
    tokenizer = Tokenizer(torch.randn(300, 7, generator=rng))
    scaled = torch.randn(500, 7, generator=rng)
    wanted = tokenizer.encode(scaled)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(scaled), wanted)
