"""A disk that is full does not end a run; what it did not take is written once it does, or said at the end."""

import errno
import io
import logging
import os
import re
import tempfile
from pathlib import Path

import pytest

from dsgd_mpi.errors import RunError
from dsgd_mpi.training import job
from dsgd_mpi.training import output as module
from dsgd_mpi.training.output import Output, write_whole


class Disk:
    """Takes so many bytes more; each write as many as there is room for, as a kernel does."""

    def __init__(self, monkeypatch):
        self.room, self.error = 0, errno.ENOSPC
        disk = self

        class File(io.FileIO):
            def write(self, data):
                if not disk.room:
                    raise OSError(disk.error, os.strerror(disk.error))
                taken = super().write(memoryview(data)[: disk.room])
                disk.room -= taken
                return taken

        def written(path, text):
            if disk.room < len(text):
                raise OSError(disk.error, os.strerror(disk.error))
            disk.room -= len(text)
            write_whole(path, text)

        monkeypatch.setattr(module.io, "FileIO", File)
        monkeypatch.setattr(module, "write_whole", written)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ESTALE])
def test_lines_wait_until_there_is_room_and_are_never_torn(tmp_path, caplog, disk, number):
    disk.error = number
    output, path = Output(tmp_path), tmp_path / "metrics.jsonl"
    for step, room in enumerate([100, 3, 0, 2, 0, 100, 100]):
        disk.room = room
        output.add("metrics.jsonl", f"line {step}\n")
        written = path.read_bytes()
        assert b"".join(b"line %d\n" % each for each in range(step + 1)).startswith(written)
    assert written.count(b"\n") == 7
    output.close()
    [record] = caplog.records               # said once, though refused three times
    assert str(path) in record.getMessage()
    assert os.strerror(number) in record.getMessage()
    assert "the run continues" in record.getMessage()


def test_whole_files_wait_too_and_are_tried_again_with_others(tmp_path, disk):
    output = Output(tmp_path)
    output.put("env.json", "old")
    output.put("env.json", "environment")
    assert not os.listdir(tmp_path)
    disk.room = 100
    output.add("metrics.jsonl", "line\n")
    assert (tmp_path / "env.json").read_text() == "environment"
    output.close()


def test_what_was_never_written_is_said_at_the_end(tmp_path, caplog, disk):
    output = Output(tmp_path)
    for step in range(3):
        output.add("metrics.jsonl", f"{step}\n")
    output.put("summary.json", "{}")
    caplog.clear()
    output.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'metrics.jsonl'} was not written: 3 lines missing (No space left on device)",
        f"{tmp_path / 'summary.json'} was not written: all of it missing (No space left on device)"]


def test_what_waits_is_bounded_and_the_rest_counted(tmp_path, caplog, disk, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 50)
    output = Output(tmp_path)
    for step in range(20):
        output.add("metrics.jsonl", f"line {step:3}\n")
    disk.room = 1000
    output.close()
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [f"line {step:3}" for step in range(6)]
    assert "14 lines missing" in caplog.records[-1].getMessage()


def test_a_file_server_that_finds_only_at_the_end_that_there_is_no_room_is_heard(tmp_path, caplog, monkeypatch):
    output = Output(tmp_path)
    output.add("metrics.jsonl", "line\n")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EDQUOT, "Disk quota exceeded")))
    output.close()
    assert "some of it missing (Disk quota exceeded)" in caplog.text
    path = tmp_path / "summary.json"
    path.write_text("before")
    with pytest.raises(OSError, match="quota"):
        write_whole(path, "after")
    assert (path.read_text(), len(os.listdir(tmp_path))) == ("before", 2)


def test_nothing_is_said_where_nothing_is_wrong(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    output = Output(tmp_path)
    output.add("metrics.jsonl", "line\n")
    output.put("env.json", "\u00fc")
    output.close()
    assert not caplog.records
    assert (tmp_path / "env.json").read_bytes() == b"\xc3\xbc"


@pytest.mark.parametrize(("number", "mend"), [(errno.ENOSPC, "make room there and"), (errno.ENOENT, "once that is")])
def test_a_model_that_finds_no_place_is_where_the_line_says(tmp_path, monkeypatch, number, mend):
    folder, elsewhere, refusing = tmp_path / "run", tmp_path / "elsewhere", [tmp_path / "run"]
    for path in (folder, elsewhere):
        path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))

    def write_model(path, *args):
        if any(path.is_relative_to(each) for each in refusing):
            raise OSError(number, os.strerror(number))
        path.write_text("the model")

    monkeypatch.setattr(job, "write_model", write_model)

    def said():
        with pytest.raises(RunError) as told:
            job.keep_model(folder, None, None, 5)
        assert told.value.exit_code == 1
        return told.value.message
    where, = re.findall(rf"the model is now (\S+model.h5); {mend} ", said())
    assert Path(where).read_text() == "the model"
    refusing.append(elsewhere)
    assert "nor the model elsewhere" in said()
    (folder / "checkpoint-000000005").mkdir()
    (folder / "checkpoint-000000005" / "rank0.h5").touch()
    assert f"continue with --resume {folder}, which writes it" in said()
    refusing.clear()
    job.keep_model(folder, None, None, 5)
    assert (folder / "model.h5").read_text() == "the model"
