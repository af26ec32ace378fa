"""`python -m pipeline.predict IMAGE…`: the classes of images, by an exported model.

Nothing is imported but what the model's runtime needs: with onnxruntime that is neither torch nor mlflow, and
the first result is there in a fraction of a second.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

import numpy as np

from pipeline.commands.command_line import Parser, run_command, tell_error
from pipeline.commands.exported_models import MODEL_HELP, add_options, locate
from pipeline.host.errors import UserError
from pipeline.runtimes import exported

_EPILOG = """examples:
  python -m pipeline.predict seven.png                                     # by the model that was exported last
  python -m pipeline.predict --model models:/digits@champion *.png         # by a registered one
  python -m pipeline.predict --model exported/model.onnx --top 1 a.jpg b.png  # preprocessing.json lies beside it
"""


def main() -> None:
    """The command `python -m pipeline.predict`; its exit status is 2 when an image could not be read."""
    run_command(lambda: _run(_parser().parse_intermixed_args()))


def _parser() -> Parser:
    parser = Parser(
        prog="python -m pipeline.predict",
        description="The most probable classes of images, PNG or JPEG of any size; or else the outputs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--model", help=MODEL_HELP)
    parser.add_argument("--top", type=int, default=3, help="how many classes of each (default: %(default)s)")
    add_options(parser)
    return parser


def _run(arguments: argparse.Namespace) -> None:
    if arguments.top < 1:
        raise UserError(f"--top {arguments.top}: allowed: at least 1")
    # torch, where it is imported, tells of each start that its quantized tensors are deprecated.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    model = exported.load(locate("--model", arguments), runtime=arguments.runtime)
    # Of transparency in palettes, which is ignored, and of images that are large but not refused.
    warnings.filterwarnings("ignore", module="PIL")
    unreadable = 0
    for path in arguments.images:
        try:
            text = _text(path, model, arguments.top)
        except UserError as error:
            tell_error(error)
            unreadable += 1
        else:
            print(text, flush=True)
    if unreadable:
        sys.exit(2)


def _text(path: Path, model: exported.ExportedModel, top: int) -> str:
    """The image and below it its classes, the most probable first; equal ones in the order of the classes.

    Of a model that names no classes: its outputs.
    """
    class_names, image = model.preprocessing.class_names, model.preprocessing.apply(path)
    if not class_names:
        return f"{path}\n  {np.array2string(model.outputs(image), precision=4, max_line_width=120)}"
    probabilities = model.probabilities(image)
    order = np.argsort(-probabilities, kind="stable")[:top]
    return "\n".join([str(path), *(f"  {100 * probabilities[index]:6.2f} %  {class_names[index]}" for index in order)])


if __name__ == "__main__":
    main()
