"""Strategies in the reading of their official code, against what that code gave on a small network; see `recorded`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from cggm_ray import Classification, HeadOutput, Strategy
from cggm_ray.core.batch import Batch
from cggm_ray.models.ensemble import ensemble_net, ensemble_of
from cggm_ray.models.net import MultimodalNet
from cggm_ray.strategies.agm import AGMReleased
from cggm_ray.strategies.amco import AMCo
from cggm_ray.strategies.features import blank_features
from cggm_ray.strategies.greedy import GatedEnsemble, Greedy, GreedyOptions, greedy_net
from cggm_ray.strategies.inforeg import InfoReg
from cggm_ray.strategies.mmpareto import MMPareto
from cggm_ray.strategies.ogm import OGM
from cggm_ray.strategies.opm import DRAWS, OPM
from cggm_ray.strategies.pmr import PMR
from cggm_ray.strategies.reconboost import ReconBoost
from cggm_ray.strategies.relearning import ReLearning
from cggm_ray.strategies.valuation import Valuation, copies
from recorded import (
    BATCH,
    CLASSES,
    LR,
    STEPS,
    WIDTH,
    assert_recorded,
    encoder,
    fill,
    inputs,
    network,
    record,
    run,
    wave,
)

TASK = Classification(CLASSES)
PAIR = ("audio", "visual")
Take = Callable[[dict[str, Tensor], Tensor], None]


def step(net: MultimodalNet, balance: Strategy, given: Callable[[], Mapping[str, Tensor]] = dict) -> Take:
    """What leaves the gradients of a step in the network; `given` makes what the loader would give the samples."""

    def take(x: dict[str, Tensor], target: Tensor) -> None:
        batch = Batch(inputs=x, target=target, index=torch.arange(len(target)), given=dict(given()) or None)
        features, memo = balance.transform(net.encode(batch), batch)
        terms = balance.terms(net.fuse(features), batch, memo)
        (terms.task_loss + terms.extra).backward()
        balance.adjust_gradients(memo)
        balance.move()

    return take


@pytest.mark.parametrize("name", ["ogm", "ogm-ge"])
def test_ogm(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, net = record(name), network()
    encoders = dict(net.encoders.items())
    balance = OGM(
        PAIR,
        net.fuse,
        task=TASK,
        alpha=found["alpha"],
        noisy=encoders if name == "ogm-ge" else None,
        convolutions=encoders,
        epochs=found["epochs"],
        bias="shared",
    )
    monkeypatch.setattr("cggm_ray.strategies.ogm.torch.randn", lambda shape, **more: wave(shape, 7))
    take, lowered = step(net, balance), set()

    def counted(x: dict[str, Tensor], target: Tensor) -> None:
        take(x, target)
        lowered.add(
            int(balance.diagnostics["coefficient"].argmin()) if balance.diagnostics["coefficient"].min() < 1 else -1
        )
        balance.seen = getattr(balance, "seen", 0) + 1  # type: ignore[assignment]
        if balance.seen == STEPS // 2:
            balance.end_epoch({}, {}, torch.zeros(0))

    run(net, counted, PAIR)
    # That code adds 1e-8 to the deviation.
    assert_recorded(found, list(net.parameters()), rtol=1e-6)
    assert -1 in lowered
    assert len(lowered) > 1


def test_agm() -> None:
    names = ("audio", "visual", "text")
    found, net = record("agm"), network(names)
    balance = AGMReleased(
        names,
        net.fuse,
        task=TASK,
        alpha=found["alpha"],
        bound=found["bound"],
        blank=lambda batch: blank_features(net, batch),
    )
    run(net, step(net, balance), names)
    assert_recorded(found, list(net.parameters()))


def test_opm() -> None:
    found, net, number = record("opm"), network(), iter(range(STEPS))
    balance = OPM(PAIR, net.fuse, task=TASK, warmup=0)
    balance.bias = "shared"

    def draws() -> dict[str, Tensor]:
        n = next(number)
        of_batch = wave((1,), 300 + n).expand(BATCH)[:, None]
        return {DRAWS: (torch.cat([of_batch, wave((BATCH, 2), 200 + n)], 1) + 1) / 2}

    run(net, step(net, balance, draws), PAIR)
    assert_recorded(found, list(net.parameters()))


def test_pmr() -> None:
    found, net = record("pmr"), network()
    balance = PMR(
        PAIR, task=TASK, alpha=found["alpha"], momentum=found["momentum"], reading="released", ends=found["ends"]
    )
    batches = [Batch(inputs=x, target=t, index=torch.arange(BATCH)) for x, t in map(inputs, range(4))]
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)

    def begin(epoch: int) -> None:
        measured = torch.cat([balance.measure(net.encode(batch), batch) for batch in batches])
        balance.begin_epoch(epoch, {"train": measured.detach()})

    for epoch in range(4):
        assert balance.measures(epoch) == {"train": None}
        begin(epoch)
        for batch in batches:
            optimizer.zero_grad()
            step(net, balance)(batch.inputs, batch.target)
            optimizer.step()
        balance.end_epoch({}, {}, torch.zeros(0))
    begin(4)
    assert_recorded(found, [*net.parameters(), balance.prototype_0, balance.prototype_1])


class Guide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, CLASSES).double()

    def forward(self, feature: Tensor) -> HeadOutput:
        return HeadOutput(self.head(feature), feature)


def test_mmpareto() -> None:
    found, net = record("mmpareto"), network()
    guides = {name: Guide() for name in PAIR}
    parameters = [*net.parameters(), *(p for guide in guides.values() for p in guide.parameters())]
    fill(parameters)
    balance = MMPareto(
        guides,
        dict(net.encoders.items()),
        task=TASK,
        gamma=found["gamma"],
        by_parameter=True,
        optimizer=lambda own: torch.optim.SGD(own, lr=LR / 4),
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=LR / 4)
    for number in range(STEPS):
        optimizer.zero_grad()
        step(net, balance)(*inputs(number))
        optimizer.step()
    assert_recorded(found, parameters)


def test_relearning() -> None:
    found, encoders = record("relearning"), {name: encoder(name) for name in PAIR}
    parameters = [p for one in encoders.values() for p in one.parameters()]
    fill(parameters)
    balance = ReLearning(encoders, task=TASK, every=1)
    for number, parameter in enumerate(parameters):
        parameter.data += 0.3 * wave(parameter.shape, 90 + number)
    target = torch.arange(60) % CLASSES

    def features(number: int, wrong: int) -> Tensor:
        shown = (target + (torch.arange(60) % wrong == 0)) % CLASSES
        return 3 * wave((CLASSES, WIDTH), number)[shown] + 0.1 * wave((60, WIDTH), number + 5)

    measured = {}
    for split, (audio, visual) in {"train": ((400, 61), (410, 12)), "valid": ((420, 5), (430, 7))}.items():
        values = {"audio": features(*audio), "visual": features(*visual)}
        measured[split] = balance.measure(values, Batch(inputs={}, target=target, index=torch.arange(60)))
    balance.begin_epoch(2, measured)
    assert balance.reset_M.tolist() == pytest.approx(found["weights"], rel=1e-6)
    assert_recorded(found, parameters, rtol=1e-6)


def test_reconboost() -> None:
    found, net = record("reconboost"), network()
    guides = {name: Guide() for name in PAIR}
    parameters = [p for one in (*net.encoders.values(), *guides.values()) for p in one.parameters()]
    fill(parameters)
    boosted = ensemble_net(net, guides, mean=False)
    balance = ReconBoost(
        dict(net.encoders.items()), ensemble_of(boosted), task=TASK, epochs=2, rectify=1, released=True
    )
    optimizer = torch.optim.SGD(boosted.parameters(), lr=found["lr"], momentum=0.9, weight_decay=found["weight_decay"])
    for epoch in range(9):
        if balance.fresh_optimizer(epoch):
            optimizer.state.clear()
        for number in range(4):
            optimizer.zero_grad()
            step(boosted, balance)(*inputs(number))
            optimizer.step()
        balance.end_epoch({}, {}, torch.zeros(0))
    # That code takes the sum of the others in float32.
    assert_recorded(found, parameters, rtol=1e-7)


def test_valuation() -> None:
    found, net = record("valuation"), network()
    balance = Valuation(PAIR, net.fuse, task=TASK)
    batches = [Batch(inputs=x, target=t, index=torch.arange(BATCH)) for x, t in map(inputs, range(STEPS))]
    values_SM = torch.cat([balance.measure(net.encode(batch), batch) for batch in batches])
    assert values_SM.tolist() == found["values"]
    assert copies(values_SM).tolist() == found["copies"]


def test_inforeg() -> None:
    found, net = record("inforeg"), network()
    balance = InfoReg(dict(net.encoders.items()), net.fuse, task=TASK, mus=dict(zip(PAIR, found["mus"], strict=True)))
    optimizer = torch.optim.SGD(net.parameters(), lr=LR / 4)
    held = set()
    for epoch in range(3):
        balance.begin_epoch(epoch, {})
        for number in range(4 * epoch, 4 * epoch + 4):
            optimizer.zero_grad()
            step(net, balance)(*inputs(number))
            optimizer.step()
            held.add(tuple((balance.diagnostics["beta"] > 0).tolist()))
        balance.end_epoch({}, {}, torch.zeros(0))
    assert balance.traces_EM[-3:].T.tolist() == [pytest.approx(traces, rel=1e-9) for traces in found["traces"]]
    assert_recorded(found, list(net.parameters()))
    assert len(held) > 1


class Said(nn.Module):
    """The logits that a modality adds to the prediction: its columns of a layer, and half of the bias."""

    def __init__(self, layer: nn.Linear, index: int) -> None:
        super().__init__()
        # In a tuple: the layer is the fusion's.
        self._layer, self._index = (layer,), index

    def forward(self, feature: Tensor) -> Tensor:
        (layer,) = self._layer
        return nn.functional.linear(feature, layer.weight.chunk(2, 1)[self._index], layer.bias / 2)


class Added(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        return torch.stack(list(features.values())).sum(0)


class Shown(nn.Module):
    """A guide whose logits are its features, changed by a function that is set later."""

    change: Callable[[Tensor], Tensor]

    def forward(self, feature: Tensor) -> HeadOutput:
        return HeadOutput(self.change(feature), feature)


def test_amco(monkeypatch: pytest.MonkeyPatch) -> None:
    """That code masks classes: here the features are the logits, so that their units are classes.

    Its losses and shares of single modalities are those of masked logits; the guides here read masked features for that.
    """
    found, layer = record("amco"), nn.Linear(2 * WIDTH, CLASSES).double()
    encoders = {name: nn.Sequential(encoder(name), Said(layer, index)) for index, name in enumerate(PAIR)}
    net = MultimodalNet(encoders, Added(layer), nn.Linear(CLASSES, CLASSES).double())
    fill(list(net.parameters()))
    guides = {name: Shown() for name in PAIR}
    balance = AMCo(
        guides,
        task=TASK,
        sigma=found["sigma"],
        eps=found["eps"],
        # An optimizer must have a parameter, and these guides have none.
        optimizer=lambda own: torch.optim.SGD([nn.Parameter(torch.zeros(1)), *own], lr=LR),
    )
    for index, guide in enumerate(guides.values()):
        guide.change = lambda part, index=index: balance._mask(part, index, balance._masked())  # type: ignore[misc]
    # Which classes are masked was drawn there; how many, and of which modality, is found here.
    monkeypatch.setattr("cggm_ray.strategies.amco.draws", lambda n, stream, taken: torch.tensor(found["masks"][taken]))
    optimizer, dependent = torch.optim.SGD(net.parameters(), lr=LR / 4), set()
    for epoch in range(3):
        for number in range(4 * epoch, 4 * epoch + 4):
            optimizer.zero_grad()
            step(net, balance)(*inputs(number))
            optimizer.step()
            assert balance.diagnostics["share"].tolist() == pytest.approx(found["shares"][number], abs=1e-10)
            dependent.add((*balance.diagnostics["dependent"].tolist(), min(found["masks"][number])))
        balance.end_epoch({}, {}, torch.zeros(0))
    assert_recorded(found, list(net.parameters()))
    assert dependent >= {(1, 0, 0), (0, 1, 0)}


def test_greedy() -> None:
    """That code holds gates at an average that has those of the pass itself, and those of the first branch for both."""
    found, encoders = record("greedy"), network()
    net = greedy_net(encoders, {name: Guide() for name in PAIR}, GreedyOptions()).double()
    fusion = net.fusion
    assert isinstance(fusion, GatedEnsemble)
    fill(list(net.parameters()))
    for parameter in fusion.excite["audio"].parameters():
        parameter.data *= found["scale"]
    balance = Greedy(
        dict(net.encoders.items()), fusion, task=TASK, epsilon=found["epsilon"], window=found["window"], start=1
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=found["lr"])
    for number, (speed, held) in enumerate(zip(found["speeds"], found["held"], strict=True)):
        x, target = inputs(number)
        batch = Batch(inputs=x, target=target, index=torch.arange(BATCH))
        optimizer.zero_grad()
        features, memo = balance.transform(net.encode(batch), batch)
        with torch.no_grad():
            gates_D = net.fuse(features).hidden.mean(0)
        average_D = (gates_D + balance.average_D * balance.averaged) / (balance.averaged + 1)
        fusion.hold(balance.held_M.clone(), average_D[:WIDTH].repeat(2))
        terms = balance.terms(net.fuse(features), batch, memo)
        (terms.task_loss + terms.extra).backward()
        balance.adjust_gradients(memo)
        optimizer.step()
        bypass_M, main_M = balance.speed_2M
        one, other = torch.log10(bypass_M / main_M).tolist()
        assert one - other == pytest.approx(speed, abs=1e-9)
        assert balance.held_M.tolist() == [held == 0, held == 1]
        if (number + 1) % found["steps"] == 0:
            balance.end_epoch({}, {}, torch.zeros(0))
    assert_recorded(found, list(net.parameters()))
    assert balance.average_D[:WIDTH].tolist() == pytest.approx(found["average"], abs=1e-10)
    assert set(found["held"]) == {-1, 0, 1}
