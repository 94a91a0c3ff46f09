"""Words that the audit looks for: names of groups of people, and the sets of the word-embedding association test."""

from __future__ import annotations

import re

WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")  # what is compared with them, in lower case

# In the manner of the terms that GPT-3 and The Pile counted: https://arxiv.org/abs/2005.14165, 6.2; https://arxiv.org/abs/2101.00027, 6.2.
GROUPS: dict[str, tuple[str, ...]] = {
    "women": ("she", "her", "hers", "woman", "women", "girl", "girls", "female", "mother", "daughter", "sister", "wife"),
    "men": ("he", "him", "his", "man", "men", "boy", "boys", "male", "father", "son", "brother", "husband"),
    "Christians": ("christian", "christians", "christianity"),
    "Jews": ("jew", "jews", "jewish", "judaism"),
    "Muslims": ("muslim", "muslims", "islam", "islamic"),
    "Hindus": ("hindu", "hindus", "hinduism"),
    "Buddhists": ("buddhist", "buddhists", "buddhism"),
    "atheists": ("atheist", "atheists", "atheism"),
    "Africans": ("african", "africans"),
    "Asians": ("asian", "asians"),
    "Europeans": ("european", "europeans"),
    "Latin Americans": ("latino", "latina", "latinos", "hispanic", "hispanics"),
    "old people": ("elderly", "seniors", "pensioner", "pensioners"),
    "young people": ("teenager", "teenagers", "youth", "youths"),
    "disabled people": ("disabled", "disability", "blind", "deaf", "autistic"),
    "gay and trans people": ("gay", "lesbian", "bisexual", "transgender", "queer"),
}

# Sets 1, 6 and 7 of Caliskan, Bryson & Narayanan 2017, https://arxiv.org/abs/1608.07187, tables of the supplement,
# with pronouns for first names in set 6: a corpus of a small company knows few of those names.
FLOWERS = ("daisy", "iris", "lily", "orchid", "poppy", "rose", "tulip", "violet", "lilac", "daffodil")
INSECTS = ("ant", "bee", "beetle", "cricket", "fly", "moth", "spider", "wasp", "worm", "mosquito")
PLEASANT = ("love", "peace", "pleasure", "friend", "happy", "gift", "honor", "lucky", "family", "health")
UNPLEASANT = ("abuse", "crash", "filth", "murder", "sickness", "accident", "death", "poison", "hatred", "pain")
MALE = ("male", "man", "boy", "brother", "he", "him", "his", "son")
FEMALE = ("female", "woman", "girl", "sister", "she", "her", "hers", "daughter")
CAREER = ("executive", "management", "professional", "corporation", "salary", "office", "business", "career")
FAMILY = ("home", "parents", "children", "family", "cousins", "marriage", "wedding", "relatives")
MATH = ("math", "algebra", "geometry", "calculus", "equations", "computation", "numbers", "addition")
ARTS = ("poetry", "art", "dance", "literature", "novel", "symphony", "drama", "sculpture")

TESTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "flowers and insects, pleasant and unpleasant": (FLOWERS, INSECTS, PLEASANT, UNPLEASANT),
    "men and women, career and family": (MALE, FEMALE, CAREER, FAMILY),
    "mathematics and arts, men and women": (MATH, ARTS, MALE, FEMALE),
}
