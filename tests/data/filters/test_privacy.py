from __future__ import annotations

import ast
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest

from llm.data.document import Document
from llm.data.filters.config import PersonalKind, PrivacyConfig
from llm.data.filters.privacy import FINDERS, PLACEHOLDERS, find, mask
from llm.data.steps import Edited

EVERYTHING = PrivacyConfig(mask=tuple(FINDERS))
PEM = "-----BEGIN RSA PRIVATE KEY-----\n" + ("MIIEpAIBAAKCAQEA7bq3" + "Zk9x+/aB" * 5 + "\n") * 3 + "4Q==\n-----END RSA PRIVATE KEY-----"
STDLIB = Path(sysconfig.get_paths()["stdlib"])

# Numbers for tests that issuers publish, the examples of the IBAN registry, forms of RFC 5321 and 5322, keys from manuals.
FOUND: dict[PersonalKind, list[str]] = {
    "email": [
        "jo@example.org",
        "very.common+tag@mail.example.co.uk",
        '"john..doe"@example.org',
        "user@[192.168.2.1]",
        "user@[IPv6:2001:db8::1]",
        "квіточка@пошта.укр",
        "jo@xn--80akhbyknj4f.xn--p1ai",
        "x_-9@a-b.museum",
    ],
    "card": [
        "4111111111111111",
        "4012-8888-8888-1881",
        "5555 5555 5555 4444",
        "2223003122003222",
        "378282246310005",
        "3714 496353 98431",
        "6011111111111117",
        "30569309025904",
        "3530111333300000",
        "6200000000000005",
    ],
    "iban": [
        "GB82WEST12345698765432",
        "GB82 WEST 1234 5698 7654 32",
        "DE89 3704 0044 0532 0130 00",
        "FR1420041010050500013M02606",
        "NO9386011117947",
        "MT84MALT011000012345MTLCAST001S",
        "LC55HEMM000100010012001200023015",
        "CH9300762011623852957",
    ],
    "phone": [
        "+49 30 1234567",
        "+1 (415) 555-2671",
        "+442079460958",
        "+33.1.23.45.67.89",
        "(415) 555-2671",
        "415-555-2671",
        "415.555.2671",
    ],
    "ip": ["8.8.8.8", "142.250.185.78", "2606:4700:4700::1111", "2a00:1450:4001:0829:0000:0000:0000:200e"],
    "key": [
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_" + "aB3dE6gH9j" * 4,
        "github_pat_" + "11ABCDEFG0" * 8,
        "xoxb-" + "2345678901-abcDEF",
        "AIza" + "SyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
        "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    ],
}
LEFT_ALONE: dict[PersonalKind, list[str]] = {
    "email": [
        "git@github.com:pallets/flask",
        "icon@2x.png",
        "x = a @ b.c",
        "jo@localhost",
        "@property.setter",
        "pkg@1.2.3",
        "sd_IN@devanagari.UTF-8",
    ],
    "card": [
        "4111111111111112",
        "0.4111111111111111",
        "1234567890123456",
        "f4111111111111111",
        "4111111111111111.5",
        "0000 0000 0000 0000",
    ],
    "iban": [
        "GB83WEST12345698765432",
        "XX82WEST12345698765432",
        "GB82WEST1234569876543",
        "aGB82WEST12345698765432",
        "HTML5 CSS3 AND MORE WORDS",
    ],
    "phone": [
        "2026-11-21",
        "2026-11-21T04:37:28",
        "3.14159265358979",
        "+0.12345678",
        "1.2.3.4",
        "0xdeadbeef",
        "1e+10000000",
        "x+12345678",
        "1234567890",
    ],
    "ip": [
        "127.0.0.1",
        "10.0.0.1",
        "192.168.1.1",
        "192.0.2.7",
        "255.255.255.256",
        "224.0.0.1",
        "4.3.2.11.in-addr.arpa",
        "v1.2.3.4",
        "version 11.2.3.4",
        "1.2.3.4.5",
        "::1",
        "fe80::1",
        "12:34:56",
        "std::vector",
    ],
    "key": [
        "AKIAshort",
        "token = tokenize.generate_tokens(source)",
        "secret = 'aaaaaaaaaaaaaaaaaaaaaaaa'",
        "password: correct_horse_battery_staple",
        "eyJ.eyJ.",
    ],
}


def prose(text: str) -> Document:
    return Document("a", text, "files")


def code(text: str) -> Document:
    return Document("a", text, "files", domain="code", language="python")


def masked(document: Document, config: PrivacyConfig = EVERYTHING) -> str:
    outcome = mask(document, config)
    return outcome.document.text if isinstance(outcome, Edited) else document.text


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in FOUND.items() for text in texts])
def test_each_kind_is_found_whole(kind: PersonalKind, text: str) -> None:
    for before, after in (("", ""), ("Write: ", ", please."), ("(", ")"), ("\n", "\n"), ('"', '"')):
        assert masked(prose(before + text + after), PrivacyConfig(mask=(kind,))) == before + PLACEHOLDERS[kind] + after


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in LEFT_ALONE.items() for text in texts])
def test_what_only_looks_like_it_is_left_alone(kind: PersonalKind, text: str) -> None:
    assert masked(prose(f"see {text} here"), PrivacyConfig(mask=(kind,))) == f"see {text} here"


