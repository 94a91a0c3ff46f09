"""Where a text holds the number of a payment card or of a bank account: check digits leave few mistakes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llm.data.filters.personal import Span

_card = re.compile(
    r"[0-9](?<![\w.,+-][0-9])"
    r"(?:[0-9]{12,18}|[0-9]{3}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{1,4}(?:\1[0-9]{3})?|[0-9]{3}([ -])[0-9]{6}\2[0-9]{4,5})(?![\w-]|[.,][0-9])"
)
# First and last prefix of each issuer, and the lengths that it gives out. Source: ISO/IEC 7812-1, and the issuers' own ranges.
ISSUERS = (
    ("4", "4", {13, 16, 19}),  # Visa
    ("51", "55", {16}),  # Mastercard
    ("2221", "2720", {16}),
    ("34", "34", {15}),  # American Express
    ("37", "37", {15}),
    ("300", "305", {14}),  # Diners Club
    ("36", "36", {14}),
    ("38", "39", {14, 16}),
    ("6011", "6011", {16, 19}),  # Discover
    ("644", "659", {16, 19}),
    ("3528", "3589", {16, 19}),  # JCB
    ("62", "62", {16, 17, 18, 19}),  # UnionPay
    ("5018", "5018", {16, 19}),  # Maestro
    ("6759", "6763", {16, 19}),
)


def cards(text: str) -> Iterator[Span]:
    """Numbers of payment cards: an issuer's prefix and length, and the check digit is right."""
    position = 0
    while found := _card.search(text, position):
        digits = "".join(filter(str.isdigit, found[0]))
        good = _is_issued(digits) and luhn(digits)
        position = found.end() if good else found.start() + 1
        if good:
            yield found.span()


def _is_issued(digits: str) -> bool:
    return any(first <= digits[: len(first)] <= last and len(digits) in lengths for first, last, lengths in ISSUERS)


def luhn(digits: str) -> bool:
    """Whether the last digit checks the others. Source: ISO/IEC 7812-1, annex B.

    Example:
        >>> luhn("4111111111111111"), luhn("4111111111111112")
        (True, False)
    """
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0


# Length of an account number by country. Source: the IBAN registry of ISO 13616.
IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HN HU LB NI PL SV", 29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip
_iban = re.compile(r"[A-Z]{2}(?<!\w[A-Z]{2})[0-9]{2}(?: ?[A-Z0-9]){11,30}")


def ibans(text: str) -> Iterator[Span]:
    """International bank account numbers, plain or in groups of four: the country's length, and the check digits are right."""
    for found in _iban.finditer(text):
        places = [place for place in range(*found.span()) if text[place] != " "][: IBAN_LENGTHS.get(found[0][:2], 0)]
        number = "".join(text[place] for place in places)
        if len(number) == IBAN_LENGTHS.get(found[0][:2]) and not text[places[-1] + 1 : places[-1] + 2].isalnum() and mod_97(number):
            yield found.start(), places[-1] + 1


def mod_97(iban: str) -> bool:
    """Whether the check digits are right. Source: ISO 7064, MOD 97-10.

    Example:
        >>> mod_97("GB82WEST12345698765432"), mod_97("GB83WEST12345698765432")
        (True, False)
    """
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97 == 1
