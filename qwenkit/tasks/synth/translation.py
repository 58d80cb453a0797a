"""Translating simple sentences between English and Chinese.

A sentence is built in both languages at once from a small grammar (`pools` holds its vocabulary),
so that each English sentence has exactly one Chinese one and the other way round: the time word
tells the tense, the measure word belongs to the noun, 会 with a time word is "will" and without one
"can". `lang` is the language of the request: "en" asks for Chinese, "zh" asks for English.

Not covered: words outside the vocabulary, relative clauses, tenses without a time word.
"""

from __future__ import annotations

import random

from qwenkit.tasks.synth import pools
from qwenkit.tasks.synth.dialogue import TextSkill
from qwenkit.tasks.synth.pools import Mass, Noun, Subject, Verb

Pair = tuple[str, str]

NO_JOB = ("the doctor", "the students", "the children", "our teacher")
TOO = ("big", "small", "old", "expensive")


class Translation(TextSkill):
    """English to Chinese and Chinese to English, sentence by sentence."""

    name = "translation"

    def turn(self, rng: random.Random, lang: str) -> tuple[str, str]:
        english, chinese = sentence(rng)
        asked, answer = (english, chinese) if lang == "en" else (chinese, english)
        return rng.choice(pools.REQUESTS[lang]).format(asked), answer


def sentence(rng: random.Random) -> Pair:
    """One sentence in English and in Chinese, with capital letter and final mark."""
    english, chinese = rng.choices(PATTERNS, WEIGHTS)[0](rng)
    return english[0].upper() + english[1:], chinese


# Words and phrases


def be(subject: Subject) -> str:
    return {"I": "am", "you": "are", "he": "is"}[subject.person]


def do(subject: Subject) -> str:
    return "does" if subject.person == "he" else "do"


def present(subject: Subject, verb: Verb) -> str:
    return verb.third if subject.person == "he" else verb.base


def article(word: str) -> str:
    """ "a" or "an", by the first letter: right for every word of the vocabulary."""
    return "an" if word[0] in "aeiou" else "a"


def join(*words: str) -> str:
    """English words with single spaces; empty ones vanish."""
    return " ".join(word for word in words if word)


def adjective_of(rng: random.Random, noun: Noun, key: str = "") -> Pair:
    """An adjective that suits the noun, in half of the draws; else two empty strings.

    What is only being made has no property yet: after "write" and "make" there is none.
    """
    if rng.random() < 0.5 or key in ("write", "make"):
        return "", ""
    english = rng.choice(noun.adjectives)
    return english, pools.ADJECTIVES[english][0]


def counted(rng: random.Random, noun: Noun, key: str = "") -> Pair:
    """ "two red apples", 两个红色的苹果."""
    number, hanzi = rng.choice(pools.NUMBERS)
    english, chinese = adjective_of(rng, noun, key)
    if number == "a":
        phrase = join(english, noun.one)
        return f"{article(phrase)} {phrase}", f"一{noun.measure}{chinese}{noun.zh}"
    return join(number, english, noun.many), f"{hanzi}{noun.measure}{chinese}{noun.zh}"


def plural(rng: random.Random, noun: Noun, key: str = "") -> Pair:
    """ "red apples", 红色的苹果."""
    english, chinese = adjective_of(rng, noun, key)
    return join(english, noun.many), chinese + noun.zh


def portion(rng: random.Random, mass: Mass) -> Pair:
    """ "two cups of tea", 两杯茶."""
    number, hanzi = rng.choice(pools.NUMBERS[:6])
    container = mass.container[number != "a"]
    return f"{number} {container} of {mass.en}", f"{hanzi}{mass.measure}{mass.zh}"


def objects_of(key: str) -> list[Noun | Mass]:
    """The nouns that the verb takes."""
    return [noun for noun in (*pools.NOUNS, *pools.MASSES) if key in noun.uses]


def quantity(rng: random.Random, key: str) -> Pair:
    """An object with a number."""
    noun = rng.choice(objects_of(key))
    return counted(rng, noun, key) if isinstance(noun, Noun) else portion(rng, noun)


def kind(rng: random.Random, key: str) -> Pair:
    """An object in general: "red apples", "tea"."""
    noun = rng.choice(objects_of(key))
    return plural(rng, noun, key) if isinstance(noun, Noun) else (noun.en, noun.zh)


def person(rng: random.Random) -> Subject:
    return rng.choice(pools.SUBJECTS)


def listener(rng: random.Random) -> Subject:
    """A subject that a question can be about: nobody asks about himself here."""
    return rng.choice([subject for subject in pools.SUBJECTS if subject.en not in ("I", "we")])


def time(rng: random.Random, times: tuple[Pair, ...], key: str = "") -> Pair:
    """A time of the past or of the future that is near enough for the verb."""
    return rng.choice(times if key in pools.LASTING else times[: pools.NEAR])


def place(rng: random.Random, key: str) -> Pair:
    """Where one does it, in half of the draws; else two empty strings."""
    if rng.random() < 0.5:
        return "", ""
    if key in pools.LIVELY:
        return rng.choice(pools.LIVELY_PLACES)
    return rng.choice(pools.HOMELY_PLACES if key in pools.HOMELY else pools.PLACES)


# Patterns: each draws one sentence


def habit(rng: random.Random) -> Pair:
    """ "She often reads books." 她经常看书。"""
    who, key = person(rng), rng.choice(list(pools.ACTIONS))
    what, verb = kind(rng, key), pools.ACTIONS[key]
    if rng.random() < 0.5:
        when = rng.choice(pools.HABIT_TIMES)
        return (
            f"{who.en} {present(who, verb)} {what[0]} {when[0]}.",
            f"{who.zh}{when[1]}{verb.zh}{what[1]}。",
        )
    often = rng.choice(pools.FREQUENCIES)
    return (
        f"{who.en} {often[0]} {present(who, verb)} {what[0]}.",
        f"{who.zh}{often[1]}{verb.zh}{what[1]}。",
    )


def state(rng: random.Random) -> Pair:
    """ "He likes tea." 他喜欢茶。 Affirmative, negative or a question."""
    key = rng.choice(list(pools.STATES))
    verb, form = pools.STATES[key], rng.randrange(3)
    who = listener(rng) if form == 2 else person(rng)
    counts = key != "like" and (form == 0 or key == "want")
    what = quantity(rng, key) if counts else kind(rng, key)
    if form == 0:
        return f"{who.en} {present(who, verb)} {what[0]}.", f"{who.zh}{verb.zh}{what[1]}。"
    if form == 1:
        no = "没" if key == "have" else "不"
        return (
            f"{who.en} {do(who)} not {verb.base} {what[0]}.",
            f"{who.zh}{no}{verb.zh}{what[1]}。",
        )
    return f"{do(who)} {who.en} {verb.base} {what[0]}?", f"{who.zh}{verb.zh}{what[1]}吗？"


def doing(rng: random.Random) -> Pair:
    """ "He is washing two cups." 他正在洗两个杯子。 Here with a place as well."""
    form = rng.randrange(3)
    who = listener(rng) if form == 2 else person(rng)
    if rng.random() < 0.5:
        verb = rng.choice(pools.ACTIVITIES)
        what: Pair = ("", "")
    else:
        key = rng.choice([key for key in pools.ACTIONS if key != "buy"])
        verb = pools.ACTIONS[key]
        what = kind(rng, key)
    where = place(rng, verb.base)
    at = f"在{where[1]}" if where[1] else ""
    rest = join(verb.ing, what[0], where[0])
    if form == 0:
        return f"{who.en} {be(who)} {rest}.", f"{who.zh}正{at or '在'}{verb.zh}{what[1]}。"
    if form == 1:
        return f"{who.en} {be(who)} not {rest}.", f"{who.zh}没有{at or '在'}{verb.zh}{what[1]}。"
    return f"{be(who)} {who.en} {rest}?", f"{who.zh}正{at or '在'}{verb.zh}{what[1]}吗？"


def past(rng: random.Random) -> Pair:
    """ "She bought two books yesterday." 她昨天买了两本书。"""
    form, key = rng.randrange(3), rng.choice(list(pools.ACTIONS))
    verb, when = pools.ACTIONS[key], time(rng, pools.PAST_TIMES, key)
    who = listener(rng) if form == 2 else person(rng)
    if form == 0:
        what = quantity(rng, key)
        return (
            f"{who.en} {verb.past} {what[0]} {when[0]}.",
            f"{who.zh}{when[1]}{verb.zh}了{what[1]}。",
        )
    what = kind(rng, key)
    if form == 1:
        return (
            f"{who.en} did not {verb.base} {what[0]} {when[0]}.",
            f"{who.zh}{when[1]}没{verb.zh}{what[1]}。",
        )
    return (
        f"did {who.en} {verb.base} {what[0]} {when[0]}?",
        f"{who.zh}{when[1]}{verb.zh}{what[1]}了吗？",
    )


