"""Fashion-MNIST at 32 px: reading the official files, measuring properties, and the few-shot Parquet files."""

from __future__ import annotations

import gzip
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from tiny import work
from tiny.captions import CLASS_NAMES
from tiny.properties import measure, states

PAD = 2  # 28 px + 2 on each side: no resampling blur, and the U-Net needs a multiple of 8
SEED = 20240
POOL, TEST, RETRIEVAL = 200, 100, 500
FEATURES = {"image": {"_type": "Image"}, "label": {"names": list(CLASS_NAMES), "_type": "ClassLabel"}}


@dataclass(frozen=True)
class Split:
    """Grey pictures [N, 32, 32] uint8 and their labels [N]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> Split:
        return Split(self.images[rows], self.labels[rows])


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes: magic, big-endian sizes, data."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path.name} is not an IDX file of unsigned bytes")
    shape = np.frombuffer(raw, ">u4", raw[3], 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def read_split(folder: Path, name: str) -> Split:
    """One official split ("train" or "t10k"), padded to 32 px."""
    images = read_idx(folder / f"{name}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{name}-labels-idx1-ubyte.gz").astype(np.int64)
    return Split(np.pad(images, ((0, 0), (PAD, PAD), (PAD, PAD))), labels)


def unit(images: np.ndarray) -> np.ndarray:
    """uint8 pictures as float32 in 0..1."""
    return images.astype(np.float32) / 255


def tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 [N, 32, 32] as RGB [N, 3, 32, 32] in -1..1."""
    return (torch.from_numpy(images).float() / 127.5 - 1)[:, None].repeat(1, 3, 1, 1)


def shifted(images: np.ndarray, rng: np.random.Generator, reach: int = 2) -> np.ndarray:
    """Each picture moved by up to `reach` pixels; only black border is lost, garments span 28 of the 32 px."""
    moves = rng.integers(-reach, reach + 1, (len(images), 2))
    return np.stack([np.roll(image, tuple(move), (0, 1)) for image, move in zip(images, moves, strict=True)])


def prepare(folder: Path, target: Path) -> None:
    """Stage "data": the padded train split and the state (-1, 0, 1) of each picture's properties."""
    if (target / "states.npy").exists():
        return
    train = read_split(folder, "train")
    work.save_array(target / "images.npy", train.images)
    work.save_array(target / "labels.npy", train.labels)
    work.save_array(target / "states.npy", states(measure(unit(train.images)), train.labels))


def load_train(target: Path) -> Split:
    """The train split written by `prepare`."""
    return Split(np.load(target / "images.npy"), np.load(target / "labels.npy"))


def _unseen(test: Split, train: Split) -> np.ndarray:
    """Rows of test whose pixels occur in no train picture and in no earlier test row."""
    seen = {image.tobytes() for image in train.images}
    rows = []
    for row, image in enumerate(test.images):
        if (key := image.tobytes()) not in seen:
            seen.add(key)
            rows.append(row)
    return np.array(rows)


def _per_class(labels: np.ndarray, rows: np.ndarray, start: int, count: int) -> np.ndarray:
    """Rows start..start+count of each class, class after class, in the order of `rows`."""
    return np.concatenate([rows[labels[rows] == c][start : start + count] for c in range(len(CLASS_NAMES))])


def few_shot(train: Split, test: Split) -> dict[str, Split]:
    """The three published sets: pool and test from pictures no model saw, retrieval from the train split."""
    rng = np.random.default_rng(SEED)
    fresh = rng.permutation(_unseen(test, train))
    known = rng.permutation(_unseen(train, Split(train.images[:0], train.labels[:0])))
    return {
        "pool": test.take(_per_class(test.labels, fresh, 0, POOL)),
        "test": test.take(_per_class(test.labels, fresh, POOL, TEST)),
        "retrieval": train.take(_per_class(train.labels, known, 0, RETRIEVAL)),
    }


def png(image: np.ndarray) -> bytes:
    """A grey picture as an RGB PNG."""
    stream = io.BytesIO()
    Image.fromarray(image).convert("RGB").save(stream, "PNG", optimize=True)
    return stream.getvalue()


def table(split: Split) -> pa.Table:
    """A split as the columns that `datasets` reads as Image and ClassLabel."""
    images = pa.array([{"bytes": png(i), "path": None} for i in split.images],
                      pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # fmt: skip
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    schema = pa.schema([("image", images.type), ("label", pa.int64())], metadata=metadata)
    return pa.table([images, pa.array(split.labels, pa.int64())], schema=schema)


def read_parquet(path: Path) -> Split:
    """A split written by `export`."""
    rows = pq.read_table(path).to_pydict()
    pictures = (Image.open(io.BytesIO(image["bytes"])).convert("L") for image in rows["image"])
    return Split(np.stack([np.asarray(p) for p in pictures]), np.array(rows["label"]))


def export(folder: Path, target: Path) -> None:
    """Write pool.parquet, test.parquet and retrieval.parquet."""
    sets = few_shot(read_split(folder, "train"), read_split(folder, "t10k"))
    for name, split in sets.items():
        rows = table(split)
        work.atomic(target / f"{name}.parquet", lambda p, t=rows: pq.write_table(t, p, compression="zstd"))
