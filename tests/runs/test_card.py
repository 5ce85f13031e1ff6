"""The model card of a run, read by the library of Hugging Face."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from feature_sets import arrays, as_npz, config
from huggingface_hub import ModelCard

from cggm_ray.commands.cli import main
from cggm_ray.core.errors import UsageError
from cggm_ray.data.datasets.features import FeatureOptions
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config
from cggm_ray.runs.card import CARD, MARK, card, try_card, write_card
from cggm_ray.runs.contributions import BALANCE
from conftest import SMALL


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on demonstration data, whose subsets of modalities were scored."""
    folder = tmp_path_factory.mktemp("demonstration")
    recipe = Config(data=DataConfig(dataset="features"), options=FeatureOptions())
    places = ["--storage_path", str(folder), "--name", "run", "--num_epochs", "1"]
    assert main(recipe, ["--local", *SMALL, "--report", "false", *places]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a file of a person's own, which predicts a value."""
    folder = tmp_path_factory.mktemp("own")
    made = config(folder, as_npz(folder, arrays()), "words,age", task="regression", target="mark", split="part")
    assert main(made, ["--report", "false"]) == 0
    return folder / "runs" / "r"


def test_metadata_holds_the_test_metrics(demonstration: Path) -> None:
    data = ModelCard.load(demonstration / CARD).data
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == json.loads((demonstration / "summary.json").read_text())["test"]
    assert {result.dataset_split for result in data.eval_results} == {"test"}
    assert data.library_name == "cggm-ray"
    assert {"multimodal-classification", "strategy:cggm", "modality:vector", "demonstration-data"} <= set(data.tags)


def test_demonstration_data_is_called_so_and_other_data_not(demonstration: Path, own: Path) -> None:
    text = (demonstration / CARD).read_text()
    assert "**This run was trained on demonstration data**" in text
    assert "one of 4 classes (0, 1, 2, 3) from vector, sequence and image" in text
    assert "Samples: train 480, valid 120, test 120." in text
    text = (own / CARD).read_text()
    assert "demonstration" not in text
    assert "generated" not in text
    assert "predicts a value from words and age" in text
    assert "`f.npz`. Samples: train 20, valid 5, test 5." in text
    assert str(own.parent.parent) not in text
    assert "Probabilities" not in text


def test_the_code_of_the_card_runs(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.parent)
    code = (own / CARD).read_text().split("```python\n")[1]
    place: dict[str, object] = {}
    exec(code.split("```")[0].replace('"new_data"', repr(str(own.parent.parent / "f.npz"))), place)
    assert len(place["predictions"]) == 30  # type: ignore[arg-type]


def test_contributions_come_in_when_they_are_there(demonstration: Path, own: Path) -> None:
    assert "It was not measured. `cggm report r` measures it." in (own / CARD).read_text()
    scores = [{"present": present, "score": score} for present, score in (([], 0.9), (["words"], 0.8), (["age"], 0.6))]
    summary = json.loads((own / "summary.json").read_text())
    content = {"metric": "mae", "better": "min", "split": "valid", "epoch": summary["best_epoch"], "shapley": {}}
    content |= {"modalities": ["words", "age"], "scores": [*scores, {"present": ["words", "age"], "score": 0.4}]}
    (own / BALANCE).write_text(json.dumps(content))
    text = card(own)
    # By hand: ((0.9 - 0.8) + (0.6 - 0.4)) / 2 and ((0.9 - 0.6) + (0.8 - 0.4)) / 2.
    assert "words 0.1500, age 0.3500" in text
    assert "words + age" in text


def test_a_card_that_a_person_wrote_stays(own: Path, tmp_path: Path) -> None:
    (own / CARD).write_text("Mine.")
    assert write_card(own) is None
    assert (own / CARD).read_text() == "Mine."
    (own / CARD).write_text(f"Old. {MARK}")
    assert write_card(own) == own / CARD
    assert "Old" not in (own / CARD).read_text()


def test_no_card_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected the folder of a finished run"):
        write_card(tmp_path)
    line = try_card(tmp_path)
    assert line is not None
    assert line.startswith(f"{tmp_path / CARD} was not written: ")
