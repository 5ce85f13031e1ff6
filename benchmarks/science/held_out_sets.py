"""Builds sets on which nothing of the defaults was chosen, of the kinds that users bring.

    python benchmarks/science/held_out_sets.py --out held_out
    python benchmarks/science/simple_models.py --sets held_out
    python benchmarks/science/presets.py --sets held_out --seeds 5

They are stored as those of feature_sets.py, with the same index, and are the same at every call. Nothing is downloaded; sets
whose source in --data is missing are left out with a line. The figures are training / validation / test samples.

| set | modalities | what it tests |
|---|---|---|
| digits_six | six descriptors of a handwritten digit (900 / 200 / 400) | 6 to 196 numbers in units from 1 to 1e7 |
| photos_words | colours and gradients of a photo, counts of 400 words (1920 / 360 / 720) | 24 classes, telling words masked |
| pages | counts of 900 words of a page, 500 links (300 / 100 / 400) | sparse counts, five classes of unlike size |
| wide | three groups of 500 numbers (150 / 60 / 400) | ten times more numbers than samples |
| heavy_tails | three groups of 10 numbers (500 / 150 / 400) | lognormal, outliers of 100 times the size, constants |
| imbalanced | three groups of 8 numbers (900 / 200 / 600) | one sample of the rare class to 20 others |
| many_weak | two groups of 15 numbers (6000 / 2000 / 2000) | many samples, half of the labels at random |
| motion | two sensors with 3 axes, 20 to 60 steps with padding (36 / 18 / 240) | few samples, unlike lengths |
| robot | two short sequences, two vectors (240 / 60 / 400) | 20 classes of 12 training samples |
| mosi_sign | three vectors an utterance (1281 / 229 / 685) | the sign of the sentiment as two classes |
| offset | three groups of 5 numbers (500 / 150 / 400) | a regression whose target is 1,000,000 ± 5,000 |
| heavy_target | three groups of 5 numbers (500 / 150 / 400) | a regression with a lognormal target |
| linear_classes | three groups of 20 numbers (400 / 120 / 1000) | classes by a linear function, so a linear model is right |
| genes | two assays of 3,000 numbers (200 / 100 / 400) | thirty times more numbers than samples, in units of any size |
| embeddings | an image and a text embedding of length 1 (606 / 202 / 606) | 101 classes, few directions count |
| lacking | three groups of 12 numbers (900 / 300 / 900) | a third of the samples lacks each group |
| many_rows | three groups of 12 numbers (20000 / 4000 / 4000) | many samples, seven classes in several pieces each |
| tiny | three groups of 8 numbers (24 / 12 / 600) | two classes of 12 training samples |
| customers | a table with categories and empty cells (800 / 200 / 1000) | a regression, half of it by categories |
| moment | two sequences of 40 steps (800 / 200 / 800) | one step at any place tells the class |
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from feature_sets import Arrays, FeatureSet, Makers, as_regression, grouped, program, read_titles, telling_words
from PIL import Image
from sklearn import datasets

WORDS = 400
"""Words of the titles that are counted: the most frequent ones of training that are not masked."""


def in_parts(sizes: tuple[int, int, int]) -> np.ndarray:
    """Returns train, valid or test for so many samples, which have no order."""
    return np.repeat(["train", "valid", "test"], sizes)


def in_groups(values: np.ndarray, groups: int) -> Arrays:
    """Returns the columns [N, D] in groups of about equal size, in their order."""
    return {f"group{i}": part for i, part in enumerate(np.array_split(values, groups, axis=1))}


def gradient_histograms(images: np.ndarray, cells: int, directions: int = 8) -> np.ndarray:
    """Returns the lengths of the gradients by direction, summed in cells.

    Args:
        images: grey values, [N, H, W].
        cells: rows and columns of cells.
        directions: of the gradient, of equal width.

    Returns:
        [N, cells * cells * directions].
    """
    rows, columns = np.gradient(images.astype(np.float64), axis=(1, 2))
    direction = ((np.arctan2(rows, columns) / (2 * np.pi) % 1) * directions).astype(int) % directions
    found = []
    for d in range(directions):
        lengths = np.hypot(rows, columns) * (direction == d)
        for band in np.array_split(lengths, cells, axis=1):
            found += [cell.sum((1, 2)) for cell in np.array_split(band, cells, axis=2)]
    return np.stack(found, 1)


def digits_six(data: Path, out: Path) -> FeatureSet:
    """Writes six descriptors of 1,500 handwritten digits, as they come out of their formulas."""
    source = np.load(data / "avdigits" / "avdigits.npz")
    rows = np.random.default_rng(1).permutation(len(source["label"]))[:1500]
    images = source["image"][rows].astype(np.float64)
    spectrum = np.abs(np.fft.fft2(images))[:, :8, :8].reshape(-1, 64)
    profiles = np.concatenate([images.sum(1), images.sum(2)], 1)
    y, x = np.mgrid[:28, :28]
    moments = [(images * x**i * y**j).sum((1, 2)) for i, j in ((0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (0, 2))]
    bands = images.reshape(-1, 14, 2, 28).mean(2)
    bands = bands / (np.linalg.norm(bands, axis=2, keepdims=True) + 1e-9)
    modalities = {
        "pixels": images.reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, 196),
        "fourier": spectrum,
        "profiles": profiles,
        "gradients": gradient_histograms(images, 4),
        "moments": np.stack(moments, 1),
        "correlations": np.stack([(bands[:, i] * bands[:, j]).sum(1) for i in range(14) for j in range(i)], 1),
    }
    return grouped(out / "digits_six.npz", modalities, source["label"][rows], in_parts((900, 200, 400)))


def photos_words(data: Path, out: Path) -> FeatureSet:
    """Writes descriptors of photos, and counts of the words of their titles without those that give the class away."""
    folder = data / "fashion_title_image"
    lists = read_titles(folder)
    masked = telling_words(lists["train"])
    counts = Counter(word for sample in lists["train"] for word in sample["text_tokens"] if word not in masked)
    known = {word: column for column, (word, _) in enumerate(counts.most_common(WORDS))}
    samples = [sample for part in ("train", "dev", "test") for sample in lists[part]]
    words = np.zeros((len(samples), WORDS))
    photos = []
    for row, sample in enumerate(samples):
        for word in sample["text_tokens"]:
            if word in known:
                words[row, known[word]] += 1
        with Image.open(folder / sample["img_path"]) as image:
            photos.append(np.asarray(image.convert("RGB").resize((60, 80))))
    colour = np.stack(photos) // 64
    bins = (16 * colour[..., 0] + 4 * colour[..., 1] + colour[..., 2]).reshape(len(samples), -1)
    modalities = {
        "colours": np.stack([(bins == value).sum(1) for value in range(64)], 1),
        "gradients": gradient_histograms(np.stack(photos).mean(3), 5),
        "words": words,
    }
    label = np.unique([sample["label"] for sample in samples], return_inverse=True)[1]
    split = in_parts((len(lists["train"]), len(lists["dev"]), len(lists["test"])))
    return grouped(out / "photos_words.npz", modalities, label, split)


def mosi_sign(data: Path, out: Path) -> FeatureSet:
    """Writes the utterances of MOSI with the sign of their sentiment."""
    source = np.load(data / "features" / "mosi_utt.npz")
    modalities = {name: source[name].astype(np.float32) for name in ("text_cnn", "audio", "vision")}
    return grouped(out / "mosi_sign.npz", modalities, (source["label"] > 0).astype(int), source["split"])


def pages(out: Path) -> FeatureSet:
    """Writes pages of five classes: words follow Zipf's law, a fifth of them is of the class, and most links stay in it."""
    rng, sizes = np.random.default_rng(2), (300, 100, 400)
    label = rng.choice(5, sum(sizes), p=[0.4, 0.25, 0.2, 0.1, 0.05])
    usual = 1 / np.arange(1, 901)
    topics = [rng.permutation(usual) for _ in range(5)]
    chances = [0.8 * usual / usual.sum() + 0.2 * topic / topic.sum() for topic in topics]
    words = np.stack([rng.multinomial(rng.integers(30, 200), chances[c]) for c in label])
    goal = rng.choice(5, 500)
    links = rng.random((len(label), 500)) < np.where(label[:, None] == goal, 0.012, 0.006)
    return grouped(out / "pages.npz", {"words": words, "links": links.astype(np.int64)}, label, in_parts(sizes))


