"""What ASHA saves: the same trials with and without early stopping.

    python benchmarks/science/asha_savings.py tune_configs/mosi_asha.yaml pipelines/mosi.py --data_path mosi_data_noalign.pkl

Runs the search twice, once as its file says and once with `scheduler: none`, on the same drawn trials, and prints for both
the epochs trained, the best validation value, the test value of that trial and the hours. What is over already in
--storage_path is not run again. Further flags go to the pipeline.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

HEAD = ("scheduler", "epochs", "of", "best valid", "test", "hours of training")


def search(script: str, file: Path, storage: Path, name: str, flags: list[str]) -> dict[str, Any]:
    """Runs a search, or finds it done; returns its summary and the hours that its trials took together."""
    command = [sys.executable, script, "--tune", str(file), "--storage_path", str(storage), "--name", name, *flags]
    subprocess.run(command, check=True)
    summary: dict[str, Any] = json.loads((storage / name / "summary.json").read_text())
    seconds = pq.read_table(storage / name / "trials.parquet").column("seconds").to_pylist()
    return summary | {"hours": sum(seconds) / 3600}


def main() -> None:
    """Runs both and prints JSON and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("pipeline")
    parser.add_argument("--storage_path", type=Path, default=Path("~/cggm_runs").expanduser())
    arguments, flags = parser.parse_known_args()
    stem = arguments.file.stem
    content = yaml.safe_load(arguments.file.read_text())
    plan = content.get("scheduler", {})
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / f"{stem}_whole.yaml"
        kept = {key: plan[key] for key in ("max_epochs",) if key in plan}
        whole.write_text(yaml.safe_dump(content | {"scheduler": {"name": "none", **kept}}, sort_keys=False))
        for scheduler, file, name in (("asha", arguments.file, stem), ("none", whole, whole.stem)):
            found = search(arguments.pipeline, file, arguments.storage_path, name, flags)
            print(json.dumps({"scheduler": scheduler, **found}))
            metric = found["metric"]
            epochs = (found["epochs"], found["epochs_without_stopping"])
            values = (f"{found['valid'][metric]:.4f}", f"{found['test'][metric]:.4f}", f"{found['hours']:.2f}")
            rows.append((scheduler, *map(str, epochs), *values))
    for row in (HEAD, *rows):
        print("".join(f"{cell:>18}" for cell in row))
    asha, none = (int(row[1]) for row in rows)
    print(f"ASHA trained {asha} of {none} epochs: {1 - asha / none:.0%} saved")


if __name__ == "__main__":
    main()
