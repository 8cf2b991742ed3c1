from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from diffvit.app.kept import Kept


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 40))), st.integers(1, 100))
def test_it_keeps_the_last_that_fit(asked: list[tuple[int, int]], budget: int) -> None:
    kept: Kept[tuple[int, int]] = Kept(budget, lambda value: value[1])
    model: list[tuple[int, int]] = []  # a naive list, oldest first
    for value in asked:
        found = kept.find(value[0])
        old = next((each for each in model if each[0] == value[0]), None)
        assert found == old
        kept.keep(value[0], value)
        model = [each for each in model if each[0] != value[0]] + [value]
        while sum(size for _, size in model) > budget and len(model) > 1:
            model.pop(0)
        assert len(kept) == len(model)


def test_a_value_is_made_once_while_it_is_here() -> None:
    kept: Kept[list[int]] = Kept(2)
    made = [kept.get(key, lambda key=key: [key]) for key in (1, 1, 2, 1, 3, 1, 2)]
    assert made[0] is made[1] is made[3] is made[5]
    assert made[2] is not made[6]  # 2 was let go for 3: 1 was asked for later
    assert made[6] == [2]
