"""Answers requests with the network of a finished run; it knows neither HTTP nor Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cggm_ray.core.errors import DataError, TrainingError, UsageError
from cggm_ray.data.requests.base import RequestPlan, Sample, form_of
from cggm_ray.engine.evaluation import predicted
from cggm_ray.runs.finished import open_without_data

Answer = dict[str, Any]
"""The prediction for a sample, with the names of the columns that `predict` writes."""


class Predictor:
    """The network of a run and the form of its requests.

    Args:
        folder: of the run.
        gpu: whether one may be used.

    Raises:
        UsageError: the folder holds no finished run, or one that predicts maps.
        TrainingError: the checkpoint is damaged.
    """

    def __init__(self, folder: Path, *, gpu: bool = False) -> None:
        run = open_without_data(folder, gpu=gpu)
        if run.task.dense:
            raise UsageError(f"{folder}: a segmentation cannot be served; expected a run whose prediction is a vector")
        self._run = run
        plan = RequestPlan(
            dataset=run.dataset, trained=run.trained, modalities=run.modalities, device=run.runtime.device
        )
        self.form = form_of(plan)
        self._classes = run.dataset.class_names(run.trained)
        self._labels = run.dataset.label_names(run.trained)

    @torch.no_grad()
    def answers(self, samples: Sequence[Sample]) -> list[Answer]:
        """Returns the predictions in the order of the samples.

        Raises:
            DataError: a sample is not what the run was trained with.
            TrainingError: an output is not finite.
        """
        found: dict[int, Answer] = {}
        for batch in self.form.batches(samples):
            logits = predicted(self._run.config.train.precision, self._run.net, batch).double().cpu()
            if not bool(logits.isfinite().all()):
                raise TrainingError("the network gave a number that is not finite")
            pairs = zip(batch.index.tolist(), logits, strict=True)
            found |= {number: self._answer(row) for number, row in pairs if number < len(samples)}
        if len(found) != len(samples):
            raise TrainingError(f"{len(found)} of {len(samples)} samples were predicted")
        return [found[number] for number in range(len(samples))]

    def each(self, requests: Sequence[Sequence[Sample]]) -> list[list[Answer] | DataError]:
        """Returns the answers to several requests, which are predicted together unless one of them is wrong."""
        try:
            answers = iter(self.answers([sample for request in requests for sample in request]))
            return [[next(answers) for _ in request] for request in requests]
        except DataError as error:
            if len(requests) == 1:
                return [error]
            # Alone, so that the numbers of samples in messages are those of the request, and good ones are answered.
            return [self.each([request])[0] for request in requests]

    def _answer(self, logits: Tensor) -> Answer:
        if len(logits) == 1:
            return {"prediction": float(logits[0])}
        answer: Answer = {"prediction": logits.tolist()}
        if self._classes is not None:
            answer["probability"] = dict(zip(self._classes, logits.softmax(0).tolist(), strict=True))
            answer["class"] = self._classes[int(logits.argmax())]
        elif self._labels is not None:
            answer["probability"] = dict(zip(self._labels, logits.sigmoid().tolist(), strict=True))
            answer["labels"] = [name for name, value in zip(self._labels, logits, strict=True) if value > 0]
        return answer
