import pytest

from common.data.class_names import difference, listed

COMPOSED, DECOMPOSED = "ch\u00e2t", "cha\u0302t"  # the same name in NFC and NFD


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (["cat", "dog"], ["dog", "cat"], ""),
        (["cat", "dog", "fox"], ["cat", "dog"], "'fox' is only in train/"),
        (["cat"], ["cat", "owl", "yak"], "'owl' and 'yak' are only in test/"),
        (["cat", "fox"], ["cat", "owl"], "'fox' is only in train/; 'owl' is only in test/"),
        (
            [COMPOSED, "dog"],
            [DECOMPOSED, "dog"],
            f"'{COMPOSED}' has another Unicode form in train/ (NFC) than in test/ (NFD): rename one",
        ),
        (
            [COMPOSED, DECOMPOSED],
            [DECOMPOSED, "dog"],
            f"'{COMPOSED}' is only in train/; 'dog' is only in test/",
        ),
    ],
)
def test_a_message_says_which_name_is_where(one, other, expected):
    assert difference(one, other, "train/", "test/") == expected


def test_a_long_list_is_cut():
    assert listed(["a"]) == "'a'"
    assert listed(list("abcde")) == "'a', 'b', 'c', 'd' and 'e'"
    assert listed(list("abcdefg")) == "'a', 'b', 'c', 'd', 'e' and 2 more"
