"""Where options come from, and which source wins."""

import pytest

from dsgd_mpi.config import Config, from_toml
from dsgd_mpi.errors import UsageError
from dsgd_mpi.study.grid import points
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


def length(*words):
    config = parsed(*words)
    return config.epochs, config.steps, config.steps_total


def test_the_length_of_a_run_is_that_of_the_first_source_that_has_one(tmp_path, monkeypatch):
    """A run of so many steps is lengthened by epochs, and the reverse: config.toml has both."""
    by_steps, by_epochs = tmp_path / "steps.toml", tmp_path / "epochs.toml"
    by_steps.write_text(Config(steps=10).to_toml())
    by_epochs.write_text("epochs = 3\n")
    assert length("--config", by_steps) == (6, 10, None)
    assert length("--config", by_steps, "--epochs", 4) == (4, None, None)
    assert length("--config", by_steps, "--steps-total", 40) == (6, None, 40)
    assert length("--config", by_epochs, "--steps", 20) == (3, 20, None)
    assert length("--config", by_steps, "--config", by_epochs) == (3, None, None)
    assert length("--config", by_epochs, "--config", by_steps) == (6, 10, None)
    monkeypatch.setenv("DSGD_EPOCHS", "5")
    assert length("--config", by_steps) == (5, None, None)
    assert length("--config", by_steps, "--steps", 20) == (5, 20, None)
    for words, flags in ((("--steps", 1, "--epochs", 1), "--epochs and --steps: expected one of them, found 2"),
                         (("--steps", 1, "--steps-total", 1), "--steps and --steps-total: expected one of them")):
        with pytest.raises(UsageError, match=flags):
            parsed(*words)


def test_what_cannot_be_written_to_a_file_of_options_is_refused(tmp_path):
    for words in (("--out", "r\udcff"), ("--set", "x=\udc80"), ("--data=\udcff.h5",)):
        with pytest.raises(UsageError, match=r"--(out|set|data): expected text in UTF-8.*'.*\\udc.*' in another"):
            parsed(*words)
    assert parsed("--out", "\u00fc\U0001f600").out == "\u00fc\U0001f600"


def test_what_is_given_is_what_stands_on_the_command_line_itself(tmp_path, monkeypatch):
    file = tmp_path / "job.toml"
    file.write_text('data = "x.h5"\n')
    monkeypatch.setenv("DSGD_LR", "0.1")
    assert parsed("--config", file, "--out", "--data").given == {"out"}
    assert parsed("--data=x.h5", "--batch", 3).given == {"data", "batch"}
    assert "given" not in parsed("--data=x.h5").to_toml()


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


def test_options_of_the_optimizer_come_from_both_file_and_command_line(tmp_path):
    first, second, third = (tmp_path / name for name in ("first.toml", "second.toml", "third.toml"))
    first.write_text('optimizer = "lars"\nmomentum = 0.8\n[set_optimizer]\ntrust = 0.01\nadapt = "all"\n')
    second.write_text("batch = 2\n[set_optimizer]\ntrust = 0.02\n")
    third.write_text('optimizer = "lamb"\n[set_optimizer]\nepsilon = 1e-5\n')
    config = parsed("--config", first, "--config", second, "--set-optimizer", "trust=0.03")
    assert (config.optimizer, config.momentum, config.batch) == ("lars", 0.8, 2)
    assert config.optimizer_options() == {"trust": "0.03", "adapt": "all"}
    config = parsed("--config", first, "--config", third)
    assert (config.optimizer, config.optimizer_options()) == ("lamb", {"epsilon": "1e-05"})
    file = tmp_path / "config.toml"
    file.write_text(config.to_toml())
    assert parsed("--config", file) == config


