"""Plots and the page: what is in them, and that the page asks nobody for anything."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from jetssl_cli.data.style import line, settings
from jetssl_cli.errors import DataError
from jetssl_cli.scores.curves import POINTS, curves_of
from jetssl_cli.scores.evaluate import EvaluateConfig, evaluate
from jetssl_cli.scores.plots import draw
from jetssl_cli.scores.report import write_report
from jetssl_cli.scores.scorefile import read_scores, write_scores
from jetssl_cli.scores.single import evaluate_scores

CLASSES = ("QCD", "Hbb", "Hcc")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def test_no_two_runs_look_the_same():
    assert len({tuple(line(place).values()) for place in range(50)}) == 50
    grey = [{**line(place), "color": None} for place in range(10)]
    assert len({tuple(style.values()) for style in grey}) == 10


def write(path, *, classes=CLASSES, seed=0, strength=2.0, num_jets=600):
    rng = np.random.default_rng(seed)
    labels = np.arange(num_jets) % len(classes)
    logits = rng.normal(size=(num_jets, len(classes)))
    logits[np.arange(num_jets), labels] += strength
    scores = np.exp(logits)
    scores /= scores.sum(axis=1, keepdims=True)
    names = {"classes": classes, "jet_columns": ("jet_pt",), "run": f"runs/{path.stem}"}
    with write_scores(path, **names, data="") as writer:
        writer.append(scores, logits, labels, np.arange(num_jets)[:, None] / 7)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Plots and a page of two runs, one of them with a name that wants to be HTML."""
    folder = tmp_path_factory.mktemp("report")
    paths = (write(folder / "good.h5"), write(folder / "<b>bad&.h5", seed=1, strength=1.0))
    cfg = {"plots": folder / "plots", "report": folder / "deep" / "report.html"}
    rows = evaluate(EvaluateConfig(scores=paths, tracking=False, replicas=100, **cfg))
    return rows, cfg["plots"], cfg["report"]


@pytest.mark.slow
def test_the_user_is_told_how_many_figures_are_drawn(tmp_path, capsys):
    files = {"plots": tmp_path, "report": tmp_path / "r.html"}
    scores = (write(tmp_path / "a.h5", num_jets=400),)
    evaluate(EvaluateConfig(scores=scores, replicas=100, tracking=False, **files))
    found = capsys.readouterr()
    assert "plots: 8/8 figures" in found.err
    assert not found.out


@pytest.mark.slow
def test_names_that_differ_in_signs_alone_have_figures_of_their_own(tmp_path):
    paths = [write(tmp_path / name, seed=seed) for seed, name in enumerate(("a+.h5", "a=.h5"))]
    evaluate(EvaluateConfig(scores=paths, tracking=False, replicas=100, plots=tmp_path / "plots"))
    stems = {path.stem for path in (tmp_path / "plots").iterdir()}
    assert {"confusion_a", "confusion_a_2", "scores_a", "scores_a_2"} <= stems


class TestCurves:
    def test_at_the_working_point_they_are_the_rejection(self, tmp_path):
        found = read_scores(write(tmp_path / "a.h5", num_jets=20 * POINTS))
        row, answers = evaluate_scores(found, replicas=100)
        curves = curves_of(found, answers.discriminants)
        assert list(curves.roc) == list(row.rejection)
        roc = curves.roc["Hbb"]
        place = np.searchsorted(roc.efficiency, row.rejection["Hbb"].efficiency)
        assert 1 / roc.passed[place] == pytest.approx(row.rejection["Hbb"].value, rel=0.2)
        assert (np.diff(roc.efficiency) > 0).all()
        assert (np.diff(roc.passed) >= 0).all()
        assert roc.efficiency[-1] == 1

    def test_shares_are_of_all_jets_of_a_kind(self, tmp_path):
        found = read_scores(write(tmp_path / "a.h5"))
        curves = curves_of(found, evaluate_scores(found, replicas=100)[1].discriminants)
        assert list(curves.scores["Hbb"]) == ["Hbb", "QCD", "others"]
        assert list(curves.scores["QCD"]) == ["QCD", "others"]
        for shares in curves.scores.values():
            assert [values.sum() for values in shares.values()] == pytest.approx([1] * len(shares))

    def test_without_qcd_each_class_is_held_against_all_others(self, tmp_path):
        found = read_scores(write(tmp_path / "a.h5", classes=("light", "charm", "bottom")))
        row, _ = evaluate_scores(found, replicas=100)
        curves = curves_of(found, {})
        assert list(curves.roc) == ["light", "charm", "bottom"]
        assert curves.roc["light"].num_background == 400
        with settings():
            figures = dict(draw([row], {row.scores: curves}))
        assert len(figures["roc"].axes) == 4
        assert figures["roc"].axes[0].get_ylabel() == "rejection of all others"

    def test_without_any_background_that_passes(self, tmp_path):
        found = read_scores(write(tmp_path / "a.h5", strength=50.0, num_jets=24))
        row, answers = evaluate_scores(found, replicas=100)
        with settings():
            figures = dict(draw([row], {row.scores: curves_of(found, answers.discriminants)}))
        assert row.rejection["Hbb"].bound
        assert len(figures) == 4


