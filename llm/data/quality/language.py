"""Which language a text is in.

Source: langid, Lui & Baldwin 2012, https://aclanthology.org/P12-3005; py3langid, https://github.com/adbar/py3langid.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from llm.data.document import KEEP, Document, Verdict
from llm.data.quality.code import is_code
from llm.data.quality.config import LanguageConfig
from llm.data.steps import Edited

# Three-letter codes, ISO 639-3 and 639-2/B, of the languages that have a shorter one and that the identifier knows.
_SHORTER_CODES = """
    afr:af amh:am arg:an ara:ar arb:ar asm:as aze:az bak:ba bel:be bul:bg ben:bn bre:br bos:bs cat:ca ces:cs cze:cs cym:cy wel:cy dan:da
    deu:de ger:de dzo:dz ell:el gre:el eng:en epo:eo spa:es est:et eus:eu baq:eu fas:fa per:fa pes:fa fin:fi fao:fo fra:fr fre:fr fry:fy
    gle:ga gla:gd glg:gl guj:gu hau:ha heb:he hin:hi hrv:hr hat:ht hun:hu hye:hy arm:hy ind:id ibo:ig isl:is ice:is ita:it jpn:ja jav:jv
    kat:ka geo:ka kik:ki kaz:kk khm:km kan:kn kor:ko kur:ku kir:ky lat:la ltz:lb lug:lg lin:ln lao:lo lit:lt lav:lv mlg:mg mkd:mk mac:mk
    mal:ml mon:mn mar:mr msa:ms may:ms mlt:mt mya:my bur:my nep:ne nld:nl dut:nl nno:nn nob:no nb:no nor:no oci:oc orm:om ori:or pan:pa
    pol:pl pus:ps por:pt que:qu ron:ro rum:ro rus:ru kin:rw san:sa sme:se sin:si slk:sk slo:sk slv:sl sna:sn som:so sqi:sq alb:sq srp:sr
    sot:st swe:sv swa:sw tam:ta tel:te tgk:tg tha:th tuk:tk tgl:tl tur:tr tat:tt uig:ug ukr:uk urd:ur uzb:uz vie:vi vol:vo wln:wa xho:xh
    yor:yo zho:zh chi:zh cmn:zh zul:zu
"""
_SHORTER = dict(pair.split(":") for pair in _SHORTER_CODES.split())


def identify(document: Document, config: LanguageConfig) -> Edited | Verdict:
    """The document with its language, as its source says or else by its text; an objection if that is none of those asked for.

    What is less sure than `min_confidence` has no language. Programs have none either, and always pass.
    """
    if is_code(document):
        return KEEP
    told = primary(document.language)
    language, confidence = (told, 1.0) if told else recognised(document.text, config.sample_characters)
    known = language if confidence >= config.min_confidence else ""
    if config.allowed and known not in map(primary, config.allowed):
        return Verdict(False, "other_language" if known else "unknown_language", round(confidence, 2))
    if known == document.language:
        return KEEP
    return Edited(replace(document, language=known), {"renamed_languages" if told else "identified_documents": 1})


@functools.cache
def primary(tag: str) -> str:
    """The language alone of a tag, as short as can be; nothing for one that leaves it open.

    Source: BCP 47, RFC 5646, https://www.rfc-editor.org/rfc/rfc5646, sections 2.1.1 and 2.2.1.

    Example:
        >>> [primary(tag) for tag in ("en-US", "EN", "eng", "pt_BR", "gsw", "und", "")]
        ['en', 'en', 'en', 'pt', 'gsw', '', '']
    """
    language = tag.strip().lower().replace("_", "-").split("-")[0]
    return "" if language == "und" else _SHORTER.get(language, language)


def recognised(text: str, sample_characters: int) -> tuple[str, float]:
    """ISO 639 code and probability, from a part out of the middle, where menus and licences are rarest.

    Example:
        >>> recognised("Der Hafen lag still, nur zwei Boote waren ausgelaufen.", 1000)[0]
        'de'
    """
    start = max(0, (len(text) - sample_characters) // 2)
    language, confidence = _identifier().classify(text[start : start + sample_characters])
    return primary(str(language)), float(confidence)


@functools.cache
def _identifier() -> LanguageIdentifier:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.nb_ptc = identifier.nb_ptc.astype(np.float32)  # what NumPy makes of the stored halves for every text
    return identifier
