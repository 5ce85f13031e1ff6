"""Small folders in the layouts in which people have sets of sound and pictures; their media are empty files."""

from __future__ import annotations

from pathlib import Path

from cggm_ray.data.datasets.av.demonstration import write_rows


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def kinetics(root: Path) -> None:
    rows = [("label", "youtube_id", "time_start", "time_end", "split")]
    for number, split in enumerate(("train", "validate", "val", "test")):
        rows.append(("tap dancing", f"abcdefghij{number}", "5", "15", split))
        touch(root, f"{split}/tap dancing/abcdefghij{number}_000005_000015.mp4")
    write_rows(root / "kinetics.csv", [row for row in rows if row[-1] != "validate"])


def vggsound(root: Path) -> None:
    write_rows(
        root / "vggsound.csv", [("---g-f_I2yQ", 1, "people marching", "test"), ("--0PQM4-hqg", 30, "dog", "train")]
    )
    touch(root, "video/---g-f_I2yQ_000001.mp4", "audio/--0PQM4-hqg_000030.wav")
    touch(root, "frames/--0PQM4-hqg_000030/0001.jpg")


def ogm(root: Path) -> None:
    write_rows(root / "data/CREMAD/train.csv", [("1001_DFA_ANG_XX", "ANG")])
    write_rows(root / "data/CREMAD/test.csv", [("1002_IEO_HAP_HI", "HAP")])
    for name in ("1001_DFA_ANG_XX", "1002_IEO_HAP_HI"):
        touch(root, f"AudioWAV/{name}.wav", f"Image-01-FPS/{name}/00001.jpg")


def ave(root: Path) -> None:
    head, lines = (
        "Category&VideoID&Quality&StartTime&EndTime",
        ("Church bell&RUhOCu3LNXM&good&0&10", "Bark&abc&bad&1&5"),
    )
    (root / "Annotations.txt").write_text("\n".join((head, *lines)))
    (root / "trainSet.txt").write_text(lines[0] + "\n")
    (root / "testSet.txt").write_text(lines[1] + "\n")
    touch(root, "AVE/RUhOCu3LNXM.mp4", "AVE/abc.mp4")


def ucf(root: Path) -> None:
    names = ("Archery/v_Archery_g08_c01.avi", "Bowling/v_Bowling_g01_c02.avi")
    (root / "classInd.txt").write_text("1 Archery\n2 Bowling\n")
    (root / "trainlist01.txt").write_text(f"{names[0]} 1\n")
    (root / "testlist01.txt").write_text(f"{names[1]}\n")
    touch(root, *(f"UCF-101/{name}" for name in names))
    touch(root, "tvl1/u/v_Archery_g08_c01/frame000001.jpg", "tvl1/v/v_Archery_g08_c01/frame000001.jpg")
    touch(root, *(f"tsn/v_Bowling_g01_c02/{side}_00001.jpg" for side in ("flow_x", "flow_y", "img")))


def folders(root: Path) -> None:
    touch(root, "train/dog/1.mp4", "val/dog/1.mp4", "test/cat/2.wav", "test/cat/2/0001.png")
