"""What the real cuDNN says of convolutions on an H200, where there is neither a GPU nor a driver.

It is asked in a process of its own, which loads a stand-in for the driver's library: of its functions those that load
machine code say that they have, and all others that there is no device. This cuDNN has no precompiled engines; it is a
sixth of the whole.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

from dsgd_mpi.kernels.api import Convolution
from dsgd_mpi.kernels.gpu import plans
from dsgd_mpi.kernels.gpu.plans import Geometry
from dsgd_mpi.nn import models
from tests.support import ROOT
from tests.support.emulation.emulated import COMPILER
from tests.support.timed_device import Timed

FOLDER = Path(sys.prefix, "cudnn")          # where nothing but these tests finds it
LIBRARIES = FOLDER / "nvidia" / "cudnn_jit" / "lib"
NO_DEVICE = "{ return 100; }"               # CUDA_ERROR_NO_DEVICE
LOADED = {"cuLibraryLoadData": "{ *made = made; return 0; }", "cuLibraryGetKernel": "{ *made = made; return 0; }",
          "cuLibraryUnload": "{ return 0; }"}
H200 = """{"maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64], "regsPerBlock": 65536,
"multiProcessorCount": 132, "smCountOrigin": 0, "warpSize": 32, "maxSharedMemoryPerBlock": 49152,
"maxSharedMemoryPerBlockOptin": 232448, "oversizedSharedMemoryPerBlock": 0, "reservedSharedMemoryPerBlock": 1024,
"maxRegistersPerSM": 65536, "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048, "pciDeviceId": 0,
"isTccDriver": 0, "supportCoopLaunch": 1, "smClockRateKHz": 1980000, "memClockRateKHz": 3201000,
"memoryBusWidth": 6144, "l2CacheSize": 62914560, "deviceName": "NVIDIA H200", "totalGlobalMem": 150000000000,
"cudaDeviceId": 0, "deviceVer": 900, "driverVer": 13000}"""


def missing():
    """Why this cannot be run; None if it can."""
    if not LIBRARIES.exists():
        return f"there is no cuDNN in {FOLDER} (make installs it on x86-64 Linux)"
    return None if COMPILER else "g++ is not installed: there is no stand-in for the NVIDIA driver"


def answers(questions, cache):
    """What methods of Asked return: [name, *arguments] -> its answer."""
    paths = {"PYTHONPATH": f"{ROOT}:{FOLDER}", "LD_LIBRARY_PATH": str(LIBRARIES), "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run([sys.executable, "-m", __name__, json.dumps(questions)], env={**os.environ, **paths},
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return {tuple(question): answer for question, answer in json.loads(done.stdout)}


def load_driver():
    names = {name.decode() for path in LIBRARIES.glob("*.so.9")
             for name in re.findall(rb"\0(cu[A-Z]\w+)(?=\0)", path.read_bytes())}
    text = "\n".join(f'extern "C" int {name}(void** made) {LOADED.get(name, NO_DEVICE)}' for name in sorted(names))
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "cuda.cpp"), Path(folder, "libcuda.so.1")
        source.write_text(text)
        subprocess.run([COMPILER, "-shared", "-fPIC", "-w", f"-Wl,-soname,{library.name}", "-o", library, source],
                       check=True)
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)       # by its soname it is what cuDNN finds


def resnet50(batch):
    """The geometries of its convolutions, and of the last, fully connected layer."""
    graph, seen = models.graph("resnet50", 1000, (224, 224, 3)), {Geometry(batch, 1, 1, 2048, 1000, 1, 1, 0, 1, 1)}
    for layer in graph.layers:
        if isinstance(operation := layer.operation, Convolution):
            (h, w, c), (oh, ow, o) = graph.shapes[layer.x], graph.shapes[layer.y]
            seen.add(Geometry(batch, h, w, max(8, c), o, operation.window, operation.stride, operation.pad, oh, ow))
    return sorted(seen)


class Asked:
    """What is asked of the real cuDNN, by the project's own code."""

    def __init__(self):
        import cudnn
        self.cudnn, self.device = cudnn, Timed()
        self.where = {"device_property": cudnn.create_device_properties(H200), "sm_version": 90}
        self.small = Geometry(8, 14, 14, 64, 64, 3, 1, 1, 14, 14)

    def graph(self, mode, direction="forward", dtype="bfloat16", exact=False):
        return plans.graph(self.cudnn, getattr(self.cudnn.heur_mode, mode), direction, self.small, dtype, exact,
                                **self.where)

    def made(self, dtype="bfloat16", exact=False, seconds=()):
        """Plans whose candidates would take so long, one after the other."""
        class Told(plans.Plans):
            def bound(told, planned, arrays, space):
                super().bound(planned, arrays, space)
                time = next(seconds, 0)
                return lambda: self.device.work(time)
        seconds = iter(seconds)
        return Told(self.device, dtype, exact, lambda size: self.device.empty((size,), None), **self.where)

    def unsupported(self, dtype, exact):
        """Convolutions of a ResNet-50 for which there is no plan that is supported."""
        found, made = [], self.made(dtype, exact)
        for g in resnet50(64):
            for direction in plans.ROLES:
                if direction == "data" and g.c == 8:
                    continue                # of images no gradient is asked
                if not any(self.supported(made, mode, direction, g) for mode in made.modes):
                    found.append((direction, *g))
        return found

    def supported(self, made, mode, direction, g):
        try:
            made.asked(mode, direction, g).graph.check_support()
            return True
        except made.refusals:
            return False

    def errors(self):
        """What is raised, and whether it is taken for a refusal."""
        made, first = self.made(), self.graph("A")
        exact = self.graph("A", "weights", "float32", exact=True)
        no_space = self.graph("A", "weights")
        no_space.graph.deselect_workspace_greater_than(-1)
        build_first(first)
        pack = dict.fromkeys(first.tensors, 4096)
        acts = {"a plan that would round": lambda: build_first(exact),
                "too much workspace": lambda: build_first(no_space),
                "no handle": lambda: first.graph.execute(pack, 4096, handle=None),
                "no device": self.cudnn.create_handle,
                "an array that is missing": lambda: first.graph.execute({}, 4096, handle=None),
                "sizes that disagree": lambda: made.asked(made.modes[0], "forward", self.small._replace(oh=5))}
        return {name: self.raised(made, act) for name, act in acts.items()}

    def raised(self, made, act):
        try:
            act()
        except Exception as error:
            return type(error).__name__, isinstance(error, made.refusals), str(error)
        return None

    def chosen(self):
        """Names of a convolution's plans, and of the one that is bound after two were timed, and when it is known."""
        arrays = [SimpleNamespace(data=SimpleNamespace(ptr=4096))] * 3
        plans.CANDIDATES = 2
        made = self.made(seconds=[2, 1])
        made.step("forward", self.small, *arrays)
        known = self.made()
        known.step("forward", self.small, *arrays)
        key, = (path.name for path in made.choices.folder.iterdir())
        return {"plans": [name for name, _ in self.graph("A").plans()], "key": key, "found": made.choices.get(key),
                "replays": self.device.replays, "sizes": [each.chosen[key].graph.get_workspace_size()
                                                          for each in (made, known)]}

    def built(self, direction):
        """Whether the first plan that may be used can be built."""
        return self.raised(self.made(), lambda: build_first(self.graph("A", direction)))


def build_first(planned):
    _, build = next(iter(planned.plans()))
    build()


def main():
    load_driver()
    asked = Asked()
    json.dump([(question, getattr(asked, question[0])(*question[1:])) for question in json.loads(sys.argv[1])],
              sys.stdout)


if __name__ == "__main__":
    main()
