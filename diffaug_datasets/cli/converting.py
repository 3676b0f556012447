"""The verb that turns released embeddings into safetensors."""

from pathlib import Path

from diffaug_datasets.cli.screen import say


def convert_embeddings(file: Path, folder: Path, token: str | None = None) -> None:
    """Convert one file and say what came of it."""
    from diffaug_datasets.models.converting import read_released

    released = read_released(file, token)
    written = released.write(folder)
    found = released.tokens or released.images
    vectors, width = next(iter(found.values())).shape
    kind = "token" if released.tokens else "image"
    count = f"{len(found)} {kind}{'' if len(found) == 1 else 's'}"
    say(f"{written[0]}: {count}, {vectors} vector{'' if vectors == 1 else 's'} of {width} numbers each")
    if released.tokens:
        if len(found) == 1:
            say(f"its token is {next(iter(found))}")
        single = written[0] if len(found) == 1 else written[1]
        say(f"in diffusers: pipe.load_textual_inversion({str(single)!r})")
