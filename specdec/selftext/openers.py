"""Openers: first words of user turns, from which the target generates the rest; they cover many kinds of requests.

`{passage}` in an opener is replaced by a text that the target generated on another request.
"""

from __future__ import annotations

from typing import NamedTuple

SHORT, LONG = 64, 320


class Opener(NamedTuple):
    """The beginning of a user turn."""

    text: str
    tokens: int = SHORT
    """Most tokens that the target adds; 0 for a complete turn."""


class Category(NamedTuple):
    """A kind of request."""

    share: int
    """Share of all conversations, relative to other categories."""
    openers: list[Opener]


def read_openers(text: str, tokens: int = SHORT) -> list[Opener]:
    """Read one opener per line; `|` stands for a line feed."""
    lines = (line.strip() for line in text.strip().splitlines())
    return [Opener(line.replace("|", "\n"), tokens) for line in lines]


PASSAGE = "{passage}"

CATEGORIES = {
    "free": Category(4, [Opener("")]),
    "writing": Category(
        12,
        read_openers("""
            Write a
            Write a short story about
            Write an email to
            Write a poem about
            Write a blog post about
            Write a letter to
            Write a speech for
            Write a product description for
            Write the first paragraph of a novel in which
            Compose a song about
            Draft a message to my landlord about
            Draft an invitation to
            Continue this story:
            Describe a scene in which
            Review the film
            Give me a slogan for
            Argue for and against
        """),
    ),
    "roleplay": Category(
        7,
        read_openers("""
            Imagine that you are
            Pretend to be
            You are a
            I want you to act as
            Play the part of
            Speak as if you were
            You are the captain of
            Answer all my questions as
            Let us have a conversation in which you are
            Be my
        """),
    ),
    "reasoning": Category(
        8,
        read_openers("""
            If all
            Which of these does not belong with the others:
            Anna is older than
            Three friends
            What would happen if
            Should
            Is it true that
            Why do
            Suppose that
            Find the mistake in this argument:
            Compare
            Which is heavier,
            What is the next number:
            Put these events in the right order:
            Decide step by step whether
        """),
    ),
    "arithmetic": Category(
        13,
        read_openers("""
            Solve
            Find the value of
            Calculate
            Compute step by step:
            If a train
            A shop sells
            Tom has
            Maria buys
            There are
            A farmer
            Each day, a
            A recipe needs
            How many
            What is the average of
            A rectangle
            The sum of two numbers is
            Convert
            A class of
            Peter earns
            Work out the following and show every step:
            The price of a
            One third of
            A tank holds
        """),
    ),
    "code": Category(
        12,
        read_openers("""
            Write a Python function that
            Write a Python class for
            Write a program in C++ that
            Write an SQL query that
            Write a shell script that
            Write a JavaScript function that
            Write unit tests for a function that
            Implement
            Explain what this code does:|```python|def
            Find the bug in this code:|```python|
            Rewrite this loop as a comprehension:|```python|for
            Add comments to this function:|```python|def
            Write an HTML page with
            Write a regular expression that
            How do I sort
            Write a JSON object that describes
        """),
    ),
    "tables and lists": Category(
        8,
        read_openers("""
            Make a table of
            Make a table with the columns name, year and
            Give me five
            List the
            Name three
            List ten
            Make a shopping list for
            Plan a
            Write a schedule for
            Give me a numbered list of steps to
            Compare in a table
            Write the pros and cons of
            Write a checklist for
            Write this as a table:
            Write an outline for
        """),
    ),
    "facts": Category(
        10,
        read_openers("""
            What is
            What are the
            Who was
            When did
            Where is
            Which
            How does
            Explain
            Explain in simple words
            Describe the structure of
            Define
            What is the difference between
            In the field of
            Design an experiment that
            How is
            What causes
        """),
    ),
    "humanities": Category(
        6,
        read_openers("""
            What did the
            How did the
            Explain the causes of
            Discuss the role of
            What does the word
            Who wrote
            What is the meaning of the
            Describe the life of
            How can I become
            Give me advice on
            What should I do when
            Describe the economy of
            Why is the painting
        """),
    ),
    "translation": Category(
        6,
        read_openers("""
            Translate this German sentence into English:
            Translate into English: Die
            Translate into English: Der
            Translate into English: Wir
            Translate into English: Le
            Translate into English: La
            What does this mean in English:
            Translate into French:
            Translate into Spanish:
            Translate into German:
            How do you say in Spanish:
        """),
    ),
    "corrections": Category(
        4,
        read_openers("""
            Correct the grammar of this text:
            Rewrite this sentence:
            Rewrite this sentence in the past tense:
            Say this more politely:
            Make this sentence shorter:
            Find another word for
            Correct the spelling:
        """),
    ),
    "summaries": Category(
        9,
        read_openers(
            """
            Summarize the text below in two sentences.||{passage}
            {passage}||Summarize this.
            {passage}||TL;DR
            Give the main points of this text as a list:||{passage}
            Write a headline and a one-sentence summary for this text.||Text: {passage}
            Tell me briefly what this is about:||{passage}
            """,
            0,
        )
        + read_openers(
            """
            Summarize this article:|
            Summarize this news report:|(CNN)
            Summarize the following text in three sentences.||
            """,
            LONG,
        ),
    ),
    "rewriting": Category(
        7,
        read_openers(
            """
            Rewrite this text in simpler words:||{passage}
            Rewrite the text below as a letter to a friend.||{passage}
            {passage}||Write this again, with every sentence on its own line.
            Correct all mistakes in this text and leave the rest as it is:||{passage}
            {passage}||Rewrite this in the first person.
            {passage}||Repeat this text, but replace all names by other names.
            Turn this text into a list of short points:||{passage}
            """,
            0,
        ),
    ),
    "extraction": Category(
        7,
        read_openers(
            """
            List all names that occur in this text:||{passage}
            Extract all numbers and dates from the text below.||{passage}
            {passage}||Write the facts of this text as a JSON object.
            Make a table of the people, places and things in this text:||{passage}
            {passage}||Which words of this text are adjectives?
            Copy the most important sentence of this text:||{passage}
            """,
            0,
        )
        + read_openers("Extract the names from this text:\nGiven the following data,"),
    ),
    "questions about a text": Category(
        8,
        read_openers("""
            {passage}||Question: What
            {passage}||Question: Why
            {passage}||Question: Who
            Text: {passage}||Answer with the help of the text: How
            Read the text and answer the question.||{passage}||Question:
        """)
        + read_openers(
            """
            Read the passages and answer the question.||Passage 1:
            Answer the question with the help of these documents.||Document 1:
            Read this story, then tell me what it is about.||
            """,
            LONG,
        ),
    ),
}
