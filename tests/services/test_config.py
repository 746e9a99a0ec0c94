import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st

from samix.errors import ConfigError
from services.config import differences, parse_config, parse_recipe, write_resolved


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much may fail."""

    failure_budget: float = 0.1
    """Share of the steps."""

    def __post_init__(self) -> None:
        if not 0 <= self.failure_budget <= 1:
            raise ValueError(f"failure_budget must lie in [0, 1], got {self.failure_budget}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Serve mixers."""

    mixers: tuple[str, ...] = ()
    """Files."""
    grpc_port: int = 8001
    """Port of gRPC; 0 takes a free one."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Two shares."""
    flip: bool = True
    """Mirror."""
    out: Path | None = None
    """Where to."""
    mixing: Budget = field(default_factory=Budget)


RECIPES = {"tiny": ("Two minutes", Config()), "big": ("Two days", Config(grpc_port=7, mixers=("a",)))}


def test_flags_fill_the_dataclass():
    """Flags of the config and of configs inside it land in their fields."""
    argv = ["--mixers", "a", "b", "--grpc-port", "0", "--no-flip", "--mixing.failure-budget", "0.5"]

    config = parse_config(Config, "serve", argv, environ={})

    assert config == Config(mixers=("a", "b"), grpc_port=0, flip=False, mixing=Budget(failure_budget=0.5))


def test_every_flag_has_a_variable():
    """A variable named after program and flag sets that flag; lists are split as a shell would."""
    environ = {
        "SAMIX_SERVE_MIXERS": "'my mixer.safetensors' b",
        "SAMIX_SERVE_GRPC_PORT": "9",
        "SAMIX_SERVE_SCALE": "0.2 0.5",
        "SAMIX_SERVE_FLIP": "off",
        "SAMIX_SERVE_OUT": "/runs/one two",
        "SAMIX_SERVE_MIXING_FAILURE_BUDGET": "1",
        "SAMIX_TRAIN_GRPC_PORT": "1",
        "PATH": "/bin",
    }

    config = parse_config(Config, "serve", [], environ=environ)

    assert config == Config(
        mixers=("my mixer.safetensors", "b"),
        grpc_port=9,
        scale=(0.2, 0.5),
        flip=False,
        out=Path("/runs/one two"),
        mixing=Budget(failure_budget=1.0),
    )


@given(inherited=st.integers(0, 65535), flag=st.integers(0, 65535))
def test_the_command_line_wins(inherited, flag):
    """Where a flag and its variable differ, the flag counts."""
    environ = {"SAMIX_SERVE_GRPC_PORT": str(inherited)}

    config = parse_config(Config, "serve", ["--grpc-port", str(flag)], environ=environ)

    assert config.grpc_port == flag


@pytest.mark.parametrize("value", ["--no-flip", "-h", "--", "a=b_c", " x "])
def test_the_value_of_a_variable_is_never_a_flag(value):
    """A variable sets its own flag to its very value, also where that looks like another flag."""
    config = parse_config(Config, "serve", [], environ={"SAMIX_SERVE_OUT": value})

    assert config == Config(out=Path(value))


def test_negative_numbers_may_stand_in_variables():
    """A minus sign makes no flag of a number, alone or in a list."""
    environ = {"SAMIX_SERVE_GRPC_PORT": "-1", "SAMIX_SERVE_SCALE": "-.5 -1e3"}

    config = parse_config(Config, "serve", [], environ=environ)

    assert config == Config(grpc_port=-1, scale=(-0.5, -1000.0))


@pytest.mark.parametrize("service", ["SAMIX_SERVE", "SAMIX_SERVE_GRPC"])
def test_variables_of_a_kubernetes_service_are_ignored(service):
    """A Service called samix-serve or samix-serve-grpc, whose variables Kubernetes sets in every pod, sets no flag."""
    environ = {
        f"{service}_SERVICE_HOST": "10.0.0.7",
        f"{service}_SERVICE_PORT": "8001",
        f"{service}_SERVICE_PORT_HTTP": "8002",
        f"{service}_PORT": "tcp://10.0.0.7:8001",
        f"{service}_PORT_8001_TCP": "tcp://10.0.0.7:8001",
        f"{service}_PORT_8001_TCP_PROTO": "tcp",
        f"{service}_PORT_8001_TCP_PORT": "8001",
        f"{service}_PORT_8001_TCP_ADDR": "10.0.0.7",
    }

    config = parse_config(Config, "serve", [], environ=environ)

    assert config == Config()


def test_a_variable_that_only_resembles_those_of_kubernetes_is_refused():
    """A port that a person gives under a wrong name is still a mistake."""
    with pytest.raises(ConfigError, match="SAMIX_SERVE_PORT fits no flag; did you mean SAMIX_SERVE_GRPC_PORT"):
        parse_config(Config, "serve", [], environ={"SAMIX_SERVE_PORT": "8001"})


