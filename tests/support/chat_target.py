"""A tiny target whose tokenizer has a chat template."""

import torch

from specdec.model.target import Target
from tiny import letters, tiny_model

TURNS = (
    "{% for m in messages %}{{ 'U' if m['role'] == 'user' else 'B' }}{{ m['content'] }}{% endfor %}"
)


def chat_target(template=TURNS + "{% if add_generation_prompt %}B{% endif %}", dtype=torch.float64):
    tokenizer = letters()
    tokenizer.chat_template = template
    return Target(tiny_model("llama", dtype=dtype), tokenizer)
