"""How much longer a sweep took than its work: python benchmarks/sweep_cost.py SWEEP_ID [OUTPUTS].

The work is what the artifacts' manifests say: each stage's seconds, each artifact once, whichever job
made it. With an open-ended schedule the shorter QATs are the beginning of the longest, so that the
sum of a backend's QATs is what the longest alone costs. The wall time is that of the sweep's parent
run in MLflow; the sweep must have run in one go.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import mlflow
from tabulate import tabulate


def main(sweep_id: str, outputs: Path) -> None:
    records = [json.loads(path.read_text()) for path in (outputs / "sweeps" / sweep_id / "jobs").glob("*.json")]
    parent = json.loads((outputs / "sweeps" / sweep_id / "sweep.json").read_text())["parent_run_id"]
    run = mlflow.MlflowClient(f"sqlite:///{outputs.resolve() / 'mlflow.db'}").get_run(parent).info
    wall = (run.end_time - run.start_time) / 1000
    made: dict[str, list[float]] = defaultdict(list)
    epochs: dict[str, int] = defaultdict(int)
    for name in sorted({name for record in records for name in record["artifacts"]}):
        manifest = json.loads((outputs / "artifacts" / name / "manifest.json").read_text())
        made[manifest["hashed"]["stage"]].append(manifest["seconds"])
        if manifest["hashed"]["stage"] == "qat":
            backend = manifest["hashed"]["backend"]["name"]
            epochs[backend] = max(epochs[backend], manifest["hashed"]["qat"]["epochs"])
    work = sum(map(sum, made.values()))
    rows = [[stage, len(seconds), f"{sum(seconds):.1f}"] for stage, seconds in made.items()]
    print(tabulate([*rows, ["all", "", f"{work:.1f}"], ["wall", "", f"{wall:.1f}"]], ["stage", "made", "seconds"]))
    print(f"{len(records)} jobs; longest QAT of each backend: {dict(epochs)}; wall / work = {wall / work:.3f}")


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2] if len(sys.argv) == 3 else "outputs"))