def test_an_empty_variable_is_unset():
    """An empty variable changes nothing."""
    config = parse_config(Config, "serve", [], environ={"SAMIX_SERVE_GRPC_PORT": ""})

    assert config == Config()


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"SAMIX_SERVE_GRCP_PORT": "1"}, r"SAMIX_SERVE_GRCP_PORT fits no flag; did you mean SAMIX_SERVE_GRPC_PORT\?$"),
        ({"SAMIX_SERVE_X": "1"}, "SAMIX_SERVE_X fits no flag; known are SAMIX_SERVE_FLIP, .*SAMIX_SERVE_SCALE$"),
        ({"SAMIX_SERVE_MIXERS": "it's"}, 'SAMIX_SERVE_MIXERS .*got "it\'s"; close the quote'),
        ({"SAMIX_SERVE_MIXERS": "a --grpc-port 1"}, "SAMIX_SERVE_MIXERS holds '--grpc-port', .*write ./--grpc-port"),
        ({"SAMIX_SERVE_MIXERS": "-h"}, "SAMIX_SERVE_MIXERS holds '-h'"),
        ({"SAMIX_SERVE_FLIP": "maybe"}, "SAMIX_SERVE_FLIP must be one of 1, true, .* got 'maybe'"),
    ],
)
def test_a_wrong_variable_is_refused_by_name(environ, words):
    """A misspelt variable or a switch that is neither on nor off is refused in a sentence with its name."""
    with pytest.raises(ConfigError, match=words):
        parse_config(Config, "serve", [], environ=environ)


def test_a_config_that_refuses_speaks_for_itself():
    """The sentence of a config's own check comes out alone."""
    with pytest.raises(ConfigError, match=r"^failure_budget must lie in \[0, 1\], got 3.0$"):
        parse_config(Config, "serve", ["--mixing.failure-budget", "3"], environ={})


def test_a_malformed_flag_exits_and_names_its_variable(capsys):
    """A value of the wrong type ends the program with 2, and stderr says which variable it came from."""
    with pytest.raises(SystemExit) as exit_:
        parse_config(Config, "serve", [], environ={"SAMIX_SERVE_GRPC_PORT": "eight"})

    assert exit_.value.code == 2
    err = capsys.readouterr().err
    assert "grpc-port" in err
    assert "SAMIX_SERVE_GRPC_PORT=eight" in err


def test_a_positional_has_no_variable():
    """Only flags have variables."""

    @dataclass(frozen=True)
    class Copy:
        """Copy."""

        source: tyro.conf.Positional[str]
        out: str = "here"

    assert parse_config(Copy, "copy", ["there"], environ={}) == Copy("there")
    with pytest.raises(ConfigError, match="SAMIX_COPY_SOURCE fits no flag"):
        parse_config(Copy, "copy", ["there"], environ={"SAMIX_COPY_SOURCE": "x"})


def test_a_recipe_is_a_full_config_that_flags_change():
    """A recipe's values stand unless a variable or a flag changes them."""
    environ = {"SAMIX_TRAIN_FLIP": "no"}

    name, config = parse_recipe(RECIPES, "train", ["big", "--mixing.failure-budget", "0"], environ=environ)

    assert name == "big"
    assert config == Config(grpc_port=7, mixers=("a",), flip=False, mixing=Budget(failure_budget=0))


def test_an_unknown_recipe_is_answered_with_the_known_ones():
    """A misspelt recipe is refused with a list."""
    with pytest.raises(ConfigError, match=r"no recipe is called 'tinny'; .* knows tiny, big"):
        parse_recipe(RECIPES, "train", ["tinny"], environ={})


@pytest.mark.parametrize(("argv", "status", "stream"), [(["--help"], 0, "out"), (["-h"], 0, "out"), ([], 2, "err")])
def test_help_lists_recipes(argv, status, stream, capsys):
    """Asked for, the list of recipes is an answer; a recipe that was forgotten is a usage error with the same list."""
    with pytest.raises(SystemExit) as exit_:
        parse_recipe(RECIPES, "train", argv, environ={})

    output = capsys.readouterr()
    assert exit_.value.code == status
    assert "tiny  Two minutes\n  big   Two days" in getattr(output, stream)
    assert len(output.out + output.err) == len(getattr(output, stream))


def test_help_of_a_program_shows_flags_and_their_help(capsys):
    """The help names the program, its flags with the docstrings of the fields, and the form of the variables."""
    with pytest.raises(SystemExit):
        parse_recipe(RECIPES, "train", ["big", "--help"], environ={})

    out = capsys.readouterr().out
    for words in ("samix train big", "--grpc-port INT", "Port of gRPC", "default: 7", "SAMIX_TRAIN_SOME_FLAG"):
        assert words in out


def test_resolved_config_reads_back_as_the_same_config(tmp_path):
    """The file beside a run's outputs holds every value: given back as flags it makes the same config."""
    config = Config(mixers=("a", "b c"), grpc_port=5, flip=False, out=Path("/x y"), mixing=Budget(failure_budget=0.25))

    write_resolved(config, tmp_path / "config.json")
    values = json.loads((tmp_path / "config.json").read_text())

    budget = Budget(**values.pop("mixing"))
    values["out"] = Path(values["out"])
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    assert Config(**{**values, **lists}, mixing=budget) == config
    assert values.keys() | {"mixing"} == {entry.name for entry in dataclasses.fields(Config)}


def test_differences_name_settings_by_their_path():
    """Settings that differ, at any depth, are named like their flags, with both values."""
    before = {"lr": 0.1, "data": {"train": "a.tar", "size": [1, 2]}, "gone": 1}
    after = {"lr": 0.1, "data": {"train": "b.tar", "size": [1, 2]}, "new": {"x": 1}}

    assert differences(before, after) == {"data.train": ("a.tar", "b.tar"), "gone": (1, None), "new": (None, {"x": 1})}