def test_a_number_with_a_leading_zero_is_a_phone_number_where_that_is_said() -> None:
    assert masked(prose("Tel.: 030/123 4567 and phone 01 23 45 67 89")) == "Tel.: <PHONE> and phone <PHONE>"
    assert masked(prose("rows 010 020 030 040")) == "rows 010 020 030 040"


def test_secrets_with_a_name() -> None:
    assert masked(prose('API_KEY = "q8Zx71LmPw02VbNc93Ks"')) == 'API_KEY = "<KEY>"'
    assert masked(prose("export DB_PASSWORD=q8Zx71LmPw02VbNc93Ks\n")) == "export DB_PASSWORD=<KEY>\n"
    assert masked(prose(PEM)) == "-----BEGIN RSA PRIVATE KEY-----\n<KEY>\n-----END RSA PRIVATE KEY-----"
    lines = '"' + PEM.replace("\n", '\\n"\n"') + '"'
    assert "MIIE" not in masked(code(f"key = ({lines})"))
    ast.parse(masked(code(f"key = ({lines})")))


def test_counts_and_setting() -> None:
    text = "jo@example.org, al@example.org, 4111 1111 1111 1111, 8.8.8.8"
    outcome = mask(prose(text), PrivacyConfig())
    assert isinstance(outcome, Edited)
    assert outcome.document.text == "<EMAIL>, <EMAIL>, <CARD>, 8.8.8.8"
    assert outcome.edits == {"masked_email": 2, "masked_card": 1}
    assert masked(prose(text), PrivacyConfig(mask=())) == text


def test_placeholders_are_no_chat_tokens_and_stay() -> None:
    text = " ".join(PLACEHOLDERS.values())
    assert masked(prose(text)) == text
    assert "<|" not in text


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("x = q@k.transpose  # by jo@example.org", "x = q@k.transpose  # by <EMAIL>"),
        ("n = 4111111111111111", "n = 0"),
        ("n = [4111111111111111, '4111111111111111']", "n = [0, '<CARD>']"),
        ("s = '\\njo@example.org'", "s = '\\n<EMAIL>'"),
        ("s = '\\x41jo@example.org'", "s = '<EMAIL>'"),
        ("s = f'{q@k.transpose} jo@example.org'", "s = f'{EMAIL} EMAIL'"),
        ("print 'jo@example.org'", "print '<EMAIL>'"),
    ],
)
def test_a_program_changes_only_where_it_can(program: str, expected: str) -> None:
    assert masked(code(program)) == expected


def test_other_languages_change_in_strings_and_comments() -> None:
    program = 'long n = 4111111111111111;\nchar *s = "4111111111111111"; // jo@example.org\n'
    assert masked(replace(code(program), language="c")) == 'long n = 4111111111111111;\nchar *s = "<CARD>"; // <EMAIL>\n'


@pytest.mark.parametrize(
    "text",
    ["_jo@example.org_", "jo@example.org2", "jo@example.org_x", "__jo@example.org__", "jo@example.org-2", "x_jo@example.org1b",
     "jo@example.org2.", "jo@example.photographyandmuchmoreofit"],
)  # fmt: skip
def test_what_touches_an_address_does_not_save_it(text: str) -> None:
    for before, after in (("", ""), ("ask ", " soon"), ("*", "*")):
        found = masked(prose(before + text + after))
        assert "@" not in found
        assert "example" not in found
        assert "<EMAIL>" in found


@pytest.mark.parametrize(
    ("language", "program", "expected"),
    [
        ("c", "/*\n   Author: jo@example.org\n*/\nint x;", "/*\n   Author: <EMAIL>\n*/\nint x;"),
        ("yaml", f"mail: jo@example.org\nkey: {FOUND['key'][0]}\n", "mail: <EMAIL>\nkey: <KEY>\n"),
        ("ini", "[a]\napi_key = q8Zx71LmPw02VbNc93Ks\n", "[a]\napi_key = <KEY>\n"),
        ("", f"{PEM}\n", "-----BEGIN RSA PRIVATE KEY-----\n<KEY>\n-----END RSA PRIVATE KEY-----\n"),
        ("c", "x = 4111111111111111; y = 8.8.8.8; z = +442079460958", "x = 4111111111111111; y = 8.8.8.8; z = +442079460958"),
        ("c", "GB82WEST12345698765432 // GB82WEST12345698765432", "GB82WEST12345698765432 // <IBAN>"),
    ],
)
def test_mail_and_keys_are_masked_anywhere_in_other_languages(language: str, program: str, expected: str) -> None:
    assert masked(replace(code(program), language=language)) == expected


