"""The first training steps of one network and nothing else, for profilers: `python -m benchmarks.gpu.once`.

The first step is launched kernel by kernel, the second is recorded and replayed, the third is replayed. Convolutions
whose plans are not in the cache yet are timed before.
"""

from __future__ import annotations

import click

from benchmarks.gpu.step import IMAGE, ours
from benchmarks.shared.cases import Case
from dsgd_mpi.kernels.gpu import device as devices


@click.command()
@click.option("--net", default="resnet50", show_default=True)
@click.option("--batch", default=256, show_default=True)
@click.option("--dtype", default="bfloat16", show_default=True)
def main(net: str, batch: int, dtype: str) -> None:
    """Train for three steps on random images and print their losses."""
    devices.check()
    _, losses = ours(Case(net, IMAGE, batch, 1000, 1, 1), dtype, lambda: None)
    click.echo(f"{net} b{batch} {dtype}: losses {', '.join(f'{loss:.4f}' for loss in losses)}")


if __name__ == "__main__":
    main()
