"""A contact sheet of the miniature: task images beside web images. `python -m common.mini.show OUT.png`"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from common.errors import exit_cleanly
from common.files import atomic_write, unwritable
from common.mini.domains import DOMAINS, INCREMENTAL, classnames, draw, images, seeded
from common.mini.wider import WIDER
from common.options import option, read

SCALE, GAP, LABEL = 2, 3, 220
COLUMNS = 6  # images of each style


def _strip(pictures: np.ndarray) -> Image.Image:
    side = pictures.shape[1] * SCALE
    strip = Image.new("RGB", (len(pictures) * (side + GAP), side), "white")
    for k, picture in enumerate(pictures):
        large = Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
        strip.paste(large, (k * (side + GAP), 0))
    return strip


def sheet() -> Image.Image:
    """One row a domain: its name, images in the task's style, the same classes in the web's; the web's other kinds."""
    font, rows = ImageFont.load_default(size=13), []
    for name in (*DOMAINS, INCREMENTAL, *WIDER):
        classes = np.sort(seeded("classes shown", name).permutation(len(classnames(name)))[:COLUMNS])
        web = _strip(draw(name, classes, "web", seeded("sheet", name)))
        tasks = Image.new("RGB", web.size, "white") if name in WIDER else _strip(images(name, "train")[0][classes])
        rows.append((name, tasks, web))
    width = LABEL + rows[0][1].width * 2 + 4 * GAP
    height = rows[0][1].height + GAP
    page = Image.new("RGB", (width, height * len(rows) + 24), "white")
    pen = ImageDraw.Draw(page)
    pen.text((LABEL, 4), "tasks", fill="black", font=font)
    pen.text((LABEL + rows[0][1].width + 4 * GAP, 4), "web pool", fill="black", font=font)
    for k, (name, tasks, pool) in enumerate(rows):
        top = 24 + k * height
        pen.text((6, top + 8), name, fill="black", font=font)
        names = classnames(name)
        pen.text((6, top + 26), f"{len(names)} classes, such as", fill="grey", font=font)
        pen.text((6, top + 42), names[len(names) * 2 // 3], fill="grey", font=font)
        page.paste(tasks, (LABEL, top))
        page.paste(pool, (LABEL + tasks.width + 4 * GAP, top))
    return page


@dataclass(frozen=True)
class Options:
    out: Path = option(help="PNG to write", positional=True, check=unwritable)


@exit_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    options = read(Options, argv, "common.mini.show", __doc__)
    page = sheet()
    atomic_write(options.out, lambda file: page.save(file, format="PNG", optimize=True))


if __name__ == "__main__":
    main()
