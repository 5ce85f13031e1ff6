"""What the loops of this folder train: generated data, a network of two encoders, and every strategy beside it.

The picture shows the class plainly, the sound hides it in noise. A loop of a person's own has its model and data in this place.
"""

import copy

import torch
from torch import nn
from torch.utils.data import DataLoader

from cggm_ray import (
    AGM,
    CGGM,
    CML,
    LFM,
    MBSD,
    MLB,
    MSLR,
    OGM,
    OPM,
    PMR,
    UME,
    UMT,
    AMCo,
    Classification,
    GBlending,
    Greedy,
    HeadOutput,
    JointTraining,
    MMCosine,
    MMPareto,
    ModalityDropout,
    MultiLoss,
    ReconBoost,
)
from cggm_ray.models.ensemble import Ensemble
from cggm_ray.strategies.greedy import GatedEnsemble, GreedyNet
from cggm_ray.strategies.mmcosine import CosineMember

NAMES, CLASSES, WIDTH, BATCH, EPOCHS, LR = ("picture", "sound"), 3, 8, 16, 3, 1e-2


def samples(count, seed):
    """A list of dictionaries {picture [6], sound [5], labels}."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=draw)
    picture = torch.randn(count, 6, generator=draw) + labels[:, None]
    sound = torch.randn(count, 5, generator=draw) + 0.3 * labels[:, None]
    return [{"picture": p, "sound": s, "labels": y} for p, s, y in zip(picture, sound, labels, strict=True)]


TRAIN, VALID = samples(64, seed=1), samples(32, seed=2)


def batches(rows, size=BATCH):
    """Yields inputs by modality and labels, in the order of the rows."""
    for batch in DataLoader(rows, size):
        yield {name: batch[name] for name in NAMES}, batch["labels"]


class Net(nn.Module):
    """An ordinary network in two halves."""

    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(width, WIDTH), nn.Tanh()) for name, width in zip(NAMES, (6, 5), strict=True)}
        )
        self.hidden, self.head = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def encode(self, inputs):
        return {name: encoder(inputs[name]) for name, encoder in self.encoders.items()}

    def fuse(self, features):
        hidden = self.hidden(torch.cat(list(features.values()), 1)).relu()
        return HeadOutput(self.head(hidden), hidden)


class Guide(nn.Module):
    """A classifier of one modality, whose last layer is as wide as that of the network."""

    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, feature):
        hidden = self.hidden(feature).relu()
        return HeadOutput(self.head(hidden), hidden)


def guides():
    return {name: Guide() for name in NAMES}


def adam(parameters):
    return torch.optim.Adam(parameters, lr=LR)


class Votes(nn.Module):
    """The encoders with a classifier each and no fusion: what UME and ReconBoost train."""

    def __init__(self, mean, member=lambda guide: guide):
        super().__init__()
        members = {name: member(guide) for name, guide in guides().items()}
        self.encoders, self.ensemble = Net().encoders, Ensemble(members, mean=mean)

    def encode(self, inputs):
        return {name: encoder(inputs[name]) for name, encoder in self.encoders.items()}

    def fuse(self, features):
        logits, members = self.ensemble(features)
        return HeadOutput(logits, logits, members=members)


# The network and the strategy by name; `more` is the task and, with several workers, `reduce`.
STRATEGIES = {
    "none": (Net, lambda net, **more: JointTraining(**more)),
    "cggm": (Net, lambda net, **more: CGGM(guides(), rho=1.3, lam=0.2, lr=LR, **more)),
    "cggm-update": (Net, lambda net, **more: CGGM(guides(), update=True, lr=LR, **more)),
    "ogm": (Net, lambda net, **more: OGM(NAMES, net.fuse, **more)),
    "ogm-ge": (Net, lambda net, **more: OGM(NAMES, net.fuse, noisy=net.encoders, **more)),
    "opm": (Net, lambda net, **more: OPM(NAMES, net.fuse, warmup=1, **more)),
    "agm": (Net, lambda net, **more: AGM(NAMES, net.fuse, **more)),
    "amco": (Net, lambda net, **more: AMCo(guides(), optimizer=adam, **more)),
    "pmr": (Net, lambda net, **more: PMR(NAMES, **more)),
    "mmpareto": (Net, lambda net, **more: MMPareto(guides(), net.encoders, lr=LR, **more)),
    "modality-dropout": (Net, lambda net, **more: ModalityDropout(p=0.3, **more)),
    "gblend": (Net, lambda net, **more: GBlending(guides(), super_epoch=1, floor=0.01, optimizer=adam, **more)),
    "mslr": (
        Net,
        lambda net, **more: MSLR(
            guides(),
            factors={"picture": 0.5, "sound": 2.0},
            strategy="dynamic",
            window=2,
            optimizer=adam,
            **more,
        ),
    ),
    "multiloss": (
        Net,
        lambda net, **more: MultiLoss(guides(), weights={"picture": 1.0, "sound": 0.5}, optimizer=adam, **more),
    ),
    "mlb": (Net, lambda net, **more: MLB(guides(), optimizer=adam, **more)),
    "mbsd": (Net, lambda net, **more: MBSD(guides(), optimizer=adam, **more)),
    "cml": (Net, lambda net, **more: CML(NAMES, net.fuse, **more)),
    "lfm": (lambda: Votes(mean=True), lambda net, **more: LFM(**more)),
    "mmcosine": (
        lambda: Votes(mean=False, member=lambda guide: CosineMember(guide, 10.0)),
        lambda net, **more: MMCosine(**more),
    ),
    # Teachers are trained before, each with a head of its own.
    "umt": (Net, lambda net, **more: UMT(copy.deepcopy(dict(net.encoders.items())), **more)),
    "ume": (lambda: Votes(mean=True), lambda net, **more: UME(**more)),
    "greedy": (
        lambda: GreedyNet(Net().encoders, GatedEnsemble(guides(), ratio=4.0), nn.Identity()),
        lambda net, **more: Greedy(dict(net.encoders.items()), net.fusion, start=1, **more),
    ),
    "reconboost": (
        lambda: Votes(mean=False),
        lambda net, **more: ReconBoost(dict(net.encoders.items()), net.ensemble, epochs=1, rectify=1, **more),
    ),
}


def make(name, **more):
    """Returns the network and the strategy of that name, the same at every call."""
    torch.manual_seed(0)
    network, strategy = STRATEGIES[name]
    net = network()
    balance = strategy(net, task=Classification(CLASSES), **more)
    torch.manual_seed(1)
    return net, balance


class Step(nn.Module):
    """One forward pass from `encode` to the loss, for libraries that wrap a module."""

    def __init__(self, net, balance):
        super().__init__()
        self.net, self.balance = net, balance

    def forward(self, labels, **inputs):
        self.balance.see(inputs)
        features = self.balance.modulate(self.net.encode(inputs), labels)
        head = self.net.fuse(features)
        return {"loss": sum(self.balance.losses(head, labels)), "logits": head.logits}
