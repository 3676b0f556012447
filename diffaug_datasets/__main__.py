"""`python -m diffaug_datasets` and `accelerate launch -m diffaug_datasets` are `diffaug`."""

from diffaug_datasets.cli import main

main()
