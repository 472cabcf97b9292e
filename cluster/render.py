"""Renders cluster/rayservice.yaml from its template and a Serve config file.

python cluster/render.py                                           use the images warmtalk:0.1.0-cpu and -gpu
python cluster/render.py --image registry.example.com/warmtalk     use the images in this repository
python cluster/render.py --check                                   exit with 1 if the manifest is out of date
"""

from __future__ import annotations

import argparse
import re
import string
import sys
import textwrap
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
TEMPLATE = FOLDER / "rayservice.template.yaml"
MANIFEST = FOLDER / "rayservice.yaml"
CONFIG = FOLDER.parent / "configs" / "cluster.yaml"
IMAGE = "warmtalk"
TAG = "0.1.0"
RAY_VERSION = "2.60.0"

NOTE = "# Rendered by `python cluster/render.py`: do not edit. The stages have the settings of configs/cluster.yaml.\n"


def render(config: str, image: str = IMAGE, tag: str = TAG, ray_version: str = RAY_VERSION) -> str:
    """The text of the manifest. config: the text of a Serve config file; it is included unchanged, with comments."""
    template = string.Template(TEMPLATE.read_text(encoding="utf-8"))
    indent = re.search(r"^( *)\$serve_config$", template.template, re.MULTILINE)
    assert indent is not None, "the template must have $serve_config on a line by itself"
    block = textwrap.indent(config.rstrip("\n"), indent.group(1)).removeprefix(indent.group(1))
    return NOTE + template.substitute(
        serve_config=block,
        ray_version=ray_version,
        cpu_image=f"{image}:{tag}-cpu",
        gpu_image=f"{image}:{tag}-gpu",
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Render the KubeRay manifest from the template and a Serve config.")
    parser.add_argument("--config", type=Path, default=CONFIG, help="Serve config file (default: configs/cluster.yaml)")
    parser.add_argument(
        "--output", type=Path, default=MANIFEST, help="where to write (default: cluster/rayservice.yaml)"
    )
    parser.add_argument("--image", default=IMAGE, help="image repository (default: %(default)s)")
    parser.add_argument("--tag", default=TAG, help="image tag without -cpu or -gpu (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the output is out of date")
    options = parser.parse_args(arguments)
    if not options.config.is_file():
        parser.error(f"the config file {options.config} does not exist")
    text = render(options.config.read_text(encoding="utf-8"), options.image, options.tag)
    if options.check:
        current = options.output.is_file() and options.output.read_text(encoding="utf-8") == text
        print(f"{options.output} is {'up to date' if current else 'out of date. Run: python cluster/render.py'}")
        return 0 if current else 1
    options.output.write_text(text, encoding="utf-8")
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
