"""Scripts and fonts of the pages: fetched once from the npm registry, compared with checksums, and kept.

    python docs/theme/assets.py [FOLDER]

A page loads nothing from another server, so the files are part of the site. They are 4 MB, which no clone needs, so they are
not in the repository: their packages are pinned here by version and by the SHA-512 of the registry, and another byte is an
error. After the first call no network is needed. NPM_CONFIG_REGISTRY names another registry.
"""

from __future__ import annotations

import base64
import hashlib
import os
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "docs-assets"
REGISTRY = "https://registry.npmjs.org"
_STYLES = {
    "Main": "Regular Italic Bold BoldItalic",
    "Math": "Italic BoldItalic",
    "SansSerif": "Regular Italic Bold",
    "Caligraphic": "Regular Bold",
    "Fraktur": "Regular Bold",
    **dict.fromkeys(("AMS", "Script", "Size1", "Size2", "Size3", "Size4", "Typewriter"), "Regular"),
}
FONTS = [f"{name}-{style}" for name, styles in _STYLES.items() for style in styles.split()]
PACKAGES = {
    # KaTeX's style names its fonts relative to itself. Of three formats only woff2, which every browser of today reads.
    (
        "katex/-/katex-0.19.1.tgz",
        "jG8uKntjSEcm2EpQOh0XturpPuuC9r3Sq5HLHdsFdWZT27E672SF19QEi+of0/YeOy15lDgRhKvr5614uRrEfA==",
    ): {
        "dist/katex.min.js": "katex.min.js",
        "dist/katex.min.css": "katex.min.css",
        "dist/contrib/auto-render.min.js": "auto-render.min.js",
        **{f"dist/fonts/KaTeX_{name}.woff2": f"fonts/KaTeX_{name}.woff2" for name in FONTS},
    },
    (
        "mermaid/-/mermaid-11.17.2.tgz",
        "V6K3C8EBdEsPFZXSKMJe6ppQOENxuHARr9GvHX4hh47lAbhMRD9qf4oEK7LoaRQxULMa80/qt5gHO73aCleBBg==",
    ): {
        "dist/mermaid.min.js": "mermaid.min.js",
    },
    (
        "@fontsource-variable/inter/-/inter-5.3.0.tgz",
        "OupL48va4JNofb97w6NYeF9S7W/kHNKM0Er8Dem5nqi4jeOLrVJDoE8tZEpnMJmtkvNbB1EIPPwHcdkF6b1oUA==",
    ): {"files/inter-latin-wght-normal.woff2": "fonts/inter.woff2"},
    (
        "@fontsource-variable/jetbrains-mono/-/jetbrains-mono-5.3.0.tgz",
        "F32xpS2NsGYoQi2ADSkKTgpJj7ozajsGgDJ8woTnqjmIB+dxDIqImjl4pXZVEExu8UFZ2ndhmX18EBS/hdz3Lw==",
    ): {"files/jetbrains-mono-latin-wght-normal.woff2": "fonts/jetbrains-mono.woff2"},
    # Search without a server: browsers start no worker from a file.
    (
        "iframe-worker/-/iframe-worker-1.0.4.tgz",
        "roeaaI+Lg1LJNfgpCjoRe/+WzEjy9+Z08LoEvu85MCPbBjwm+qXz8Ag5U05lHa6V1CysZyGzE0SOkAtSUA5q7Q==",
    ): {"shim/index.js": "iframe-worker.js"},
}
"""(Path of a package in the registry, SHA-512) to the files that are taken from it, with their names in the site."""
NAMES = sorted(name for files in PACKAGES.values() for name in files.values())


def complete(folder: Path = FOLDER) -> bool:
    """Whether all files are there."""
    return all((folder / name).is_file() for name in NAMES)


def fetch(folder: Path = FOLDER) -> None:
    """Fetches the packages and writes their files, unless all of them are there.

    Raises:
        OSError: the registry cannot be reached.
        ValueError: a package is not the one whose checksum is known.
    """
    if complete(folder):
        return
    registry = os.environ.get("NPM_CONFIG_REGISTRY", REGISTRY).rstrip("/")
    for (path, expected), files in PACKAGES.items():
        with urllib.request.urlopen(f"{registry}/{path}", timeout=60) as answer, tempfile.TemporaryFile() as package:
            content = answer.read()
            found = base64.b64encode(hashlib.sha512(content).digest()).decode()
            if found != expected:
                raise ValueError(f"{registry}/{path}: found SHA-512 {found}; expected {expected}")
            package.write(content)
            package.seek(0)
            with tarfile.open(fileobj=package) as archive:
                for member, name in files.items():
                    file = archive.extractfile(f"package/{member}")
                    assert file is not None
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(file.read())


if __name__ == "__main__":
    try:
        fetch(*map(Path, sys.argv[1:]))
    except (OSError, ValueError) as error:
        sys.exit(f"error: scripts and fonts of the pages: {error}")
