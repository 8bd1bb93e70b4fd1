"""How numbers, money, dates, times and symbols are spoken: written words become spoken ones."""

import re
import unicodedata

_MONEY = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
}
_SYMBOLS = {
    "&": "and",
    "+": "plus",
    "=": "equals",
    "%": "percent",
    "@": "at",
    "#": "number",
    "×": "times",
    "÷": "divided by",
    "°": "degrees",
    "°C": "degrees celsius",
    "°F": "degrees fahrenheit",
    "$": "dollars",
    "€": "euros",
    "£": "pounds",
}
_MONTHS = (
    "january february march april may june july august september october november december"
).split()

_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_TIME = re.compile(r"(\d{1,2}):(\d{2})([ap]\.?m\.?)?", re.IGNORECASE)
_DIGITS = re.compile(r"\+?\d{7,}|0\d+|\+?\d{2,4}(?:-\d{2,4}){1,3}")
_ORDINAL = re.compile(r"(\d+)(?:st|nd|rd|th)", re.IGNORECASE)
_PRICE = re.compile(rf"([$€£])({_NUMBER})|({_NUMBER})([$€£])")
_RANGE = re.compile(rf"({_NUMBER})[-–]({_NUMBER})")
_PARTS = re.compile(rf"{_NUMBER}|°[CF]|[^\W\d_]+(?:['’][^\W\d_]+)*|[&+=%@#×÷°$€£]|[-−](?=\d)|\S")
_AROUND = re.compile(r"^[\"'“‘(\[]*(.*?)[\"'”’)\]]*([.,;:!?…]*)[\"'”’)\]]*$", re.DOTALL)
_MARKUP = "*_`~"
_JOINT = re.compile(r"(?<=[^\W\d_])[\W_]+(?=[^\W\d_])")
_INSIDE_WORDS = ("'", "’", "‘", "ʼ", "-", "‐", "‑", "·")


def spoken_words(word: str) -> list[str]:
    """Return how a written word is spoken, as one or several words.

    Args:
        word: A word between two spaces, such as ``hello``, ``$12.50`` or ``10:30,``.

    Returns:
        The word itself where it holds no number and no symbol, or several if punctuation parts
        them (``hello,how``); otherwise its words in English, in lower case. Punctuation behind it
        stays at the last one. Markdown's marks around a word are left out; marks alone are no
        words.
    """
    word = word.strip(_MARKUP)
    if not word.strip("#"):
        return []
    if not any(map(str.isdigit, word)) and not any(sign in word for sign in _SYMBOLS):
        return _parted(word)
    around = _AROUND.match(word)
    assert around is not None  # It matches any text.
    try:
        spoken = _speak(around[1])
    except (ValueError, ArithmeticError):  # A number beyond all names.
        spoken = " ".join(around[1])
    words = spoken.replace("-", " ").replace(",", "").split()
    if not words:
        return [word]
    return [*words[:-1], words[-1] + around[2]]


def _parted(word: str) -> list[str]:
    """Part words between which punctuation stands without a space; it stays at the first one."""
    ends = [joint.end() for joint in _JOINT.finditer(word) if _parts_words(word, joint)]
    return [word[start:end] for start, end in zip([0, *ends], [*ends, len(word)], strict=True)]


def _parts_words(word: str, joint: re.Match[str]) -> bool:
    signs = joint[0]
    if signs == ".":  # "one.two", but not "U.S." or "e.g."
        before, after = word[: joint.start()], word[joint.end() :]
        return before[-2:].isalpha() and after[:2].isalpha() and min(len(before), len(after)) > 1
    # Vowel signs and the like are parts of a word in many scripts.
    is_punctuation = all(unicodedata.category(sign)[0] in "PS" for sign in signs)
    return is_punctuation and signs not in _INSIDE_WORDS


def _speak(text: str) -> str:
    if match := _DATE.fullmatch(text):
        return _date(*map(int, match.groups())) or _digits(text)
    if match := _TIME.fullmatch(text):
        return _time(int(match[1]), int(match[2]), match[3] or "")
    if _DIGITS.fullmatch(text) and not _is_range(text):
        return _digits(text)
    if match := _ORDINAL.fullmatch(text):
        return _in_words(int(match[1]), to="ordinal")
    if match := _PRICE.fullmatch(text):
        return _price(match[1] or match[4], match[2] or match[3])
    if match := _RANGE.fullmatch(text):
        return f"{_number(match[1])} to {_number(match[2])}"
    return " ".join(_part(part) for part in _PARTS.findall(text))


def _is_range(text: str) -> bool:
    """Whether two small numbers with a dash are meant, as in 10-12, and no telephone number."""
    ends = text.split("-")
    return len(ends) == 2 and all(len(end) <= 2 and not end.startswith("0") for end in ends)


def _part(part: str) -> str:
    if part[0].isdigit():
        return _number(part)
    if part in "-−":
        return "minus"
    if part in _SYMBOLS:
        return _SYMBOLS[part]
    return part if part[0].isalpha() else ""


def _number(text: str) -> str:
    plain = text.replace(",", "")
    if "." in plain:
        whole, decimals = plain.split(".")
        return f"{_in_words(int(whole))} point {_digits(decimals)}"
    if len(plain) > 1 and plain.startswith("0"):
        return _digits(plain)
    value = int(plain)
    if 1100 <= value <= 2099 and "," not in text and value % 1000:
        return _in_words(value, to="year")
    return _in_words(value)


def _price(sign: str, amount: str) -> str:
    one, many, cent, cents = _MONEY[sign]
    whole, _, rest = amount.replace(",", "").partition(".")
    value, small = int(whole), int(rest.ljust(2, "0")[:2] or 0)
    words = f"{_in_words(value)} {one if value == 1 else many}"
    if small:
        words += f" and {_in_words(small)} {cent if small == 1 else cents}"
    return words


def _time(hour: int, minute: int, half: str) -> str:
    words = _in_words(hour)
    if minute:
        words += f" {'oh ' if minute < 10 else ''}{_in_words(minute)}"
    elif not half:
        words += " o'clock"
    return f"{words} {' '.join(half.lower().replace('.', ''))}"


def _date(year: int, month: int, day: int) -> str | None:
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    return f"{_MONTHS[month - 1]} {_in_words(day, to='ordinal')} {_in_words(year, to='year')}"


def _digits(text: str) -> str:
    return " ".join(
        "plus" if sign == "+" else _in_words(int(sign))
        for sign in text
        if sign == "+" or sign.isdecimal()
    )


def _in_words(value: int, to: str = "cardinal") -> str:
    from num2words import num2words

    return num2words(value, lang="en", to=to).replace(" and ", " ")
