"""What the ranks compare before they begin."""

import h5py
import pytest

from dsgd_mpi.config import FIELDS, Config
from dsgd_mpi.data import Dataset, open_dataset
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.graph_file import read
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.training import agreement
from tests.support.data_samples import dataset_file

DATA = open_dataset("fashion-mnist-12k")


def test_every_option_that_differs_is_named_with_its_ranks():
    def main(host):
        config = Config(lr=(0.1, 0.2)[host.rank > 1], seed=(0, 7)[host.rank == 2], threads=host.rank + 1)
        with pytest.raises(UsageError) as problem:
            agreement.check(host, agreement.about(config, DATA, "onednn"))
        return problem.value.message
    messages = Cluster(4).run(main)
    assert len(set(messages)) == 1
    assert messages[0].startswith("the ranks do not agree on what to run: ")
    assert "--lr: 0.1 on ranks 0-1, 0.2 on ranks 2-3; " in messages[0]
    assert "--seed: 0 on ranks 0-1,3, 7 on rank 2; " in messages[0]
    assert "--threads" not in messages[0]


@pytest.mark.parametrize("what", ["kernels", "dsgd_mpi", "images"])
def test_what_is_no_option_is_compared_too(what):
    def main(host):
        own = agreement.about(Config(), DATA, "onednn")
        with pytest.raises(UsageError, match=rf"run: {what}: .* on rank 0, other on rank 1; start"):
            agreement.check(host, own if host.rank == 0 else own | {what: "other"})
    Cluster(2).run(main)


def test_a_graph_that_some_have_read_otherwise_is_named(tmp_path):
    path, graphs = tmp_path / "own.edges", []
    for text in ("0 1", "0 1 .3"):
        path.write_text(text)
        graphs.append([read(str(path), "", push=False)])

    def main(host):
        own = agreement.about(Config(), DATA, "onednn", graphs[host.rank])
        with pytest.raises(UsageError, match=r"graph: .*own.edges \(\w+\) on rank 0, .*own.edges \(\w+\) on rank 1;"):
            agreement.check(host, own)
    Cluster(2).run(main)


def test_ranks_that_agree_go_on():
    Cluster(3).run(lambda host: agreement.check(host, agreement.about(Config(threads=host.rank), DATA, "onednn")))


def test_what_may_differ_are_options():
    assert set(FIELDS) > agreement.MAY_DIFFER


@pytest.mark.parametrize("change", ["a pixel of the first image", "a label", "the mean"])
def test_other_images_have_another_fingerprint(tmp_path, change):
    path = dataset_file(tmp_path)
    one, again = (agreement.fingerprint(Dataset(path)) for _ in range(2))
    assert one == again
    with h5py.File(path, "r+") as file:
        if change == "a label":
            file["test/labels"][-1] = (file["test/labels"][-1] + 1) % 4
        elif change == "the mean":
            file.attrs["mean"] = file.attrs["mean"] + 1e-6
        else:
            file["train/images"][0, 0, 0, 0] ^= 1
    assert agreement.fingerprint(Dataset(path)) != one
