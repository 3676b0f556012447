"""`python -m diffaug_datasets` and `accelerate launch -m diffaug_datasets` are `diffaug`."""

from diffaug_datasets.cli import main

if __name__ == "__main__":  # processes that libraries spawn import this file under another name
    main()
