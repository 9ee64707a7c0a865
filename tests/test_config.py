from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, PositiveInt, ValidationError

from jetssl_cli.config import (
    Layer,
    Strict,
    load,
    override_layer,
    shipped,
    shipped_file,
    to_yaml,
)
from jetssl_cli.data.recipe import Recipe, load_recipe
from jetssl_cli.errors import ConfigError
from jetssl_cli.runs import finetune_config as finetune
from jetssl_cli.runs import pretrain
from jetssl_cli.runs.checkpoint import CONFIG
from jetssl_cli.safeyaml import Dumper, parse_yaml, read_yaml
from jetssl_cli.scores import workflow_config

ROOT = Path(__file__).parent.parent
PRESETS = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml"))
RECIPES = sorted(path.relative_to(ROOT) for path in (ROOT / "data_recipes").rglob("*.yaml"))
WORDS = Layer("the command line", {"out": "o", "data": {"train": ["t.h5"], "val": ["v.h5"]}})


class Circle(Strict):
    name: Literal["circle"] = "circle"
    radius: float = 1.0


class Square(Strict):
    name: Literal["square"] = "square"
    side: float = 1.0
    corners: PositiveInt = 4


class Part(Strict):
    width: int = 1
    label: str = "x"
    scale: float = 0.5


class Top(Strict):
    shape: Annotated[Circle | Square, Field(discriminator="name")] = Circle()
    part: Part = Part()
    parts: dict[str, Part] = Field(default_factory=dict)
    line: tuple[Part, ...] = ()
    either: list[int] | dict[str, int] = Field(default_factory=list)
    path: Path = Path("here")
    flag: bool = False
    maybe: int | None = None


class Needy(Strict):
    out: Path
    shape: Annotated[Circle | Square, Field(discriminator="name")]


