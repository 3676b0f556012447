"""What is installed only where it is needed, and the line that installs it from what exists: a clone of the project."""

GENERATING = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "jaxtyping")
EXTRAS = {
    **dict.fromkeys(GENERATING, "generate"),
    "sklearn": "eval",
    "faiss": "retrieval",
}


def install(extra: str) -> str:
    """The line for a sentence; the package lies on no index, so no other one is true."""
    return f"`pip install '.[{extra}]'` in your clone of diffaug-datasets"
