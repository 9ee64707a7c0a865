from __future__ import annotations

import csv
import io
import json
import re

import pytest
from rich.console import Console

from jetssl_cli.errors import ConfigError
from jetssl_cli.scores.cells import columns, comparison_notes, comparisons
from jetssl_cli.scores.compare import Comparison, Difference
from jetssl_cli.scores.metrics import UNDEFINED, WORKING_POINTS, Calibration, Estimate, Rejection
from jetssl_cli.scores.rows import Row, run_names
from jetssl_cli.scores.tables import FORMATS, render

MEASURED = Rejection(12.5, 11.4, 13.8, 0.5, bound=False)


def row(**changes):
    figures = {
        "scores": "scores/a.h5",
        "run": "runs/a",
        "num_jets": 20000,
        "accuracy": Estimate(0.7123, 0.6981, 0.7261),
        "auc": Estimate(0.98681, 0.98645, 0.98717),
        "calibration": Calibration(Estimate(0.021, 0.02, 0.022), (4, 0), (0.4, None), (0.5, None)),
        "rejection": {"Hbb": MEASURED},
        "classes": ("QCD", "Hbb"),
        "confusion": ((3, 1), (0, 4)),
    }
    return Row(**(figures | changes))


def cell(header, **changes):
    found = {column[0]: column[1] for column in columns([row(**changes)])}
    return found[header]


class TestCells:
    @pytest.mark.parametrize(
        ("value", "low", "high", "shown"),
        [
            (0.7123, 0.6981, 0.7261, "0.712 ± 0.014"),
            (0.5, 0.4003, 0.5996, "0.50 ± 0.10"),  # the error rounds up to another digit
            (0.86123456, 0.86115, 0.8613, "0.861235 ± 0.000075"),
            (1.0, None, None, "1.000"),
            (None, None, None, "–"),
        ],
    )
    def test_estimates(self, value, low, high, shown):
        assert cell("accuracy", accuracy=Estimate(value, low, high)) == shown

    @pytest.mark.parametrize(
        ("figure", "shown"),
        [
            (MEASURED, "12.5 ± 1.2"),
            (Rejection(10234.0, 7000.0, 13824.0, 0.5, bound=False), "10200 ± 3400"),
            (Rejection(5.0, 2.0, 30.0, 0.5, bound=False), "5 ± 14"),
            (Rejection(100 / 3, 100 / 3, None, 0.5, bound=True), "> 33.3"),
            (Rejection(10000 / 3, 10000 / 3, None, 0.5, bound=True), "> 3333"),
            (Rejection(12.5, 11.4, 13.8, 0.503, bound=False), "12.5 ± 1.2"),
            (Rejection(12.5, 11.4, 13.8, 0.75, bound=False), "12.5 ± 1.2†"),
            (None, "–"),
        ],
    )
    def test_rejections(self, figure, shown):
        assert cell("Hbb 50%", rejection={"Hbb": figure}) == shown

    @pytest.mark.parametrize(
        ("ratio", "shown"),
        [
            (Difference(1.5, 1.2, 1.9, 0.2), "1.50 ± 0.35 (p 0.20)"),
            (Difference(62.0, 30.0, None, 0.01), "62 ± 32‡ (p 0.010)"),  # one jet passes
            (Difference(62.0, 62.0, None, 0.01), "62‡ (p 0.010)"),
            (Difference(None, 20.7, None, 0.01), "> 21 (p 0.010)"),  # none passes
            (Difference(None, None, 0.05, 0.01), "< 0.05 (p 0.010)"),
            (None, "–"),
        ],
    )
    def test_ratios_of_rejections(self, ratio, shown):
        level = Difference(0.01, None, None, None)
        pair = Comparison(
            scores="scores/a.h5", to="scores/b.h5", only_this=1, only_other=0,
            accuracy=level, auc=level, rejection={"Hbb": ratio},
        )  # fmt: skip
        compared = comparisons([row(comparisons=(pair,)), row(scores="scores/b.h5", run="b")])
        assert [column[1] for column in compared[2:]] == ["+0.01", "+0.01", shown]
        told = any("the interval is open above" in note for note in comparison_notes(compared))
        assert told == ("‡" in shown)

    def test_reached_efficiency_is_compared_as_the_header_shows_it(self):
        reached = Rejection(12.5, 11.4, 13.8, 0.9951, bound=False)
        assert cell("Tbl 99.5%", rejection={"Tbl": reached}) == "12.5 ± 1.2"
        assert cell("Hqql 99%", rejection={"Hqql": reached}) == "12.5 ± 1.2†"

    def test_columns_are_those_of_the_data_in_the_order_of_part(self):
        rejections = {"Tbl": MEASURED, "Hqql": MEASURED, "Hbb": None}
        assert [column[0] for column in columns([row(rejection=rejections)])] == [
            "run",
            "jets",
            "accuracy",
            "AUC",
            "ECE",
            "Hbb 50%",
            "Hqql 99%",
            "Tbl 99.5%",
        ]


