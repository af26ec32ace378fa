"""Whether the labels of a part can be: checked once, after reading, for every data set alike."""

from __future__ import annotations

import torch

from pipeline.datasets.spec import Part, PartName
from pipeline.host.errors import UserError

# Of the classes that are lacking, so many are named.
_NAMED = 5


def check_labels(part: Part, dataset: str, name: PartName, class_names: tuple[str, ...]) -> None:
    """Refuse a part without images, with labels beyond the classes, or, to train on, without some of the classes.

    That every class is in the train part also says that the test part has none which it lacks.

    Raises:
        UserError: naming the data set, the part, the label and what is allowed.
    """
    of_part, classes = f"dataset={dataset}: the {name} part", len(class_names)
    if len(part) != part.pixels.shape[0]:
        raise UserError(
            f"{of_part} has {part.pixels.shape[0]:,} images and {len(part):,} labels; allowed: one label an image"
        )
    if len(part) == 0:
        raise UserError(f"{of_part} has no images; allowed: at least one of each of its {classes} classes")
    wrong = ((part.labels < 0) | (part.labels >= classes)).nonzero().flatten()
    if len(wrong):
        first = int(wrong[0])
        more = f", and {len(wrong) - 1:,} more such" if len(wrong) > 1 else ""
        raise UserError(
            f"{of_part} has the label {int(part.labels[first])} at image {first:,} (of {len(part):,}, from 0){more}; "
            f"allowed: 0 to {classes - 1}, its {classes} classes"
        )
    if name == "train":
        lacking = (torch.bincount(part.labels, minlength=classes) == 0).nonzero().flatten().tolist()
        if len(lacking) == classes - 1:
            (only,) = part.labels.unique().tolist()
            raise UserError(
                f"{of_part} has one class only: its {len(part):,} images have the label {only} ('{class_names[only]}')"
                f"; allowed: images of each of its {classes} classes"
            )
        if lacking:
            shown = ", ".join(f"{label} ('{class_names[label]}')" for label in lacking[:_NAMED])
            more = f" and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
            raise UserError(
                f"{of_part} has no images with the label {shown}{more}; allowed: images of each of its {classes} "
                "classes"
            )
