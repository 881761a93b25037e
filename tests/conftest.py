import os

# Tests ask no hub for anything; read when huggingface_hub is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