def mistake(settings: dict[str, Any], *, cls: type[Strict] = Top, overrides: Any = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load(cls, [Layer("my.yaml", settings)], overrides)
    return str(caught.value)


def test_later_layers_win_key_by_key_and_overrides_win_over_all() -> None:
    layers = [
        Layer("1", {"part": {"width": 2, "label": "one", "scale": 1.0}, "flag": True}),
        Layer("2", {"part": {"label": "two", "scale": 2.0}}),
        Layer("3", {"part": {"scale": 3.0}}),
    ]
    cfg = load(Top, layers, ["part.scale=4", "part.scale=5", "path=there"])
    assert cfg.part == Part(width=2, label="two", scale=5.0)
    assert (cfg.flag, cfg.path, cfg.shape) == (True, Path("there"), Circle())
    assert load(Top, layers[::-1]).part == Part(width=2, label="one", scale=1.0)


def test_a_list_is_replaced_not_extended_and_layers_stay_as_they_were() -> None:
    low: dict[str, Any] = {"either": [1, 2], "part": {"width": 2}}
    high = {"either": [3], "part": {"label": "b"}}
    assert load(Top, [Layer("low", low), Layer("high", high)]).either == [3]
    assert low == {"either": [1, 2], "part": {"width": 2}}
    assert high == {"either": [3], "part": {"label": "b"}}


def test_a_scalar_and_a_section_replace_each_other() -> None:
    assert load(Top, [Layer("a", {"maybe": {"x": 1}}), Layer("b", {"maybe": 3})]).maybe == 3
    over = [Layer("a", {"part": 3}), Layer("b", {"part": {"width": 3}})]
    assert load(Top, over).part == Part(width=3)


def test_a_method_may_differ_at_a_size() -> None:
    base, tiny = (pretrain.load_config("gpt", size, WORDS) for size in ("base", "tiny"))
    assert (base.data.batch_size, base.objective.clusters, base.encoder.width) == (250, 10_000, 512)
    assert (tiny.data.batch_size, tiny.objective.clusters, tiny.encoder.width) == (250, 1000, 128)
    assert base.encoder.causal
    own = Layer("own", {**WORDS.settings, "data": {**WORDS.settings["data"], "batch_size": 7}})
    assert pretrain.load_config("gpt", "base", own).data.batch_size == 7


def test_precedence_of_a_pretraining_run(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("encoder: {depth: 3}\ndata: {batch_size: 77}\noptim: {lr: 5e-4}\n")
    cfg = pretrain.load_config("ssfm", "tiny", WORDS, config=own, overrides=["encoder.depth=2"])
    assert cfg.encoder.width == 128  # the preset of the size
    assert cfg.data.batch_size == 77  # the user's file over the size
    assert cfg.encoder.depth == 2  # the override over the user's file
    assert cfg.optim.lr == 5e-4
    assert cfg.data.train == (Path("t.h5"),)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prt": 1}, "my.yaml: prt = 1: no such setting; did you mean 'part'?"),
        ({"part": {"wdth": 1}}, "my.yaml: part.wdth = 1: no such setting; did you mean 'width'?"),
        (
            {"shape": {"name": "square", "sied": 1}},
            "my.yaml: shape.sied = 1: no such setting; did you mean 'side'?",
        ),
        (
            {"shape": {"name": "square", "radius": 1}},
            "my.yaml: shape.radius = 1: no such setting; valid: corners, name, side",
        ),
        ({"width": 1}, "my.yaml: width = 1: no such setting; did you mean part.width?"),
        ({"radius": 1}, "my.yaml: radius = 1: no such setting; did you mean shape.radius?"),
        ({"side": 1}, "my.yaml: side = 1: no such setting; did you mean shape.side?"),
        (
            {"side": 1, "shape": {"name": "circle"}},
            "my.yaml: side = 1: no such setting; valid: ",
        ),
        (
            {"shape": {"name": "squar"}},
            "my.yaml: shape.name = 'squar': no such choice; did you mean 'square'?",
        ),
        ({"shape": {"side": 1}}, "my.yaml: shape.name: this setting is required"),
        (
            {"shape": {"name": "square", "corners": 0}},
            "my.yaml: shape.corners = 0: Input should be greater than 0",
        ),
        (
            {"parts": {"a": {"wdth": 3}}},
            "my.yaml: parts.a.wdth = 3: no such setting; did you mean 'width'?",
        ),
        (
            {"parts": {"label": {"label": 3}}},
            "my.yaml: parts.label.label = 3: Input should be a valid string",
        ),
        (
            {"line": [{}, {"scal": 3}]},
            "my.yaml: line.1.scal = 3: no such setting; did you mean 'scale'?",
        ),
        (
            {"part": {"width": "wide"}},
            "my.yaml: part.width = 'wide': Input should be a valid integer, "
            "unable to parse string as an integer",
        ),
        (
            {"part": {"width": 1.5}},
            "my.yaml: part.width = 1.5: Input should be a valid integer, "
            "got a number with a fractional part",
        ),
        (
            {"part": {"scale": float("nan")}},
            "my.yaml: part.scale = nan: Input should be a finite number",
        ),
        (
            {"part": {"scale": float("inf")}},
            "my.yaml: part.scale = inf: Input should be a finite number",
        ),
        ({"part": {"width": {"x": 1}}}, "my.yaml: part.width = {'x': 1}: Input should be a valid"),
    ],
)
def test_a_mistake_is_named_in_full(settings: dict[str, Any], message: str) -> None:
    assert mistake(settings).startswith(message)
    assert "\n" not in mistake(settings)


def test_a_mistake_in_a_union_of_plain_types_names_the_real_key() -> None:
    lines = mistake({"either": {"a": "z"}}).splitlines()
    assert any(line.startswith("my.yaml: either.a = 'z': ") for line in lines)
    assert not any("dict[" in line or "list[" in line for line in lines)


def test_a_missing_setting_is_named() -> None:
    lines = mistake({}, cls=Needy).splitlines()
    assert lines == ["out: this setting is required", "shape: this setting is required"]


def test_every_mistake_has_its_line_and_the_layer_it_comes_from() -> None:
    layers = [
        Layer("a.yaml", {"part": {"width": "x", "scale": "y"}, "maybe": "?"}),
        Layer("b.yaml", {"part": {"scale": "z"}}),
    ]
    with pytest.raises(ConfigError) as caught:
        load(Top, layers, ["flag=perhaps"])
    sources = [line.split(" =")[0] for line in str(caught.value).splitlines()]
    assert sources == ["a.yaml: part.width", "b.yaml: part.scale", "flag", "a.yaml: maybe"]


