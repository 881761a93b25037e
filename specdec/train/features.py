"""Training features: one teacher-forced pass of the target over each text.

At every position the pass gives hidden states and the target's next-token distribution, the labels of local distillation
(ReDrafter section 3.3). They are stored in flat, memory-mapped files: collection resumes after an interruption, and
several trainings share them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.target_facts import fingerprint
from ..host.json_files import read_json
from ..host.locks import lock_of
from ..host.whole_file import appended_file, whole_file
from ..model.target import Target
from ..selftext.record import Conversation

TOP = 16
BATCH_TOKENS = 4096
HEAD_LOGITS = 1 << 25  # 128 MB in float32


@dataclass(frozen=True, slots=True)
class Features:
    """Features of the N tokens of C conversations."""

    starts: Tensor
    """`[C]` int64, first token of each conversation."""
    answers: Tensor
    """`[C]` int64, first token of its answer."""
    ends: Tensor
    """`[C]` int64, one past its last token."""
    tokens: Tensor
    """`[N]` int32."""
    hidden: Tensor
    """`[N, E]` bfloat16, the target's last hidden states, after the final norm."""
    top_ids: Tensor
    """`[N, 16]` int32, the likeliest next tokens, best first."""
    top_probs: Tensor
    """`[N, 16]` float32, their probabilities."""
    exits: dict[int, Tensor]
    """Per layer number `[N, E]` bfloat16, hidden states after that many layers."""

    @property
    def begins(self) -> Tensor:
        """`[C]` int64, first position learned: the one before the first token outside the chat template's common head."""
        shortest = int((self.ends - self.starts).min())
        heads = self.tokens[self.starts[:, None] + torch.arange(shortest)]  # [C, shortest]
        template = int((heads == heads[0]).all(0).long().cumprod(0).sum())
        return torch.minimum(self.starts + template, self.answers).clamp(min=self.starts + 1) - 1

    def __len__(self) -> int:
        """Return the number of conversations."""
        return len(self.starts)


