"""Classification: one class an image, by the largest output; targets are the numbers of the classes, int64 (N)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch.nn.functional as functional
from torch import Tensor

from pipeline.datasets.spec import DatasetInfo, PartName
from pipeline.host.errors import UserError
from pipeline.tasks import ACCURACY
from pipeline.tasks.contract import Task

# Of the classes that are lacking so many are named.
_NAMED = 5


class Classification(Task):
    """Outputs are logits (N, classes), decisions classes, int64 (N), and scores whether they are right."""

    primary = ACCURACY

    def info(self, data: DatasetInfo) -> DatasetInfo:
        return data

    def check(self, targets: Tensor, part: PartName, class_names: tuple[str, ...], told: str) -> None:
        """Refuse labels beyond the classes, or, to train on, a part without some of the classes.

        That every class is in the train part also says that the test part has none which it lacks.
        """
        classes = len(class_names)
        wrong = ((targets < 0) | (targets >= classes)).nonzero().flatten()
        if len(wrong):
            first = int(wrong[0])
            more = f", and {len(wrong) - 1:,} more such" if len(wrong) > 1 else ""
            raise UserError(
                f"{told} has the label {int(targets[first])} at image {first:,} (of {len(targets):,}, from 0){more}; "
                f"allowed: 0 to {classes - 1}, its {classes} classes"
            )
        if part != "train":
            return
        present, allowed = targets.unique().tolist(), f"allowed: images of each of its {classes} classes"
        if len(present) == 1:
            raise UserError(
                f"{told} has one class only: its {len(targets):,} images have the label {present[0]} "
                f"('{class_names[present[0]]}'); {allowed}"
            )
        lacking = [label for label in range(classes) if label not in present]
        if lacking:
            shown = ", ".join(f"{label} ('{class_names[label]}')" for label in lacking[:_NAMED])
            more = f" and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
            raise UserError(f"{told} has no images with the label {shown}{more}; {allowed}")

    def loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        return functional.cross_entropy(outputs, targets, label_smoothing=label_smoothing)

    def distill(self, outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        """T² · KL(teacher ‖ student), both softened by T = `temperature`.

        Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", section 2; T² keeps the
        gradient's size as T changes.
        """
        given, asked = (functional.log_softmax(logits / temperature, dim=1) for logits in (outputs, wanted))
        return temperature**2 * functional.kl_div(given, asked, reduction="batchmean", log_target=True)

    def decide(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def score(self, decided: Tensor, targets: Tensor) -> Tensor:
        return decided == targets

    def agree(self, decided: Tensor, reference: Tensor) -> Tensor:
        return decided == reference

    def of_targets(self, targets: Tensor) -> dict[str, float]:
        """The accuracy of always naming the class that most images have."""
        return {"largest_class_pct": 100 * float(targets.bincount().max()) / len(targets)}

    def of_decisions(self, decided: Tensor) -> dict[str, float]:
        return {"named_classes": len(decided.unique())}

    def groups(self, targets: Tensor, data: DatasetInfo) -> dict[str, Tensor]:
        return {name: targets == label for label, name in enumerate(data.class_names)}

    def show(
        self, decided: Mapping[str, Tensor], targets: Tensor, data: DatasetInfo, attach: Callable[[str], Path]
    ) -> None:
        from pipeline.tasks.confusion_matrix import draw

        draw(targets, decided["int8"], data.class_names, attach("confusion_matrix_int8.png"))


TASK = Classification()
