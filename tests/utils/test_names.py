from __future__ import annotations

from flmm_detseg.utils.names import suggest


def test_few_names_are_listed_and_many_only_where_they_are_near():
    assert suggest("zzz", ["one", "two"]) == " (known: one, two)"
    many = [f"Head{number}" for number in range(100)]
    assert suggest("Head", many).count("`Head") == 3
    assert suggest("zzz", many) == " (known are 100 names, none of them like it)"