def tables(out: Path) -> dict[str, FeatureSet]:
    """Writes the sets that scikit-learn makes, as groups of columns."""
    found = {}
    sizes = {"wide": (150, 60, 400), "heavy_tails": (500, 150, 400), "imbalanced": (900, 200, 600)}
    sizes |= {"many_weak": (6000, 2000, 2000), "offset": (500, 150, 400), "heavy_target": (500, 150, 400)}
    sizes |= {"linear_classes": (400, 120, 1000)}

    def classes(name: str, columns: int, telling: int, **how: object) -> tuple[np.ndarray, np.ndarray]:
        made = datasets.make_classification(sum(sizes[name]), columns, n_informative=telling, random_state=3, **how)
        order = np.random.default_rng(3).permutation(columns)
        return made[0][:, order], made[1]

    def write(name: str, values: np.ndarray, label: np.ndarray, groups: int = 3) -> FeatureSet:
        return grouped(out / f"{name}.npz", in_groups(values, groups), label, in_parts(sizes[name]))

    found["wide"] = write("wide", *classes("wide", 1500, 60, n_redundant=300, n_classes=3, class_sep=3.0))
    values, label = classes("heavy_tails", 30, 10, n_redundant=8, n_classes=4, class_sep=1.5)
    values = np.exp(values / 2)
    values[np.random.default_rng(4).random(values.shape) < 0.005] *= 100
    values[:, [3, 14, 25]] = [0.0, -7.5, 1e9]
    found["heavy_tails"] = write("heavy_tails", values, label)
    found["imbalanced"] = write(
        "imbalanced", *classes("imbalanced", 24, 8, weights=[20 / 21], flip_y=0.0, class_sep=1.5)
    )
    rng, size = np.random.default_rng(5), sum(sizes["linear_classes"])
    columns, slopes = rng.normal(size=(size, 60)), rng.normal(size=(60, 5)) / 3
    label = (columns @ slopes + rng.gumbel(size=(size, 5))).argmax(1)
    found["linear_classes"] = write("linear_classes", columns, label)
    found["many_weak"] = write("many_weak", *classes("many_weak", 30, 8, flip_y=0.5), groups=2)
    for name in ("offset", "heavy_target"):
        values, target = datasets.make_friedman1(sum(sizes[name]), 15, noise=1.0, random_state=5)
        target = 1e6 + 1e3 * target if name == "offset" else np.exp(target / 5)
        spread = float(target[: sizes[name][0]].std())
        found[name] = as_regression(write(name, values, target), "label", 0.01 * spread)
    return found


