"""Openers of later user turns, and of requests for the passages that a conversation is about."""

from __future__ import annotations

from .openers import Opener, read_openers

# Openers of requests for a passage.
PASSAGES = read_openers("""
    Write a news report about
    Write a short article about
    Write an encyclopedia entry about
    Write a letter in which
    Write a diary entry of
    Write a product review of
    Describe how
    Tell the story of
    Write the minutes of a meeting about
    Write a short biography of
    Write two paragraphs about
    Write a dialogue between
    Explain to a beginner how
    Describe the city of
""")

# Openers of user turns after an answer.
FOLLOW_UPS = (
    [Opener("")] * 3
    + read_openers("""
    Now
    Can you
    Why
    What about
    How
    And if
    Give me an example of
    Explain the second
    Are you sure that
    I do not understand
    Thank you. Now
    Tell me more about
    Write it again, but
    What would change if
""")
    + read_openers(
        """
    Make it shorter.
    Rewrite your answer as a list.
    Say that again in simpler words.
    Give me another example.
    Continue.
    Put your answer into a table.
    Summarize what you said in one sentence.
    """,
        0,
    )
)
