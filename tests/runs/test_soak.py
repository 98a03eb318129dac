"""Long runs, by `make soak`: the accuracies that the README promises."""

import json

import pytest

from tests.support.jobs import train

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("algorithm", [("allreduce",), ("gossip",), ("gossip", "--set", "mode=push")])
def test_six_epochs_on_four_ranks_reach_85_percent(tmp_path, algorithm, seed):
    status, _, errors = train("--algorithm", *algorithm, "--seed", seed, "--out", tmp_path / "run", ranks=4,
                                   limit_s=600)
    assert status == 0, errors
    accuracy = json.loads((tmp_path / "run" / "summary.json").read_text())["accuracy"]
    print(f"{' '.join(algorithm)} seed {seed}: {accuracy:.2%}")
    assert accuracy >= 0.85
