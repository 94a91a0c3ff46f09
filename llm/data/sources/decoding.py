"""Bytes to text: by their mark, as UTF-8, as declared, or as what they most probably are."""

from __future__ import annotations

import codecs
import re

from llm.data.sources.limits import Refused

MARKS = {  # the longest first: UTF-32's begins like UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# Encodings of the web that aren't Unicode, the frequent ones first: what is equally probable is taken to be that.
# Source: WHATWG Encoding, https://encoding.spec.whatwg.org/#names-and-labels.
MULTIBYTE = ("gb18030", "cp932", "euc_jp", "big5hkscs", "cp949")
SINGLE_BYTE = (
    *("cp1252", "cp1251", "iso8859_2", "cp1250", "cp1254", "cp1253", "cp1255", "cp1256", "koi8_r", "cp1257", "cp874", "cp866", "koi8_u"),
    *("cp1258", "iso8859_5", "iso8859_7"),
)
# What pages call their encoding, and what browsers read it as. Source: the same.
SUPERSETS = {"ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "gb2312": "gb18030", "gbk": "gb18030", "big5": "big5hkscs"}
SUPERSETS |= {"shift_jis": "cp932", "euc_kr": "cp949", "tis-620": "cp874", "utf-16": "utf-8", "utf-16-le": "utf-8", "utf-16-be": "utf-8"}
SAMPLE_BYTES = 65_536
MIN_WIDE_SHARE = 0.1  # of the characters; a stray accent before a letter looks like one Chinese character

_meta_charset = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)


def decoded(raw: bytes, min_confidence: float) -> str:
    """The text in these bytes; a byte order mark is no part of it.

    Raises: Refused if no encoding is probable enough.
    """
    try:
        return raw.decode(marked(raw) or "utf-8")
    except UnicodeDecodeError:
        pass
    if marked(raw) or b"\0" in raw:
        raise Refused("undecodable")
    try:
        return raw.decode(detected(raw, min_confidence))
    except UnicodeDecodeError as error:
        raise Refused("undecodable") from error


def decoded_page(raw: bytes, declared: str, min_confidence: float) -> str:
    """The text of an HTML page. What it is declared to be, in its header or itself, goes before what it looks like.

    Bytes that are wrong in a declared encoding become U+FFFD, as in browsers; `clean` drops pages with too many of these.

    Source: WHATWG HTML, https://html.spec.whatwg.org/multipage/parsing.html#determining-the-character-encoding.
    Raises: Refused if no encoding is declared, or an unknown one, and none is probable enough.
    """
    found = _meta_charset.search(raw[:1024])
    label = declared or (found[1].decode("ascii") if found else "")
    if not marked(raw) and (encoding := known(label)):
        return raw.decode(encoding, "replace")
    return decoded(raw, min_confidence)


def marked(raw: bytes) -> str:
    """The encoding that the byte order mark stands for; empty if there is none. Source: Unicode 15, section 23.8."""
    return next((encoding for mark, encoding in MARKS.items() if raw.startswith(mark)), "")


def known(label: str) -> str:
    """Python's name of an encoding of the web; empty for any other label."""
    try:
        name = codecs.lookup(label).name
    except (LookupError, ValueError):
        return ""
    name = SUPERSETS.get(name, name)
    return name if name in ("utf-8", *_normal(*MULTIBYTE, *SINGLE_BYTE)) else ""


def _normal(*names: str) -> list[str]:
    return [codecs.lookup(name).name for name in names]


def detected(raw: bytes, min_confidence: float) -> str:
    """The most probable encoding of bytes that aren't Unicode, judged by their beginning.

    The confidence in one with a byte per character is how much the text then looks like a language (charset-normalizer's
    coherence); in one with several bytes, whose rules chance rarely meets, how little it looks like noise (1 - chaos).

    Source: https://charset-normalizer.readthedocs.io.
    Raises: Refused if the confidence is too low.
    """
    from charset_normalizer import from_bytes

    preferred = (*MULTIBYTE, *SINGLE_BYTE)
    sample = _sample(raw)
    matches = from_bytes(sample, cp_isolation=list(preferred), enable_fallback=False, preemptive_behaviour=False)
    ranked = [
        (round(_confidence(sample, match.encoding, match.chaos, match.coherence), 1), -preferred.index(match.encoding))
        for match in matches
        if match.encoding in preferred
    ]
    confidence, place = max(ranked, default=(0.0, 0))
    if confidence < min_confidence:
        raise Refused("undecodable")
    return preferred[-place]


def _sample(raw: bytes) -> bytes:
    """Whole lines around the place where the text stops being ASCII."""
    try:
        raw.decode("ascii")
        odd = 0
    except UnicodeDecodeError as error:
        odd = error.start
    start = raw.rfind(b"\n", 0, max(0, odd - SAMPLE_BYTES // 2)) + 1
    return raw[start : raw.rfind(b"\n", odd, start + SAMPLE_BYTES) + 1 or len(raw)]


def _confidence(sample: bytes, encoding: str, chaos: float, coherence: float) -> float:
    if encoding in SINGLE_BYTE:
        return coherence
    text = sample.decode(encoding, "ignore")
    wide = sum(map("\u0100".__le__, text))
    return 1 - chaos if wide >= MIN_WIDE_SHARE * len(text) else 0.0
