"""Picture files to pixels of one size, by torchvision's rule for test images: shorter side to S, middle S x S of it.

    the other side becomes L = floor(S long / short); bilinear, averaging where it shrinks; from round((L - S) / 2) on

Greyscale becomes three equal channels and alpha is dropped. An EXIF rotation is ignored, as torchvision's ImageFolder
does: published accuracies of ImageNet are of images read so.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.errors import UsageError

LONGEST = 8                                 # times as long as wide: of longer images only the middle is scaled
QUALITY = 95                                # of JPEG made of what is no RGB or grey JPEG
TILE, TEXT, GAP = 96, 16, 6                 # pixels of a contact sheet: an image at least, a line of text, between two
ORIENTATION = 0x0112                        # in EXIF
PNG, DEPTH = b"\x89PNG\r\n\x1a\n", 24        # how such a file begins; where it has the bits of a value
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")


class Broken(Exception):
    """A file that is no picture, or only a part of one; the text says why."""


class Picture(NamedTuple):
    """Pixels uint8 (S, S, 3); JPEG bytes and their height and width, where asked for; what was strange about it."""

    pixels: Array
    jpeg: bytes
    shape: tuple[int, int]
    remarks: tuple[str, ...]


def check_pillow(purpose: str) -> None:
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise UsageError(f"{purpose} needs Pillow, which is not installed; pip install pillow") from None


def check_decoder(what: Path | str) -> None:
    """UsageError if what decodes JPEG when it is read is not installed."""
    check_pillow(f"{what}: reading JPEG images")
    try:
        import simplejpeg  # noqa: F401
    except ImportError:
        raise UsageError(f"{what}: reading JPEG images needs simplejpeg, which is not installed; pip install "
                         "simplejpeg, or convert the set without --jpeg") from None


def not_looked_for() -> tuple[str, ...]:
    """A line, if damage within JPEG files would not be noticed."""
    try:
        import simplejpeg  # noqa: F401
    except ImportError:
        return ("JPEG files were not searched for damage within, which takes simplejpeg: pip install simplejpeg",)
    return ()


def decoded(content: Any, size: int) -> Array:
    """The pixels of a JPEG in RGB or grey, `fitted`: uint8 (size, size, 3). ValueError."""
    from PIL import Image
    return fitted(Image.fromarray(all_of(content)), size)


def all_of(content: Any) -> Array:
    """The pixels of a JPEG in RGB or grey: uint8 (height, width, 3). ValueError."""
    import simplejpeg
    found: Array = simplejpeg.decode_jpeg(content, "RGB", strict=False)
    return found


def fitted(image: Any, size: int, crop: int | None = None) -> Array:
    """The middle of a Pillow image, its shorter side scaled to `size`: uint8 (crop, crop, 3), or (crop, crop) if grey.

    `crop` is `size` by default.
    """
    from PIL import Image
    crop = crop or size
    width, height = image.size
    if max(width, height) > LONGEST * min(width, height):
        longest = LONGEST * min(width, height)
        left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
        image = image.crop((left, top, left + min(width, longest), top + min(height, longest)))
        width, height = image.size
    short = min(width, height)
    if short != size:
        width, height = size * width // short, size * height // short
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


def picture(content: bytes, name: str, size: int, jpeg: bool) -> Picture:
    """A file's content, looked at to its last byte. Broken."""
    from PIL import Image
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            remarks = _remarks(image, name, size, content)
            if image.format in ("JPEG", "MPO"):
                remarks += _damage(content)
            as_it_is = jpeg and image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
            rgb = _rgb(image)
    except Broken:
        raise
    except Exception as error:              # Pillow raises anything, SyntaxError for a broken header
        raise Broken(_reason(content, error)) from None
    if not jpeg:
        return Picture(fitted(rgb, size), b"", (rgb.height, rgb.width), remarks)
    if not as_it_is:
        content = encoded(rgb)
        remarks = (*remarks, f"stored as JPEG of quality {QUALITY}")
    try:
        return Picture(decoded(content, size), content, (rgb.height, rgb.width), remarks)
    except ValueError as error:
        raise Broken(" ".join(str(error).split())) from None


