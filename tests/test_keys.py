"""Keys of several parts are those of a list of strings."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from joulecache.pipelines.source.names import Keys

PREFIXES = st.sampled_from(["", "a.tar/", "a.tar/b.tar/", "a-b/", "é/"])


@given(
    st.lists(
        st.tuples(PREFIXES, st.lists(st.text("ab/é.", min_size=1, max_size=4), max_size=5)), min_size=1, max_size=5
    )
)
def test_keys_are_sorted_as_strings_are(parts: list[tuple[str, list[str]]]) -> None:
    keys = Keys(parts)
    expected = [prefix + name for prefix, names in parts for name in names]
    assert [*keys] == expected
    assert [keys[row] for row in range(len(keys))] == expected
    rows = keys.sorted_rows().tolist()
    assert [expected[row] for row in rows] == sorted(expected)
    assert sorted(rows) == [*range(len(expected))]
