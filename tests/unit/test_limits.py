"""Numbers that mean nothing are refused wherever they are given, in one line that names the option."""

import dataclasses
import typing
from typing import Annotated

import click
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsgd_mpi import algorithms, errors, optim
from dsgd_mpi.config import COUNT, FIELDS, TABLES, Below, Most, build, convert, kind_of
from dsgd_mpi.train import command, read_command_line

NUMBERS = [name for name, item in FIELDS.items() if typing.get_origin(kind_of(item)) is Annotated]
NEVER = ["nan", "NaN", "-nan", "inf", "-inf", "Infinity", "1e400", "-1", "-0.5", "-1e300", "", " ", "x", "1,5", "0x10",
         "[1]", "true", "None", "9" * 5000]
NO_INTEGER = ["1.5", "1e3", "2.0", str(2**64)]
MEMBERS = [(room, name) for room in (algorithms, optim) for name in room.names()]
OPTIONS = [(room, name, key, hint) for room, name in MEMBERS
           for key, hint in typing.get_type_hints(room.find(name), include_extras=True).items()
           if key in {item.name for item in dataclasses.fields(room.find(name))}]
IN_FILES = ["nan", "inf", "-inf", "true", "false", "[1]", "[]", "{ a = 1 }", "2024-01-01", "07:32:00", "1e400", '"x"',
            '""', "-1"]


def too_much(kind):
    """Values beyond an upper limit."""
    _, _, *limits = typing.get_args(kind)
    return [str(limit.bound if isinstance(limit, Below) else 2 * limit.bound) for limit in limits]


def refused(act, *names):
    """Calls it; the message of the one line that it must end with, which names all these."""
    with pytest.raises(click.ClickException) as told:
        act()
    message = told.value.format_message()
    assert "\n" not in message
    assert all(name in message for name in names), message
    assert len(message) < 300
    assert told.value.exit_code == 2
    return message


def parsed(*words, **variables):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        return command.main([*map(str, words)], standalone_mode=False)


@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_of_a_configuration_is_taken_beyond_its_limits(name, tmp_path):
    kind, flag = kind_of(FIELDS[name]), "--" + name.replace("_", "-")
    integer = typing.get_args(kind)[0] is int
    for text in [*NEVER, *too_much(kind), *(NO_INTEGER if integer else [])]:
        message = refused(lambda text=text: parsed(f"{flag}={text}"), flag, "expected", "found")
        if text:                            # an empty variable is none
            assert refused(lambda text=text: parsed(**{f"DSGD_{name.upper()}": text})) == message
    for text in [*IN_FILES, *(["1.0", str(10**22)] if integer else [])]:
        file = tmp_path / "job.toml"
        file.write_text(f"{name} = {text}\n")
        refused(lambda file=file: parsed("--config", file), f"job.toml: {name}: ", "expected", "found")


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in (*NUMBERS, *TABLES)])
def test_no_other_field_takes_a_value_of_another_type_from_a_file(name, tmp_path):
    file, flag = tmp_path / "job.toml", FIELDS[name].metadata["flag"]
    for text in ["nan", "1", "[1]", "2024-01-01", "{ a = 1 }", '"x"' if flag else "true"]:
        file.write_text(f"{name} = {text}\n")
        refused(lambda: parsed("--config", file), f"job.toml: {name}: expected", "found")


def test_what_is_right_is_taken_from_a_file(tmp_path):
    file = tmp_path / "job.toml"
    file.write_text('lr = 1\nsmoothing = 0.999\nseed = 9223372036854775807\naugment = true\nmilestones = "1,2"\n')
    config = parsed("--config", file)
    assert (config.lr, config.smoothing, config.seed, config.augment) == (1.0, 0.999, 2**63 - 1, True)
    assert isinstance(config.lr, float)