def test_a_long_value_is_shortened() -> None:
    assert len(mistake({"part": {"width": "w" * 10_000}})) < 250


def test_a_config_cannot_be_edited() -> None:
    cfg = load(Top, [])
    with pytest.raises(ValidationError):
        cfg.flag = True  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 5e-4),
        ("1e3", 1000.0),
        ("-2E+1", -20.0),
        (".5e1", 5.0),
        ("1.e2", 100.0),
        ("1.5", 1.5),
        ("7", 7),
        ("e4", "e4"),
        ("1e", "1e"),
        ("5e-4x", "5e-4x"),
        ("'5e-4'", "5e-4"),
        ("null", None),
        ("[1, 2e1]", [1, 20.0]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_yaml_values(text: str, value: object) -> None:
    found = parse_yaml(text, "here")
    assert found == value
    assert type(found) is type(value)


def test_a_number_in_an_override_may_be_written_with_an_exponent() -> None:
    assert load(Top, [], ["part.scale=5e-4"]).part.scale == 5e-4
    assert load(Top, [], ["part.width=1e3"]).part.width == 1000


@pytest.mark.parametrize("text", ["a: 1\na: 2", "x: {b: 1, c: 2, b: 1}", "- {q: 1, q: 1}"])
def test_a_key_given_twice_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^here: not valid YAML: .*stands twice.* line \d"):
        parse_yaml(text, "here")


@pytest.mark.parametrize(
    "text", ["a: [1", "a: b: c", "{[1]: 2}", "!!python/object:os.system x", "\t- a", "2024-13-45"]
)
def test_broken_yaml_names_its_source(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^here: not valid YAML: "):
        parse_yaml(text, "here")


@pytest.mark.parametrize(
    "item", ["", "a", "=3", "a.=3", ".a=3", "a..b=3", "a-b=3", "--a=3", "a b=3", "1a=2"]
)
def test_an_override_of_another_form_is_refused(item: str) -> None:
    with pytest.raises(ConfigError, match=r"has the form section\.key=value") as caught:
        override_layer(item)
    assert str(caught.value).startswith(f"{item}: ")


def test_an_override_keeps_later_equal_signs_and_may_be_empty() -> None:
    assert override_layer("a.b=c=d").settings == {"a": {"b": "c=d"}}
    assert override_layer("a=").settings == {"a": None}
    with pytest.raises(ConfigError, match=r"^a=\[1: not valid YAML"):
        override_layer("a=[1")


def test_files_that_hold_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    with pytest.raises(ConfigError, match=r"x\.yaml: no such file"):
        read_yaml(path)
    for text, found in [("- 1\n- 2", "list"), ("hello", "str"), ("3", "int"), ("1: 2", "dict")]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=rf"x\.yaml: expected .* found {found}"):
            read_yaml(path)
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match=r"x\.yaml: cannot be read"):
        read_yaml(path)
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory$"):
        read_yaml(tmp_path)
    path.write_text("# nothing but a comment\n")
    assert read_yaml(path) == {}


integers = st.integers(-(2**63), 2**64 - 1)
numbers = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["5e-4", "1e3", ".5E+2", "no", "null", "~", "1_000", "0x1F", "12:30", "2024-01-01", "=", "<<"]
)
parts = st.builds(Part, width=integers, label=words, scale=numbers)


@given(
    st.builds(
        Top,
        shape=st.builds(Circle, radius=numbers) | st.builds(Square, side=numbers),
        part=parts,
        parts=st.dictionaries(words, parts, max_size=3),
        line=st.lists(parts, max_size=2).map(tuple),
        either=st.lists(integers) | st.dictionaries(words, integers, min_size=1),
        path=st.sampled_from([Path("5e-4"), Path("a/b c"), Path("12:30")]),
        flag=st.booleans(),
        maybe=st.none() | integers,
    )
)
def test_to_yaml_and_load_are_inverse(cfg: Top) -> None:
    text = to_yaml(cfg)
    assert load(Top, [Layer("x", parse_yaml(text, "x"))]) == cfg
    assert to_yaml(load(Top, [Layer("x", parse_yaml(text, "x"))])) == text


