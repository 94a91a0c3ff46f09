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


def identify(document: Document, config: LanguageConfig) -> Edited | Verdict:
    """The document with its language, if its source did not say; an objection if that is none of those asked for.

    What is less sure than `min_confidence` has no language. Programs have none either, and always pass.
    """
    if is_code(document):
        return KEEP
    language, confidence = (document.language, 1.0) if document.language else recognised(document.text, config.sample_characters)
    known = language if confidence >= config.min_confidence else ""
    if config.allowed and known not in config.allowed:
        return Verdict(False, "other_language" if known else "unknown_language", round(confidence, 2))
    if known == document.language:
        return KEEP
    return Edited(replace(document, language=known), {"identified_documents": 1})


def recognised(text: str, sample_characters: int) -> tuple[str, float]:
    """ISO 639 code and probability, from a part out of the middle, where menus and licences are rarest.

    Example:
        >>> recognised("Der Hafen lag still, nur zwei Boote waren ausgelaufen.", 1000)[0]
        'de'
    """
    start = max(0, (len(text) - sample_characters) // 2)
    language, confidence = _identifier().classify(text[start : start + sample_characters])
    return str(language), float(confidence)


@functools.cache
def _identifier() -> LanguageIdentifier:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.nb_ptc = identifier.nb_ptc.astype(np.float32)  # what NumPy makes of the stored halves for every text
    return identifier