def encoded(image: Any, quality: int = QUALITY) -> bytes:
    """JPEG of a Pillow image in RGB."""
    made = io.BytesIO()
    image.save(made, "JPEG", quality=quality, subsampling=0)
    return made.getvalue()


def contact_sheet(images: Array, names: Sequence[str]) -> bytes:
    """A PNG of images uint8 (N, H, W, C), C being 1 or 3, in rows, each with its name below, enlarged if small."""
    from PIL import Image, ImageDraw, ImageFont
    height, width = images.shape[1:3]
    scale = max(1, -(-TILE // max(height, width)))
    across, down = max(scale * width, TILE) + GAP, scale * height + TEXT + GAP
    columns = int(np.ceil(np.sqrt(len(images) * down / across)))
    sheet = Image.new("RGB", (columns * across + GAP, -(-len(images) // columns) * down + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT - 4)
    for place, (image, name) in enumerate(zip(images, names, strict=True)):
        left, top = place % columns * across + GAP, place // columns * down + GAP
        tile = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
        sheet.paste(tile.resize((scale * width, scale * height), Image.Resampling.NEAREST), (left, top))
        while name and draw.textlength(name, font) > across - GAP:
            name = name.rstrip("…")[:-1].rstrip() + "…" if len(name) > 1 else ""
        draw.text((left, top + scale * height), name, "black", font)
    made = io.BytesIO()
    sheet.save(made, "PNG")
    return made.getvalue()


def _damage(content: bytes) -> tuple[str, ...]:
    """What libjpeg warns of in a JPEG that can be decoded, as far as simplejpeg is there; Pillow passes over it.

    Broken if pixels are lost: from there on they are grey, or of another place.
    """
    try:
        import simplejpeg
    except ImportError:
        return ()
    try:
        simplejpeg.decode_jpeg(content, "GRAY", min_height=1, min_width=1, min_factor=1, strict=True)
    except ValueError as error:
        warning = str(error)
        if "extraneous bytes" in warning:
            return ("a JPEG with bytes of no use in it, as damage may leave them",)
        if warning.startswith(("Corrupt JPEG data", "Premature end")):
            raise Broken(f"damaged within ({warning.removeprefix('Corrupt JPEG data: ')})") from None
    return ()


def _reason(content: bytes, error: Exception) -> str:
    if not content:
        return "an empty file"
    if content.lstrip()[:1] == b"<":
        return "a web page"
    text = " ".join(str(error).split())
    return "no picture that Pillow knows" if text.startswith("cannot identify") else text[:120]


def _remarks(image: Any, name: str, size: int, content: bytes) -> tuple[str, ...]:
    """What is counted and told; the same words for all images that are alike."""
    found = []
    mode = {"L": "greyscale", "1": "black and white", "CMYK": "CMYK", "YCCK": "CMYK", "P": "of a palette"}
    if image.mode in mode:
        found.append(f"{mode[image.mode]}, made RGB")
    if image.mode.startswith(("I", "F")) or (content.startswith(PNG) and content[DEPTH] == 16):
        found.append("of 16 bits, made RGB of 8")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        found.append("with alpha, which was dropped")
    ends = Path(name).suffix.lower()
    as_named = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".webp": "WEBP", ".gif": "GIF"}
    if as_named.get(ends, image.format) not in (image.format, {"MPO": "JPEG"}.get(image.format)):
        found.append(f"{image.format} under a name that ends in {Path(name).suffix}")
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        found.append("of several frames, of which the first was taken")
    if "exif" in image.info and image.getexif().get(ORIENTATION, 1) not in (0, 1):
        found.append("with an EXIF rotation, which was ignored")
    if max(image.size) > LONGEST * min(image.size):
        found.append(f"more than {LONGEST} times as long as wide, of which only the middle was taken")
    if min(image.size) < size:
        found.append(f"smaller than {size} pixels, enlarged")
    return tuple(found)


def _rgb(image: Any) -> Any:
    """A Pillow image in RGB of 8 bits. Broken."""
    if image.mode.startswith("I"):          # Pillow would clip 16 bits at 255
        from PIL import Image
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xffff:
            raise Broken("32 bits a pixel")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        raise Broken("floating-point pixels")
    return image.convert("RGB")
