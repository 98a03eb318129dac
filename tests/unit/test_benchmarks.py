"""The tables of the benchmarks say what the results say."""

from tests.support import ROOT

BENCHMARKS = ROOT / "benchmarks"


def test_no_figure_of_the_tables_is_typed_by_hand(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import table

    made = BENCHMARKS / "README.rst"
    again = tmp_path / "README.rst"
    again.write_text(made.read_text())
    table.main(again)
    assert again.read_text() == made.read_text(), "run python benchmarks/table.py"
