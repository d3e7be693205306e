"""What the README says is so: its example runs, and its tables are made from results/."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_example_runs():
    code, transformers = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert code.count("\n") <= 10
    scope: dict = {}
    exec(code, scope)
    assert scope["y"].shape == scope["x"].shape
    assert scope["layer"].inference_width == 12
    compile(transformers, "README.md", "exec")  # it needs the hub; examples/ and tests/hf run the like


def test_the_tables_are_those_of_the_results():
    subprocess.run([sys.executable, ROOT / "results" / "tables.py", "--check"], check=True)


def test_every_path_that_the_readme_names_exists():
    for link in re.findall(r"\]\(((?!https?:)[^)]+)\)", (ROOT / "README.md").read_text()):
        path, _, section = link.partition("#")
        assert (ROOT / path).exists(), link
        if section:
            headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(), flags=re.MULTILINE)
            assert section in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, link
