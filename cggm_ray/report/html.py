"""Pieces of a page. Every text that comes from a file is escaped here and nowhere else."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Sequence

STYLE = """
body{font:16px/1.45 system-ui,sans-serif;max-width:66rem;margin:1.5rem auto;padding:0 1rem;color:#111;background:#fff}
h1{font-size:1.6rem}h2{font-size:1.3rem;border-bottom:2px solid #111;margin-top:2rem}h3{font-size:1.05rem}
img{max-width:100%;height:auto}figure{margin:1rem 0}figcaption{font-size:.9rem;max-width:48rem}
table{border-collapse:collapse;font-size:.9rem;margin:.6rem 0}caption{text-align:left;font-weight:600;padding:.2rem 0}
th,td{border:1px solid #888;padding:.2rem .55rem;text-align:left;vertical-align:top;max-width:26rem;
overflow-wrap:break-word}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}thead th{background:#eee}tr.differs td:first-child,
tr.differs th:first-child{font-weight:700}tr.differs th:first-child::after{content:" \\2260"}
.wide{overflow-x:auto}.notice{border:2px solid #111;padding:.5rem .8rem}button{font:inherit;padding:.35rem .9rem;
border:2px solid #111;background:#fff;color:#111;cursor:pointer;margin:0 .3rem .3rem 0}
button[aria-selected=true]{background:#111;color:#fff}[hidden]{display:none}
@media print{[hidden]{display:revert!important}button,label.switch{display:none}}
"""

SCRIPT = """
(function () {
  "use strict";
  var tabs = Array.prototype.slice.call(document.querySelectorAll("[role=tab]"));
  function panel(tab) { return document.getElementById(tab.getAttribute("aria-controls")); }
  function choose(chosen) {
    tabs.forEach(function (tab) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
      panel(tab).hidden = tab !== chosen;
    });
  }
  tabs.forEach(function (tab, place) {
    tab.addEventListener("click", function () { choose(tab); });
    tab.addEventListener("keydown", function (event) {
      var step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!step) { return; }
      var next = tabs[(place + step + tabs.length) % tabs.length];
      choose(next);
      next.focus();
    });
  });
  if (tabs.length) { choose(tabs[0]); }
  var box = document.getElementById("only-differing");
  if (box) {
    var show = function () {
      document.querySelectorAll("#configuration tbody tr").forEach(function (row) {
        row.hidden = box.checked && !row.classList.contains("differs");
      });
    };
    box.addEventListener("change", show);
    show();
  }
})();
"""


def text(value: object) -> str:
    """A value as text of a page, escaped."""
    if isinstance(value, float):
        value = f"{value:.6g}" if math.isfinite(value) else "not finite"
    if isinstance(value, bool):
        value = "yes" if value else "no"
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    return html.escape("-" if value is None else str(value))


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    marked: Iterable[bool] = (),
    name: str | None = None,
) -> str:
    """A table whose first column heads its rows; numbers are aligned to the right.

    Args:
        caption: of the table.
        head: of the columns.
        rows: cells.
        marked: for every row whether it has the class 'differs'.
        name: id of the table.
    """
    marks = list(marked)
    lines = []
    for number, row in enumerate(rows):
        first, *others = row
        mark = ' class="differs"' if number < len(marks) and marks[number] else ""
        cells = "".join(
            f"<td{' class=n' if isinstance(cell, int | float) and not isinstance(cell, bool) else ''}>{text(cell)}</td>"
            for cell in others
        )
        lines.append(f'<tr{mark}><th scope="row">{text(first)}</th>{cells}</tr>')
    heads = "".join(f'<th scope="col">{text(cell)}</th>' for cell in head)
    identity = f' id="{text(name)}"' if name else ""
    return (
        f'<div class="wide"><table{identity}><caption>{text(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>'
        + "\n".join(lines)
        + "</tbody></table></div>"
    )


def picture(data: bytes, alternative: str, caption: str) -> str:
    """A picture inside the page."""
    source = "data:image/png;base64," + base64.b64encode(data).decode()
    return f'<figure><img src="{source}" alt="{text(alternative)}"><figcaption>{text(caption)}</figcaption></figure>'


def paragraph(words: str, kind: str = "") -> str:
    """A paragraph, of a class if it is given."""
    return f"<p{f' class={kind}' if kind else ''}>{text(words)}</p>"


def document(title: str, body: str) -> str:
    """The page. Its policy forbids a browser to fetch anything."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body><main>\n{body}\n</main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )
