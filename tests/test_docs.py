"""README.md and docs/: code runs, commands and links exist, and no page is longer than its budget."""

import re
import shlex
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import typer

from specdec.cli.app import app
from specdec.model.target import Target
from specdec.session import Session
from tiny import letters, library_greedy, random_prompt, tiny_model

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
MOST_WORDS, MOST_WORDS_OF_A_PAGE, WIDEST_LINE = 12_000, 1_500, 100
# What the output of a page must contain.
OUTPUT = {"docs/how/round.md": "0 [' four', ',']"}


class Block(NamedTuple):
    """A fenced block."""

    line: int
    """Of its first line of code, from 1."""
    info: str
    code: str


def name_of(page):
    return str(page.relative_to(ROOT))


def parts_of(page):
    """Split a page into fenced blocks and its other lines, which keep their numbers."""
    blocks, lines, fence = [], [], None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        text = line.lstrip()
        if fence is None and (opened := re.match(r"(`{3,})(.*)", text)):
            fence, info, code = opened[1], opened[2].strip(), []
            first, indent = number + 1, len(line) - len(text)
        elif fence is not None and text.startswith(fence):
            blocks.append(Block(first, info, "".join(f"{line[indent:]}\n" for line in code)))
            fence = None
        elif fence is not None:
            code.append(line)
        if fence is not None or text.startswith("```"):
            line = ""
        lines.append(line)
    assert fence is None, f"{name_of(page)}: a block without an end"
    return blocks, lines


def python_of(page):
    return [block for block in parts_of(page)[0] if block.info == "python"]


def fetches(block):
    """Whether a block loads a model by its name."""
    return re.search(r"""load_target\(\s*(\)|["'])""", block.code)


def run(page, blocks, names):
    for block in blocks:
        # Errors name the line of the page.
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        exec(code, names)
    return names


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder in which the paths that pages use exist, and where files may be written."""
    for folder in ("docs", "tests"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


WITH_CODE = [
    pytest.param(
        page, id=name_of(page), marks=[pytest.mark.model] * any(map(fetches, python_of(page)))
    )
    for page in PAGES
    if python_of(page)
]


@pytest.mark.parametrize("page", WITH_CODE)
def test_python_blocks_of_a_page_run_in_order(page, place, capsys):
    run(page, python_of(page), {})
    assert OUTPUT.get(name_of(page), "") in capsys.readouterr().out


def test_nearly_all_python_blocks_are_run():
    kinds = {block.info for page in PAGES for block in parts_of(page)[0]}
    assert {kind for kind in kinds if "py" in kind} <= {"python", "python no-run"}
    left_out = [
        (name_of(page), block.line)
        for page in PAGES
        for block in parts_of(page)[0]
        if block.info == "python no-run"
    ]
    assert len(left_out) <= 3, left_out


def test_drafter_example_drafts_and_keeps_the_text():
    page = DOCS / "contribute/drafter.md"
    drafter = run(page, python_of(page)[:1], {})["RepeatDrafter"]()
    model, prompt = tiny_model("llama"), random_prompt(6, 1)
    written = Session(Target(model), drafter).generate([prompt], max_new_tokens=20)
    assert written.tokens == [library_greedy(model, prompt, 20)]
    assert written.metrics.nodes_per_round > 2


def test_readme_example_output_equals_transformers_with_another_model(place, capsys):
    model, tokenizer = tiny_model("llama", dtype=torch.float32), letters()
    tokenizer.chat_template = "bcdebcde"  # none of them padding to the model
    model.save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    readme = PAGES[0]
    [block] = [block for block in python_of(readme) if fetches(block)]
    block = block._replace(code=re.sub("smollm2-135m-instruct", "model", block.code))
    names = run(readme, [block], {})
    prompt = names["ids"][0].tolist()
    new = names["out"].shape[1] - len(prompt)
    text = library_greedy(model, prompt, new, eos=[2])
    assert capsys.readouterr().out == tokenizer.decode(text) + "\n"


def commands_of(page):
    """Yield the line and the arguments of every command in blocks for a shell."""
    for block in parts_of(page)[0]:
        if block.info not in ("sh", "bash", "console"):
            continue
        code = re.sub(r"\\\n", " ", block.code)
        for at, line in enumerate(code.splitlines()):
            words = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
            words.whitespace_split = True
            command = []
            for word in [*words, ";"]:
                if set(word) <= set(";&|()<>"):
                    yield f"{name_of(page)}:{block.line + at}", command
                    command = []
                else:
                    command.append(word)


COMMANDS = [found for page in PAGES for found in commands_of(page)]


def parse(arguments):
    """Parse the arguments of `specdec` without running it; raises where they are wrong."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert arguments and arguments[0] in command.commands, (
            f"expected one of {', '.join(command.commands)}, got {arguments[:1]}"
        )
        command, arguments = command.commands[arguments[0]], arguments[1:]
    if arguments != ["--help"]:
        command.make_context(command.name, list(arguments))


