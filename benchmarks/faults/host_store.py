"""The store of hosts.py: an S3 server whose faults are named in a file.

    python benchmarks/faults/host_store.py ADDRESS PORT FILE

FILE holds JSON: `{"fault": "503", "share": 0.3}` for one of faulty_store.py in that share of the requests; it may be missing.
"""

from __future__ import annotations

import json
import random
import sys
import threading
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from faulty_store import Fault, faulty_store
from s3_server import make_bucket, s3_server


def main(address: str, port: int, file: Path) -> None:
    """Serves until it is killed."""
    rng, lock = random.Random(0), threading.Lock()

    def decide(method: str, path: str) -> Fault:
        with suppress(OSError, ValueError), lock:
            wanted = json.loads(file.read_text())
            return str(wanted["fault"]) if rng.random() < wanted["share"] else None
        return None

    with s3_server() as endpoint, faulty_store(endpoint, address, port) as store:
        store.decide = decide
        print(make_bucket(endpoint), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
