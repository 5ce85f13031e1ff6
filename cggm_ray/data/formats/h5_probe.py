"""Looks at every structure of h5 files, in a process of its own: the library crashes on some damaged files.

Run by `h5.probe`, with paths on the standard input, one a line in JSON; prints a line for every file that it came through.
What is merely wrong with a file is said by the process that reads it.
"""

import contextlib
import json
import sys
from typing import Any


def look(path: str) -> None:
    """Opens all groups, types, attributes and tables of chunks; no values are read."""
    # All modules of this package are imported where a dataset is looked up by its name, and few of those runs have h5 files.
    import h5py

    def visit(name: str, entry: Any) -> None:
        dict(entry.attrs)
        if isinstance(entry, h5py.Dataset):
            _ = entry.shape, entry.dtype, entry.external, entry.is_virtual
            if entry.chunks is not None:
                entry.id.get_num_chunks()
                if entry.size:
                    entry.id.get_chunk_info(0)

    with h5py.File(path, "r") as file:
        dict(file.attrs)
        file.visititems(visit)


if __name__ == "__main__":
    for line in sys.stdin:
        with contextlib.suppress(Exception):
            look(json.loads(line))
        print("seen", flush=True)
