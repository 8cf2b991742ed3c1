"""Configuration: round trips, precedence, presets, and one clear line for every fault."""

import csv
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from diffvit.config import (
    WHEREABOUTS,
    ClipConfig,
    Config,
    ModelConfig,
    config_hash,
    differences,
    from_environment,
    merge,
    parse,
    read_yaml,
    resolve,
    to_dict,
    to_yaml,
)
from diffvit.errors import ConfigError
from diffvit.models.presets import PRESETS

fraction = st.floats(0, 1, allow_nan=False)
below_1 = st.floats(0, 1, exclude_max=True)
rate = st.floats(0, 10)
count = st.integers(0, 10_000)

# Every setting but the model's sizes, which have to go together.
LEAVES = {
    "data": st.sampled_from(["auto", "cifar10", "folder", "shapes", "shapes-hard"]),
    "data_dir": st.sampled_from(["data", "/somewhere else/data", "ünïcode: [x]"]),
    "validation_size": count,
    "epochs": st.integers(1, 1000),
    "init_from": st.sampled_from(["cifar10-vit", "timm:vit_tiny_patch16_224", "/runs/one: x"]),
    "label_smoothing": below_1,
    "ema": below_1,
    "seed": st.integers(0, 2**63 - 1),
    "device": st.sampled_from(["auto", "cpu", "cuda"]),
    "precision": st.sampled_from(["auto", "fp32", "bf16"]),
    "threads": st.integers(0, 64),
    "compile": st.booleans(),
    "checkpoint_every": st.integers(1, 99),
    "model.attention": st.sampled_from(["softmax", "differential", "differential-split"]),
    "optimizer.layer_decay": st.floats(0.1, 1),
    "model.pos_embed": st.sampled_from(["none", "learned-1d", "learned-2d", "sincos-1d", "sincos-2d"]),
    "model.pool": st.sampled_from(["cls", "mean"]),
    "model.head": st.sampled_from(["linear", "mlp"]),
    "model.qkv_bias": st.booleans(),
    "model.norm_eps": st.floats(1e-8, 1e-3),
    "model.drop_path": below_1,
    "model.init": st.sampled_from(["trunc-normal", "mimetic"]),
    "model.depth": st.integers(1, 24),
    "model.mlp_ratio": st.floats(0.5, 8),
    "augment.flip": st.booleans(),
    "augment.crop": st.integers(0, 8),
    "augment.color_jitter": fraction,
    "augment.policy": st.sampled_from(["none", "randaugment", "trivialaugment"]),
    "augment.policy_magnitude": st.floats(0, 10),
    "augment.mixup": rate,
    "augment.mix_probability": fraction,
    "optimizer.name": st.sampled_from(["adamw", "muon"]),
    "optimizer.lr": rate,
    "optimizer.beta2": below_1,
    "schedule.name": st.sampled_from(["constant", "linear", "cosine"]),
    "schedule.warmup": fraction,
    "shapes.size": st.integers(16, 256),
    "shapes.noise": fraction,
    "shapes.seed": count,
    "shapes.decoys": count,
    "shapes.contrast": fraction,
}


def nested(flat):
    values = {}
    for name, value in flat.items():
        *sections, key = name.split(".")
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = value
    return values


def setting(config, name):
    value = to_dict(config)
    for key in name.split("."):
        value = value[key]
    return value


def some_of(names):
    return st.lists(st.sampled_from(names), unique=True, max_size=12).flatmap(
        lambda chosen: st.fixed_dictionaries({name: LEAVES[name] for name in chosen})
    )


some_settings = some_of(sorted(LEAVES))
# DIFFVIT_DATA says where CIFAR-10 lies, so the name of the source has no variable.
some_variables = some_of(sorted(set(LEAVES) - {"data"}))


