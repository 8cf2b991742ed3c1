"""The committed lists of classes against WordNet's own files, which the package wordnet-base brings."""

from __future__ import annotations

import pytest

from tools.wordnet import NOUNS, main, read_nouns


@pytest.mark.system
def test_the_committed_lists_are_what_wordnet_gives(capsys: pytest.CaptureFixture[str]) -> None:
    assert NOUNS.is_file(), "WordNet is not installed: apt-get install wordnet-base"
    wordnet = read_nouns()
    assert len(wordnet.names) == 82_115
    assert wordnet.names["n02084071"] == "dog"
    assert main(["--check"]) == 0
    assert capsys.readouterr().out == ""
