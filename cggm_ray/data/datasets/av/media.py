"""The media below a folder: sound files, videos, and folders of extracted frames or of optical flow, found in one walk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.food101.lists import IMAGE_SUFFIXES
from cggm_ray.data.datasets.table.audio import Audio
from cggm_ray.data.datasets.table.video import Video
from cggm_ray.storage.places import walk

SOUND, VIDEO, PICTURES, FLOW = "sound", "video", "pictures", "flow"
"""Forms of media: a sound file, a video file, a folder of pictures, and one or two folders of optical flow."""
FOLDERS = (PICTURES, FLOW)
"""Forms that are folders."""
SUFFIXES = dict.fromkeys(Audio.suffixes, SOUND) | dict.fromkeys(Video.suffixes, VIDEO)
LISTS = (".csv", ".txt")
ACROSS, DOWN = "flow_x", "flow_y"
"""Beginnings of the names of files of flow that lie together."""
DIRECTIONS = (("u", "v"), ("x", "y"), (ACROSS, DOWN))
"""Names of the two folders that hold the folders of flow of all clips, across and down."""


@dataclass(frozen=True, kw_only=True)
class Medium:
    """A file or folders of a clip.

    Attributes:
        form: one of `SOUND`, `VIDEO`, `PICTURES` and `FLOW`.
        paths: of a file, or of folders; flow in two folders is across and down.
        files: number of files in the folders.
    """

    form: str
    paths: tuple[str, ...]
    files: int = 1

    @property
    def name(self) -> str:
        """Returns the name of the clip that it belongs to, which is the stem of a file or the name of a folder."""
        return stem(PurePosixPath(self.paths[0]).name)


class Media:
    """What a walk through a folder found.

    Attributes:
        root: the folder.
        all: every medium, in the order of the paths.
        lists: files of lists by their names in lower case, the ones nearest to the root first.
    """

    def __init__(self, root: Path, more: Path | None = None) -> None:
        self.root = root
        self.all: list[Medium] = []
        self.lists: dict[str, list[Path]] = defaultdict(list)
        halves: dict[tuple[str, str], dict[str, Medium]] = defaultdict(dict)
        for top in dict.fromkeys([root] if more is None else [root, more]):
            for folder, folders, names in walk(top):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                self._take(folder, [name for name in names if not name.startswith(".")], halves)
        for parts in halves.values():
            for across, down in DIRECTIONS:
                if across in parts and down in parts:
                    paths = parts[across].paths + parts[down].paths
                    self.all.append(Medium(form=FLOW, paths=paths, files=min(p.files for p in parts.values())))
        self.all.sort(key=lambda medium: medium.paths)
        self._named: dict[str, list[Medium]] = defaultdict(list)
        for medium in self.all:
            self._named[medium.name].append(medium)

    def _take(self, folder: Path, names: Sequence[str], halves: dict[tuple[str, str], dict[str, Medium]]) -> None:
        pictures = flow = 0
        for name in names:
            suffix = PurePosixPath(name).suffix.lower()
            if suffix in IMAGE_SUFFIXES:
                flow += name.startswith(ACROSS)
                pictures += not name.startswith((ACROSS, DOWN))
            elif suffix in SUFFIXES:
                self.all.append(Medium(form=SUFFIXES[suffix], paths=(str(folder / name),)))
            elif suffix in LISTS:
                self.lists[name.lower()].append(folder / name)
        above = folder.parent.name
        if pictures and any(above in pair for pair in DIRECTIONS):
            medium = Medium(form=FLOW, paths=(str(folder),), files=pictures)
            halves[str(folder.parent.parent), folder.name][above] = medium
        elif pictures:
            self.all.append(Medium(form=PICTURES, paths=(str(folder),), files=pictures))
        if flow:
            self.all.append(Medium(form=FLOW, paths=(str(folder),), files=flow))

    def of(self, keys: Iterable[str], form: str, where: str) -> Medium | None:
        """Returns the medium of a form that a clip has, or None.

        Args:
            keys: names under which it may lie.
            form: of the medium.
            where: the clip is named, for messages.

        Raises:
            DataError: there are two.
        """
        for key in keys:
            found = [medium for medium in self._named.get(key, ()) if medium.form == form]
            if len(found) > 1:
                raise DataError(
                    f"{where}: found {found[0].paths[0]} and {found[1].paths[0]}; expected one of them below the folder of "
                    "media (--media_path names another folder)"
                )
            if found:
                return found[0]
        return None


def stem(name: str) -> str:
    """Returns the name of a clip from that of a file, without the suffix if it is one of media."""
    name = PureWindowsPath(name).name
    return name[: -len(PurePosixPath(name).suffix)] if PurePosixPath(name).suffix.lower() in SUFFIXES else name
