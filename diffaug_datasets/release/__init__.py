"""Published datasets: what is in one, writing and uploading, reading, verifying and making rows of it again."""
