"""Opens every structure of h5 files in a separate process, because the library crashes on some damaged files.

`h5.probe` starts it, with paths on the standard input, one per line in JSON. It prints a line for every file that it
finished. Errors that are no crash are reported by the process that reads the file.
"""

import contextlib
import json
import sys
from typing import Any


def probe(path: str) -> None:
    """Opens all groups, types, attributes and tables of chunks; no values are read."""
    # Imported here, because every run imports all modules of this package, and few runs have h5 files.
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
            probe(json.loads(line))
        print("seen", flush=True)
