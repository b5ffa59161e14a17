"""A process loads the same images once where it was told to keep them."""

from spkd.data.kept import keep_last, keeping_last, kept


def test_the_last_is_kept_as_long_as_it_is_wanted() -> None:
    loaded: list[str] = []

    def load(key: str) -> str:
        loaded.append(key)
        return key.upper()

    for _ in range(2):
        assert kept("a", load) == "A"
    assert loaded == ["a", "a"]
    with keeping_last():
        assert [kept(key, load) for key in "abbab"] == ["A", "B", "B", "A", "B"]
        keep_last()
        with keeping_last():
            assert kept("b", load) == "B"
        assert kept("b", load) == "B"
        assert loaded == [*"aa", "a", "b", "a", "b"]
    assert kept("b", load) == "B"
    assert loaded[-1] == "b"
    assert len(loaded) == 7


def test_each_function_s_last_is_kept() -> None:
    loaded: list[str] = []

    def inner(key: str) -> str:
        loaded.append(key)
        return key

    def outer(key: str) -> str:
        return kept("a", inner) + key

    with keeping_last():
        assert [kept("b", outer), kept("a", inner), kept("c", outer)] == ["ab", "a", "ac"]
    assert loaded == ["a"]
