"""What the pages show runs as it stands there."""

import re
from pathlib import Path

import pytest
import torch

from specdec.model.target import Target
from specdec.session import Session
from tiny import letters, library_greedy, random_prompt, tiny_model

ROOT = Path(__file__).parents[1]


def snippets(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.model
def test_watching_example_of_the_flow_page_runs(capsys):
    code, _ = snippets("docs/how/round.md")
    exec(code, {})
    assert "0 [' four', ',']" in capsys.readouterr().out


def test_drafter_example_of_the_flow_page_runs():
    _, code = snippets("docs/how/round.md")
    names = {}
    exec(code, names)
    model, prompt = tiny_model("llama"), random_prompt(6, 1)
    written = Session(Target(model), names["RepeatDrafter"]()).generate([prompt], max_new_tokens=20)
    assert written.tokens == [library_greedy(model, prompt, 20)]
    assert written.metrics.nodes_per_round > 2


@pytest.mark.model
def test_readme_example_runs(capsys):
    threads = torch.get_num_threads()
    (code,) = snippets("README.md")
    exec(code, {})
    torch.set_num_threads(threads)
    assert len(capsys.readouterr().out) > 20


def test_readme_example_output_equals_transformers_with_another_model(tmp_path, capsys):
    model, tokenizer = tiny_model("llama", dtype=torch.float32), letters()
    tokenizer.chat_template = "bcdebcde"  # none of them padding to the model
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (code,) = snippets("README.md")
    names = {}
    exec(code.replace("smollm2-135m-instruct", str(tmp_path)), names)
    text = library_greedy(model, names["ids"][0].tolist(), 64, eos=[2])
    assert capsys.readouterr().out == tokenizer.decode(text) + "\n"


def anchors(page):
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_documentation_links_resolve():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            if "://" not in link:
                path, _, anchor = link.partition("#")
                there = page.parent / path if path else page
                assert there.exists(), (page.name, link)
                assert not anchor or anchor in anchors(there), (page.name, link)
