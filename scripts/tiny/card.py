"""The measured part of the model card, between two markers of assets/tiny/README.md."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tiny import work
from tiny.captions import PHRASES

START, STOP = "<!-- measured:start (written by scripts/judge_tiny.py) -->", "<!-- measured:stop -->"


@dataclass(frozen=True)
class Measured:
    """What judge_tiny.py measured; shares are in 0..1, sizes in 10^6 bytes."""

    guidance: float
    train_guidance: float
    samples: int
    train_samples: int
    pairs: int
    judge: float
    recognised: list[float]
    trained_on_samples: float
    suffixes: dict[str, tuple[float, float]]
    psnr: float
    zero_shot: float
    weights: dict[str, int]
    sizes: dict[str, float]
    forward_ms: float

    def lines(self) -> str:
        """The whole measured part in Markdown."""
        return "\n\n".join((self._headline(), self._classes(), self._suffixes(), self._sizes()))

    def _headline(self) -> str:
        mean = sum(self.recognised) / len(self.recognised)
        rows = (
            ("judge, accuracy on the real test set", "90 %", f"{self.judge:.1%}"),
            (f"{self.samples:,} txt2img samples (25 DDIM steps, guidance {self.guidance:g}) "
             "recognised by the judge as the class asked", "85 %", f"{mean:.1%}"),
            (f"classifier trained only on {self.train_samples:,} samples (guidance {self.train_guidance:g}), "
             "accuracy on the real test set", "65 %", f"{self.trained_on_samples:.1%}"),
            ("suffix moves its property the stated way against the plain prompt, mean over suffixes", "80 %",
             f"{sum(v[0] for v in self.suffixes.values()) / len(self.suffixes):.1%}"),
            ("autoencoder, PSNR on the real test set", "24 dB", f"{self.psnr:.1f} dB"),
            ("encoder, zero-shot accuracy on the real test set", "chance 10 %", f"{self.zero_shot:.1%}"),
        )  # fmt: skip
        return _table(("measure", "aim", "measured"), rows)

    def _classes(self) -> str:
        rows = [(phrase, f"{share:.0%}") for phrase, share in zip(PHRASES, self.recognised, strict=True)]
        return _table(("class asked", "recognised"), rows)

    def _suffixes(self) -> str:
        rows = [(f'"{text}"', f"{plain:.0%}", f"{opposite:.0%}") for text, (plain, opposite) in self.suffixes.items()]
        head = ("suffix", "against the plain prompt", "against the opposite suffix")
        return f"Each suffix over {self.pairs} pairs of samples with equal seeds:\n\n{_table(head, rows)}"

    def _sizes(self) -> str:
        weights = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in self.weights.items())
        sizes = ", ".join(f"`{name}/` {size:.1f} MB" for name, size in self.sizes.items())
        speed = f"One U-Net forward at batch 16 on one CPU thread takes {self.forward_ms:.0f} ms."
        return f"Parameters: {weights}. Sizes: {sizes}. {speed}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]] | tuple[tuple[str, ...], ...]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows))


def write_card(path: Path, measured: Measured) -> None:
    """Replace what stands between the markers of the card."""
    before, rest = path.read_text(encoding="utf-8").split(START)
    after = rest.split(STOP)[1]
    text = f"{before}{START}\n\n{measured.lines()}\n\n{STOP}{after}"
    work.atomic(path, lambda p: p.write_text(text, encoding="utf-8"))