@pytest.mark.slow
def test_every_plot_is_there_as_png_and_pdf(made):
    _, plots, _ = made
    stems = {"roc", "calibration"} | {
        f"{kind}_{run}" for kind in ("confusion", "scores") for run in ("good", "b_bad")
    }
    assert {path.name for path in plots.iterdir()} == {
        f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf")
    }
    for path in plots.iterdir():
        assert path.read_bytes()[:4] == (b"\x89PNG" if path.suffix == ".png" else b"%PDF")


class TestPage:
    def test_tables_and_plots_are_inside(self, made):
        rows, _, report = made
        text = report.read_text(encoding="utf-8")
        assert text.count('<img src="data:image/svg+xml;base64,') == 6
        assert len(re.findall("<table>", text)) == 4
        for word in ("Hbb 50%", "McNemar", "prefers-color-scheme: dark", "class=best"):
            assert word in text
        assert f"{rows[0].num_jets:,}" in text

    def test_names_are_text(self, made):
        text = made[2].read_text(encoding="utf-8")
        assert "&lt;b&gt;bad&amp;" in text
        assert "<b>" not in text

    def test_tags_are_closed_and_nothing_is_loaded(self, made):
        checker = _Checker()
        checker.feed(made[2].read_text(encoding="utf-8"))
        assert checker.open == []
        assert checker.loaded
        assert all(address.startswith("data:") for address in checker.loaded)

    def test_a_place_that_cannot_be_written(self, made, tmp_path, monkeypatch):
        monkeypatch.setattr("jetssl_cli.scores.report.page", lambda *_: "")
        path = write(tmp_path / "a.h5")
        with pytest.raises(DataError, match=r"a\.h5: cannot be written"):
            write_report(made[0], {}, path / "r.html")

    @pytest.mark.slow
    @pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
    def test_a_browser_shows_it_and_asks_nobody_for_anything(self, made, tmp_path):
        address = "http://example.invalid/leak.png"
        leaking = tmp_path / "leaking.html"
        leaking.write_text(f'<img src="{address}"><p>seen</p>', encoding="utf-8")
        text, missing, asked = browse(leaking, tmp_path / "one")
        assert (text, missing, asked) == ("seen", 1, [leaking.as_uri(), address])
        text, missing, asked = browse(made[2], tmp_path / "two")
        assert "Calibration" in text
        assert missing == 0
        assert [x for x in asked if not x.startswith("data:image/svg+xml")] == [made[2].as_uri()]


class _Checker(HTMLParser):
    """Tags that are open, and addresses that a browser would load."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self):
        super().__init__()
        self.open, self.loaded = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def browse(page, profile):
    """What a browser shows: the text, how many images are missing, which addresses were asked for.

    Spoken to through two pipes (DevTools protocol), as its own requests shall not be counted.
    """
    heard, speak = os.pipe()
    listen, answer = os.pipe()
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
    words += [f"--user-data-dir={profile}", "about:blank"]

    def wire():  # a browser reads from 3 and writes to 4
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (heard, answer)]
        for number, end in enumerate(ends, 3):
            os.dup2(end, number)

    quiet = {"stderr": subprocess.DEVNULL, "close_fds": False}
    process = subprocess.Popen(words, preexec_fn=wire, **quiet)  # noqa: PLW1509
    os.close(heard)
    os.close(answer)
    asked, loaded = [], False

    def message():
        nonlocal loaded
        text = b""
        while not text.endswith(b"\0"):
            part = os.read(listen, 1)
            assert part, "the browser is gone"
            text += part
        found = json.loads(text[:-1])
        if found.get("method") == "Network.requestWillBeSent":
            asked.append(found["params"]["request"]["url"])
        loaded |= found.get("method") == "Page.loadEventFired"
        return found

    def ask(method, session=None, **params):
        command = {"id": 1, "method": method, "params": params}
        command |= {"sessionId": session} if session else {}
        os.write(speak, json.dumps(command).encode() + b"\0")
        while "id" not in (found := message()):
            pass
        assert "result" in found, found
        return found["result"]

    try:
        target = ask("Target.createTarget", url="about:blank")["targetId"]
        session = ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        ask("Network.enable", session)
        ask("Page.enable", session)
        ask("Page.navigate", session, url=page.as_uri())
        while not loaded:
            message()
        seen = "[document.body.innerText, [...document.images].filter(i => !i.naturalWidth).length]"
        result = ask("Runtime.evaluate", session, expression=seen, returnByValue=True)
        return *result["result"]["value"], asked
    finally:
        process.kill()
        process.wait()
        os.close(speak)
        os.close(listen)
