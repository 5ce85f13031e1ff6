"""Joint training, the strategy that balances nothing: what every other one is compared with."""

from __future__ import annotations

from cggm_ray.strategies.base import Strategy
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions


class JointTraining(Strategy):
    """No balancing: all modalities are trained by the task loss alone."""

    needs_reduce = False


def _build(given: Materials[StrategyOptions]) -> Strategy:
    return JointTraining(task=given.task, reduce=given.reduce)


STRATEGIES.register("none")(StrategyInfo(build=_build, options=StrategyOptions, balances=False))