@given(words, integers)
def test_an_override_says_what_a_file_says(text: str, number: int) -> None:
    value = yaml.dump([text], Dumper=Dumper, default_flow_style=True, width=10**6)
    overrides = [f"part.label={value.strip()[1:-1]}", f"part.width={number}"]
    assert load(Top, [], overrides).part == Part(label=text, width=number)


def test_shipped_files_are_found_and_the_nearest_is_named() -> None:
    assert shipped("configs") == ROOT / "configs"
    assert shipped_file("configs/size", "tiny", "size").is_file()
    with pytest.raises(ConfigError, match=r"no size 'tny'; did you mean 'tiny'\?"):
        shipped_file("configs/size", "tny", "size")
    for name in ("../size/tiny", "", "tiny.yaml", "configs/size/tiny"):
        with pytest.raises(ConfigError, match="no size"):
            shipped_file("configs/size", name, "size")
    with pytest.raises(ConfigError, match=r"no method 'sfm'; did you mean 'ssfm'\?"):
        pretrain.load_config("sfm", "tiny", WORDS)


@pytest.mark.parametrize("backend", ["varlen", "flash-attn"])
def test_flash_attention_and_float32_exclude_each_other(backend: str, tmp_path: Path) -> None:
    words = [f"encoder.attention={backend}", "train.precision=32"]
    told = f"attention {backend} computes in half precision, but train.precision is 32"
    with pytest.raises(ConfigError, match=told):
        pretrain.load_config("ssfm", "tiny", WORDS, overrides=words)
    pretrain.load_config("ssfm", "tiny", WORDS, overrides=words[:1])
    (tmp_path / CONFIG).write_text(to_yaml(pretrain.load_config("ssfm", "tiny", WORDS)))
    tuned = Layer("words", {**WORDS.settings, "backbone": str(tmp_path)})
    with pytest.raises(ConfigError, match=told):
        finetune.load_config(tmp_path, tuned, overrides=words)


def test_what_is_said_of_a_run_that_goes_on_is_compared_with_it(tmp_path: Path) -> None:
    own, run = tmp_path / "own.yaml", tmp_path / "run"
    run.mkdir()
    (run / CONFIG).write_text(to_yaml(pretrain.load_config("ssfm", "tiny", WORDS)))
    words = Layer("words", {**WORDS.settings, "out": str(run), "resume": True})
    own.write_text("data: {workers: 3}\n")
    assert pretrain.load_config(None, None, words, config=own).data.workers == 3
    assert pretrain.load_config(None, "tiny", words, config=own).data.workers == 3
    own.write_text("optim: {lr: 0.5}\n")
    with pytest.raises(
        ConfigError, match=r"optim\.lr = 0\.5: the run in .*run has .*, and cannot go on"
    ):
        pretrain.load_config(None, None, words, config=own)
    recomputed = ["encoder.recompute=true"]
    assert pretrain.load_config(None, "tiny", words, overrides=recomputed).encoder.recompute
    with pytest.raises(ConfigError, match=r"--size small: the run in .* has another encoder"):
        pretrain.load_config(None, "small", words)
    with pytest.raises(ConfigError, match=r"--method mpm: the run in .* is one of ssfm"):
        pretrain.load_config("mpm", None, words)
    tuned = Layer("words", {**WORDS.settings, "backbone": str(run)})
    cfg = finetune.load_config(run, tuned)
    (tmp_path / CONFIG).write_text(to_yaml(cfg))
    again = Layer("words", {"out": str(tmp_path), "resume": True})
    assert finetune.load_config(None, again, task="classify").encoder == cfg.encoder
    with pytest.raises(ConfigError, match=r"--task vertex: the run in .* is one of supervised"):
        finetune.load_config(None, again, task="vertex")


