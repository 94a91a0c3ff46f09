"""Changes of the words themselves, for classic methods: small letters only, no stop words.

Both lose what no decoding brings back: a model that learns from such text writes such text. Off by default.
"""

from __future__ import annotations

import functools
import re
from dataclasses import replace

from llm.data.document import KEEP, Document, Verdict
from llm.data.quality.code import is_code
from llm.data.quality.config import WordsConfig
from llm.data.steps import Edited

STOP_WORDS = {
    "de": "aber als am an auch auf aus bei bin bis da damit das dass dem den der des die doch du durch ein eine einem einen einer eines er"
    " es für hat hatte ich ihr im in ist ja kann man mein mit nach nicht noch nun nur ob oder ohne sein sich sie sind so über um und uns"
    " von vor war was wenn wer wie wir wird wo zu zum zur",
    "en": "a about after all also an and any are as at be because been but by can could did do does for from had has have he her him his"
    " how i if in into is it its me more my no not of on or our out she should so some than that the their them then there these they this"
    " those to up was we were what when which who will with would you your",
    "es": "a al algo como con cuando de del desde donde el ella ellos en entre era es esta este esto fue ha hay la las le les lo los más me"
    " mi muy no nos o para pero por porque que se ser si sin sobre son su sus también te tu un una y ya yo",
    "fr": "à au aux avec ce ces cette dans de des du elle elles en est et être eu il ils je la le les leur leurs lui ma mais me mes moi mon"
    " ne nos notre nous on ou où par pas plus pour qu que qui sa sans se ses si son sont sur ta te tes toi ton tu un une vos votre vous y",
    "it": "a ad ai al alla anche c che chi ci come con da dal dalla dei del della di e ed è era gli ha ho i il in io la le lei lo loro lui"
    " ma mi mio ne nel nella noi non o per perché più quando quella quello questa questo se si sono su sua suo tra tu un una uno vi",
    "pt": "a ao aos as até com como da das de dela dele do dos e é ela ele eles em entre era essa esse esta este eu foi há isso já lhe mais"
    " mas me meu minha muito na nas não no nos o os ou para pela pelo por quando que quem se sem ser seu sua são também te um uma você",
}


def plain_words(document: Document, config: WordsConfig) -> Edited | Verdict:
    """The document in lower case, and without stop words of its language, as far as asked for."""
    if is_code(document) or not (config.lower_case or config.remove_stop_words):
        return KEEP
    text, edits = document.text, dict[str, int]()
    if config.lower_case:
        text = text.lower()
        edits["lower_case_documents"] = int(text != document.text)
    if config.remove_stop_words and (pattern := _pattern(" ".join(config.stop_words) or STOP_WORDS.get(document.language or "en", ""))):
        text, edits["stop_words"] = pattern.subn("", text)
    if text == document.text:
        return KEEP
    return Edited(replace(document, text=text), edits) if text.strip() else Verdict(False, "only_stop_words")


@functools.cache
def _pattern(words: str) -> re.Pattern[str] | None:
    """Any of the words, together with the blank behind it; None if there are none."""
    alternatives = "|".join(map(re.escape, sorted(words.split(), key=lambda word: (-len(word), word))))
    return re.compile(rf"(?<![\w'’])(?:{alternatives})(?![\w'’])[^\S\n]?", re.IGNORECASE) if words else None
