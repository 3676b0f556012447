"""What a training script uses: a `datasets` builder that generates, and mixing of real and synthetic images."""
