"""First words of user turns; the target goes on from them, so that its data covers what people ask for."""

from __future__ import annotations

from typing import NamedTuple


class Opener(NamedTuple):
    """How a user turn begins."""

    text: str
    tokens: int
    """Most tokens that the model adds."""


SHORT, LONG = 64, 320

OPENERS = [
    Opener(text, SHORT)
    for text in (
        *[""] * 4,  # as the model likes
        "Write a",
        "Write a short story about",
        "Write an email to",
        "Write a poem",
        "Write a blog post about",
        "Write a Python function that",
        "Write a program in C++ that",
        "Write an SQL query",
        "Implement",
        "Explain",
        "Explain in simple words",
        "Describe",
        "Compare",
        "What is",
        "What are the",
        "Who was",
        "When did",
        "Where is",
        "Which",
        "Why do",
        "How does",
        "How can I",
        "How many",
        "Give me five",
        "List the",
        "Name three",
        "Imagine that you are",
        "Pretend to be",
        "You are a",
        "I want you to act as",
        "Help me",
        "Can you",
        "Should",
        "Is it true that",
        "In the field of",
        "Plan a",
        "Design an experiment",
        "Argue",
        "Correct the grammar of this text:",
        "Rewrite this sentence:",
        "Translate this German sentence into English:",
        "Translate into English: Die",
        "Translate into English: Der",
        "Translate into English: Wir",
        "Solve",
        "Find the value of",
        "Calculate",
        "If a train",
        "A shop sells",
        "Tom has",
        "Maria buys",
        "There are",
        "A farmer",
        "Each day, a",
        "Given the following data,",
        "Extract the names from this text:",
    )
] + [
    Opener(text, LONG)
    for text in (
        "Summarize this article:\n",
        "Summarize this news report:\n(CNN)",
        "Summarize the following text in three sentences.\n\n",
        "Read the passages and answer the question.\n\nPassage 1:",
        "Answer the question with the help of these documents.\n\nDocument 1:",
        "Here is a text about",
        "Read this story, then tell me what it is about.\n\n",
    )
]
