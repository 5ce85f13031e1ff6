"""Paths of this node that stand for URLs, see `cggm_ray.storage.mirror`, and how people see them."""

from __future__ import annotations

import re

TRAINED, READ = "cggm-runs", "cggm-copies"
"""Folders of a node: of runs that are trained while their files are kept at a URL, and of runs there that commands read."""
_PATH = re.compile(rf"(?:/[^\s:;,']*)?/(?:{TRAINED}|{READ})/([a-z][a-z0-9+.-]*)/")


def in_urls(text: str) -> str:
    """Returns a text with the URL in place of every path that stands for one."""
    return _PATH.sub(r"\1://", text)
