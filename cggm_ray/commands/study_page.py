"""Writes the page of a search or a comparison at its end."""

from __future__ import annotations

from pathlib import Path

from cggm_ray.core.console import print_result
from cggm_ray.core.errors import one_line
from cggm_ray.core.tables import listing
from cggm_ray.engine.configuration import Config
from cggm_ray.storage.work import shown


def write_study_page(config: Config, folder: Path) -> None:
    """Writes the page of a study unless `--report false` leaves it out. An error is printed and changes nothing else.

    Args:
        config: of the study.
        folder: of the study.
    """
    if not config.run.report:
        return
    try:
        # Imported here: a study without a page does without the templates.
        from cggm_ray.report.study_page import study_report

        print_result(listing({"report": study_report(folder)}))
    except Exception as error:
        print(
            f"{shown(folder)}: the report was not written: {one_line(f'{type(error).__name__}: {error}')}", flush=True
        )
