"""How many models in styles that detection was not made for are right: `python -m tests.detection.judge_styles [part of a file's name]`."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from importlib import import_module

from tests.detection.test_styles import FILES, judge


def main() -> None:
    """Print a line for each model that is not right, and a table: a row for each set of files."""
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    counts: dict[str, Counter[str]] = {}
    for file in FILES:
        for style in import_module(f"tests.detection.styles.{file}").STYLES if asked in file else []:
            silent, guessed = judge(style)
            kind = "wrong in silence" if silent else "guess" if guessed else "right"
            counts.setdefault(file.partition("_")[0], Counter())[kind] += 1
            for why in (*silent[:2], *guessed[:1]):
                print(f"{style.name}: {'' if why in silent else '? '}{why[:160]}")
    print("| set | models | right | guesses | wrong in silence |\n| --- | --- | --- | --- | --- |")
    for name, found in counts.items():
        print(f"| {name} | {sum(found.values())} | {found['right']} | {found['guess']} | {found['wrong in silence']} |")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