def past_activity(rng: random.Random) -> Pair:
    """ "They swam yesterday." 他们昨天游泳了。"""
    form, verb, when = rng.randrange(3), rng.choice(pools.ACTIVITIES), time(rng, pools.PAST_TIMES)
    who = listener(rng) if form == 2 else person(rng)
    if form == 0:
        return f"{who.en} {verb.past} {when[0]}.", f"{who.zh}{when[1]}{verb.zh}了。"
    if form == 1:
        return f"{who.en} did not {verb.base} {when[0]}.", f"{who.zh}{when[1]}没{verb.zh}。"
    return f"did {who.en} {verb.base} {when[0]}?", f"{who.zh}{when[1]}{verb.zh}了吗？"


def future(rng: random.Random) -> Pair:
    """ "He will buy a car next week." 他下周会买一辆汽车。"""
    form = rng.randrange(3)
    who = listener(rng) if form == 2 else person(rng)
    if rng.random() < 0.35:
        verb = rng.choice(pools.ACTIVITIES)
        what: Pair = ("", "")
        when = time(rng, pools.FUTURE_TIMES)
    else:
        key = rng.choice(list(pools.ACTIONS))
        verb, when = pools.ACTIONS[key], time(rng, pools.FUTURE_TIMES, key)
        what = quantity(rng, key) if form == 0 else kind(rng, key)
    rest, body = join(verb.base, what[0], when[0]), f"会{verb.zh}{what[1]}"
    if form == 0:
        return f"{who.en} will {rest}.", f"{who.zh}{when[1]}{body}。"
    if form == 1:
        return f"{who.en} will not {rest}.", f"{who.zh}{when[1]}不{body}。"
    return f"will {who.en} {rest}?", f"{who.zh}{when[1]}{body}吗？"


def wish(rng: random.Random) -> Pair:
    """ "I want to buy a red car." 我想买一辆红色的汽车。"""
    who, key = person(rng), rng.choice(list(pools.ACTIONS))
    what, verb = quantity(rng, key), pools.ACTIONS[key]
    want = present(who, pools.STATES["want"])
    return f"{who.en} {want} to {verb.base} {what[0]}.", f"{who.zh}想{verb.zh}{what[1]}。"


def ability(rng: random.Random) -> Pair:
    """ "Can you swim?" 你会游泳吗?"""
    form, (english, chinese) = rng.randrange(3), rng.choice(pools.ABILITIES)
    who = listener(rng) if form == 2 else person(rng)
    if form == 0:
        return f"{who.en} can {english}.", f"{who.zh}会{chinese}。"
    if form == 1:
        return f"{who.en} cannot {english}.", f"{who.zh}不会{chinese}。"
    return f"can {who.en} {english}?", f"{who.zh}会{chinese}吗？"


def profession(rng: random.Random) -> Pair:
    """ "My mother is a doctor." 我妈妈是医生。"""
    form, (job, chinese) = rng.randrange(3), rng.choice(pools.JOBS)
    plain = [s for s in pools.SUBJECTS if s.en not in NO_JOB and (job != "student" or not s.kin)]
    who = rng.choice(plain)
    several = who.en in ("we", "they")
    if who.en in ("I", "we") and form == 2:
        form = 1
    what = f"{job}s" if several else f"{article(job)} {job}"
    if form == 0:
        return f"{who.en} {be(who)} {what}.", f"{who.zh}是{chinese}。"
    if form == 1:
        return f"{who.en} {be(who)} not {what}.", f"{who.zh}不是{chinese}。"
    return f"{be(who)} {who.en} {what}?", f"{who.zh}是{chinese}吗？"


def company(rng: random.Random) -> Pair:
    """ "He plays football with his friends every day." 他每天和朋友一起踢足球。"""
    who = rng.choice([subject for subject in pools.SUBJECTS if subject.possessive])
    verb = rng.choice([verb for verb in pools.ACTIVITIES if verb.base != "sleep"])
    if rng.random() < 0.5:
        when = rng.choice(pools.HABIT_TIMES)
        english, chinese = present(who, verb), verb.zh
    else:
        when = time(rng, pools.PAST_TIMES)
        english, chinese = verb.past, verb.zh + "了"
    return (
        f"{who.en} {english} with {who.possessive} friends {when[0]}.",
        f"{who.zh}{when[1]}和朋友一起{chinese}。",
    )