@pytest.mark.parametrize(("room", "name", "key", "hint"), OPTIONS)
def test_no_number_of_an_algorithm_or_optimizer_is_taken_beyond_its_limits(room, name, key, hint):
    if hint is str:                         # an algorithm within another one
        with pytest.raises(errors.UsageError, match=f"^{name}: {key}: unknown algorithm 'nan'"):
            build(room.find(name), {key: "nan"}, name)
        return
    if hint is bool or typing.get_origin(hint) is typing.Literal:
        wrong = ["nan", "1", "", "none of them"]
    else:
        integer = int in (hint, *typing.get_args(hint)[:1])
        wrong = [*NEVER, *(NO_INTEGER if integer else []), *(too_much(hint) if typing.get_args(hint) else [])]
    for text in wrong:
        refused(lambda text=text: build(room.find(name), {key: text}, name), name, key, "expected", "found")


@pytest.mark.parametrize(("words", "name"), [
    (("--slow-rank", "0:nan"), "--slow-rank"), (("--slow-rank", "0:inf"), "--slow-rank"),
    (("--slow-rank", "0:-1"), "--slow-rank"), (("--slow-rank", "-1:1"), "--slow-rank"),
    (("--slow-rank", "0:1e300"), "--slow-rank"),
    (("--slow-rank", "0:1:2"), "--slow-rank"), (("--slow-rank", ":"), "--slow-rank"),
    (("--slow-rank", "0:uniform:0.3:0.1"), "--slow-rank"), (("--slow-rank", "0:pareto:nan"), "--slow-rank"),
    (("--slow-rank", "0:uniform:1"), "--slow-rank"), (("--slow-rank", "0:normal:1"), "--slow-rank"),
    (("--slow-rank", "3-1:1"), "--slow-rank"), (("--slow-rank", "0:1,"), "--slow-rank"),
    (("--slow-rank", "0:1e9"), "--slow-rank"),
    (("--partition", "dirichlet:nan"), "--partition dirichlet"), (("--partition", "sizes:1e300"), "--partition sizes"),
    (("--partition", "shards:0"), "--partition shards"), (("--partition", "labels"), "--partition"),
    (("--schedule", "step", "--milestones", "nan"), "--milestones"),
    (("--schedule", "step", "--milestones", "1,inf"), "--milestones"),
    (("--schedule", "step", "--milestones", "-1"), "--milestones"),
    (("--set", "bucket_mb=nan"), "allreduce: bucket_mb"), (("--set-optimizer", "momentum=1"), "sgd: momentum"),
    (("--momentum", "1.5"), "--momentum"), (("--algorithm", "backup", "--on-nonfinite", "skip"), "--on-nonfinite skip"),
])
def test_numbers_inside_words_have_limits_too(words, name):
    refused(lambda: parsed("--dry-run", *words), name, "found" if "skip" not in words else "use")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([name for name in FIELDS if name != "resume"]), value=st.one_of(
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20),
    st.floats().map(str), st.integers().map(str), st.sampled_from(NEVER)))
def test_whatever_is_given_is_taken_within_its_limits_or_refused_in_one_line(name, value):
    flag = "--" + name.replace("_", "-")
    words = [flag] if FIELDS[name].metadata["flag"] else [f"{flag}={value}"]
    message = ""
    try:
        parsed("--print-config", *words)
    except click.ClickException as refusal:
        message = refusal.format_message()
    assert "\n" not in message


@given(least=st.floats(-10, 10), bound=st.floats(-10, 10), value=st.floats())
def test_a_number_is_within_its_limits_or_refused(least, bound, value):
    for limit, fits in ((Most(bound), least <= value <= bound), (Below(bound), least <= value < bound)):
        if fits:
            assert convert(Annotated[float, least, limit], repr(value), "--x") == value
        else:
            refused(lambda limit=limit: convert(Annotated[float, least, limit], repr(value), "--x"), "--x: expected ")


def test_what_click_itself_refuses_is_one_line_too(monkeypatch, capsys):
    for words in (["--batsh", "3"], ["--dtype", "int8"], ["--lr"], ["surplus"], ["--lr", "nan"]):
        monkeypatch.setattr("sys.argv", ["train", *words])
        with pytest.raises(SystemExit) as ended:
            read_command_line()
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("Error: ")
        assert said.count("\n") == 1


def test_help_tells_limits():
    said = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    assert said.count("[at least 0 and less than 1]") == 2      # momentum, smoothing
    assert COUNT.holds(10**15)
