"""The skill `json_object`: fill a small JSON schema from a sentence.

A domain (person, purchase, event, pet) has fields and, per language, clauses that state them; the
sentence holds more than the schema asks for, and the schema's keys come in variants, Chinese ones
too. The gold answer is compact JSON with the keys in the schema's order. Not covered: nested
objects, arrays, missing values.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from qwenkit.errors import FormatError
from qwenkit.tasks.base import Example
from qwenkit.tasks.synth.tool_words import WORDS


def same_json(left: Any, right: Any) -> bool:
    """Equal as JSON values, types included: 1, 1.0, True and "1" are four different things."""
    try:
        return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
    except (TypeError, ValueError):
        return False


def parse_object(text: str) -> dict[str, Any]:
    """The one JSON object that `text` is. Errors: FormatError for anything else, also for a
    repeated key.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key is repeated")
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"This is not a JSON object: {error}.") from error
    if not isinstance(value, dict):
        raise FormatError("This is JSON, but not an object.")
    return value


REQUIRED_SHARE = 0.3
"""Share of the schemas that also list their keys under "required"."""


@dataclass(frozen=True)
class Field:
    """One field: its JSON type and the keys that a schema may use for it, English and Chinese."""

    type: str
    keys: tuple[str, ...]
    zh_keys: tuple[str, ...]


FIELDS: dict[str, Field] = {
    "name": Field("string", ("name", "person"), ("姓名", "名字")),
    "pet": Field("string", ("name", "pet"), ("名字",)),
    "age": Field("integer", ("age", "years"), ("年龄",)),
    "city": Field("string", ("city", "place"), ("城市", "地点")),
    "job": Field("string", ("job", "profession"), ("职业", "工作")),
    "member": Field("boolean", ("member", "is_member"), ("会员", "是会员")),
    "item": Field("string", ("item", "product"), ("商品", "物品")),
    "color": Field("string", ("color", "colour"), ("颜色",)),
    "count": Field("integer", ("count", "quantity"), ("数量", "个数")),
    "price": Field("integer", ("price", "cost"), ("价格", "单价")),
    "paid": Field("boolean", ("paid", "is_paid"), ("已付款",)),
    "event": Field("string", ("event", "title"), ("活动", "标题")),
    "day": Field("string", ("day", "date"), ("日期",)),
    "time": Field("string", ("time", "start"), ("时间", "开始")),
    "guests": Field("integer", ("guests", "people"), ("人数",)),
    "online": Field("boolean", ("online", "is_online"), ("线上",)),
    "animal": Field("string", ("animal", "kind"), ("动物", "种类")),
    "coat": Field("string", ("color", "colour"), ("颜色",)),
    "months": Field("integer", ("months", "age_in_months"), ("月龄",)),
    "weight": Field("integer", ("weight", "kilograms"), ("体重", "公斤")),
    "healthy": Field("boolean", ("healthy", "is_healthy"), ("健康",)),
}

OWN_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "job": {
        "en": (
            "nurse",
            "teacher",
            "baker",
            "driver",
            "lawyer",
            "farmer",
            "singer",
            "cook",
            "painter",
            "doctor",
        ),
        "zh": tuple("护士 老师 司机 律师 农民 歌手 厨师 画家 医生 记者".split()),
    },
    "item": {
        "en": ("chair", "lamp", "bag", "table", "cup", "shirt", "hat", "bike", "phone", "watch"),
        "zh": tuple("椅子 台灯 背包 桌子 杯子 衬衫 帽子 自行车 手机 手表".split()),
    },
    "color": {
        "en": ("red", "blue", "green", "black", "white", "yellow", "brown", "gray"),
        "zh": tuple("红色 蓝色 绿色 黑色 白色 黄色 棕色 灰色".split()),
    },
    "coat": {
        "en": ("black", "white", "brown", "gray", "golden", "spotted"),
        "zh": tuple("黑色 白色 棕色 灰色 金色 花色".split()),
    },
    "animal": {
        "en": ("dog", "cat", "rabbit", "parrot", "horse", "goat", "hamster", "pony"),
        "zh": tuple("狗 猫 兔子 鹦鹉 马 山羊 仓鼠 小猪".split()),
    },
    "pet": {
        "en": ("Rex", "Luna", "Max", "Bella", "Milo", "Coco", "Ruby", "Oscar"),
        "zh": tuple("豆豆 球球 小白 花花 毛毛 旺财 可可 小黑".split()),
    },
    "name": {
        "en": WORDS["name"]["en"],
        "zh": tuple(
            "小明 小红 小刚 小丽 李华 王芳 张伟 刘洋 陈静 赵磊 周敏 吴强 孙燕 林涛".split()
        ),
    },
}
_KINDS = {"event": ("event", "event_end"), "day": ("weekday",), "city": ("city",)}
_RANGES = {
    "age": (18, 89),
    "count": (2, 60),
    "price": (3, 399),
    "guests": (3, 95),
    "months": (2, 35),
    "weight": (2, 45),
}


@dataclass(frozen=True)
class Domain:
    """Sentences of one kind. A template names fields in braces; a boolean has its two wordings,
    `{member:is|is not}`.
    """

    fields: tuple[str, ...]
    templates: dict[str, tuple[str, ...]]