def test_a_resolved_config_repeats_its_run(tmp_path: Path) -> None:
    """It says the method and the backbone as well; another method beside it is refused."""
    own = tmp_path / "own.yaml"
    cfg = pretrain.load_config("jepa", "small", WORDS, overrides=["optim.lr=0.1"])
    own.write_text(to_yaml(cfg))
    assert pretrain.load_config(None, None, Layer("words", {"out": "o"}), config=own) == cfg
    assert pretrain.load_config(
        None, None, WORDS, overrides=["objective.name=jepa"]
    ) == pretrain.load_config("jepa", "base", WORDS)
    with pytest.raises(ConfigError, match=r"--method dino: .* is 'jepa' in .*own\.yaml"):
        pretrain.load_config("dino", None, WORDS, config=own)
    (tmp_path / CONFIG).write_text(to_yaml(cfg))
    words = Layer("words", {**WORDS.settings, "backbone": str(tmp_path)})
    tuned = finetune.load_config(tmp_path, words, task="vertex")
    own.write_text(to_yaml(tuned))
    assert finetune.load_config(None, Layer("words", {"out": "o"}), config=own) == tuned
    with pytest.raises(ConfigError, match=r"--task track-origin: .* is 'vertex' in .*own\.yaml"):
        finetune.load_config(None, words, task="track-origin", config=own)


def test_there_are_presets_and_recipes_of_every_kind() -> None:
    assert {path.parts[1] for path in PRESETS} == {"pretrain", "size", "finetune", "workflow"}
    assert {path.stem for path in RECIPES} >= {"jetclass", "jetclass2"}


@pytest.mark.parametrize("path", PRESETS, ids=str)
def test_every_preset_builds(path: Path, tmp_path: Path) -> None:
    kind, *method, name = path.with_suffix("").parts[1:]
    raw = read_yaml(ROOT / path)
    if kind == "finetune":
        backbone = pretrain.load_config("ssfm", "tiny", WORDS)
        (tmp_path / CONFIG).write_text(to_yaml(backbone))
        words = Layer("words", {**WORDS.settings, "backbone": str(tmp_path)})
        mixture = ["data.mixture={signal: Tbqq, num_signal: 1}"] if name == "cwola" else []
        cfg: Strict = finetune.load_config(tmp_path, words, task=name, overrides=mixture)
        assert isinstance(cfg, finetune.FinetuneConfig)
        assert cfg.objective.name == ("supervised" if name == "classify" else name)
        assert cfg.encoder == backbone.encoder
        assert cfg.train.keep == "best"
    elif kind == "workflow":
        cfg = workflow_config.load_config(name, Layer("words", {}))
        backbone = pretrain.load_config("ssfm", name, WORDS, overrides=cfg.pretrain.settings)
        (tmp_path / CONFIG).write_text(to_yaml(backbone))
        words = Layer("words", {**WORDS.settings, "backbone": str(tmp_path)})
        finetune.load_config(tmp_path, words, overrides=cfg.finetune.settings)
    elif kind == "size":
        cfg = pretrain.load_config("ssfm", name, WORDS)
    elif method:
        cfg = pretrain.load_config(*method, name, WORDS)
    else:
        assert kind == "pretrain", f"{path}: no test builds this kind of preset"
        assert raw["objective"]["name"] == name
        cfg = pretrain.load_config(name, "tiny", WORDS)
    _is_laid_in(raw, cfg.model_dump())
    assert load(type(cfg), [Layer("again", parse_yaml(to_yaml(cfg), "again"))]) == cfg


def _is_laid_in(raw: dict[str, Any], built: dict[str, Any]) -> None:
    for key, value in raw.items():
        if isinstance(value, dict):
            _is_laid_in(value, built[key])
        else:
            assert built[key] == (tuple(value) if isinstance(built[key], tuple) else value), key


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_every_recipe_builds_and_is_short(path: Path) -> None:
    recipe = load_recipe(path.stem)
    assert recipe == load_recipe(str(ROOT / path))
    assert recipe.name == path.stem
    assert load(Recipe, [Layer("again", parse_yaml(to_yaml(recipe), "again"))]) == recipe
    assert len((ROOT / path).read_text().splitlines()) <= 60
