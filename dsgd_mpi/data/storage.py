"""Whether what an HDF5 file promises is stored: for what is not there HDF5 gives zeros, and no error.

    virtual datasets whose parts are gone, external files, chunks never written, filters that are not installed

and why a file cannot be read, told apart by cause, since "copy it again" helps against one of them only.
"""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py

from dsgd_mpi.errors import UsageError

# https://github.com/HDFGroup/hdf5_plugins/blob/master/docs/RegisteredFilterPlugins.md
FILTERS = {1: "gzip", 2: "shuffle", 3: "Fletcher32", 4: "szip", 307: "bzip2", 32000: "LZF", 32001: "Blosc",
           32004: "LZ4", 32008: "bitshuffle", 32013: "ZFP", 32015: "Zstandard", 32017: "SZ", 32018: "FCIDECOMP",
           32024: "SZ3", 32026: "Blosc2", 32028: "Sperr"}
PLUGINS = 256                               # filters from this number on are nobody's but their plugin's
COUNTED = 100_000                           # chunks: counting them takes 0.2 s
LOOKED_AT = 1000                            # of more chunks than that
DEEP = 8                                    # virtual datasets of virtual datasets
SHOWN = 3                                   # names in a message


@contextmanager
def reading(path: Path, what: str = "") -> Iterator[None]:
    """Whatever HDF5 or h5py raise inside becomes one line that tells the cause; `what` is what was being read."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:              # damaged bytes may make h5py raise anything
        raise UsageError(f"{path}: {cause(error, path, what)}") from error


def cause(error: Exception, path: Path, what: str = "") -> str:
    """Why a file cannot be read, and the way out."""
    text = " ".join(str(error).split())
    number = getattr(error, "errno", None) or next((int(n) for n in re.findall(r"errno = (\d+)", text)), 0)
    what = f"{what} " if what else ""
    if isinstance(error, MemoryError):
        return f"{what}takes more memory than there is ({text or 'MemoryError'}); use smaller chunks, or free memory"
    if "unable to lock" in text:
        return ("locked, another process has it open for writing; close it there, or set HDF5_USE_FILE_LOCKING=FALSE, "
                "which reads without a lock")
    if "already open for write" in text:
        return ("open for writing elsewhere, or was when its writer was killed; close it there, or, if no process has "
                f"it open, run `h5clear -s {path}` of HDF5's tools and verify it")
    if number in (errno.EACCES, errno.EPERM):
        return "no permission to read it; try chmod +r"
    if number in (errno.ENOENT, errno.ENOTDIR):
        return "is gone, or a folder above it is; put it back"
    if number:
        return (f"{what}cannot be read from where it is stored ({os.strerror(number)}); that is the disk's or file "
                "system's fault, not the file's: try again, or from a copy elsewhere")
    if found := re.search(r"eof = (\d+).*stored_eof = (\d+)", text):
        return f"cut off, it has {found[1]} of its {found[2]} bytes; copy or convert it again"
    if "plugin" in text or ("filter" in text and ("registered" in text or "not available" in text)):
        return _no_filter(what or "it ", int((re.findall(r"filter\D{0,9}(\d+)", text) or ["0"])[0]), "")
    if "filter returned failure" in text or "checksum" in text.lower():
        return f"damaged, {what}cannot be read: its checksum does not match; copy or convert it again"
    return (f"damaged, or still being written: {what}cannot be read ({type(error).__name__}: {text[:200]}); wait for "
            "its writer, or copy or convert it again")


def check_reachable(dataset: h5py.Dataset, path: Path) -> None:
    """That its filters are installed, and the other files that it is made of are there; cheap. UsageError."""
    pipeline = dataset.id.get_create_plist()
    for code, _, _, name in map(pipeline.get_filter, range(pipeline.get_nfilters())):
        if not _available(code):
            raise UsageError(f"{path}: {_no_filter(_name(dataset) + ' ', code, name.decode(errors='replace'))}")
    kind, variable = ("a virtual dataset", "HDF5_VDS_PREFIX") if dataset.is_virtual else (
        "kept", "HDF5_EXTFILE_PREFIX")
    names = _parts(dataset)
    if dataset.is_virtual and any("%" in name.replace("%%", "") for name in names):
        raise UsageError(f"{path}: expected the parts of {_name(dataset)} by name, found the pattern {names[0]}; "
                         "copy it into one file")
    gone = [name for name in names if not _found(dataset, name)]
    if gone:
        more = f" and {len(gone) - SHOWN} more" if len(gone) > SHOWN else ""
        raise UsageError(f"{path}: {_name(dataset)} is {kind} in {len(names)} other files, of which "
                         f"{', '.join(gone[:SHOWN])}{more} cannot be found or read; put them where they were, or set "
                         f"{variable} to their folder")


def check_written(dataset: h5py.Dataset, path: Path, thorough: bool = True, deep: int = 0) -> None:
    """That all of it has been stored, in other files too. UsageError names what is missing.

    Unless `thorough`, of very many chunks only some are looked at: counting them takes seconds.
    """
    check_reachable(dataset, path)
    if dataset.is_virtual:
        _check_virtual(dataset, path, thorough, deep)
    elif dataset.external:
        _check_external(dataset, path)
    elif dataset.chunks:
        _check_chunks(dataset, path, thorough)
    else:
        _check_contiguous(dataset, path)


def _name(dataset: h5py.Dataset) -> str:
    return str(dataset.name)[1:]


def _available(code: int) -> bool:
    if not h5py.h5z.filter_avail(code):
        with suppress(ImportError):         # it registers its filters
            import hdf5plugin  # noqa: F401
    return bool(h5py.h5z.filter_avail(code))


def _no_filter(what: str, code: int, name: str) -> str:
    known = FILTERS.get(code) or name.split(";")[0] or "of a name unknown here"
    way_out = ("pip install hdf5plugin, or set HDF5_PLUGIN_PATH to the folder of the filter" if code >= PLUGINS
               or not code else "use an HDF5 that was built with it, or store it without, by h5repack")
    number = f"HDF5's filter {code} ({known})" if code else "a filter of HDF5"
    return f"{what}needs {number}, which is not installed; nothing is wrong with the file: {way_out}"


def _parts(dataset: h5py.Dataset) -> list[str]:
    if dataset.is_virtual:
        return list(dict.fromkeys(source.file_name for source in dataset.virtual_sources()))
    return list(dict.fromkeys(name for name, _, _ in dataset.external or ()))


def _found(dataset: h5py.Dataset, name: str) -> Path | None:
    """Where HDF5 finds another file that a dataset names, if anywhere.

    As HDF5's H5F_prefix_open_file and H5D__efl_read do it: parts of virtual datasets are looked for in
    HDF5_VDS_PREFIX, beside the file, here, and beside what a symbolic link leads to; external files in
    HDF5_EXTFILE_PREFIX or, without one, here.
    """
    own = Path(dataset.file.filename)
    if name == "." and dataset.is_virtual:
        return own
    given = Path(name)
    if given.is_absolute():
        if not dataset.is_virtual or _readable(given):
            return given if _readable(given) else None
        given = Path(given.name)
    variable = "HDF5_VDS_PREFIX" if dataset.is_virtual else "HDF5_EXTFILE_PREFIX"
    folders = [Path(folder.replace("${ORIGIN}", str(own.absolute().parent)))
               for folder in os.environ.get(variable, "").split(":") if folder]
    if dataset.is_virtual:
        folders += [own.parent, Path(), Path(os.path.realpath(own)).parent]
    return next((folder / given for folder in folders or [Path()] if _readable(folder / given)), None)


def _readable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.R_OK)


def _check_virtual(dataset: h5py.Dataset, path: Path, thorough: bool, deep: int) -> None:
    if deep == DEEP:
        raise UsageError(f"{path}: {_name(dataset)} is a virtual dataset of virtual datasets, more than {DEEP} deep; "
                         "copy it into one file")
    sources = dataset.virtual_sources()
    mapped = 0
    for name in _parts(dataset):
        where = _found(dataset, name)
        assert where                        # check_reachable has found it
        with reading(where), h5py.File(where, "r", locking=False) as file:
            for source in (source for source in sources if source.file_name == name):
                part = file.get(source.dset_name)
                if not isinstance(part, h5py.Dataset):
                    raise UsageError(f"{path}: {_name(dataset)} is a virtual dataset, and {where} has no "
                                     f"{source.dset_name} for it; put the right file there")
                check_written(part, where, thorough, deep + 1)
                mapped += _mapped(source, part, path, dataset)
    if mapped < dataset.size:
        raise UsageError(f"{path}: {_name(dataset)} is a virtual dataset of which only {mapped} of {dataset.size} "
                         "values are mapped to other files; map all of it")


def _mapped(source: h5py.VDSmap, part: h5py.Dataset, path: Path, dataset: h5py.Dataset) -> int:
    """How many values come from a part, which must have them."""
    try:
        count = int(source.vspace.get_select_npoints())
    except RuntimeError:                    # as many as the part has: the whole has its shape from its parts
        return int(dataset.size)
    if source.src_space.get_select_type() == h5py.h5s.SEL_ALL:
        fits = part.size == count
    else:
        last = source.src_space.get_select_bounds()[1]
        fits = len(last) == part.ndim and all(end < length for end, length in zip(last, part.shape, strict=True))
    if not fits:
        raise UsageError(f"{path}: {_name(dataset)} is a virtual dataset that takes {count} values from "
                         f"{source.dset_name} in {part.file.filename}, which has another shape, {part.shape}; put the "
                         "right file there")
    return count


def _check_external(dataset: h5py.Dataset, path: Path) -> None:
    left = dataset.id.get_storage_size() or dataset.size * dataset.dtype.itemsize
    for name, offset, size in dataset.external:
        where = _found(dataset, name)
        assert where                        # check_reachable has found it
        expected = min(size, left)
        found = max(0, where.stat().st_size - offset)
        if found < expected:
            raise UsageError(f"{path}: expected {expected} bytes of {_name(dataset)} in {where} from byte {offset} on, "
                             f"found {found}; copy or convert it again")
        left -= expected
    if left > 0:
        raise UsageError(f"{path}: {left} bytes of {_name(dataset)} are in none of its external files; convert it "
                         "again")


def _check_chunks(dataset: h5py.Dataset, path: Path, thorough: bool) -> None:
    counts = [-(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True)]
    expected = math.prod(counts)
    if thorough or expected <= COUNTED:
        looked_at, found = expected, dataset.id.get_num_chunks()
    else:
        rows = {counts[0] - 1, *range(0, counts[0], -(-counts[0] // LOOKED_AT))}
        looked_at, found = len(rows), sum(_stored(dataset, row * dataset.chunks[0]) for row in rows)
    if found < looked_at:
        raise UsageError(f"{path}: only {found} of {looked_at} chunks of {_name(dataset)} were ever written, for the "
                         f"others HDF5 gives {dataset.fillvalue}; convert it again, to the end")


def _stored(dataset: h5py.Dataset, row: int) -> bool:
    return dataset.id.get_chunk_info_by_coord((row, *(0 for _ in dataset.shape[1:]))).byte_offset is not None


def _check_contiguous(dataset: h5py.Dataset, path: Path) -> None:
    if dataset.size and dataset.id.get_space_status() == h5py.h5d.SPACE_STATUS_NOT_ALLOCATED:
        raise UsageError(f"{path}: {_name(dataset)} was never written, HDF5 gives {dataset.fillvalue} for all of it; "
                         "convert it again, to the end")
    start, size = dataset.id.get_offset(), dataset.id.get_storage_size()
    there = os.path.getsize(dataset.file.filename)
    needed = dataset.size * dataset.dtype.itemsize
    if start is not None and (start + size > there or size < needed):
        raise UsageError(f"{path}: damaged, {_name(dataset)} of shape {dataset.shape} should take {needed} bytes from "
                         f"byte {start} on, found {min(size, max(0, there - start))}; copy or convert it again")
