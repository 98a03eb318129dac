"""Where options come from, and which source wins."""

import pytest

from dsgd_mpi.config import Config
from dsgd_mpi.errors import UsageError
from dsgd_mpi.train import command


def parsed(*args):
    return command.main([*map(str, args)], standalone_mode=False)


def test_command_line_beats_environment_beats_file_beats_default(tmp_path, monkeypatch):
    file = tmp_path / "job.toml"
    file.write_text('batch = 1\nlr = 0.1\nmodel = "resnet14"\n')
    monkeypatch.setenv("DSGD_BATCH", "2")
    monkeypatch.setenv("DSGD_LR", "0.2")
    config = parsed("--config", file, "--batch", 3)
    assert (config.batch, config.lr, config.model, config.seed) == (3, 0.2, "resnet14", Config().seed)


def test_options_of_the_algorithm_come_from_both_file_and_command_line(tmp_path):
    file = tmp_path / "job.toml"
    file.write_text('algorithm = "gossip"\n[set]\nmode = "push"\nperiod = 2\n')
    assert parsed("--config", file).algorithm_options() == {"mode": "push", "period": "2"}
    assert parsed("--config", file, "--set", "period=3").algorithm_options() == {"mode": "push", "period": "3"}


def test_a_later_file_wins_over_an_earlier_one_key_by_key(tmp_path):
    first, second, third = (tmp_path / name for name in ("first.toml", "second.toml", "third.toml"))
    first.write_text('algorithm = "gossip"\nbatch = 1\nlr = 0.1\n[set]\nmode = "push"\nperiod = 2\n')
    second.write_text("batch = 2\n[set]\nperiod = 3\n[grid]\nranks = [1]\n")
    third.write_text('algorithm = "easgd"\nbatch = 3\n[set]\nbeta = 0.5\n')
    config = parsed("--config", first, "--config", second)
    assert (config.algorithm, config.batch, config.lr) == ("gossip", 2, 0.1)
    assert config.algorithm_options() == {"mode": "push", "period": "3"}
    config = parsed("--config", first, "--config", second, "--config", third, "--set", "period=9")
    assert (config.algorithm, config.batch, config.lr) == ("easgd", 3, 0.1)
    assert config.algorithm_options() == {"beta": "0.5", "period": "9"}     # another algorithm's options are gone


def test_a_configuration_survives_its_file(tmp_path):
    config = parsed("--set", "period=3", "--algorithm", "gossip", "--steps", 7, "--augment", "--lr", 1e-3)
    file = tmp_path / "config.toml"
    file.write_text(config.to_toml())
    assert parsed("--config", file) == config


def test_a_resumed_run_takes_the_configuration_of_its_folder(tmp_path):
    (tmp_path / "config.toml").write_text(Config(batch=5, set=("bucket_mb=2",)).to_toml())
    config = parsed("--resume", tmp_path, "--epochs", 9)
    assert (config.batch, config.epochs, config.resume, config.set) == (5, 9, str(tmp_path), ("bucket_mb=2",))


@pytest.mark.parametrize(("content", "message"), [
    ("batsh = 3", r"unknown option 'batsh'; did you mean 'batch'\?"),
    ("batch = ", "not a TOML file"),
    ('set = "mode=push"', r"expected a table \[set\]"),
])
def test_files_with_mistakes_are_told(tmp_path, content, message):
    file = tmp_path / "job.toml"
    file.write_text(content)
    with pytest.raises(UsageError, match=message):
        parsed("--config", file)
