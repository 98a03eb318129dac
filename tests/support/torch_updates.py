"""Records where PyTorch's optimizers lead to, for the law that ours lead there too.

    python -m venv /tmp/torch && /tmp/torch/bin/pip install torch==2.13.0 numpy
    /tmp/torch/bin/python -m tests.support.torch_updates tests/laws/torch_updates.json
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

STEPS, SIZE, LR = 20, 7, 0.05
CASES = {                                   # ours: PyTorch's
    "sgd": {"momentum=0.9 weight_decay=1e-4": {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
            "momentum=0.9 weight_decay=0": {"momentum": 0.9, "nesterov": True},
            "momentum=0.8 weight_decay=0.1 nesterov=false": {"momentum": 0.8, "weight_decay": 0.1},
            "momentum=0 weight_decay=0 nesterov=false": {}},
    "adamw": {"beta1=0.9": {},
              "weight_decay=0": {"weight_decay": 0.0},
              "beta1=0.5 beta2=0.9 epsilon=1e-3 weight_decay=0.5":
                  {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.5}},
}
CLASSES = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


def path(name: str, options: dict[str, object], x: np.ndarray, gradients: np.ndarray) -> list[list[float]]:
    """x after each step, in float64; the rate falls on the way."""
    parameter = torch.nn.Parameter(torch.tensor(x))
    optimizer = CLASSES[name]([parameter], lr=LR, **options)
    found = []
    for step, g in enumerate(gradients):
        optimizer.param_groups[0]["lr"] = LR / (1 + step / 10)
        parameter.grad = torch.tensor(g)
        optimizer.step()
        found.append(parameter.detach().tolist())
    return found


def main() -> None:
    draw = np.random.default_rng(0)
    x, gradients = draw.standard_normal(SIZE), draw.standard_normal((STEPS, SIZE))
    recorded = {"torch": torch.__version__, "lr": [LR / (1 + step / 10) for step in range(STEPS)], "x": x.tolist(),
                "gradients": gradients.tolist(),
                "paths": {name: {options: path(name, theirs, x, gradients) for options, theirs in cases.items()}
                          for name, cases in CASES.items()}}
    Path(sys.argv[1]).write_text(json.dumps(recorded) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