def travel(rng: random.Random) -> Pair:
    """ "She went to Beijing by train last week." 她上周坐火车去了北京。"""
    who, where = person(rng), rng.choice(pools.DESTINATIONS)
    how = rng.choice(pools.CITY_TRANSPORT if where[1] in pools.CITIES else pools.TRANSPORT)
    if rng.random() < 0.4:
        how = ("", "")
    rest = join(where[0], how[0])
    tense = rng.randrange(3)
    if tense == 0:
        when = rng.choice(pools.HABIT_TIMES)
        go = "goes" if who.person == "he" else "go"
        return f"{who.en} {go} {rest} {when[0]}.", f"{who.zh}{when[1]}{how[1]}去{where[1]}。"
    if tense == 1:
        when = rng.choice(pools.PAST_TIMES)
        return f"{who.en} went {rest} {when[0]}.", f"{who.zh}{when[1]}{how[1]}去了{where[1]}。"
    when = rng.choice(pools.FUTURE_TIMES)
    return f"{who.en} will go {rest} {when[0]}.", f"{who.zh}{when[1]}会{how[1]}去{where[1]}。"


def exists(rng: random.Random) -> Pair:
    """ "There are three cats in the park." 公园里有三只猫。"""
    where = rng.choice(pools.SCENES)
    indoors = where[0] not in ("in the park", "in the garden")
    names = "book pen cup hat bag key".split() if "table" in where[0] else []
    names = names or ("chair table cat dog computer".split() if indoors else [])
    names = names or "cat dog bird horse tree flower bicycle".split()
    noun = rng.choice([noun for noun in pools.NOUNS if noun.one in names])
    form = rng.randrange(3)
    if form == 0:
        what = counted(rng, noun)
        verb = "is" if what[0].startswith(("a ", "an ")) else "are"
        return f"there {verb} {what[0]} {where[0]}.", f"{where[1]}有{what[1]}。"
    if form == 1:
        return f"there are no {noun.many} {where[0]}.", f"{where[1]}没有{noun.zh}。"
    return f"are there any {noun.many} {where[0]}?", f"{where[1]}有{noun.zh}吗？"


def position(rng: random.Random) -> Pair:
    """ "The red book is on the table." 红色的书在桌子上。"""
    where = rng.choice(pools.SPOTS)
    names = "book pen cup hat bag key letter map phone magazine newspaper umbrella shirt".split()
    fits = [noun for noun in pools.NOUNS if noun.one in names and noun.one not in where[0]]
    noun = rng.choice(fits)
    english, chinese = adjective_of(rng, noun)
    thing, form = join("the", english, noun.one), rng.randrange(3)
    if form == 0:
        return f"{thing} is {where[0]}.", f"{chinese}{noun.zh}在{where[1]}。"
    if form == 1:
        return f"{thing} is not {where[0]}.", f"{chinese}{noun.zh}不在{where[1]}。"
    return f"is {thing} {where[0]}?", f"{chinese}{noun.zh}在{where[1]}吗？"


def quality(rng: random.Random) -> Pair:
    """ "This apple is very big." 这个苹果很大。"""
    noun = rng.choice(pools.NOUNS)
    english = rng.choice([word for word in noun.adjectives if pools.ADJECTIVES[word][1]])
    chinese = pools.ADJECTIVES[english][1]
    pointer = rng.choice((("this", "这"), ("that", "那"), ("these", "这些"), ("those", "那些")))
    one = pointer[0] in ("this", "that")
    thing = f"{pointer[0]} {noun.one if one else noun.many}"
    hanzi = f"{pointer[1]}{noun.measure if one else ''}{noun.zh}"
    verb = "is" if one else "are"
    form = rng.randrange(4 if english in TOO else 3)
    if form == 0:
        return f"{thing} {verb} very {english}.", f"{hanzi}很{chinese}。"
    if form == 1:
        return f"{thing} {verb} not {english}.", f"{hanzi}不{chinese}。"
    if form == 3:
        return f"{thing} {verb} too {english}.", f"{hanzi}太{chinese}了。"
    return f"{verb} {thing} {english}?", f"{hanzi}{chinese}吗？"


PATTERNS = (
    habit, state, doing, past, past_activity, future, wish, ability, profession, company, travel,
    exists, position, quality,
)  # fmt: skip
WEIGHTS = (12, 12, 12, 12, 6, 12, 8, 4, 4, 6, 8, 6, 8, 8)