def genes(out: Path) -> FeatureSet:
    """Writes two assays: numbers have 40 hidden causes, one in fifty depends on the class, and units are lognormal."""
    rng, sizes, numbers = np.random.default_rng(8), (200, 100, 400), 3000
    label = rng.integers(0, 3, sum(sizes))
    found = {}
    for name in ("expression", "protein"):
        causes = rng.normal(size=(len(label), 40)) @ rng.normal(0, 0.6, (40, numbers))
        telling = rng.normal(0, 0.56, (3, numbers)) * (rng.random(numbers) < 0.02)
        size = 0.3 * (causes + rng.normal(size=causes.shape)) + telling[label]
        found[name] = (np.exp(0.3 * size) * rng.lognormal(0, 2, numbers)).astype(np.float32)
    return grouped(out / "genes.npz", found, label, in_parts(sizes))


def motion(out: Path) -> FeatureSet:
    """Writes movements seen by two sensors: classes differ in position, frequency and size, not in phase or length."""
    rng, sizes, longest = np.random.default_rng(6), (36, 18, 240), 60
    label = np.concatenate([rng.permutation(np.arange(n) % 6) for n in sizes])
    unit = np.array([9.81, 120.0])[:, None, None]
    size, position = rng.uniform(0.4, 1.6, (2, 6, 3)) * unit, rng.normal(0, 0.5, (2, 6, 3)) * unit
    found = {name: np.zeros((len(label), longest, 3)) for name in ("acceleration", "rotation")}
    lengths = rng.integers(20, longest + 1, len(label))
    for row, (c, steps) in enumerate(zip(label, lengths, strict=True)):
        turn = 2 * np.pi * (0.03 + 0.015 * (c % 3)) * rng.uniform(0.85, 1.15) * np.arange(steps)[:, None]
        for scale, centre, values in zip(size, position, found.values(), strict=True):
            wave = np.sin(turn + rng.uniform(0, 2 * np.pi) + np.arange(3)) + rng.normal(0, 0.5, (steps, 3))
            values[row, :steps] = centre[c] + scale[c] * rng.uniform(0.6, 1.4) * wave
    path = out / "motion.npz"
    entry = grouped(path, found, label, in_parts(sizes))
    np.savez(path, **np.load(path), steps=lengths)
    lengths_of = ["--lengths", ",".join(f"{name}:steps" for name in found)]
    return FeatureSet(path=entry.path, flags=[*entry.flags, *lengths_of])