@st.composite
def configs(draw):
    values = nested(draw(some_settings))
    patch, heads = draw(st.sampled_from([1, 2, 4, 7, 8])), 2 * draw(st.integers(1, 8))
    accumulate = draw(st.integers(1, 8))
    sides = [patch * side for side in draw(st.lists(st.integers(1, 9), min_size=1, max_size=2))]
    sizes = {"patch_size": patch, "image_size": draw(st.sampled_from([sides, ",".join(map(str, sides))]))}
    sizes |= {"num_heads": heads, "embed_dim": heads * 4 * draw(st.integers(1, 16))}
    batches = {"accumulate": accumulate, "batch_size": accumulate * draw(st.integers(1, 64))}
    preset = draw(st.sampled_from([None, *PRESETS]))
    return parse(merge(values, {"model": sizes | {"preset": preset}}, batches))


def test_a_size_is_one_side_or_two_and_a_square_is_the_same_however_it_is_written():
    def sized(value):
        return parse({"model": {"image_size": value}})

    assert sized("32,64").model.image_size == sized([32, 64]).model.image_size == (32, 64)
    assert resolve(None, {}, {"DIFFVIT_MODEL__IMAGE_SIZE": "32,64"}) == sized("[32, 64]")
    assert config_hash(sized([32, 32])) == config_hash(sized("32")) == config_hash(Config())
    assert len({config_hash(sized(value)) for value in (32, (32, 64), (64, 32))}) == 3
    assert to_dict(sized((32, 64)))["model"]["image_size"] == [32, 64]
    assert "image_size: 32\n" in to_yaml(Config())
    for wrong in ("32,", "32,64,3", [], 0, (32, -4), "32x64", None, 32.5):
        with pytest.raises(ConfigError, match=r"image_size: must be the side of a square, or height,width, in whole"):
            sized(wrong)
    with pytest.raises(ConfigError, match=r"patch_size 4 does not divide image_size \(32, 30\)"):
        sized((32, 30))


@given(config=configs())
@settings(deadline=None, max_examples=60)
def test_yaml_gives_back_an_equal_config(config, tmp_path_factory):
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    again = resolve(file, environ={})
    assert again == config
    assert config_hash(again) == config_hash(config)
    assert to_yaml(again) == to_yaml(config)
    assert parse(json.loads(json.dumps(to_dict(config)))) == config


@given(in_file=some_settings, in_env=some_variables, in_flags=some_settings)
@settings(deadline=None, max_examples=60)
def test_flag_beats_environment_beats_file_beats_default(in_file, in_env, in_flags, tmp_path_factory):
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    file.write_text(yaml.safe_dump(nested(in_file)), encoding="utf-8")
    environ = {
        "DIFFVIT_" + name.replace(".", "__").upper(): value if name in ("data_dir", "init_from") else json.dumps(value)
        for name, value in in_env.items()
    }
    found = resolve(file, nested(in_flags), environ)
    expected = {**{name: setting(Config(), name) for name in LEAVES}, **in_file, **in_env, **in_flags}
    assert {name: setting(found, name) for name in LEAVES} == expected


@pytest.mark.parametrize(
    ("source", "flag", "kept"),
    [("cifar10", None, None), ("auto", None, None), ("folder", None, "in/file"), ("cifar10", "in/flag", "in/flag")],
)
def test_the_variable_of_cifar10s_place_stands_between_flag_and_file(source, flag, kept, tmp_path):
    """No place in the config leaves it to the look-up, which begins with the variable."""
    file = tmp_path / "config.yaml"
    file.write_text(f"data: {source}\ndata_dir: in/file\n")
    flags = {"data_dir": flag} if flag else {}
    found = resolve(file, flags, {"DIFFVIT_DATA": "/in/variable"})
    assert found.data_dir == (Path(kept) if kept else None)
    assert resolve(file, flags, {}).data_dir == Path(flag or "in/file")
    file.write_text("")
    assert resolve(file, environ={"DIFFVIT_DATA": "/data: x"}) == Config() == parse({})


def test_variables_that_name_no_setting_are_left_alone():
    others = {"DIFFVIT_OFFLINE": "1", "DIFFVIT_MODEL": "x", "DIFFVIT_MODEL__DEPTH__X": "1", "DIFFVIT_EPOCHS": ""}
    assert from_environment(others) == {}


def preset_file(tmp_path, **model):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"model": model}))
    return file


