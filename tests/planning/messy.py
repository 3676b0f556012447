"""A folder as people have them: every odd thing at once. Built, never stored."""

import shutil
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

ODD = 'my [odd] "class" (1)'


def picture(number: int, side: int = 72) -> Image.Image:
    """A picture that no other number gives."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC)


def messy_folder(root: Path) -> Path:
    """`root/My Photos [2024]` with train/ and test/; what it holds is told by the names of its files."""
    folder, number = root / "My Photos [2024]", 0
    plenty = {"GoldenRetriever": 6, "tabby_cat": 5, "Löwenzahn": 4, ODD: 4, "n01440764": 4, "7": 4, "deadbeef01": 3}
    for name, count in plenty.items():
        for split, images in (("train", count), ("test", 2)):
            place = folder / split / name
            place.mkdir(parents=True)
            for index in range(images):
                picture(number := number + 1).save(place / f"photo {index} (copy).png")
    train, test = folder / "train", folder / "test"
    lonely = train / "single"
    lonely.mkdir()
    picture(900).save(lonely / "only.jpg")
    _odd_images(train / "GoldenRetriever")
    _odd_places(folder, root)
    shutil.copy(train / "tabby_cat" / "photo 0 (copy).png", test / "tabby_cat" / "leaked.png")
    shutil.copy(train / "tabby_cat" / "photo 1 (copy).png", train / "tabby_cat" / "again.png")
    shutil.copy(train / "7" / "photo 0 (copy).png", train / "deadbeef01" / "both.png")
    return folder


def _odd_images(place: Path) -> None:
    """What decoders meet: half a JPEG, nothing, a page of HTML, CMYK, 16 bits, an animation, a strip, a thumbnail."""
    buffer = BytesIO()
    picture(800).save(buffer, "JPEG", quality=95)
    (place / "half.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (place / "empty.jpg").write_bytes(b"")
    (place / "page.jpg").write_text("<!DOCTYPE html><html>404</html>")
    picture(801).convert("CMYK").save(place / "print.jpg")
    grey = np.arange(72 * 72, dtype=np.uint16).reshape(72, 72) * 12
    Image.fromarray(grey).save(place / "deep.png")
    picture(802).save(place / "moving.gif", save_all=True, append_images=[picture(803)])
    picture(804, 240).crop((0, 0, 240, 66)).save(place / "strip.png")
    picture(805, 16).save(place / "thumb.png")


def _odd_places(folder: Path, root: Path) -> None:
    """What file systems hold beside images: empty and hidden folders, links, an archive, notes, system files."""
    train = folder / "train"
    (train / "no images yet").mkdir()
    (train / ".hidden").mkdir()
    picture(810).save(train / ".hidden" / "0.png")
    picture(811).save(train / "tabby_cat" / "._0.png")
    picture(812).save(train / "tabby_cat" / ".secret.png")
    (train / "tabby_cat" / "Thumbs.db").write_bytes(b"x")
    (folder / "__MACOSX").mkdir()
    (folder / "notes.txt").write_text("taken in May")
    with zipfile.ZipFile(folder / "train" / "tabby_cat" / "more.zip", "w") as packed:
        packed.writestr("x.png", b"x")
    outside = root / "elsewhere"
    outside.mkdir()
    picture(820).save(outside / "out.png")
    (train / "linked").symlink_to(outside, target_is_directory=True)
    (train / "tabby_cat" / "dangling.png").symlink_to(root / "gone.png")
