"""The words of a running text, by its characters."""

import regex

# Scripts that are written without spaces: each letter is a word.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_LETTER = rf"[[\p{{L}}\p{{N}}]--[{_UNSPACED}]]\p{{M}}*"
_JOINER = r"[\p{Cf}--[\u200b\ufeff]]"  # not the space without width, and the mark of the byte order
_WORD = regex.compile(
    rf"{_LETTER}(?:{_JOINER}*{_LETTER})*|[^\p{{Z}}\p{{Cc}}\p{{Cf}}\p{{Cs}}]\p{{M}}*", regex.VERSION1
)


def places_of_words(text: str) -> list[tuple[int, int]]:
    """At which characters the words of a text begin and end.

    A word is a run of letters and digits with the marks on them ("T2DM", "5mg"), or a single other sign; of scripts
    without spaces (Chinese, Japanese, Thai, ...) a single letter. Spaces and control characters are between words.
    """
    return [match.span() for match in _WORD.finditer(text)]