def test_a_preset_in_a_flag_beats_the_files_sizes(tmp_path):
    file = preset_file(tmp_path, preset="vit_small", embed_dim=64, depth=3, num_heads=2, mlp_ratio=4.0, pool="mean")
    model = resolve(file, {"model": {"preset": "vit_nano"}}, {}).model
    sizes = PRESETS["vit_nano"].settings
    assert {name: getattr(model, name) for name in sizes} == sizes
    assert model.pool == "mean"
    own = resolve(file, {"model": {"preset": "vit_nano", "depth": 5}}, {}).model
    assert (own.depth, own.embed_dim) == (5, sizes["embed_dim"])
    # In the file it is below the file's own values, in the environment between file and flags.
    assert resolve(file, environ={}).model.depth == 3
    variable = {"DIFFVIT_MODEL__PRESET": "vit_nano"}
    assert resolve(file, {}, variable).model.depth == sizes["depth"]
    assert resolve(file, {"model": {"depth": 5}}, variable).model.depth == 5
    tiny = PRESETS["vit_pico"].settings["depth"]
    assert resolve(file, {"model": {"preset": "vit_pico"}}, variable).model.depth == tiny


def test_the_hash_ignores_where_a_run_happens_and_which_preset_gave_its_sizes():
    base = config_hash(Config())
    assert len(base) == 12
    assert int(base, 16) >= 0
    elsewhere = {"data_dir": "/x", "device": "cuda", "threads": 7, "checkpoint_every": 5}
    elsewhere |= {"accelerate": "off"}
    assert set(elsewhere) == WHEREABOUTS
    assert config_hash(parse(elsewhere)) == base
    sizes = dict(PRESETS["vit_pico"].settings)
    assert config_hash(parse({"model": sizes})) == config_hash(parse({"model": {"preset": "vit_pico"}}))


def test_settings_that_came_later_leave_the_hashes_of_committed_results_as_they_were():
    root = Path(__file__).parents[1]
    rows = list(csv.DictReader((root / "reports" / "cifar10-50" / "rows.csv").read_text().splitlines()))
    found = {config_hash(resolve(root / "configs" / f"cifar10_{kind}_cpu.yaml")) for kind in ("vit", "diffvit")}
    assert found <= {row["config_hash"] for row in rows}
    assert config_hash(parse({"model": {"registers": 1}})) != config_hash(Config())


@given(name=st.sampled_from(sorted(set(LEAVES) - WHEREABOUTS)), data=st.data())
@settings(deadline=None, max_examples=60)
def test_the_hash_and_the_differences_see_every_other_setting(name, data):
    base = Config()
    other = parse(nested({name: data.draw(LEAVES[name])}))
    same = setting(other, name) == setting(base, name)
    assert (config_hash(other) == config_hash(base)) is same
    expected = [] if same else [f"{name} {setting(base, name)} vs {setting(other, name)}"]
    assert differences(base, other) == expected


