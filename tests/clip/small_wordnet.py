"""A little WordNet in the published layout, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# What the published file begins with, the version's line among it.
LICENCE = (
    "  1 This software and database is being provided to you, the LICENSEE, by  \n"
    "  2 Princeton University under the following license.  \n"
    "  3   \n"
    "  4 WordNet {} Copyright 2006 by Princeton University.  All rights reserved.  \n"
)
Nouns = Mapping[str, Sequence[str]]  # a noun -> its hypernyms; "@i x" for an instance of x


def nouns_file(nouns: Nouns, *, version: str = "3.0") -> tuple[bytes, dict[str, str]]:
    """The file's content, and the id of each noun. Names are given with spaces."""
    head = LICENCE.format(version)
    above = {noun: [each.removeprefix("@i ") for each in given] for noun, given in nouns.items()}
    below = {noun: [each for each in nouns if noun in above[each]] for noun in nouns}

    def lines(offsets: Mapping[str, int]) -> list[str]:
        found = []
        for noun, given in nouns.items():
            pointers = [
                f"{'@i' if each.startswith('@i ') else '@'} {offsets[each.removeprefix('@i ')]:08} n 0000"
                for each in given
            ]
            pointers += ["+ 00001740 v 0101"]  # another kind, to another file
            pointers += [
                f"{'~i' if '@i ' + noun in nouns[each] else '~'} {offsets[each]:08} n 0000" for each in below[noun]
            ]
            words = f"02 {noun.replace(' ', '_')} 0 a_second_word 1"
            found.append(
                f"{offsets[noun]:08} 05 n {words} {len(pointers):03} {' '.join(pointers)} | a gloss; one|two  \n"
            )
        return found

    lengths = [len(line) for line in lines(dict.fromkeys(nouns, 0))]
    starts = [len(head) + sum(lengths[:place]) for place in range(len(lengths))]
    offsets = dict(zip(nouns, starts, strict=True))
    return (head + "".join(lines(offsets))).encode(), {noun: f"n{start:08}" for noun, start in offsets.items()}