@pytest.mark.parametrize(("words", "message"), [
    (("--milestones", "1,2"), "expected --schedule step, found cosine"),
    (("--schedule", "step", "--milestones", "2,1"), "expected epochs in ascending order, found 2,1"),
    (("--schedule", "step", "--milestones", "1,x"), "--milestones: expected a number, found 'x'"),
    (("--set-optimizer", "trust"), "--set-optimizer expects KEY=VALUE, found 'trust'"),
    (("--optimizer", "sdg"), "unknown optimizer 'sdg'; the choices are adamw, lamb, lars, sgd"),
    (("--optimizer", "adamw", "--momentum", 0.9), "--momentum: expected an optimizer that has it, found adamw"),
    (("--weight-decay", 0.1, "--set-optimizer", "weight_decay=0"), "expected one of them, found both"),
    (("--optimizer", "adamw", "--set-optimizer", "beta2=1"), "adamw: beta2: expected at least 0 and less than 1"),
    (("--set-optimizer", "nestrov=false"), "sgd has no option 'nestrov'; did you mean 'nesterov'?"),
])
def test_an_optimizer_or_a_schedule_that_cannot_be_is_told(words, message):
    with pytest.raises(UsageError) as told:
        parsed("--dry-run", *words)
    assert message in told.value.message


def test_optimizers_are_listed_with_options_and_sources(capsys):
    parsed("--optimizer", "list")
    listed = capsys.readouterr().out
    assert "sgd   --set-optimizer momentum=0.9 nesterov=true weight_decay=0.0001 decay=all" in listed
    assert all(source in listed for source in ("1711.05101", "1708.03888", "1904.00962"))


JOB = 'epochs = 3\nlr = 0.05\nalgorithm = "gossip"\ndata = "\u00fc"\n[set]\nmode = "push"\n[grid]\nranks = [2]\n' \
      'algorithms = ["gossip"]\n'


@pytest.mark.parametrize("data", [JOB.encode("utf-8-sig"), JOB.replace("\n", "\r\n").encode(),
                                  JOB.replace("\n", "\r\n").encode("utf-8-sig")])
def test_a_file_from_another_editor_is_read(tmp_path, data):
    file = tmp_path / "job.toml"
    file.write_bytes(data)
    config = parsed("--config", file)
    assert (config.epochs, config.lr, config.algorithm_options()) == (3, 0.05, {"mode": "push"})
    assert config.data == "\u00fc"
    assert len(points(file)) == 1


@pytest.mark.parametrize(("data", "found"), [
    (JOB.encode("utf-16"), "UTF-16 (by its byte order mark)"),
    (JOB.encode("utf-32"), "UTF-32 (by its byte order mark)"),
    (JOB.encode("utf-16-le"), "UTF-16 (every other byte is NUL)"),
    (JOB.encode("utf-16-be"), "UTF-16 (every other byte is NUL)"), (JOB.encode() + b"\0", "a NUL byte in line 10"),
    (JOB.encode("latin-1"), "byte 0xfc in line 4, as in Latin-1 or another encoding")])
def test_a_file_in_another_encoding_is_refused_with_its_name_and_the_remedy_works(tmp_path, data, found):
    file = tmp_path / "job.toml"
    file.write_bytes(data)
    for read in (from_toml, points):
        with pytest.raises(UsageError) as refused:
            read(file)
        assert refused.value.message == f"{file}: expected a text file in UTF-8, found {found}; save it again as UTF-8"
    file.write_text(JOB, encoding="utf-8")
    assert from_toml(file)["epochs"] == 3


def test_what_is_no_file_of_options_is_refused_in_one_line(tmp_path):
    file = tmp_path / "job.toml"
    for data in (b"a = " + b"[" * 100_000, b"a = " + b"9" * 10_000, b"# long" + b" " * (17 << 20)):
        file.write_bytes(data)
        with pytest.raises(UsageError, match="job") as refused:
            from_toml(file)
        assert len(refused.value.message) < 500
    with pytest.raises(UsageError, match=r"cannot be read \(Is a directory\)"):
        from_toml(tmp_path)