WRONG = {
    "unknown key": ({"epohs": 3}, "epohs: unknown key; did you mean 'epochs'?"),
    "unknown inner key": ({"model": {"embed_dimm": 3}}, "model.embed_dimm: unknown key; did you mean 'embed_dim'?"),
    "nothing like it": ({"zzz": 3}, "zzz: unknown key."),
    "not a section": ({"model": 3}, "model: must be a mapping of names to values (found int)."),
    "not a number": ({"epochs": "many"}, "(found 'many')"),
    "too small": ({"epochs": 0}, "greater than or equal to 1 (found 0)"),
    "nan": ({"optimizer": {"lr": float("nan")}}, "optimizer.lr: Input should be"),
    "seed too large": ({"seed": 2**63}, "seed: Input should be less than"),
    "heads": ({"model": {"num_heads": 5}}, "num_heads 5 does not divide embed_dim 192"),
    "halves": ({"model": {"embed_dim": 3, "num_heads": 1, "pos_embed": "learned-2d"}}, "embed_dim 3 is odd"),
    "quarters": ({"model": {"embed_dim": 6, "num_heads": 1, "pos_embed": "sincos-2d"}}, "not a multiple of 4"),
    "no lambda": ({"model": {"lambda_init": 0.5}}, "attention softmax has no lambda_init (have differential, dint,"),
    "accumulate": ({"batch_size": 10, "accumulate": 3}, "accumulate 3 does not divide batch_size 10"),
    "several": ({"epochs": 0, "seed": -1}, "1 more like it."),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_is_one_line_that_says_what_and_why(case):
    values, expected = WRONG[case]
    with pytest.raises(ConfigError) as caught:
        parse(values, "some.yaml")
    line = str(caught.value)
    assert caught.value.exit_code == 2
    assert line.startswith("some.yaml: ")
    assert expected in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (lambda: Config(epohs=3), "Config.epohs: unknown key; did you mean 'epochs'?"),
        (lambda: Config(model={"dept": 3}), "Config.model.dept: unknown key; did you mean 'depth'?"),
        (lambda: ModelConfig(patch_size=5), "ModelConfig: patch_size 5 does not divide image_size 32."),
        (lambda: Config(model=ModelConfig(depth=0)), "ModelConfig.depth: Input should be greater than or equal to 1"),
    ],
)
def test_a_config_made_in_python_is_refused_in_one_line_too(made, line):
    with pytest.raises(ConfigError) as caught:
        made()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=200),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*Config.model_fields, "zz", "depth"]), inner)
    ),
    max_leaves=8,
)


@given(values=st.dictionaries(st.sampled_from([*Config.model_fields, "zz"]), junk, max_size=4))
@settings(deadline=None, max_examples=80)
def test_junk_is_a_config_or_one_short_line(values):
    line = "a config"
    try:
        parse(values)
    except ConfigError as error:
        line = str(error)
    assert len(line.splitlines()) == 1
    assert len(line) < 400


def test_the_line_names_the_flag_the_variable_or_the_file_at_fault(tmp_path):
    file = preset_file(tmp_path, image_size=30, patch_size=3, depth=0)

    def line(flags, environ):
        with pytest.raises(ConfigError) as caught:
            resolve(file, flags, environ)
        return caught.value.line

    assert line({}, {}).startswith(f"{file}: model.depth: ")
    assert line({"model": {"depth": -1}}, {}).startswith("--model.depth: ")
    assert line({}, {"DIFFVIT_MODEL__DEPTH": "none"}).startswith("DIFFVIT_MODEL__DEPTH: ")
    assert line({}, {"DIFFVIT_MODEL__DEPTH": "{"}).startswith("DIFFVIT_MODEL__DEPTH: cannot be read as a value")
    good = {"depth": 1}
    assert line({"model": {**good, "patch_size": 4}}, {}).startswith("--model.patch-size: patch_size 4 does not divide")
    assert line({"model": good}, {"DIFFVIT_MODEL__PATCH_SIZE": "4"}).startswith("DIFFVIT_MODEL__PATCH_SIZE: ")
    assert line({"model": {**good, "preset": "vit_tny"}}, {}).startswith("--model.preset: no preset 'vit_tny'")
    assert line({"model": {"dept": 1}}, {}).startswith("--model.dept: unknown key; did you mean 'depth'?")


FILES = {
    "not a mapping": (b"- 1\n", "must hold a mapping of names to values (found list)"),
    "not YAML": (b"a: [1\n", "is not YAML"),
    "a tag": (b"a: !!python/object:os.system x\n", "is not YAML"),
    "a bad date": (b"a: 2024-99-99\n", "is not YAML"),
    "binary": (b"\xff\xfe\x00", "cannot be read as text"),
    "nested": (b"[" * 400, "is not YAML"),
    "a name twice": (b"epochs: 3\nmodel: {depth: 2}\nepochs: 4\n", "'epochs' appears twice in one mapping"),
    "a name twice below": (b"model: {depth: 2, depth: 3}\n", "'depth' appears twice in one mapping"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_config_is_one_line(case, tmp_path):
    content, expected = FILES[case]
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("recipe", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_documented_recipe_is_a_config(recipe):
    kind = ClipConfig if recipe.stem == "clip_cifar10" else Config
    assert resolve(recipe, environ={}, kind=kind) != kind()
    assert recipe.read_text().startswith("# ")