def robot(out: Path) -> FeatureSet:
    """Writes objects that a robot touches: force and touch over some steps, the angles of its hand, and sound by frequency."""
    rng, sizes = np.random.default_rng(7), (240, 60, 400)
    label = np.concatenate([rng.permutation(np.arange(n) % 20) for n in sizes])
    shapes = {"force": ((15, 6), 30.0), "touch": ((10, 8), 0.01), "angles": ((12,), 1.0), "sound": ((64,), 500.0)}
    modalities = {}
    for name, (shape, unit) in shapes.items():
        centre = rng.normal(size=(20, *shape))
        if len(shape) == 2:
            centre = centre.cumsum(1) / 2
        noise = rng.normal(0, 2.5, (len(label), *shape))
        modalities[name] = unit * (centre[label] + noise + rng.normal(size=(len(label),) + (1,) * len(shape)))
    modalities["sound"] = np.exp(modalities["sound"] / 1000)
    return grouped(out / "robot.npz", modalities, label, in_parts(sizes))


def embeddings(out: Path) -> FeatureSet:
    """Writes embeddings as pretrained encoders give them: a common offset, directions of falling size, length 1."""
    rng, sizes, classes = np.random.default_rng(9), (606, 202, 606), 101
    label = np.concatenate([rng.permutation(np.arange(n) % classes) for n in sizes])
    found = {}
    for name, (width, clear) in {"image": (512, 1.1), "text": (384, 1.3)}.items():
        falling = np.arange(1, width + 1) ** -0.7
        directions = np.linalg.qr(rng.normal(size=(width, width)))[0]
        centre = clear * rng.normal(size=(classes, width)) * falling * (np.arange(width) < 60)
        values = (centre[label] + 2 * rng.normal(size=(len(label), width)) * falling + 0.5) @ directions
        found[name] = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    return grouped(out / "embeddings.npz", found, label, in_parts(sizes))