class TestNames:
    def names(self, *runs):
        return run_names([row(scores=scores, run=run) for run, scores in runs])

    def test_folder_name(self):
        assert self.names(("runs/a", "1"), ("runs/b/", "2")) == ["a", "b"]

    def test_equal_folder_names_show_what_tells_them_apart(self):
        runs = (("x/2024/a", "1"), ("y/2024/a", "2"), ("b", "3"))
        assert self.names(*runs) == ["x/2024/a", "y/2024/a", "b"]

    def test_a_path_that_ends_another(self):
        assert self.names(("a/x", "1"), ("b/a/x", "2")) == ["a/x", "b/a/x"]

    def test_one_run_with_two_score_files(self):
        names = self.names(("runs/a", "s/val/x.h5"), ("runs/a", "s/test/x.h5"), ("runs/b", "x.h5"))
        assert names == ["a (val/x.h5)", "a (test/x.h5)", "b"]

    def test_no_run(self):
        assert self.names(("", "s/a.h5")) == ["a.h5"]


class TestFormats:
    def test_json_is_the_rows(self):
        found = json.loads(render([row()], format="json"))
        assert found == [
            {
                "scores": "scores/a.h5",
                "run": "runs/a",
                "num_jets": 20000,
                "accuracy": {"value": 0.7123, "low": 0.6981, "high": 0.7261},
                "auc": {"value": 0.98681, "low": 0.98645, "high": 0.98717},
                "calibration": {
                    "error": {"value": 0.021, "low": 0.02, "high": 0.022},
                    "num_jets": [4, 0],
                    "confidence": [0.4, None],
                    "accuracy": [0.5, None],
                },
                "classes": ["QCD", "Hbb"],
                "confusion": [[3, 1], [0, 4]],
                "seeds": [],
                "best": [],
                "comparisons": [],
                "rejection": {
                    "Hbb": {
                        "value": 12.5,
                        "low": 11.4,
                        "high": 13.8,
                        "efficiency": 0.5,
                        "bound": False,
                    }
                },
            }
        ]

    def test_json_has_null_for_what_is_undefined(self):
        found = json.loads(render([row(auc=UNDEFINED, rejection={"Hbb": None})], format="json"))
        assert found[0]["auc"] == {"value": None, "low": None, "high": None}
        assert found[0]["rejection"] == {"Hbb": None}

    def test_csv_has_one_line_a_row_and_full_precision(self):
        bound = Rejection(100 / 3, 100 / 3, None, 0.75, bound=True)
        rows = [row(run="with, comma"), row(auc=UNDEFINED, rejection={"Hbb": bound, "Hcc": None})]
        first, second = csv.DictReader(io.StringIO(render(rows, format="csv")))
        assert first["run"] == "with, comma"
        assert [float(first[f"accuracy{end}"]) for end in ("", "_low", "_high")] == [
            0.7123,
            0.6981,
            0.7261,
        ]
        assert first["rejection_Hbb_bound"] == "false"
        assert (first["rejection_Hcc"], first["rejection_Hcc_bound"]) == ("", "")
        assert second["auc"] == second["rejection_Hbb_high"] == ""
        assert float(second["rejection_Hbb"]) == 100 / 3
        assert float(second["rejection_Hbb_efficiency"]) == 0.75
        assert second["rejection_Hbb_bound"] == "true"

    def test_markdown_lines_have_equally_many_cells(self):
        text = render([row(), row(run="a|b", scores="b.h5")], format="markdown")
        table, *notes = text.strip().split("\n\n")
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()} == {7}
        assert len(set(map(len, table.splitlines()))) == 1
        assert "Wilson" in notes[0]
        assert "DeLong" in notes[0]

    def test_markdown_notes_are_not_block_quotes(self):
        bound = Rejection(9.0, 9.0, None, 0.75, bound=True)
        text = render([row(rejection={"Hbb": bound})], format="markdown")
        assert not any(line.startswith(">") for line in text.splitlines())

    def test_latex_is_escaped_and_balanced(self):
        bound = Rejection(100 / 3, 100 / 3, None, 0.75, bound=True)
        text = render(
            [row(run=r"r/[a_b&c%d#e$f{g}~h^i\j", rejection={"Hbb": bound})], format="latex"
        )
        head, line = (text.splitlines()[n] for n in (3, 5))
        assert head == r"run & jets & accuracy & AUC & ECE & Hbb 50\% \\"
        assert line == (
            r"{[}a\_b\&c\%d\#e\$f\{g\}\textasciitilde{}h\textasciicircum{}i\textbackslash{}j"
            r" & 20,000 & 0.712 $\pm$ 0.014 & 0.98681 $\pm$ 0.00036"
            r" & 0.0210 $\pm$ 0.0010 & $>$ 33.3$^\dagger$ \\"
        )
        assert r"\begin{tabular}{lrrrrr}" in text
        assert text.isascii()
        body = text.partition("\n")[2]  # the first line is a comment
        assert not re.search(r"(?<!\\)[%#_]", body)
        assert len(re.findall(r"(?<!\\)\{", body)) == len(re.findall(r"(?<!\\)\}", body))

    def test_unknown_format_names_the_nearest(self):
        with pytest.raises(ConfigError, match="'markdwn'; did you mean 'markdown'"):
            render([row()], format="markdwn")

    @pytest.mark.parametrize("format", FORMATS[1:])
    def test_text_ends_with_one_newline(self, format):
        text = render([row()], format=format)
        assert text.endswith("\n")
        assert not text.endswith("\n\n")

    def test_notes_explain_only_marks_that_occur(self):
        bound = Rejection(9.0, 9.0, None, 0.75, bound=True)
        plain = render([row()], format="markdown")
        marked = render([row(rejection={"Hbb": bound})], format="markdown")
        assert "†" not in plain
        assert "A bound" not in plain
        assert "†:" in marked
        assert "A bound" in marked