BODY = [f"{line:02}" + "Zk9x+/aB" * 7 + "MIIEpA" for line in range(600)]  # lines of 64 characters as in RFC 7468
BEGIN = "-----BEGIN RSA PRIVATE KEY-----\n"


@pytest.mark.parametrize("lines", [1, 3, 200, 250, 600])
@pytest.mark.parametrize("last", ["", "4Q==\n"])
@pytest.mark.parametrize(
    "after",
    ["", "That was all, it ends here.\n", "\n\n# Next\nwords stay\n", BEGIN + "none\n", "-----END RSA PRIVATE KEY-----\n"],
)
def test_a_private_key_needs_no_end_and_has_any_length(lines: int, last: str, after: str) -> None:
    body = "".join(f"{line}\n" for line in BODY[:lines]) + last
    expected = BEGIN + "<KEY>\n" + after
    assert masked(prose(BEGIN + body + after), PrivacyConfig(mask=("key",))) == expected


@pytest.mark.parametrize(
    "text",
    [
        BEGIN + "Proc-Type: 4,ENCRYPTED\nDEK-Info: DES-EDE3-CBC,0011223344556677\n\n" + "\n".join(BODY[:5]),
        '{"private_key": "' + BEGIN.strip() + "\\n" + "\\n".join(BODY[:5]) + '", "type": "none"}',
        'key = "' + BEGIN.strip() + '\\n" +\n' + " +\n".join(f'    "{line}\\n"' for line in BODY[:5]) + ";\n",
        "key: |\n  " + BEGIN + "".join(f"  {line}\n" for line in BODY[:5]) + "other: value",
        "# " + BEGIN + "".join(f"# {line}\n" for line in BODY[:5]) + "# that is all",
        "// " + BEGIN + "\r\n".join(f"// {line}" for line in BODY[:5]),
    ],
)
def test_a_private_key_without_end_is_masked_however_it_is_written(text: str) -> None:
    found = masked(prose(text), PrivacyConfig(mask=("key",)))
    assert "<KEY>" in found
    assert "Zk9x" not in found
    assert all(word in found for word in ("none", "other: value", "that is all", "Proc-Type") if word in text)


def test_no_planted_address_is_left_in_real_text() -> None:
    for number, path in enumerate(sorted(STDLIB.glob("*.py"))[:60]):
        lines = path.read_text(encoding="utf-8").split("\n")
        planted = [f"planted{number}.{line}@mail-{line}.example.org" for line in range(0, len(lines), 40)]
        for line, address in zip(range(0, len(lines), 40), planted, strict=True):
            lines[line] += f" # {address}"
        text = masked(prose("\n".join(lines)))
        assert "planted" not in text
        assert not find(text, ["email"])


def test_the_standard_library_still_parses_and_holds_no_cards() -> None:
    for path in sorted(STDLIB.glob("[a-z]*.py")):
        text = path.read_text(encoding="utf-8")
        assert parses(masked(code(text))), path
        assert not find(text, ["card", "iban", "key"])


@pytest.mark.long
def test_the_whole_standard_library_still_parses() -> None:
    for path in sorted(STDLIB.rglob("*.py")):
        text = path.read_bytes().decode("utf-8", "replace")
        outcome = mask(code(text), EVERYTHING) if "site-packages" not in path.parts else None
        if isinstance(outcome, Edited) and parses(text):
            assert parses(outcome.document.text), path


def parses(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


HOSTILE = [
    "a",
    "@",
    "a@",
    "a.",
    "a@a.",
    "@a.",
    "1",
    "1 ",
    "1-",
    "+1",
    "+1 ",
    "0 ",
    "(2",
    "1.",
    "1:",
    "2001:",
    "AB12",
    "AB12 C",
    "eyJ",
    "eyJa.",
    "-----BEGIN ",
    "-----BEGIN PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\n" + "A" * 64 + "\n",
    "-----BEGIN PRIVATE KEY-----\n" + "a\n" * 9_000,
    "-----BEGIN PRIVATE KEY-----A: b\n",
    "token=",
    "token='",
    "secret ",
    '"a',
    "sk-",
    "ghp_",
    "4111 ",
]


@pytest.mark.parametrize("piece", HOSTILE)
@pytest.mark.timeout(60)
def test_time_is_linear_whatever_the_text(piece: str) -> None:
    """A megabyte of each takes seconds at most; a quadratic finder would take hours."""
    text = piece * (1_000_000 // len(piece))
    spans = find(text, EVERYTHING.mask)
    assert all(0 <= start < end <= len(text) for start, end, _ in spans)
