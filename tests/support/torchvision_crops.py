"""Records what torchvision makes of pictures, for the law that so do we: boxes exactly, pixels to one level.

    python -m venv /tmp/torch && /tmp/torch/bin/pip install torch==2.13.0 torchvision==0.28.0 pillow
    /tmp/torch/bin/python -m tests.support.torchvision_crops tests/unit/torchvision_crops.json
"""

import base64
import io
import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, RandomResizedCrop, Resize
from torchvision.transforms import functional as F

TRIES = 10
SHAPES = ((375, 500), (500, 375), (64, 64), (30, 200), (200, 30), (90, 121), (1, 40), (1, 1))      # height, width
BOXES = ((0, 0, 48, 64), (7, 11, 20, 31), (30, 40, 18, 9), (5, 0, 43, 57))      # of the pictures
SIDE = 12
FACTORS, ORDERS = (1.35, 0.65, 1.2), ((0, 1, 2), (2, 1, 0), (1, 2, 0))      # of brightness, contrast, saturation


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    """Slopes, an edge and some noise: uint8 (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 30, (height, width, 3))
    slopes = np.stack([3 * x, 4 * y, 100 + x - y], axis=2) + 60 * (x > y)[..., None]
    return np.clip(slopes + noise, 0, 255).astype(np.uint8)


def box(shape: tuple[int, int], draws: list[float]) -> list[int]:
    """What RandomResizedCrop does with these numbers for its own: two of the place, and two of each try."""
    numbers = iter(draws[2:])

    def uniform(tensor: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return tensor.fill_(float(low) + (float(high) - float(low)) * next(numbers))

    places = iter(draws[:2])
    with (mock.patch.object(torch.Tensor, "uniform_", uniform),
          mock.patch.object(torch, "randint", lambda low, high, size: torch.tensor([int(next(places) * high)]))):
        crop = RandomResizedCrop(SIDE)
        return list(crop.get_params(torch.zeros(3, *shape), list(crop.scale), list(crop.ratio)))


def jittered(image: Image.Image, order: tuple[int, ...]) -> Image.Image:
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
    for which in order:
        image = adjust[which](image, FACTORS[which])
    return image


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def main() -> None:
    draw = np.random.default_rng(1)
    boxes = []
    for shape in SHAPES:
        for _ in range(5):
            draws = draw.random(2 + 2 * TRIES).round(6).tolist()
            boxes.append({"shape": shape, "draws": draws, "box": box(shape, draws)})
    file = io.BytesIO()
    Image.fromarray(picture()).save(file, "JPEG", quality=90)
    pictures = {"pixels": Image.fromarray(picture()), "jpeg": Image.open(file).convert("RGB"),
                "grey": Image.fromarray(picture()[..., 1])}
    test = Compose([Resize(round(SIDE * 8 / 7)), CenterCrop(SIDE)])
    recorded = {
        "torchvision": torchvision.__version__, "side": SIDE, "boxes": boxes,
        # bytes in base64, of shape (height, width, 3)
        "shape": picture().shape, "pixels": text(picture().tobytes()), "jpeg": text(file.getvalue()),
        "crops": [{"picture": name, "box": each,
                   "expected": text(F.resized_crop(image, *each, [SIDE, SIDE]).tobytes())}
                  for name, image in pictures.items() for each in BOXES],
        "middles": [{"picture": name, "expected": text(test(image).tobytes())}
                    for name, image in pictures.items()],
        "factors": FACTORS,
        "jittered": [{"order": order, "expected": text(jittered(F.center_crop(pictures["pixels"], SIDE),
                                                                  order).tobytes())}
                     for order in ORDERS],
    }
    Path(sys.argv[1]).write_text(json.dumps(recorded) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