def collect_features(
    target: Target,
    conversations: Sequence[Conversation],
    folder: Path,
    *,
    exit_layers: Sequence[int] = (),
    progress: Callable[[int], None] = lambda done: None,
) -> Features:
    """Run the target over conversations, or resume an interrupted collection.

    Args:
        target: run through the library's own forward pass.
        conversations: the texts.
        folder: output; about 2.5 KB per token at hidden size 576, plus 1.2 KB per exit layer.
        exit_layers: layers whose outputs are stored too.
        progress: called with the number of finished conversations.

    Raises:
        ValueError: if the folder holds features of other conversations or of another target, or lacks layers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    width = target.config.hidden_size
    plan = _batches(conversations)
    index_file = folder / "index.json"
    identity = {"conversations": _digest(conversations), "target": fingerprint(target)}
    index: dict[str, Any] = {
        "of": identity, "exits": list(exit_layers), "batches": 0, "spans": []
    }  # fmt: skip
    if index_file.exists():
        found = read_json(index_file)
        wanted = {"of": identity, "exits": list(exit_layers)}
        if found.get("of") != identity or not set(exit_layers) <= set(found.get("exits", ())):
            raise ValueError(
                f"features: expected those of {wanted}, got those of "
                f"{ {name: found.get(name) for name in wanted} } in {folder}; delete it to collect anew"
            )
        index = found
        exit_layers = index["exits"]  # there may be more
    files = _files(width, exit_layers)
    tokens = index["spans"][-1][2] if index["spans"] else 0
    for name, (
        columns,
        dtype,
    ) in files.items():  # drop rows that were written but not recorded in the index
        size = tokens * columns * dtype.itemsize
        with appended_file(folder / name) as file:
            if file.tell() < size:
                raise ValueError(
                    f"features: expected {size} bytes or more in {folder / name}, got {file.tell()}; "
                    "delete the folder to collect anew"
                )
            file.truncate(size)
    for number in range(index["batches"], len(plan)):
        batch = [conversations[i] for i in plan[number]]
        rows = _read(target, batch, exit_layers)
        for name, rows_of_file in rows.items():
            with appended_file(folder / name) as file:
                file.write(rows_of_file.contiguous().view(torch.uint8).numpy().tobytes())
        for conversation in batch:
            length = len(conversation.prompt_ids) + len(conversation.answer_ids)
            index["spans"].append([tokens, tokens + len(conversation.prompt_ids), tokens + length])
            tokens += length
        index["batches"] = number + 1
        with whole_file(index_file) as scratch:
            scratch.write_text(json.dumps(index))
        progress(len(index["spans"]))
    return load_features(folder, width)


def load_features(folder: Path, hidden_size: int) -> Features:
    """Memory-map the files of `collect_features`."""
    index = json.loads((folder / "index.json").read_text())
    spans = torch.tensor(index["spans"])
    count = int(spans[-1, 2])
    mapped = {
        name: torch.from_file(str(folder / name), size=count * width, dtype=dtype).view(
            count, width
        )
        for name, (width, dtype) in _files(hidden_size, index["exits"]).items()
    }
    return Features(
        starts=spans[:, 0],
        answers=spans[:, 1],
        ends=spans[:, 2],
        tokens=mapped["tokens"][:, 0],
        hidden=mapped["hidden"],
        top_ids=mapped["top_ids"],
        top_probs=mapped["top_probs"],
        exits={layer: mapped[f"exit_{layer}"] for layer in index["exits"]},
    )


def _files(hidden_size: int, exit_layers: Sequence[int]) -> dict[str, tuple[int, torch.dtype]]:
    return {
        "tokens": (1, torch.int32),
        "hidden": (hidden_size, torch.bfloat16),
        "top_ids": (TOP, torch.int32),
        "top_probs": (TOP, torch.float32),
        **{f"exit_{layer}": (hidden_size, torch.bfloat16) for layer in exit_layers},
    }


def _digest(conversations: Sequence[Conversation]) -> str:
    """Hash the conversations' JSON."""
    digest = hashlib.sha256()
    for at, conversation in enumerate(conversations):
        digest.update((", " if at else "[").encode() + json.dumps(asdict(conversation)).encode())
    digest.update(b"]" if len(conversations) else b"[]")
    return digest.hexdigest()


def _batches(conversations: Sequence[Conversation]) -> list[list[int]]:
    """Group conversations of similar length, deterministically."""
    lengths = [len(c.prompt_ids) + len(c.answer_ids) for c in conversations]
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if not batches or (len(batches[-1]) + 1) * lengths[i] > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(i)
    return batches


@torch.inference_mode()
def _read(
    target: Target, batch: list[Conversation], exit_layers: Sequence[int]
) -> dict[str, Tensor]:
    texts = [c.prompt_ids + c.answer_ids for c in batch]
    longest = max(map(len, texts))
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    real = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    # Padding is on the right, so the causal mask excludes it.
    with lock_of(target.model):
        out = target.parts.decoder(
            ids.to(target.device), output_hidden_states=True, use_cache=False
        )
    keep = real.bool()
    on_device = keep.to(target.device)
    hidden = out.hidden_states[-1][on_device]
    ids_of, probs_of = [], []
    for rows in hidden.split(max(1, HEAD_LOGITS // target.config.vocab_size)):
        logits = target.logits(rows).float()
        top = logits.topk(TOP, -1)
        ids_of.append(top.indices)
        probs_of.append((top.values - logits.logsumexp(-1, keepdim=True)).exp())
    rows = {
        "tokens": ids[keep].int()[:, None],
        "hidden": hidden.bfloat16(),
        "top_ids": torch.cat(ids_of).int(),
        "top_probs": torch.cat(probs_of),
        **{
            f"exit_{layer}": out.hidden_states[layer][on_device].bfloat16() for layer in exit_layers
        },
    }
    return {name: value.cpu() for name, value in rows.items()}
