"""Copies between a folder and a store, on a host of hosts.py.

python benchmarks/faults/host_copy.py up FOLDER s3://bucket/raw
python benchmarks/faults/host_copy.py down s3://bucket/runs FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import boto3


def client() -> Any:
    """The store that the environment names."""
    return boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name=os.environ["AWS_REGION"])


def up(folder: Path, url: str) -> None:
    """All files of a folder."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client().upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder)}")


def down(url: str, folder: Path) -> None:
    """All keys below a URL."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    store = client()
    for page in store.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
        for found in page.get("Contents", []):
            # Folders may be keys too.
            if found["Key"].endswith("/"):
                continue
            path = folder / found["Key"].removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store.get_object(Bucket=bucket, Key=found["Key"])["Body"].read())


if __name__ == "__main__":
    if sys.argv[1] == "up":
        up(Path(sys.argv[2]), sys.argv[3])
    else:
        down(sys.argv[2], Path(sys.argv[3]))