DOMAINS: tuple[Domain, ...] = (
    Domain(
        ("name", "age", "city", "job", "member"),
        {"en": ("{name} is {age} years old, lives in {city}, works as a {job} and {member:is|is "
                "not} a member.",
                "{name}, a {job} from {city}, is {age} and {member:has|has no} membership.",
                "The {job} {name} ({age}, {city}) {member:is|is not} a member of the club."),
         "zh": ("{name}今年{age}岁，住在{city}，是一名{job}，{member:是|不是}会员。",
                "来自{city}的{job}{name}，{age}岁，{member:已是|还不是}会员。",
                "{name}是{city}的{job}，{age}岁，{member:有|没有}会员卡。")},
    ),
    Domain(
        ("name", "count", "color", "item", "price", "paid"),
        {"en": ("{name} ordered {count} of the {color} {item} at {price} euros each and "
                "{paid:has|has not} paid.",
                "Order for {name}: {item}, {color}, {count} pieces, {price} euros each, "
                "{paid:paid|not paid}.",
                "The {color} {item} costs {price} euros; {name} takes {count} and {paid:has|has "
                "not} paid for them."),
         "zh": ("{name}买了{count}个{color}的{item}，每个{price}元，{paid:已经|还没}付款。",
                "{name}的订单：{item}，{color}，{count}个，单价{price}元，{paid:已付|未付}。",
                "{color}的{item}卖{price}元一个，{name}要{count}个，{paid:付了|没付}钱。")},
    ),
    Domain(
        ("event", "day", "time", "city", "guests", "online"),
        {"en": ("The {event} in {city} is on {day} at {time} with {guests} guests and "
                "{online:is|is not} online.",
                "On {day} at {time}, {guests} people come to the {event} in {city}; it "
                "{online:is|is not} streamed online.",
                "{event}, {city}, {day}, {time}, {guests} people, {online:online|on site}."),
         "zh": ("{event}{day}{time}在{city}开始，{guests}人参加，{online:有|没有}线上直播。",
                "{day}{time}有{guests}人到{city}参加{event}，{online:可以|不能}线上参加。",
                "{event}，{city}，{day}，{time}，{guests}人，{online:线上|线下}。")},
    ),
    Domain(
        ("pet", "animal", "coat", "months", "weight", "healthy"),
        {"en": ("{pet} is a {coat} {animal}, {months} months old, weighs {weight} kilograms and "
                "{healthy:is|is not} healthy.",
                "The {coat} {animal} {pet} weighs {weight} kilograms at {months} months and "
                "{healthy:is healthy|is ill}.",
                "{animal} {pet}: {coat}, {months} months, {weight} kilograms, {healthy:healthy|"
                "ill}."),
         "zh": ("{pet}是一只{coat}的{animal}，{months}个月大，重{weight}公斤，{healthy:很健康|"
                "生病了}。",
                "{coat}的{animal}{pet}{months}个月大，体重{weight}公斤，身体{healthy:健康|不好}。",
                "{animal}{pet}：{coat}，{months}个月，{weight}公斤，{healthy:健康|有病}。")},
    ),
)  # fmt: skip

INSTRUCTIONS = {
    "en": (
        "Extract a JSON object by this schema: {schema}\n{text}",
        "{text}\nGive the data as JSON with the schema {schema}",
        "Read the text and answer with JSON only. Schema: {schema} Text: {text}",
    ),
    "zh": (
        "按这个模式提取JSON对象：{schema}\n{text}",
        "{text}\n请按模式{schema}给出JSON",
        "阅读文字，只用JSON回答。模式：{schema} 文字：{text}",
    ),
}
CHINESE_KEYS_SHARE = 0.3
"""Share of the Chinese examples whose schema has Chinese keys."""


def _value(rng: random.Random, lang: str, field: str) -> Any:
    if FIELDS[field].type == "boolean":
        return rng.random() < 0.5
    if field == "time":
        return f"{rng.randint(8, 21):02d}:{rng.randrange(0, 60, 5):02d}"
    if field in _RANGES:
        return rng.randint(*_RANGES[field])
    if field in _KINDS:
        return (" " if lang == "en" else "").join(
            rng.choice(WORDS[kind][lang]) for kind in _KINDS[field]
        )
    return rng.choice(OWN_WORDS[field][lang])


class _Wording:
    """Formats a boolean as one of two wordings: `{member:is|is not}`."""

    def __init__(self, value: bool) -> None:
        self.value = value

    def __format__(self, spec: str) -> str:
        return spec.split("|")[0 if self.value else 1]


class JsonObject:
    """A sentence and a schema of 2–4 properties → the JSON object."""

    name = "json_object"

    def sample(self, rng: random.Random, lang: str) -> Example:
        domain = rng.choice(DOMAINS)
        values = {field: _value(rng, lang, field) for field in domain.fields}
        shown = {
            key: _Wording(value) if isinstance(value, bool) else value
            for key, value in values.items()
        }
        text = rng.choice(domain.templates[lang]).format(**shown)
        asked = rng.sample(domain.fields, rng.choices((2, 3, 4), (4, 4, 3))[0])
        chinese = lang == "zh" and rng.random() < CHINESE_KEYS_SHARE
        keys = {
            field: rng.choice(FIELDS[field].zh_keys if chinese else FIELDS[field].keys)
            for field in asked
        }
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {keys[field]: {"type": FIELDS[field].type} for field in asked},
        }
        if rng.random() < REQUIRED_SHARE:
            schema["required"] = list(keys.values())
        question = rng.choice(INSTRUCTIONS[lang]).format(
            schema=json.dumps(schema, ensure_ascii=False), text=text
        )
        gold = json.dumps({keys[field]: values[field] for field in asked}, ensure_ascii=False)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": gold}]
        return Example(self.name, lang, messages=messages, meta={"schema": schema, "text": text})

    def score(self, example: Example, answer: dict[str, Any]) -> bool:
        """The content is one JSON object, equal to the gold one, types included; no tool is
        called.
        """
        assert example.messages is not None
        try:
            value = parse_object(str(answer.get("content") or ""))
        except FormatError:
            return False
        return same_json(value, json.loads(example.messages[-1]["content"])) and not answer.get(
            "tool_calls"
        )
