"""What is sent to the processes of a cluster is refused by other code of the package."""

from __future__ import annotations

import dataclasses

import pytest

from cggm_ray.core.errors import UsageError
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.own_code import adopt, own_code


def test_the_same_code_adopts() -> None:
    adopt(own_code(Config()))


def test_other_code_refuses() -> None:
    with pytest.raises(UsageError, match="has other code of cggm_ray"):
        adopt(dataclasses.replace(own_code(Config()), package="0" * 12))