def pieces(
    rng: np.random.Generator, count: int, columns: int, classes: int, each: int, spread: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns samples [N, D] of classes that have several centres each, in units from .01 to 1000, and the classes."""
    of = rng.integers(0, classes * each, count)
    centres = rng.normal(0, spread, (classes * each, columns))
    values = (centres[of] + rng.normal(size=(count, columns))) * 10.0 ** rng.integers(-2, 4, columns)
    return values, of % classes


def lacking(out: Path) -> FeatureSet:
    """Writes groups of which a third of the samples lacks each; every sample has one."""
    rng, sizes = np.random.default_rng(10), (900, 300, 900)
    values, label = pieces(rng, sum(sizes), 36, 5, 3, 0.7)
    modalities = in_groups(values, 3)
    there = rng.random((len(label), 3)) > 1 / 3
    there[np.arange(len(label)), rng.integers(0, 3, len(label))] = True
    for column, name in enumerate(list(modalities)):
        modalities[name] = np.where(there[:, [column]], modalities[name], 0.0)
        modalities[f"{name}_present"] = there[:, column]
    path = out / "lacking.npz"
    np.savez(path, **modalities, label=label, split=in_parts(sizes))
    names = ",".join(name for name in modalities if not name.endswith("_present"))
    return FeatureSet(path=str(path), flags=["--modalities", names, "--target", "label", "--split", "split"])


def customers(out: Path) -> FeatureSet:
    """Writes a table of customers whose spending depends on numbers, on categories, and on both together."""
    rng, sizes = np.random.default_rng(11), (800, 200, 1000)
    n = sum(sizes)
    age, income = rng.integers(18, 90, n), np.round(np.exp(rng.normal(10.3, 0.6, n)), 2)
    visits, town = rng.poisson(4, n), rng.choice([f"town {i}" for i in range(30)], n)
    plan, device = rng.choice(["basic", "plus", "pro"], n, p=[0.6, 0.3, 0.1]), rng.choice(["phone", "desktop"], n)
    of_town = dict(zip(np.unique(town), rng.normal(0, 20, 30), strict=True))
    more = np.select([plan == "pro", plan == "plus"], [3.0, 1.5], 1.0)
    target = 4 * visits * more + 8 * np.log(income) + 10 * np.sin(age / 12) + [of_town[name] for name in town]
    target = target + np.where(device == "phone", 5.0, 0.0) + rng.normal(0, 6, n)
    columns = {"age": age, "income": income, "visits": visits, "town": town, "plan": plan, "device": device}
    cells = {name: values.astype(str) for name, values in columns.items()}
    for name in ("age", "income", "plan"):
        cells[name] = np.where(rng.random(n) < 0.1, "", cells[name])
    rows = np.stack([*cells.values(), np.round(target, 3).astype(str), in_parts(sizes)], 1)
    path = out / "customers.csv"
    header = ",".join([*columns, "spending", "split"])
    path.write_text("\n".join([header, *map(",".join, rows.tolist())]) + "\n")
    spread = float(target[: sizes[0]].std())
    groups = ["--modality", "person=age,income,town", "--modality", "use=visits,plan,device"]
    flags = ["--target", "spending", *groups]
    return FeatureSet(
        path=str(path), pipeline="table.py", flags=flags, metric="mae", better="min", tolerance=0.01 * spread
    )


def moment(out: Path) -> FeatureSet:
    """Writes sequences of noise in which one step, at any place, has the direction of the class."""
    rng, sizes, steps = np.random.default_rng(12), (800, 200, 800), 40
    label = np.concatenate([rng.permutation(np.arange(n) % 6) for n in sizes])
    found = {}
    for name, (width, size) in {"words": (24, 7.0), "sounds": (12, 5.0)}.items():
        directions = rng.normal(size=(6, width))
        directions *= size / np.linalg.norm(directions, axis=1, keepdims=True)
        values = rng.normal(size=(len(label), steps, width))
        values[np.arange(len(label)), rng.integers(0, steps, len(label))] += directions[label]
        found[name] = values.astype(np.float32)
    return grouped(out / "moment.npz", found, label, in_parts(sizes))


def made(out: Path) -> dict[str, FeatureSet]:
    """Writes the sets that are drawn here."""
    rng, tiny = np.random.default_rng(13), (24, 12, 600)
    values, label = pieces(rng, sum(tiny), 24, 2, 1, 0.45)
    many = (20000, 4000, 4000)
    rows, of = pieces(rng, sum(many), 36, 7, 4, 0.6)
    makers = (pages, motion, robot, genes, embeddings, lacking, customers, moment)
    return {
        **{make.__name__: make(out) for make in makers},
        "tiny": grouped(out / "tiny.npz", in_groups(values, 3), label, in_parts(tiny)),
        "many_rows": grouped(out / "many_rows.npz", in_groups(rows, 3), of, in_parts(many)),
        **tables(out),
    }


def makers(data: Path, out: Path) -> Makers:
    """Yields makers of sets, each with the folder of --data that it needs."""
    yield "avdigits", lambda: {"digits_six": digits_six(data, out)}
    yield "fashion_title_image", lambda: {"photos_words": photos_words(data, out)}
    yield "features", lambda: {"mosi_sign": mosi_sign(data, out)}
    yield None, lambda: made(out)


if __name__ == "__main__":
    program(makers, __doc__)