def test_specdec_commands_exist_with_their_options():
    wrong = []
    for place, words in COMMANDS:
        if words[:1] == ["specdec"]:
            try:
                parse(words[1:])
            except Exception as error:
                wrong.append((place, " ".join(words), getattr(error, "message", str(error))))
    assert wrong == []


@pytest.mark.parametrize(
    "arguments",
    [["generat"], ["generate", "--tempo", "1"], ["train", "redrafter", "a.db"], ["tune", "--threads", "x"]],
)  # fmt: skip
def test_a_wrong_command_is_noticed(arguments):
    with pytest.raises(Exception, match=r"expected|No such option|Missing|valid integer"):
        parse(arguments)


def test_make_verbs_and_modules_exist():
    verbs = set(
        re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    )
    for place, words in COMMANDS:
        if words[:1] == ["make"]:
            assert {word for word in words[1:] if "=" not in word} <= verbs, place
        if words[1:2] == ["-m"] and words[2].startswith("bench"):
            path = ROOT / words[2].replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), place


def anchors(page):
    """The headings of a page, as links name them."""
    lines = parts_of(page)[1]
    headings = [re.match(r"#+ (.+)", line)[1] for line in lines if re.match("#+ ", line)]
    plain = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def links_of(page):
    for number, line in enumerate(parts_of(page)[1], 1):
        line = re.sub(r"`[^`]*`", "", line)
        for link in re.findall(r"\]\(([^)\s]+)|(?:src|srcset|href)=\"([^\"]+)\"", line):
            if not re.match(r"[a-z]+:", "".join(link)):
                yield f"{name_of(page)}:{number}", "".join(link)


def test_links_images_and_anchors_exist():
    broken = []
    for page in PAGES:
        for place, link in links_of(page):
            path, _, anchor = link.partition("#")
            there = (page.parent / path).resolve() if path else page
            if not there.exists() or (anchor and anchor not in anchors(there)):
                broken.append((place, link))
            elif page != PAGES[0] and not there.is_relative_to(DOCS):
                broken.append((place, link, "is not on the site"))
    assert broken == []


def pages_in(nav):
    for entry in nav:
        for where in entry.values():
            yield from [where] if isinstance(where, str) else pages_in(where)


def test_site_navigation_has_every_page_once():
    nav = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    named = sorted(pages_in(nav))
    assert len(named) == len(set(named))
    assert set(named) ^ {str(page.relative_to(DOCS)) for page in PAGES[1:]} == set()


def without(pattern, text):
    """Leave nothing of what matches but its lines."""
    return re.sub(pattern, lambda found: "\n" * found[0].count("\n"), text, flags=re.DOTALL)


def prose_of(page, *, generated=True):
    """Lines without code, tables and comments; where such a line was, an empty one."""
    text = "\n".join(parts_of(page)[1])
    if not generated:
        text = without(r"<!-- ([\w-]+) -->.*?<!-- \1 -->", text)
    text = without(r"<!--.*?-->", text)
    return ["" if line.lstrip().startswith("|") else line for line in text.splitlines()]


def test_lists_begin_after_an_empty_line():
    # The site's Markdown takes them for text elsewhere.
    item = re.compile(r"\s*([-*]|\d+\.) ")
    for page in PAGES[1:]:
        for number, (before, line) in enumerate(pairwise(prose_of(page)), 2):
            inside = not before.strip() or before.startswith(" ") or item.match(before)
            assert inside or not item.match(line), f"{name_of(page)}:{number}: {line}"


def test_prose_is_within_its_budget():
    words = {name_of(page): len(" ".join(prose_of(page)).split()) for page in PAGES}
    assert {page: count for page, count in words.items() if count > MOST_WORDS_OF_A_PAGE} == {}
    assert sum(words.values()) <= MOST_WORDS, words


def test_lines_are_narrow():
    wide = []
    for page in PAGES:
        for number, line in enumerate(prose_of(page, generated=False), 1):
            # Where a link leads does not count, nor what cannot be broken.
            text = re.sub(r"\]\([^)]*\)", "]", line).strip()
            if len(text) > WIDEST_LINE and " " in text[:WIDEST_LINE]:
                wide.append(f"{name_of(page)}:{number}")
    assert wide == []
