"""A finished run as an object: its metrics, and what can be done with its best checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from cggm_ray.api.arrays import data_file
from cggm_ray.commands.export import Exported, export
from cggm_ray.commands.predict import predict
from cggm_ray.commands.verify import Verified, verify
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.tracking import read_metrics
from cggm_ray.runs.finished import read_run
from cggm_ray.storage.mirror import at_hand
from cggm_ray.storage.work import read_folder

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run, which a notebook shows with its metrics and curves.

    Attributes:
        folder: of the run; for a URL the folder of this node that mirrors it.
        config: of the run.
        best_epoch: the epoch whose checkpoint was tested, counted from 1; 0 for an ensemble.
        valid, test: loss and metrics of that checkpoint by name.
    """

    folder: Path
    config: Config
    best_epoch: int
    valid: Mapping[str, float]
    test: Mapping[str, float]

    @property
    def metrics(self) -> pd.DataFrame:
        """The recorded metrics, with one row for each epoch."""
        import pandas as pd

        return pd.DataFrame(read_metrics(self.folder))

    def predict(
        self,
        data: Any = None,
        *,
        split: str | None = None,
        out: str | Path | None = None,
        workers: int | None = None,
        media_path: str | Path | None = None,
    ) -> pd.DataFrame:
        """Predicts other data, or a split of the run's own, with the best checkpoint.

        Args:
            data: raw data of the same dataset: a path, arrays by name [N, ...], or a table of pandas or pyarrow. It needs
                neither labels nor splits. None for the run's own data.
            split: part of the data; default all of `data`, or the test split of the run's own data.
            out: file of the predictions, .csv or else parquet, or a new folder of maps; default in the folder of the run.
            workers: processes that predict at once on Ray; None for this process.
            media_path: folder of the images, sounds and videos of `data`; default that of the run, or of the data.

        Returns:
            A row for every sample, see docs/after-training.md; for a segmentation a row for each map with its path.

        Raises:
            UsageError, DataError: the data is missing, damaged, or of other features than the run was trained with.
        """
        import pandas as pd

        path = None if data is None else data_file(data, self.folder.parent)
        with at_hand(self.folder) as folder:
            media = None if media_path is None else Path(media_path)
            done = predict(folder, path, split, None if out is None else Path(out), workers, media)
        if done.path.is_dir():
            return pd.DataFrame({"path": [str(each) for each in sorted(done.path.iterdir())]})
        csv = done.path.suffix.lower() == ".csv"
        return pd.read_csv(done.path) if csv else pq.read_table(done.path).to_pandas()

    def verify(self) -> Verified:
        """Evaluates the best checkpoint again and compares the metrics with the recorded ones."""
        with at_hand(self.folder) as folder:
            return verify(folder)

    def report(self) -> Path:
        """Writes a page about the run and returns its path."""
        from cggm_ray.report.page import report

        with at_hand(self.folder) as folder:
            return report([folder])

    def export(self, out: str | Path | None = None, format: str | None = None) -> Exported:
        """Writes the network as a program of `torch.export` ('pt2') or an ONNX model ('onnx'), which need no cggm-ray.

        Args:
            out: file to write; default `model.pt2` or `model.onnx` in the folder of the run.
            format: 'pt2' or 'onnx'; default by the ending of `out`, else 'pt2'.
        """
        with at_hand(self.folder) as folder:
            return export(folder, None if out is None else Path(out), format)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in self.test.items())
        return f"Run({str(self.folder)!r}: test {shown})"

    def _repr_html_(self) -> str:
        from cggm_ray.report.notebook import run_html

        return run_html(self.folder)


def load(run: str | Path) -> Run:
    """Returns a finished run from its folder or URL.

    Raises:
        UsageError: there is no finished run.
        StorageError: the storage of a URL cannot be reached.
    """
    with at_hand(read_folder("run", str(run)).absolute()) as folder:
        config, result = read_run(folder)
    return Run(folder=folder, config=config, best_epoch=result.best_epoch, valid=result.valid, test=result.test)
