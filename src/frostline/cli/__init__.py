"""Words in, exit code out. Nothing here imports torch before a verb is carried out."""