def test_notes_explain_what_the_table_has():
    assert "Rejection: 1 /" in render([row(rejection={"Hbb": MEASURED})], format="markdown")
    text = render([row(rejection={}, classes=("light", "bottom"))], format="markdown")
    assert "Rejection" not in text
    assert "No class is called QCD: there are no rejections." in text


class TestTerminal:
    def shown(self, rows, width):
        console = Console(width=width, file=io.StringIO(), color_system=None)
        console.print(render(rows, format="rich"))
        return console.file.getvalue()

    @pytest.mark.parametrize("width", [40, 80, 100, 200])
    def test_every_figure_is_there_at_any_width(self, width):
        figures = {
            signal: Rejection(1000.0 + place, 900.0 + place, 1100.0 + place, share, bound=False)
            for place, (signal, share) in enumerate(WORKING_POINTS.items())
        }
        rows = [
            row(rejection=dict.fromkeys(WORKING_POINTS, MEASURED)),
            row(run="a_name_[red]of[/red]_some_length", scores="b.h5", rejection=figures),
        ]
        text = self.shown(rows, width)
        assert all(len(line) <= width for line in text.splitlines())
        assert "…" not in text
        for header, *cells in columns(rows)[1:]:
            assert header in text
            assert all(shown in text for shown in cells)

    def test_names_stand_in_one_line(self):
        name = "runs-of-a-name-of-some-length-1234"
        assert name in self.shown([row(run=name), row(run="other", scores="b.h5")], 60)

    def test_a_wide_terminal_needs_one_block(self):
        assert self.shown([row()], 120).count("─\n") == 1

    def test_names_are_not_markup(self):
        assert "[red]x" in self.shown([row(run="[red]x")], 80)
